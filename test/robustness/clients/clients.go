// Package clients are the clients of the robustness test: they write, read and compare-and-set through the gateways and
// past them, and record every operation (package history).
package clients

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/test/robustness/history"
)

// Endpoint is a way to the shard, and the clients that go it.
type Endpoint struct {
	// Name for the history.
	Name string
	// DSN of the connections.
	DSN string
	// Clients that go this way.
	Clients int
	// Timeout of an operation, after which its outcome is unknown.
	Timeout time.Duration
	// Cancels: a client that runs out of time asks the server to cancel first, and waits a moment for its answer. A commit
	// that waits for its standbys then succeeds with a warning.
	Cancels bool
}

// Config of a run.
type Config struct {
	Endpoints []Endpoint
	// Registers and Ledgers to work on. Few, so that clients meet, and enough for a history that can be checked.
	Registers, Ledgers int
	// Interval between the beginnings of a client's operations.
	Interval time.Duration
	// Seed of what the clients choose to do.
	Seed uint64
	// SetupTimeout bounds the making of the tables, AuditTimeout the reading of everything at the end.
	SetupTimeout, AuditTimeout time.Duration
	// Live takes a line now and then.
	Live io.Writer
}

const (
	// connectTimeout of one attempt.
	connectTimeout = 3 * time.Second
	// retry is the pause after an attempt failed.
	retry = 50 * time.Millisecond
	// liveEvery is how often progress is reported and the history is flushed.
	liveEvery = time.Second
)

// Run works until the context ends, then reads everything once more, and writes the history. The error is about the run,
// not about what it found.
func Run(ctx context.Context, c Config, out io.Writer) error {
	if len(c.Endpoints) == 0 {
		return errors.New("there is no endpoint")
	}
	if err := setup(ctx, c); err != nil {
		return fmt.Errorf("making the tables: %w", err)
	}
	rec, err := newRecorder(out)
	if err != nil {
		return err
	}
	var all, reporter sync.WaitGroup
	reporting, endReport := context.WithCancel(context.WithoutCancel(ctx))
	defer endReport()
	reporter.Go(func() { rec.report(reporting, c.Live) })
	id := 0
	for _, e := range c.Endpoints {
		for range e.Clients {
			w, err := newClient(c, e, id, rec)
			if err != nil {
				return err
			}
			all.Go(func() { w.work(ctx) })
			id++
		}
	}
	all.Wait()
	err = audit(context.WithoutCancel(ctx), c, id, rec)
	endReport()
	reporter.Wait()
	return errors.Join(err, rec.close())
}

// schema makes the tables. Statements are repeated until all have succeeded.
func schema(c Config) []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS registers (key int PRIMARY KEY, value bigint NOT NULL, version bigint NOT NULL, reads bigint NOT NULL) WITH (fillfactor = 50)`,
		`CREATE TABLE IF NOT EXISTS ledgers (id int PRIMARY KEY, head bigint NOT NULL, seq bigint NOT NULL, touched bigint NOT NULL) WITH (fillfactor = 50)`,
		`CREATE TABLE IF NOT EXISTS entries (ledger int, seq bigint, prev bigint NOT NULL, value bigint NOT NULL UNIQUE, PRIMARY KEY (ledger, seq))`,
		fmt.Sprintf(`INSERT INTO registers SELECT key, 0, 0, 0 FROM generate_series(0, %d) key ON CONFLICT DO NOTHING`, c.Registers-1),
		fmt.Sprintf(`INSERT INTO ledgers SELECT id, 0, 0, 0 FROM generate_series(0, %d) id ON CONFLICT DO NOTHING`, c.Ledgers-1),
	}
}

func setup(ctx context.Context, c Config) error {
	ctx, cancel := context.WithTimeout(ctx, c.SetupTimeout)
	defer cancel()
	for _, statement := range schema(c) {
		err := insist(ctx, c.Endpoints[0].DSN, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, statement)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// insist does something on a fresh connection until it succeeds or the context ends.
func insist(ctx context.Context, dsn string, f func(context.Context, *pgx.Conn) error) error {
	for {
		err := func() error {
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(ctx) }()
			return f(ctx, conn)
		}()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * retry):
		}
	}
}

// audit reads every register and every ledger once more, by operations that must be linearizable, each until it is
// acknowledged; then the entries. Whatever the run lost without anybody having looked is found here.
func audit(ctx context.Context, c Config, id int, rec *recorder) error {
	ctx, cancel := context.WithTimeout(ctx, c.AuditTimeout)
	defer cancel()
	w, err := newClient(c, c.Endpoints[0], id, rec)
	if err != nil {
		return err
	}
	defer w.drop()
	var todo []history.Op
	for key := range c.Registers {
		todo = append(todo, history.Op{Kind: history.Read, Key: key})
	}
	for key := range c.Ledgers {
		todo = append(todo, history.Op{Kind: history.CAS, Key: key, Expect: never, Value: w.next()})
	}
	for _, op := range todo {
		for {
			op.Value = w.fresh(op)
			if w.do(ctx, op).Outcome == load.Acked {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("reading everything at the end: %w", ctx.Err())
			case <-time.After(retry):
			}
		}
	}
	var entries []history.Entry
	err = insist(ctx, c.Endpoints[0].DSN, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT ledger, seq, prev, value FROM entries ORDER BY ledger, seq`)
		if err != nil {
			return err
		}
		entries, err = pgx.CollectRows(rows, pgx.RowToStructByPos[history.Entry])
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the entries: %w", err)
	}
	return rec.audit(entries)
}

// never is a head that no ledger ever has: a CAS that expects it only looks, and is acknowledged by a quorum.
const never = -1

func random(seed uint64, id int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(id))) }
