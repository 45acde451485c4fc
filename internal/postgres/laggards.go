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
	// besideCandidate is how long a standby that keeps up has for the last records, which the candidate gets at the same
	// time: with them it follows the new primary sooner. One that freezes just then is not worth more.
	besideCandidate = 300 * time.Millisecond
	// silent is how long a standby may not have replied, by its own clock, which may be off; beside a candidate, where being
	// left behind costs nothing but a little time, that is three of its intervals.
	silent, silentBesideCandidate = time.Minute, 3 * time.Second
)

// Laggard is a walsender that a fast stop should not wait for, or not for long.
type Laggard struct {
	pid   int
	after time.Duration
}

// Laggards are the walsenders a fast stop should not wait for: a fast stop ships all WAL to every connected standby, and
// one that is a gigabyte behind or frozen would hold it up. These are those far behind, or silent; with
// a candidate, every other standby after a moment.
func (s *Server) Laggards(ctx context.Context, candidate string) (laggards []Laggard, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { warm.done(err) }()
	patience := silent
	if candidate != "" {
		patience = silentBesideCandidate
	}
	rows, err := warm.Query(ctx, `SELECT pid, coalesce(pg_current_wal_flush_lsn() - flush_lsn > $2 OR
		reply_time < clock_timestamp() - make_interval(secs => $3), true) FROM pg_stat_replication WHERE application_name <> $1`,
		prepared, candidate, farBehind, patience.Seconds())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		l, late := Laggard{after: besideCandidate}, false
		if err := rows.Scan(&l.pid, &late); err != nil {
			return nil, err
		}
		if late {
			l.after = disconnectAfter
		}
		if late || candidate != "" {
			laggards = append(laggards, l)
		}
	}
	return laggards, rows.Err()
}

// DisconnectSoon terminates walsenders when the stop that the caller is about to begin has begun and their time is up. The
// returned function takes back what has not happened.
func (s *Server) DisconnectSoon(laggards []Laggard) (cancel func()) {
	timers := make([]*time.Timer, len(laggards))
	for i, l := range laggards {
		timers[i] = time.AfterFunc(l.after, func() { _ = syscall.Kill(l.pid, syscall.SIGTERM) })
	}
	return func() {
		for _, t := range timers {
			t.Stop()
		}
	}
}
