package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Position is the end of the flushed WAL with the timeline of its last record, of a server that takes sessions. On a
// standby the WAL receiver should have been stopped, or the answer is only a lower bound.
//
// Two traps are avoided. pg_last_wal_receive_lsn() is NULL after a restart until a receiver has started, and starts
// again at a segment's beginning: so it is never used alone, and while it is NULL the local WAL may not have been
// replayed to its end, so the end is waited for. And the history files in pg_wal may be of a primary whose timeline
// this server never entered: so the timeline is that of the last record replayed, and if something was received beyond
// that on another timeline, replay is waited for.
func (s *Server) Position(ctx context.Context) (pos Position, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return Position{}, err
	}
	defer func() { warm.done(err) }()
	return position(ctx, warm)
}

func position(ctx context.Context, warm sessions) (Position, error) {
	for {
		end, err := standbyEnd(ctx, warm.Conn)
		if err != nil {
			return Position{}, err
		}
		id, err := identify(ctx, warm.walsender)
		if err != nil {
			return Position{}, err
		}
		if !end.recovering || end.known && id.Position.LSN >= end.received {
			return id.Position, nil
		}
		select {
		case <-ctx.Done():
			return Position{}, fmt.Errorf("replay has not reached the end of the local WAL (it is at %s): %w", id.Position.LSN, context.Cause(ctx))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// walEnd is what a standby knows of its WAL's end.
type walEnd struct {
	recovering bool
	// known is true when a receiver has streamed since the start (which begins only after all local WAL was replayed),
	// or when the startup process waits for more WAL, having replayed all there is.
	known    bool
	received LSN
}

func standbyEnd(ctx context.Context, conn *pgx.Conn) (walEnd, error) {
	var e walEnd
	var received *string
	var waiting bool
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), pg_last_wal_receive_lsn()::text, coalesce((SELECT
		wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval') FROM pg_stat_activity
		WHERE backend_type = 'startup'), false)`, prepared).Scan(&e.recovering, &received, &waiting)
	if err != nil {
		return walEnd{}, err
	}
	e.known = waiting
	if received != nil {
		e.known = true
		e.received, err = ParseLSN(*received)
	}
	return e, err
}
