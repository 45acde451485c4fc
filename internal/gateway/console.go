package gateway

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// consoleBound is for one command that does not wait for transactions. PgBouncer answers within a millisecond.
const consoleBound = 2 * time.Second

// console talks to PgBouncer's admin console over its unix socket. It keeps one connection for commands and opens one
// for each PAUSE, which answers only when every running transaction has ended.
type console struct {
	config *pgconn.Config

	mu   sync.Mutex
	conn *pgconn.PgConn

	// spare is for the next PAUSE: opening a connection takes longer than all the rest of a pause.
	spareMu sync.Mutex
	spare   *pgconn.PgConn
}

func newConsole(c Config, password string) (*console, error) {
	config, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s dbname=pgbouncer sslmode=disable",
		filepath.Join(c.RunDir, consoleDir), c.ListenPort, consoleUser))
	if err != nil {
		return nil, err
	}
	config.Password = password
	config.ConnectTimeout = consoleBound
	config.RuntimeParams = nil
	return &console{config: config}, nil
}

// reset forgets the connection to a PgBouncer that has ended.
func (c *console) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Conn().Close()
		c.conn = nil
	}
	if spare := c.takeSpare(); spare != nil {
		_ = spare.Conn().Close()
	}
}

// warm makes sure that there is a connection for the next PAUSE.
func (c *console) warm(ctx context.Context) error {
	c.spareMu.Lock()
	defer c.spareMu.Unlock()
	if c.spare != nil && !c.spare.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, consoleBound)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, c.config)
	if err != nil {
		return fmt.Errorf("PgBouncer's console: %w", err)
	}
	c.spare = conn
	return nil
}

func (c *console) takeSpare() *pgconn.PgConn {
	c.spareMu.Lock()
	defer c.spareMu.Unlock()
	conn := c.spare
	c.spare = nil
	return conn
}

func (c *console) giveSpare(conn *pgconn.PgConn) {
	c.spareMu.Lock()
	defer c.spareMu.Unlock()
	if c.spare != nil || conn.IsClosed() {
		_ = conn.Conn().Close()
		return
	}
	c.spare = conn
}

// do runs a command on the kept connection and returns its rows.
func (c *console) do(ctx context.Context, command string) (*pgconn.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, consoleBound)
	defer cancel()
	if c.conn == nil || c.conn.IsClosed() {
		conn, err := pgconn.ConnectConfig(ctx, c.config)
		if err != nil {
			return nil, fmt.Errorf("PgBouncer's console: %w", err)
		}
		c.conn = conn
	}
	return run(ctx, c.conn, command)
}

func run(ctx context.Context, conn *pgconn.PgConn, command string) (*pgconn.Result, error) {
	results, err := conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("PgBouncer's console: %s: %w", command, err)
	}
	if len(results) == 0 {
		return &pgconn.Result{}, nil
	}
	return results[0], nil
}

// pause sends PAUSE and returns once every server connection has been given up, or the context ends; ending the
// context does not resume. Being paused already is no error.
func (c *console) pause(ctx context.Context) error {
	if err := c.warm(ctx); err != nil {
		return err
	}
	conn := c.takeSpare()
	if conn == nil {
		return errors.New("PgBouncer's console: the connection was taken")
	}
	defer c.giveSpare(conn)
	_, err := run(ctx, conn, "PAUSE")
	return unless(err, "already suspended/paused")
}

// resume lets new transactions go, and makes sure of it: a PAUSE that was given up just before, on another connection,
// may have been read after the RESUME. PgBouncer reads every connection that has something to say in each turn of its
// loop, so by the second answer it has read all that was sent before the first command. Not being paused is no error.
func (c *console) resume(ctx context.Context) error {
	for range 3 {
		if _, err := c.do(ctx, "RESUME"); unless(err, "pooler is not paused/suspended") != nil {
			return err
		}
		if paused, err := c.paused(ctx); err != nil || !paused {
			return err
		}
	}
	return errors.New("PgBouncer stays paused")
}

// paused asks whether PgBouncer is paused.
func (c *console) paused(ctx context.Context) (bool, error) {
	result, err := c.do(ctx, "SHOW STATE")
	if err != nil {
		return false, err
	}
	for _, row := range result.Rows {
		if len(row) == 2 && string(row[0]) == "paused" {
			return string(row[1]) == "yes", nil
		}
	}
	return false, errors.New("SHOW STATE: no row says whether PgBouncer is paused")
}

// knock comes as a client whom nobody knows. It is turned away, but makes PgBouncer look the name up, and for that begin
// a login in the pool that looks names up.
func (c *console) knock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, consoleBound)
	defer cancel()
	config := c.config.Copy()
	config.User, config.Database = "theseus_knock", lookupDatabase
	if conn, err := pgconn.ConnectConfig(ctx, config); err == nil {
		_ = conn.Close(ctx)
	}
}

// limitPools changes how many server connections a pool may have. Those there are beyond it are closed when idle.
func (c *console) limitPools(ctx context.Context, n int) error {
	_, err := c.do(ctx, fmt.Sprintf("SET default_pool_size = %d", n))
	return err
}

// endIdle has the connections of clients ended that are idle for a second.
func (c *console) endIdle(ctx context.Context) error {
	_, err := c.do(ctx, "SET client_idle_timeout = 1")
	return err
}

func (c *console) reload(ctx context.Context) error {
	_, err := c.do(ctx, "RELOAD")
	return err
}

// pools sums the numeric columns of SHOW POOLS.
func (c *console) pools(ctx context.Context) (map[string]float64, error) {
	result, err := c.do(ctx, "SHOW POOLS")
	if err != nil {
		return nil, err
	}
	sums := map[string]float64{}
	for i, f := range result.FieldDescriptions {
		if !strings.HasPrefix(f.Name, "cl_") && !strings.HasPrefix(f.Name, "sv_") && f.Name != "maxwait" {
			continue
		}
		for _, row := range result.Rows {
			if string(row[0]) == "pgbouncer" {
				continue
			}
			v, err := strconv.ParseFloat(string(row[i]), 64)
			if err != nil {
				return nil, fmt.Errorf("SHOW POOLS: %s: %w", f.Name, err)
			}
			if f.Name == "maxwait" {
				sums[f.Name] = max(sums[f.Name], v)
			} else {
				sums[f.Name] += v
			}
		}
	}
	return sums, nil
}

// unless swallows the one error of the console that says the state is as wished already.
func unless(err error, message string) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && strings.Contains(pgErr.Message, message) {
		return nil
	}
	return err
}
