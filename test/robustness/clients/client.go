package clients

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/test/robustness/history"
)

const (
	// cancelSoon and cancelLimit are when a client that cancels sends its request after it ran out of time, and how long after
	// that it waits for the server's answer.
	cancelSoon  = 1 * time.Millisecond
	cancelLimit = time.Second
	// valuesEach is how many values a client may write: they are numbered by client.
	valuesEach = 1_000_000_000
)

// client does one operation at a time, on one connection for as long as that lasts.
type client struct {
	config   Config
	endpoint Endpoint
	pg       *pgx.ConnConfig
	id       int
	rec      *recorder
	random   *rand.Rand

	conn    *pgx.Conn
	session int
	values  int64
	heads   []int64 // of the ledgers, as last seen
	warned  string  // what the server warned of during the operation under way
}

func newClient(c Config, e Endpoint, id int, rec *recorder) (*client, error) {
	pg, err := pgx.ParseConfig(e.DSN)
	if err != nil {
		return nil, err
	}
	pg.ConnectTimeout = connectTimeout
	w := &client{config: c, endpoint: e, pg: pg, id: id, rec: rec, random: random(c.Seed, id), heads: make([]int64, c.Ledgers)}
	pg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" || n.SeverityUnlocalized == "WARNING" {
			w.warned = n.Code + " " + n.Message
		}
	}
	if e.Cancels {
		pg.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
			return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, CancelRequestDelay: cancelSoon, DeadlineDelay: cancelLimit}
		}
	}
	return w, nil
}

// work does operations until the context ends. The one under way then is finished, so that its outcome is known.
func (w *client) work(ctx context.Context) {
	defer w.drop()
	tick := time.NewTicker(w.config.Interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		op := w.do(context.WithoutCancel(ctx), w.choose())
		if op.Outcome != load.Acked && w.conn == nil {
			time.Sleep(retry)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// choose what to do next.
func (w *client) choose() history.Op {
	switch n := w.random.IntN(100); {
	case n < 30:
		return history.Op{Kind: history.Write, Key: w.random.IntN(w.config.Registers), Value: w.next()}
	case n < 55:
		return history.Op{Kind: history.Read, Key: w.random.IntN(w.config.Registers)}
	case n < 80:
		return history.Op{Kind: history.Glance, Key: w.random.IntN(w.config.Registers)}
	default:
		key := w.random.IntN(w.config.Ledgers)
		return history.Op{Kind: history.CAS, Key: key, Expect: w.heads[key], Value: w.next()}
	}
}

// next is a value that nobody has written.
func (w *client) next() int64 {
	w.values++
	return int64(w.id+1)*valuesEach + w.values
}

// fresh is a value for an operation that is tried again; those that write nothing need none.
func (w *client) fresh(op history.Op) int64 {
	if op.Value == 0 {
		return 0
	}
	return w.next()
}

// do one operation and record it.
func (w *client) do(ctx context.Context, op history.Op) history.Op {
	op.Client, op.Endpoint = w.id, w.endpoint.Name
	op.Call = w.rec.now()
	w.try(ctx, &op)
	op.Return = w.rec.now()
	op.Session = w.session
	w.rec.ended(op)
	if op.Kind == history.CAS && op.Outcome == load.Acked {
		w.heads[op.Key] = op.Got
		if op.Got == op.Expect {
			w.heads[op.Key] = op.Value
		}
	}
	return op
}

func (w *client) try(ctx context.Context, op *history.Op) {
	if w.conn == nil {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		conn, err := pgx.ConnectConfig(ctx, w.pg)
		if err != nil {
			op.Outcome, op.Code, op.Error = load.Failed, load.ConnectCode(err), err.Error()
			return
		}
		w.conn = conn
		w.session++
	}
	ctx, cancel := context.WithTimeout(ctx, w.endpoint.Timeout)
	defer cancel()
	w.warned = ""
	var err error
	committing := true
	switch op.Kind {
	case history.Write:
		err = w.conn.QueryRow(ctx, `UPDATE registers SET value = $2, version = version + 1 WHERE key = $1 RETURNING version`, op.Key, op.Value).Scan(&op.Version)
	case history.Read:
		err = w.conn.QueryRow(ctx, `UPDATE registers SET reads = reads + 1 WHERE key = $1 RETURNING value, version`, op.Key).Scan(&op.Got, &op.Version)
	case history.Glance:
		err = w.conn.QueryRow(ctx, `SELECT value, version, concat(inet_server_addr(), ' ', pg_postmaster_start_time()) FROM registers WHERE key = $1`, op.Key).Scan(&op.Got, &op.Version, &op.Server)
	case history.CAS:
		committing, err = w.compareAndSet(ctx, op)
	}
	op.Outcome, op.Code, op.Error = load.Classify(err, w.warned)
	if op.Outcome == load.Unknown && !committing {
		op.Outcome = load.Failed // nobody was ever asked to commit it
	}
	if err != nil && (w.conn.IsClosed() || op.Outcome == load.Unknown || w.conn.PgConn().TxStatus() != 'I') {
		w.drop()
	}
}

// compareAndSet moves a ledger's head and leaves an entry, or only touches the ledger, so that a quorum answers for what
// was found in any case. committing is false when it failed before the server was asked to commit.
func (w *client) compareAndSet(ctx context.Context, op *history.Op) (committing bool, err error) {
	if _, err := w.conn.Exec(ctx, `BEGIN`); err != nil {
		return false, err
	}
	var seq int64
	if err := w.conn.QueryRow(ctx, `SELECT head, seq FROM ledgers WHERE id = $1 FOR UPDATE`, op.Key).Scan(&op.Got, &seq); err != nil {
		return false, err
	}
	if op.Got == op.Expect {
		if _, err := w.conn.Exec(ctx, `INSERT INTO entries VALUES ($1, $2, $3, $4)`, op.Key, seq+1, op.Got, op.Value); err != nil {
			return false, err
		}
		_, err = w.conn.Exec(ctx, `UPDATE ledgers SET head = $2, seq = seq + 1, touched = touched + 1 WHERE id = $1`, op.Key, op.Value)
	} else {
		_, err = w.conn.Exec(ctx, `UPDATE ledgers SET touched = touched + 1 WHERE id = $1`, op.Key)
	}
	if err != nil {
		return false, err
	}
	if w.conn.IsClosed() {
		return false, pgconn.ErrConnClosed
	}
	tag, err := w.conn.Exec(ctx, `COMMIT`)
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return false, errRolledBack
	case errors.Is(err, pgconn.ErrConnClosed):
		return true, errUnanswered
	}
	return true, err
}

var (
	// errRolledBack is a COMMIT that was answered with ROLLBACK.
	errRolledBack = errors.New("the transaction was rolled back")
	// errUnanswered is a COMMIT that was sent on a connection that was lost before the answer. In the simple protocol pgx
	// (5.12) forgets that it had sent it: it says "conn closed", and that it is safe to send it again. It is not.
	errUnanswered = errors.New("the connection was lost while the commit was under way")
)

func (w *client) drop() {
	if w.conn == nil {
		return
	}
	// Not gracefully: the server may be frozen.
	_ = w.conn.PgConn().Conn().Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx)
	w.conn = nil
}
