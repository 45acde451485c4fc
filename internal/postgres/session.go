package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// prepared has a query of a session that is kept planned once: the views of pg_stat_ take longer to plan than to read, just when
// every instance is looked at several times over.
const prepared = pgx.QueryExecModeCacheStatement

// Connect opens a session of the superuser over the unix socket in the database postgres. what becomes part of
// application_name, so that people see whose it is.
func (s *Server) Connect(ctx context.Context, what string) (*pgx.Conn, error) {
	return s.connect(ctx, "postgres", what, nil)
}

func (s *Server) connect(ctx context.Context, database, what string, notice func(*pgconn.Notice)) (*pgx.Conn, error) {
	conf, err := pgx.ParseConfig(s.socketDSN(database, what))
	if err != nil {
		return nil, err
	}
	if notice != nil {
		conf.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notice(n) }
	}
	conf.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return pgx.ConnectConfig(ctx, conf)
}

func (s *Server) socketDSN(database, what string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s application_name=%s sslmode=disable connect_timeout=60",
		connQuote(s.conf.socketDir()), s.conf.Port, Superuser, connQuote(database), connQuote(applicationPrefix+" "+what))
}

// replicationSession opens a walsender session over the unix socket, for IDENTIFY_SYSTEM.
func (s *Server) replicationSession(ctx context.Context) (*pgconn.PgConn, error) {
	return pgconn.Connect(ctx, s.socketDSN("postgres", "position")+" replication=true")
}

// Identity is the answer of IDENTIFY_SYSTEM.
type Identity struct {
	System   uint64
	Position Position
}

// identify asks for the end of the flushed WAL and its timeline. On a standby PostgreSQL answers from shared memory
// with the timeline of the last record *replayed*, and with the received position if that is on the same timeline,
// else with the replayed one. Unlike pg_last_wal_receive_lsn() it is never behind what was replayed.
func identify(ctx context.Context, conn *pgconn.PgConn) (Identity, error) {
	results, err := conn.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil {
		return Identity{}, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 3 {
		return Identity{}, errors.New("IDENTIFY_SYSTEM: unexpected answer")
	}
	row := results[0].Rows[0]
	var id Identity
	if _, err := fmt.Sscan(string(row[0]), &id.System); err != nil {
		return Identity{}, err
	}
	if _, err := fmt.Sscan(string(row[1]), &id.Position.Timeline); err != nil {
		return Identity{}, err
	}
	id.Position.LSN, err = ParseLSN(string(row[2]))
	return id, err
}

// Exec runs one statement in a session of its own. Nothing is cancelled when ctx ends: the session is dropped, and a
// statement that waits for acknowledgement goes on waiting on the server.
func (s *Server) Exec(ctx context.Context, what, sql string, args ...any) error {
	conn, err := s.Connect(ctx, what)
	if err != nil {
		return err
	}
	defer closeSoon(conn)
	_, err = conn.Exec(ctx, sql, args...)
	return err
}

// Checkpoint runs CHECKPOINT.
func (s *Server) Checkpoint(ctx context.Context) error {
	return s.Exec(ctx, "checkpoint", "CHECKPOINT")
}

// closeSoon ends a session politely but never waits long for it.
func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_ = conn.Close(ctx)
}

// IsAgentSession says whether an application_name is one of the agent's own.
func IsAgentSession(application string) bool {
	return strings.HasPrefix(application, applicationPrefix)
}
