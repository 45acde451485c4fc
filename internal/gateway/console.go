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
	conn, err := pgconn.ConnectConfig(ctx, c.config)
	if err != nil {
		return fmt.Errorf("PgBouncer's console: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), consoleBound)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	_, err = run(ctx, conn, "PAUSE")
	return unless(err, "already suspended/paused")
}

// resume lets new transactions go. Not being paused is no error.
func (c *console) resume(ctx context.Context) error {
	_, err := c.do(ctx, "RESUME")
	return unless(err, "pooler is not paused/suspended")
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
