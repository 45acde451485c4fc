package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"k8s.io/utils/clock"
)

// Config of a run. The zero value of a field means its default, where one is given.
type Config struct {
	// DSN is where to write: a libpq connection string or URL, several hosts and target_session_attrs included.
	DSN string
	// Writers is the number of connections. Default 4.
	Writers int
	// Interval between the beginnings of a writer's operations. Default 0: the next begins when the last has ended.
	Interval time.Duration
	// Timeout of one operation, after which its outcome is unknown and its connection is dropped. Default 5 s.
	Timeout time.Duration
	// ConnectTimeout of one attempt to connect. Default: Timeout.
	ConnectTimeout time.Duration
	// MaxLifetime of a connection, as pools have it: then the writer itself ends it between two operations and makes
	// another. It is spread by up to a quarter downwards, so that they do not all go at once. Default 0: for ever.
	MaxLifetime time.Duration
	// Retry is the pause after an attempt to connect failed. Default 10 ms.
	Retry time.Duration
	// Duration of the run. 0: until the context ends.
	Duration time.Duration
	// Table that is written to, made when it is not there. Default theseus_load.
	Table string
	// SetupTimeout and VerifyTimeout bound the beginning (make the table) and the end (read everything back), both
	// retried until they succeed. Default 60 s each.
	SetupTimeout, VerifyTimeout time.Duration
	// KeepOps keeps every operation in the Summary.
	KeepOps bool
	// Live takes a line per second, when set.
	Live io.Writer
	// Observe is told of each operation as it ends, when set, from the writers' goroutines.
	Observe func(Op)
	// Clock. Default: the real one.
	Clock clock.WithTicker
}

func (c *Config) complete() error {
	if c.DSN == "" {
		return errors.New("a DSN must be given")
	}
	for v, d := range map[*time.Duration]time.Duration{
		&c.Timeout: 5 * time.Second, &c.Retry: 10 * time.Millisecond,
		&c.SetupTimeout: time.Minute, &c.VerifyTimeout: time.Minute,
	} {
		if *v == 0 {
			*v = d
		}
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = c.Timeout
	}
	if c.Writers == 0 {
		c.Writers = 4
	}
	if c.Table == "" {
		c.Table = "theseus_load"
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Writers < 1 || c.Writers > math.MaxInt16 {
		return fmt.Errorf("%d writers: at least 1, at most %d", c.Writers, math.MaxInt16)
	}
	return nil
}

// Outcome of an operation.
type Outcome string

// The outcomes; see the package.
const (
	Acked   Outcome = "acked"
	Failed  Outcome = "failed"
	Unknown Outcome = "unknown"
)

// Op is one insertion.
type Op struct {
	Writer  int       `json:"writer"`
	Seq     int64     `json:"seq"`
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	Outcome Outcome   `json:"outcome"`
	// Code of the failure: a SQLSTATE, or one of connect, timeout, closed, warning. Empty when acked.
	Code string `json:"code,omitempty"`
	// Error in full. Empty when acked.
	Error string `json:"error,omitempty"`
}

// Run writes until the context or Config.Duration ends, reads everything back, and returns what happened. The error is
// about the run itself: it could not begin, or the rows could not be read back (the Summary is there all the same, with
// Verified false). Lost writes are no error of the run: see Summary.Lost.
func Run(ctx context.Context, c Config) (*Summary, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(c.DSN)
	if err != nil {
		return nil, err
	}
	config.ConnectTimeout = c.ConnectTimeout
	run := time.Now().UnixNano() // tells runs apart in one table
	if err := setup(ctx, c, config); err != nil {
		return nil, fmt.Errorf("making table %s: %w", c.Table, err)
	}
	rec := newRecorder(c)
	writing, stop := context.WithCancel(ctx)
	defer stop()
	if c.Duration > 0 {
		writing, stop = context.WithTimeout(ctx, c.Duration)
		defer stop()
	}
	var writers, reporter sync.WaitGroup
	for i := range c.Writers {
		w := &writer{config: c, pg: config.Copy(), id: i, run: run, rec: rec}
		writers.Go(func() { w.write(writing) })
	}
	reporting, endReport := context.WithCancel(context.WithoutCancel(ctx))
	defer endReport()
	if c.Live != nil {
		reporter.Go(func() { rec.report(reporting) })
	}
	writers.Wait()
	endReport()
	reporter.Wait()
	summary := rec.summary()
	err = verify(context.WithoutCancel(ctx), c, config, run, rec, summary)
	return summary, err
}

// setup makes the table.
func setup(ctx context.Context, c Config, config *pgx.ConnConfig) error {
	statement := "CREATE TABLE IF NOT EXISTS " + pgx.Identifier{c.Table}.Sanitize() +
		" (run bigint, writer int, seq bigint, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (run, writer, seq))"
	return insist(ctx, c, config, c.SetupTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, statement)
		return err
	})
}

// insist does something on a fresh connection until it succeeds or the bound is over.
func insist(ctx context.Context, c Config, config *pgx.ConnConfig, bound time.Duration, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		err := once(ctx, config, f)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-c.Clock.After(10 * c.Retry):
		}
	}
}

func once(ctx context.Context, config *pgx.ConnConfig, f func(context.Context, *pgx.Conn) error) error {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return err
	}
	defer closeSoon(conn)
	return f(ctx, conn)
}

func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// verify reads the rows of the run back and compares.
func verify(ctx context.Context, c Config, config *pgx.ConnConfig, run int64, rec *recorder, s *Summary) error {
	var there []map[int64]bool
	err := insist(ctx, c, config, c.VerifyTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		there = make([]map[int64]bool, c.Writers)
		for i := range there {
			there[i] = map[int64]bool{}
		}
		rows, err := conn.Query(ctx, "SELECT writer, seq FROM "+pgx.Identifier{c.Table}.Sanitize()+" WHERE run = $1", run)
		if err != nil {
			return err
		}
		var writer int
		var seq int64
		_, err = pgx.ForEachRow(rows, []any{&writer, &seq}, func() error {
			if writer < 0 || writer >= len(there) {
				return fmt.Errorf("row of writer %d, who does not exist", writer)
			}
			there[writer][seq] = true
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	rec.compare(there, s)
	return nil
}
