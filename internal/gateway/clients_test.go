//go:build integration

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// move is a planned reparent as the gateway sees it.
func move(from, to *instance, term uint64) {
	from.drain(true)
	from.awaitPause(5 * time.Second)
	from.say(func(s *agentpb.Status) { s.Role, s.Established = agentpb.Role_STANDBY, false })
	to.establish(term)
}

func TestWhoMayLogIn(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	require.Equal(t, l.a.name, server(t, l.connect()))
	for name, change := range map[string]func(*pgx.ConnConfig){
		"wrong password":          func(c *pgx.ConnConfig) { c.Password = "x" },
		"no password":             func(c *pgx.ConnConfig) { c.Password = "" },
		"unknown user":            func(c *pgx.ConnConfig) { c.User = "nobody" },
		"superuser":               func(c *pgx.ConnConfig) { c.User = "postgres" },
		"the gateway's own role":  func(c *pgx.ConnConfig) { c.User = lookupUser; c.Password = "" },
		"... with the app's word": func(c *pgx.ConnConfig) { c.User = lookupUser },
		"the console":             func(c *pgx.ConnConfig) { c.Database = "pgbouncer" },
		"the console's user":      func(c *pgx.ConnConfig) { c.Database, c.User = "pgbouncer", consoleUser },
		"the console by name":     func(c *pgx.ConnConfig) { c.Database, c.User = "pgbouncer", "pgbouncer" },
		"no TLS":                  func(c *pgx.ConnConfig) { c.TLSConfig = nil },
		"no such database":        func(c *pgx.ConnConfig) { c.Database = "nothere" },
	} {
		t.Run(name, func(t *testing.T) {
			c := l.config()
			change(c)
			conn, err := pgx.ConnectConfig(within(t, 10*time.Second), c)
			if err == nil {
				_, err = conn.Exec(within(t, 10*time.Second), "SELECT 1")
				_ = conn.Close(context.Background())
			}
			require.Error(t, err)
			t.Log(err)
		})
	}
}

// Prepared statements of the protocol survive a move, and so do clients that do nothing while it happens.
func TestPreparedStatementsMove(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	conn := l.connect()
	_, err := conn.Prepare(within(t, 5*time.Second), "s", "SELECT current_setting('cluster_name') || $1::text")
	require.NoError(t, err)
	ask := func() (name string) {
		require.NoError(t, conn.QueryRow(within(t, 5*time.Second), "s", "!").Scan(&name))
		return name
	}
	require.Equal(t, l.a.name+"!", ask())
	move(l.a, l.b, 2)
	require.Equal(t, l.b.name+"!", ask())
}

// A transaction that runs when the drain begins finishes on the old primary; what begins after it waits; and when the
// drain is taken back everything goes on where it was.
func TestDrainWaitsForTransactions(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	long, next := l.connect(), l.connect()
	require.Equal(t, l.a.name, server(t, next))
	tx, err := long.Begin(within(t, 5*time.Second))
	require.NoError(t, err)
	_, err = tx.Exec(within(t, 5*time.Second), "INSERT INTO writes VALUES (1, 1)")
	require.NoError(t, err)

	l.a.drain(true)
	time.Sleep(100 * time.Millisecond)
	require.Empty(t, l.a.paused, "a transaction still runs")
	waited := make(chan time.Duration, 1)
	go func() {
		begin := time.Now()
		_, err := next.Exec(context.Background(), "SELECT 1")
		require.NoError(t, err)
		waited <- time.Since(begin)
	}()
	time.Sleep(100 * time.Millisecond)
	_, err = tx.Exec(within(t, 5*time.Second), "INSERT INTO writes VALUES (1, 2)")
	require.NoError(t, err)
	require.NoError(t, tx.Commit(within(t, 5*time.Second)))
	l.a.awaitPause(time.Second)
	require.Empty(t, waited)
	l.a.drain(false)
	require.GreaterOrEqual(t, <-waited, 100*time.Millisecond)
	require.Equal(t, l.a.name, server(t, long))

	// Taken back while a transaction still runs.
	tx, err = long.Begin(within(t, 5*time.Second))
	require.NoError(t, err)
	_, err = tx.Exec(within(t, 5*time.Second), "SELECT 1")
	require.NoError(t, err)
	l.a.drain(true)
	time.Sleep(50 * time.Millisecond)
	l.a.drain(false)
	require.Equal(t, l.a.name, server(t, next))
	require.NoError(t, tx.Commit(within(t, 5*time.Second)))
}

