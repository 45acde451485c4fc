package postgres

import (
	"context"
	"time"
)

const openSessions = `FROM pg_stat_activity WHERE backend_type = 'client backend' AND xact_start IS NOT NULL
	AND application_name NOT LIKE 'theseus-agent%' AND pid <> pg_backend_pid() AND ($1::timestamptz IS NULL OR xact_start <= $1)`

// CountOpen is how many client sessions have a transaction open, be it running, idle, or waiting for acknowledgement. Unless
// begunBefore is zero, only those that had begun by then count.
func (s *Server) CountOpen(ctx context.Context, begunBefore time.Time) (n int, err error) {
	return s.open(ctx, "SELECT count(*) "+openSessions, begunBefore)
}

// TerminateOpen terminates the sessions that CountOpen counts and says how many. It does so by the session that has counted
// them: a primary this busy may take long to let a new one in.
func (s *Server) TerminateOpen(ctx context.Context, begunBefore time.Time) (n int, err error) {
	return s.open(ctx, "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) "+openSessions+") ended", begunBefore)
}

func (s *Server) open(ctx context.Context, query string, begunBefore time.Time) (n int, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { warm.done(err) }()
	before := &begunBefore
	if begunBefore.IsZero() {
		before = nil
	}
	err = warm.QueryRow(ctx, query, prepared, before).Scan(&n)
	return n, err
}
