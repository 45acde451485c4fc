package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgconn"
)

// Ask asks another server of the shard, as the replicator, who it is, where its WAL ends and how its timeline came to
// be.
func (s *Server) Ask(ctx context.Context, u Upstream) (Identity, History, error) {
	conn, err := s.dialUpstream(ctx, u, "replication", "true")
	if err != nil {
		return Identity{}, History{}, err
	}
	defer func() { _ = conn.Close(ctx) }()
	id, err := identify(ctx, conn)
	if err != nil {
		return Identity{}, History{}, err
	}
	if id.Position.Timeline == 1 {
		return id, History{Timeline: 1}, nil
	}
	results, err := conn.Exec(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", id.Position.Timeline)).ReadAll()
	if err != nil {
		return Identity{}, History{}, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return Identity{}, History{}, errors.New("TIMELINE_HISTORY: unexpected answer")
	}
	h, err := ParseHistory(id.Position.Timeline, string(results[0].Rows[0][1]))
	return id, h, err
}

// CheckpointUpstream has a primary write a checkpoint.
func (s *Server) CheckpointUpstream(ctx context.Context, u Upstream) error {
	conn, err := s.dialUpstream(ctx, u, "", "")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, "CHECKPOINT").ReadAll()
	return err
}

func (s *Server) dialUpstream(ctx context.Context, u Upstream, param, value string) (*pgconn.PgConn, error) {
	conf, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s dbname=postgres sslmode=require connect_timeout=2",
		connQuote(u.Host), u.Port, ReplicatorRole))
	if err != nil {
		return nil, err
	}
	dir := s.conf.tlsDir()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	conf.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.conf.ServerName, RootCAs: pool, Certificates: []tls.Certificate{pair}}
	conf.RuntimeParams["application_name"] = applicationPrefix + " " + s.conf.Instance
	if param != "" {
		conf.RuntimeParams[param] = value
	}
	return pgconn.ConnectConfig(ctx, conf)
}
