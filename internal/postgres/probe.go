package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// ProbeSession commits small transactions.
type ProbeSession struct{ conn *pgx.Conn }

// NewProbeSession opens a session whose commits have the given synchronous_commit: "local" waits for this server's
// disk only, "on" for the cohort too.
func (s *Server) NewProbeSession(ctx context.Context, synchronousCommit string) (*ProbeSession, error) {
	conn, err := s.Connect(ctx, "probe "+synchronousCommit)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, "SET statement_timeout = 0; SET lock_timeout = 0; SET synchronous_commit = "+quote(synchronousCommit))
	if err != nil {
		closeSoon(conn)
		return nil, err
	}
	return &ProbeSession{conn: conn}, nil
}

// Commit commits a transaction that writes a message into the WAL and nothing else: no table, so no bloat, no lock, and
// nothing a user could get in the way of.
func (p *ProbeSession) Commit(ctx context.Context) error {
	_, err := p.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, 'theseus', '')")
	return err
}

// Close ends the session.
func (p *ProbeSession) Close() { closeSoon(p.conn) }
