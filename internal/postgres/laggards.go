package postgres

import (
	"context"
	"syscall"
	"time"
)

const (
	// farBehind is the lag at which a standby is not waited for in a fast stop, in bytes.
	farBehind = 1 << 20
	// disconnectAfter is how long after the stop began laggards are disconnected: by then the postmaster accepts no new
	// connections, so they cannot come back.
	disconnectAfter = 5 * time.Millisecond
)

// Laggards are the walsenders a fast stop should not wait for: a fast stop ships all WAL to every connected standby, and
// one that is a gigabyte behind or frozen would hold it up. With a candidate that is every other standby; without one,
// those far behind, or silent for a minute (by the standby's clock, which may be off).
func (s *Server) Laggards(ctx context.Context, candidate string) (pids []int, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { warm.done(err) }()
	rows, err := warm.Query(ctx, `SELECT pid FROM pg_stat_replication WHERE CASE WHEN $1 <> '' THEN application_name <> $1
		ELSE coalesce(pg_current_wal_flush_lsn() - flush_lsn, $2 + 1) > $2 OR reply_time < clock_timestamp() - interval '1 minute' END`,
		candidate, farBehind)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var pid int
		if err := rows.Scan(&pid); err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, rows.Err()
}

// DisconnectSoon terminates walsenders shortly after, when the stop that the caller is about to begin has begun. The
// returned function takes that back if it has not happened.
func (s *Server) DisconnectSoon(pids []int) (cancel func()) {
	timer := time.AfterFunc(disconnectAfter, func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	})
	return func() { timer.Stop() }
}