// A drain that nobody takes back or follows up does not keep clients waiting for ever.
func TestForgottenDrain(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxPause = time.Second })
	l.a.establish(1)
	conn := l.connect()
	require.Equal(t, l.a.name, server(t, conn))
	l.a.drain(true)
	l.a.awaitPause(5 * time.Second)
	begin := time.Now()
	require.Equal(t, l.a.name, server(t, conn))
	require.Greater(t, time.Since(begin), 500*time.Millisecond)
	time.Sleep(500 * time.Millisecond)
	begin = time.Now()
	require.Equal(t, l.a.name, server(t, conn))
	require.Less(t, time.Since(begin), 400*time.Millisecond)
	l.a.drain(false)
	move(l.a, l.b, 2) // once it was taken back, the next one is obeyed again
	require.Equal(t, l.b.name, server(t, conn))
}

// Clients that come, ask and go all the time see no error of ten moves either.
func TestPlannedWithComingAndGoing(t *testing.T) {
	l := newLab(t, func(c *Config) { c.PoolSize = 8 })
	l.a.establish(1)
	server(t, l.connect())
	ctx, stop := context.WithCancel(context.Background())
	var asked atomic.Int64
	var clients sync.WaitGroup
	failures := make(chan error, 1000)
	for range 12 {
		clients.Go(func() {
			for ctx.Err() == nil {
				conn, err := pgx.ConnectConfig(context.Background(), l.config())
				for range 1 + rand.IntN(30) {
					if err != nil || ctx.Err() != nil {
						break
					}
					_, err = conn.Exec(context.Background(), "INSERT INTO writes VALUES ($1, $2)", rand.Int32(), rand.Int64())
					asked.Add(1)
					time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
				}
				if err != nil {
					failures <- err
				}
				if conn != nil {
					_ = conn.Close(context.Background())
				}
			}
		})
	}
	from, to := l.a, l.b
	for i := range 10 {
		time.Sleep(200 * time.Millisecond)
		move(from, to, uint64(i+2))
		from, to = to, from
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	clients.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	t.Logf("%d statements", asked.Load())
}

// Clients that have begun to log in while the primary is lost are let in by the next one.
func TestLoginsThatHaveBegunSurviveAnEmergency(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *instance){
		"frozen": func(t *testing.T, i *instance) { i.freeze(); t.Cleanup(i.thaw) },
		// Whoever is asked for a name in that moment sends what it has of an answer, and a notice that it ends.
		"crashed": func(_ *testing.T, i *instance) { i.kill(syscall.SIGQUIT) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, nil)
			l.a.establish(1)
			require.Equal(t, l.a.name, server(t, l.connect())) // the session that looks names up is there
			l.a.sql("postgres", `CREATE OR REPLACE FUNCTION theseus.user_lookup(name text) RETURNS TABLE (uname text, phash text) LANGUAGE sql SECURITY DEFINER
				SET search_path = pg_catalog AS 'SELECT rolname::text, rolpassword FROM pg_authid, pg_sleep(0.5) WHERE rolname = name'`)
			type result struct {
				conn *pgx.Conn
				err  error
			}
			const clients = 10
			results := make(chan result, clients)
			for range clients {
				go func() {
					conn, err := pgx.ConnectConfig(context.Background(), l.config())
					results <- result{conn, err}
				}()
			}
			time.Sleep(200 * time.Millisecond) // the first of them is being looked up by now
			lose(t, l.a)
			time.Sleep(300 * time.Millisecond)
			l.b.establish(2)
			for range clients {
				r := <-results
				require.NoError(t, r.err)
				require.Equal(t, l.b.name, server(t, r.conn))
				require.NoError(t, r.conn.Close(context.Background()))
			}
		})
	}
}

// A drain that lasts longer than clients may be held is not obeyed any longer, and the agent hears of it.
func TestADrainThatLastsTooLong(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxPause = time.Second })
	l.a.establish(1)
	conn := l.connect()
	require.Equal(t, l.a.name, server(t, conn))
	l.a.drain(true)
	l.a.awaitPause(time.Second)
	require.Empty(t, l.a.passing)
	begin := time.Now()
	require.Equal(t, l.a.name, server(t, conn), "it is let through in the end")
	require.Less(t, time.Since(begin), 3*time.Second)
	select {
	case <-l.a.passing:
	case <-time.After(3 * time.Second):
		require.Fail(t, "the agent still believes in the pause")
	}
}

