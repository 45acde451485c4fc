package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// writer is one client.
type writer struct {
	config Config
	pg     *pgx.ConnConfig
	id     int
	run    int64
	rec    *recorder

	conn   *pgx.Conn
	until  time.Time // the end of conn's life; zero is never
	warned string    // what the server warned of during the operation under way
}

// write inserts until the context ends. The operation under way then is finished, so that its outcome is known.
func (w *writer) write(ctx context.Context) {
	w.pg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" || n.SeverityUnlocalized == "WARNING" {
			w.warned = n.Message
		}
	}
	defer w.drop()
	statement := "INSERT INTO " + pgx.Identifier{w.config.Table}.Sanitize() + " (run, writer, seq) VALUES ($1, $2, $3)"
	next := w.config.Clock.Now()
	for seq := int64(1); ctx.Err() == nil; seq++ {
		op := w.insert(context.WithoutCancel(ctx), statement, seq)
		w.rec.ended(op)
		pause := time.Duration(0)
		if op.Outcome != Acked && w.conn == nil {
			pause = w.config.Retry
		}
		if w.config.Interval > 0 {
			// A writer that was held up does not make up for it: what is measured is the stall, not the backlog.
			now := w.config.Clock.Now()
			if next = next.Add(w.config.Interval); next.Before(now) {
				next = now
			}
			pause = max(pause, next.Sub(now))
		}
		if pause > 0 {
			select {
			case <-ctx.Done():
			case <-w.config.Clock.After(pause):
			}
		}
	}
}

// retire ends a connection whose life is over, the way a pool does: between two operations and with a goodbye.
func (w *writer) retire(ctx context.Context) {
	if w.conn == nil || w.until.IsZero() || w.config.Clock.Now().Before(w.until) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.config.Timeout)
	defer cancel()
	_ = w.conn.Close(ctx)
	w.conn = nil
}

func (w *writer) insert(ctx context.Context, statement string, seq int64) Op {
	w.retire(ctx)
	op := Op{Writer: w.id, Seq: seq, Start: w.config.Clock.Now()}
	op.Outcome, op.Code, op.Error = w.try(ctx, statement, seq)
	op.End = w.config.Clock.Now()
	return op
}

func (w *writer) try(ctx context.Context, statement string, seq int64) (Outcome, string, string) {
	if w.conn == nil {
		ctx, cancel := context.WithTimeout(ctx, w.config.ConnectTimeout)
		defer cancel()
		conn, err := pgx.ConnectConfig(ctx, w.pg)
		if err != nil {
			return Failed, ConnectCode(err), err.Error()
		}
		w.conn, w.until = conn, time.Time{}
		if life := w.config.MaxLifetime; life > 0 {
			w.until = w.config.Clock.Now().Add(life - time.Duration(rand.Int64N(int64(life)/4+1)))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, w.config.Timeout)
	defer cancel()
	w.warned = ""
	_, err := w.conn.Exec(ctx, statement, w.run, w.id, seq)
	outcome, code, text := Classify(err, w.warned)
	if outcome != Acked && (w.conn.IsClosed() || outcome == Unknown || code == readOnly) {
		w.drop()
	}
	return outcome, code, text
}

// readOnly is SQLSTATE read_only_sql_transaction. The server is no primary, or not yet: another connection may find one.
const readOnly = "25006"

func (w *writer) drop() {
	if w.conn != nil {
		// Not gracefully: the server may be frozen.
		_ = w.conn.PgConn().Conn().Close()
		closeSoon(w.conn)
		w.conn = nil
	}
}

// CodeWarning is Op.Code of an operation that the server said yes to, with a warning.
const CodeWarning = "warning"

// Classify says what is known of an operation from its error, and from the warning that the server sent with it, if any. A
// statement of its own is a transaction of its own, so an ERROR means that it was rolled back. FATAL does not: a server
// that is told to stop ends sessions that wait for a standby with FATAL although they have committed. The same wait, when
// it is cancelled, ends in success with a warning.
//
// The statement must have had arguments. Of one without (the simple protocol) pgx 5.12 says that nothing was sent when in
// truth the connection was lost before the answer.
func Classify(err error, warned string) (Outcome, string, string) {
	if err == nil {
		if warned != "" {
			return Unknown, CodeWarning, warned
		}
		return Acked, "", ""
	}
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		severity := pgErr.SeverityUnlocalized
		if severity == "" {
			severity = pgErr.Severity
		}
		if severity == "ERROR" {
			return Failed, pgErr.Code, err.Error()
		}
		return Unknown, pgErr.Code, err.Error()
	case pgconn.SafeToRetry(err): // nothing was sent
		return Failed, "closed", err.Error()
	case isTimeout(err):
		return Unknown, "timeout", err.Error()
	}
	return Unknown, "closed", err.Error()
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) || (errors.As(err, &netErr) && netErr.Timeout())
}

// ConnectCode is Op.Code of a connection that could not be made.
func ConnectCode(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		return pgErr.Code
	case isTimeout(err):
		return "connect timeout"
	}
	return "connect"
}
