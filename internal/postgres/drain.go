package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const openSessions = `FROM pg_stat_activity WHERE backend_type = 'client backend' AND xact_start IS NOT NULL
	AND application_name NOT LIKE 'theseus-agent%' AND pid <> pg_backend_pid()`

// OpenCounter counts open transactions of clients in a session of its own.
type OpenCounter struct{ conn *pgx.Conn }

// CountOpen opens a counter.
func (s *Server) CountOpen(ctx context.Context) (*OpenCounter, error) {
	conn, err := s.Connect(ctx, "drain")
	if err != nil {
		return nil, err
	}
	return &OpenCounter{conn: conn}, nil
}

// Count is how many client sessions have a transaction open, be it running, idle, or waiting for acknowledgement. Unless
// begunBefore is zero, only those that had begun by then count.
func (c *OpenCounter) Count(ctx context.Context, begunBefore time.Time) (n int, err error) {
	if begunBefore.IsZero() {
		err = c.conn.QueryRow(ctx, "SELECT count(*) "+openSessions).Scan(&n)
	} else {
		err = c.conn.QueryRow(ctx, "SELECT count(*) "+openSessions+" AND xact_start <= $1", begunBefore).Scan(&n)
	}
	return n, err
}

// Close ends the session.
func (c *OpenCounter) Close() { closeSoon(c.conn) }

// TerminateOpen terminates the sessions of clients that have a transaction open and says how many.
func (s *Server) TerminateOpen(ctx context.Context) (n int, err error) {
	conn, err := s.Connect(ctx, "drain")
	if err != nil {
		return 0, err
	}
	defer closeSoon(conn)
	err = conn.QueryRow(ctx, "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) "+openSessions+") t").Scan(&n)
	return n, err
}
