package postgres

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// warm is a pair of sessions kept open for commands. A new session costs a fork of the postmaster, which takes long on a
// busy machine and for ever with a stopped postmaster: just when a promise is asked for.
type warm struct {
	turn      chan struct{} // holds a token while free
	life      *process
	conn      *pgx.Conn
	walsender *pgconn.PgConn
	// warned is set by every warning PostgreSQL sends on conn.
	warned atomic.Bool
}

func newWarm() *warm {
	w := &warm{turn: make(chan struct{}, 1)}
	w.turn <- struct{}{}
	return w
}

// sessions is the warm pair, for the holder alone until done is called; done with an error drops the sessions.
type sessions struct {
	*pgx.Conn
	walsender *pgconn.PgConn
	done      func(err error)
}

// acquire waits for its turn and opens what is not open.
func (s *Server) acquire(ctx context.Context) (sessions, error) {
	w := s.warm
	select {
	case <-w.turn:
	case <-ctx.Done():
		return sessions{}, fmt.Errorf("the command session is busy: %w", context.Cause(ctx))
	}
	done := func(err error) {
		if err != nil {
			w.drop()
		}
		w.turn <- struct{}{}
	}
	life := s.current()
	if life == nil || closed(life.exited) {
		done(ErrDown)
		return sessions{}, ErrDown
	}
	if w.life != life || w.conn == nil || w.conn.IsClosed() || w.walsender == nil || w.walsender.IsClosed() {
		w.drop()
		if err := w.open(ctx, s, life); err != nil {
			done(err)
			return sessions{}, err
		}
	}
	return sessions{Conn: w.conn, walsender: w.walsender, done: done}, nil
}

func (w *warm) open(ctx context.Context, s *Server, life *process) (err error) {
	w.life = life
	notice := func(n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			w.warned.Store(true)
		}
	}
	if w.conn, err = s.connect(ctx, "postgres", "commands", notice); err != nil {
		w.conn = nil
		return err
	}
	w.walsender, err = s.replicationSession(ctx)
	return err
}

// drop closes the sessions without waiting for a server that may be frozen.
func (w *warm) drop() {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if w.conn != nil {
		_ = w.conn.Close(ctx)
	}
	if w.walsender != nil {
		_ = w.walsender.Close(ctx)
	}
	w.conn, w.walsender = nil, nil
}