func TestCancel(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	conn := l.connect()
	time.AfterFunc(300*time.Millisecond, func() { _ = conn.PgConn().CancelRequest(context.Background()) })
	begin := time.Now()
	_, err := conn.Exec(within(t, 10*time.Second), "SELECT pg_sleep(8)")
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, "57014", pgErr.Code)
	require.Less(t, time.Since(begin), 5*time.Second)
	require.Equal(t, l.a.name, server(t, conn))
}

func TestPgBouncerDies(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	require.Equal(t, l.a.name, server(t, l.connect()))
	old := l.gateway.child.process.Load()
	require.NoError(t, old.Signal(syscall.SIGKILL))
	require.Eventually(t, func() bool {
		p := l.gateway.child.process.Load()
		return p != nil && p != old
	}, 5*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		conn, err := pgx.ConnectConfig(within(t, time.Second), l.config())
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close(context.Background()) }()
		return server(t, conn) == l.a.name
	}, 5*time.Second, 20*time.Millisecond)
	move(l.a, l.b, 2) // steered as before
	require.Equal(t, l.b.name, server(t, l.connect()))
}

func TestCertificateRotation(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	stays := l.connect()
	require.Equal(t, l.a.name, server(t, stays))
	serial := func() string {
		conn := l.connect()
		return conn.PgConn().Conn().(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	l.writeLeaf(l.tlsDir, agentapi.RoleGateway, "localhost")
	require.Eventually(t, func() bool { return serial() != before }, 10*time.Second, 100*time.Millisecond)
	require.Equal(t, l.a.name, server(t, stays), "clients that are connected notice nothing")
}

// Told to end, the gateway stops being ready, ends what is idle, takes no new clients in the end, lets running
// transactions finish, and ends.
func TestShutdown(t *testing.T) {
	l := newLab(t, func(c *Config) { c.ShutdownDelay, c.DrainTimeout = 500*time.Millisecond, 12*time.Second })
	l.a.establish(1)
	running, idle := l.connect(), l.connect()
	require.Equal(t, l.a.name, server(t, idle))
	ready := func() int {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", l.health))
		if err != nil {
			return 0
		}
		_ = r.Body.Close()
		return r.StatusCode
	}
	require.Equal(t, http.StatusOK, ready())
	tx, err := running.Begin(within(t, 5*time.Second))
	require.NoError(t, err)
	_, err = tx.Exec(within(t, 5*time.Second), "INSERT INTO writes VALUES (7, 7)")
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() { defer close(ended); l.stop() }()
	require.Eventually(t, func() bool { return ready() == http.StatusServiceUnavailable }, time.Second, 5*time.Millisecond)
	require.Equal(t, l.a.name, server(t, l.connect()), "the Service has not noticed yet")
	require.Eventually(t, func() bool {
		_, err := pgx.ConnectConfig(within(t, time.Second), l.config())
		var op *net.OpError
		return errors.As(err, &op)
	}, 15*time.Second, 50*time.Millisecond)
	require.Error(t, idle.Ping(within(t, time.Second)), "it was ended while it was idle")
	_, err = tx.Exec(within(t, 5*time.Second), "INSERT INTO writes VALUES (7, 8)")
	require.NoError(t, err)
	require.NoError(t, tx.Commit(within(t, 5*time.Second)))
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
		require.Fail(t, "does not end")
	}
}

// Clients that are never idle and leave by themselves in time see no error, and the gateway ends with the last of them.
func TestShutdownWaitsForBusyClients(t *testing.T) {
	l := newLab(t, func(c *Config) { c.DrainTimeout = 12 * time.Second })
	l.a.establish(1)
	conn := l.connect()
	ended := make(chan struct{})
	go func() { defer close(ended); l.stop() }()
	for begin := time.Now(); time.Since(begin) < 3*time.Second; {
		_, err := conn.Exec(within(t, 5*time.Second), "SELECT 1")
		require.NoError(t, err)
	}
	select {
	case <-ended:
		require.Fail(t, "it has ended under a busy client")
	default:
	}
	require.NoError(t, conn.Close(within(t, time.Second)))
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
		require.Fail(t, "does not end")
	}
}

// Transactions that do not end are ended.
func TestShutdownIsBounded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.DrainTimeout = time.Second })
	l.a.establish(1)
	tx, err := l.connect().Begin(within(t, 5*time.Second))
	require.NoError(t, err)
	_, err = tx.Exec(within(t, 5*time.Second), "SELECT 1")
	require.NoError(t, err)
	begin := time.Now()
	l.stop()
	require.Less(t, time.Since(begin), 4*time.Second)
}
