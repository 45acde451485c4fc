package postgres

import (
	"context"
	"time"
)

const openSessions = `FROM pg_stat_activity WHERE backend_type = 'client backend' AND xact_start IS NOT NULL
	AND application_name NOT LIKE 'theseus-agent%' AND pid <> pg_backend_pid()`

// CountOpen is how many client sessions have a transaction open, be it running, idle, or waiting for acknowledgement. Unless
// begunBefore is zero, only those that had begun by then count.
func (s *Server) CountOpen(ctx context.Context, begunBefore time.Time) (n int, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { warm.done(err) }()
	if begunBefore.IsZero() {
		err = warm.QueryRow(ctx, "SELECT count(*) "+openSessions, prepared).Scan(&n)
	} else {
		err = warm.QueryRow(ctx, "SELECT count(*) "+openSessions+" AND xact_start <= $1", prepared, begunBefore).Scan(&n)
	}
	return n, err
}

// TerminateOpen terminates the sessions of clients that have a transaction open and says how many. It does so by the session
// that has counted them: a primary this busy may take long to let a new one in.
func (s *Server) TerminateOpen(ctx context.Context) (n int, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { warm.done(err) }()
	err = warm.QueryRow(ctx, "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) "+openSessions+") t", prepared).Scan(&n)
	return n, err
}
