//go:build integration

package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/load"
)

// writers runs the load client through the gateway until the returned function is called. What it says of lost rows is
// meaningless here, since the two servers do not replicate.
func (l *lab) writers(n int, change func(*load.Config)) (stop func() *load.Summary) {
	ctx, cancel := context.WithCancel(context.Background())
	c := load.Config{
		DSN: fmt.Sprintf("host=127.0.0.1 port=%d user=app dbname=app sslmode=require password='%s'", l.port,
			`a password with \'quotes\' and "more"`),
		Writers: n, KeepOps: true, Timeout: 10 * time.Second, VerifyTimeout: 5 * time.Second,
	}
	if change != nil {
		change(&c)
	}
	l.a.sql("app", loadTable)
	l.b.sql("app", loadTable)
	var s *load.Summary
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err = load.Run(ctx, c)
	}()
	stop = sync.OnceValue(func() *load.Summary {
		cancel()
		<-done
		require.NotNil(l.t, s, "%v", err)
		return s
	})
	l.t.Cleanup(func() { stop() })
	time.Sleep(500 * time.Millisecond) // under way
	return stop
}

const loadTable = `CREATE TABLE theseus_load (run bigint, writer int, seq bigint, at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (run, writer, seq)); ALTER TABLE theseus_load OWNER TO app`

// open is the number of transactions of clients on the server.
func (i *instance) open() (n int) {
	conn, err := pgx.Connect(context.Background(), i.local("postgres"))
	require.NoError(i.lab.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.NoError(i.lab.t, conn.QueryRow(context.Background(),
		"SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND xact_start IS NOT NULL").Scan(&n))
	return n
}

func server(t testing.TB, conn *pgx.Conn) (name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, conn.QueryRow(ctx, "SHOW cluster_name").Scan(&name))
	return name
}

// TestPlanned moves the primary back and forth under load, ten times, with idle clients connected: nobody may see
// an error, and what the gateway adds to the pause must be a fraction of the 150 ms aimed at for all of a reparent.
func TestPlanned(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	idle := make([]*pgx.Conn, 20)
	for i := range idle {
		idle[i] = l.connect()
		require.Equal(t, l.a.name, server(t, idle[i]))
	}
	stop := l.writers(4, nil)
	from, to := l.a, l.b
	var begins []time.Time
	var stalls []time.Duration
	for move := range 10 {
		begins = append(begins, time.Now())
		from.drain(true)
		from.awaitPause(2 * time.Second)
		require.Zero(t, from.open(), "the gateway said that it had paused")
		from.say(func(s *agentpb.Status) { s.Role, s.Established = agentpb.Role_STANDBY, false })
		to.establish(uint64(move + 2))
		from, to = to, from
		time.Sleep(300 * time.Millisecond)
	}
	for _, conn := range idle {
		require.Equal(t, from.name, server(t, conn), "an idle client was lost or left behind")
	}
	s := stop()
	require.Zero(t, s.Failed+s.Unknown, "%+v", s.Samples)
	for _, begin := range begins {
		stalls = append(stalls, s.StallWithin(begin, begin.Add(250*time.Millisecond)))
	}
	slices.Sort(stalls)
	median := stalls[len(stalls)/2]
	t.Logf("%d writes, %.0f/s, median stall %s, all: %s", s.Acked, s.PerSecond, median, stalls)
	require.Less(t, median, 150*time.Millisecond) // 20 ms on a quiet machine; the worst depends on what else runs here
}

// roomForLoad is for the machine of the test to be busy; on a quiet one the gateway needs 50 ms.
const roomForLoad = time.Second

// TestEmergency freezes the primary with transactions in flight: they get an error as soon as another is established,
// and nobody else notices.
func TestEmergency(t *testing.T) {
	for name, fail := range map[string]func(*instance){
		"freeze": (*instance).freeze,
		"kill":   func(i *instance) { i.kill(syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, nil)
			l.a.establish(1)
			idle := make([]*pgx.Conn, 20)
			for i := range idle {
				idle[i] = l.connect()
				require.Equal(t, l.a.name, server(t, idle[i]))
			}
			stop := l.writers(4, nil)
			fail(l.a)
			time.Sleep(300 * time.Millisecond) // detection
			moved := time.Now()
			l.b.establish(2)
			var wg sync.WaitGroup
			for _, conn := range idle {
				wg.Go(func() { require.Equal(t, l.b.name, server(t, conn), "an idle client was lost or left behind") })
			}
			wg.Wait()
			time.Sleep(300 * time.Millisecond)
			s := stop()
			stall := s.StallWithin(moved, moved.Add(time.Millisecond))
			t.Logf("stall %s of which 300ms detection; %d writes, errors %v", stall, s.Acked, s.Errors)
			require.LessOrEqual(t, s.Failed+s.Unknown, int64(4), "only what was in flight: %+v", s.Samples)
			require.Less(t, stall, 300*time.Millisecond+roomForLoad)
			for _, op := range s.Samples {
				t.Logf("writer %d: %s %s", op.Writer, op.Code, op.Error)
			}
			if name == "freeze" {
				l.a.thaw()
			}
		})
	}
}

// TestHeldClients asks when there is no primary: clients wait, get a clear error after max-pause, and go on by
// themselves when there is one.
func TestHeldClients(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxPause = time.Second })
	l.a.establish(1)
	waiting, early := l.connect(), l.connect()
	require.Equal(t, l.a.name, server(t, waiting))
	require.Equal(t, l.a.name, server(t, early))
	l.a.say(func(s *agentpb.Status) {
		s.Role, s.Established = agentpb.Role_STOPPED, false
		s.PostgresExit = "signal: killed"
	})
	time.Sleep(100 * time.Millisecond)

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	begin := time.Now()
	_, err := waiting.Exec(ctx, "SELECT 1")
	require.Error(t, err)
	require.InDelta(t, time.Second, time.Since(begin), float64(500*time.Millisecond))
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Contains(t, pgErr.Message, "signal: killed")
	require.Equal(t, stateLost, pgErr.Code)

	// Now errors come at once, and clear.
	begin = time.Now()
	_, err = early.Exec(ctx, "SELECT 1")
	require.ErrorContains(t, err, "signal: killed")
	require.Less(t, time.Since(begin), 700*time.Millisecond)
	begin = time.Now()
	_, err = pgx.ConnectConfig(ctx, l.config())
	require.Error(t, err)
	t.Logf("new client after max-pause: %v in %s", err, time.Since(begin))

	l.a.establish(1)
	time.Sleep(200 * time.Millisecond)
	require.Equal(t, l.a.name, server(t, l.connect()))
}
