//go:build integration

package clients

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/internal/postgres/pgtest"
	"theseus.dev/theseus/test/robustness/history"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// server is a PostgreSQL that waits for a standby that does not exist whenever told to.
type server struct {
	t         *testing.T
	bin, data string
	port      int
	cmd       *exec.Cmd
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, bin: pgtest.Bin(t), data: filepath.Join(t.TempDir(), "data")}
	out, err := exec.Command(filepath.Join(s.bin, "initdb"), "-D", s.data, "-U", "postgres", "--no-sync", "-A", "trust", "--locale=C").CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.port = l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	s.start()
	t.Cleanup(s.crash)
	return s
}

func (s *server) start() {
	s.cmd = exec.Command(filepath.Join(s.bin, "postgres"), "-D", s.data, "-p", fmt.Sprint(s.port), "-k", "", "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	require.NoError(s.t, s.cmd.Start())
}

// crash stops it at once and waits until it is gone.
func (s *server) crash() {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait()
}

func (s *server) dsn() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", s.port)
}

func (s *server) sql(statements ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, statement := range statements {
		require.NoError(s.t, insist(ctx, s.dsn(), func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, statement)
			return err
		}), statement)
	}
}

// run lets clients work while f does something to the server, and judges what they saw.
func (s *server) run(f func()) *history.Report {
	s.t.Helper()
	var out bytes.Buffer
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	began := time.Now()
	config := Config{
		Endpoints: []Endpoint{
			{Name: "patient", DSN: s.dsn(), Clients: 3, Timeout: 5 * time.Second},
			{Name: "cancelling", DSN: s.dsn(), Clients: 3, Timeout: 200 * time.Millisecond, Cancels: true},
		},
		Registers: 4, Ledgers: 2, Interval: 2 * time.Millisecond, Seed: 7, SetupTimeout: 20 * time.Second, AuditTimeout: 20 * time.Second,
	}
	go func() { done <- Run(ctx, config, &out) }()
	time.Sleep(time.Second)
	f()
	time.Sleep(time.Second)
	stop()
	require.NoError(s.t, <-done)
	h, err := history.ReadFrom(&out)
	require.NoError(s.t, err)
	require.True(s.t, h.Audited)
	require.WithinDuration(s.t, began, h.Began, 15*time.Second)
	r := history.Check(h, time.Minute)
	require.Empty(s.t, r.Undecided)
	require.Greater(s.t, r.Acked, 100)
	s.t.Logf("%d acked, %d failed, %d unknown, %d warned, codes %v, old %v", r.Acked, r.Failed, r.Unknown, r.Warned, r.Codes, r.Old)
	return r
}

// A server that crashes and loses nothing passes, whatever its clients were doing.
func TestCrashes(t *testing.T) {
	s := newServer(t)
	r := s.run(func() {
		for range 3 {
			s.crash()
			time.Sleep(100 * time.Millisecond)
			s.start()
			time.Sleep(500 * time.Millisecond)
			s.sql(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`)
		}
	})
	require.NoError(t, r.Err())
	require.Positive(t, r.Unknown+r.Failed)
}

// The connection of a commit under way is lost. Whatever the driver says of it, nobody knows what became of the commit.
func TestACommitWithoutAnAnswerIsUnknown(t *testing.T) {
	s := newServer(t)
	e := Endpoint{Name: "direct", DSN: s.dsn(), Timeout: 20 * time.Second, Cancels: true}
	c := Config{Endpoints: []Endpoint{e}, Registers: 1, Ledgers: 1, SetupTimeout: 20 * time.Second}
	require.NoError(t, setup(t.Context(), c))
	s.sql(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	time.Sleep(200 * time.Millisecond)
	var out bytes.Buffer
	rec, err := newRecorder(&out)
	require.NoError(t, err)
	ended := make(chan history.Op, 2)
	for id, op := range []history.Op{{Kind: history.CAS, Value: 7}, {Kind: history.Write, Value: 8}} {
		w, err := newClient(c, e, id, rec)
		require.NoError(t, err)
		go func() { ended <- w.do(context.Background(), op) }()
	}
	time.Sleep(500 * time.Millisecond)
	require.NoError(t, s.cmd.Process.Kill()) // its backends find out by themselves, and say nothing
	for range 2 {
		op := <-ended
		require.Equal(t, load.Unknown, op.Outcome, "%s: %s", op, op.Error)
	}
}

// Commits whose wait for a standby was cancelled succeed with a warning. They are not acknowledged: losing them, here by
// going back to a copy from before, is no violation; losing others is.
func TestCancelledWaitsMayBeLost(t *testing.T) {
	for _, lose := range []bool{false, true} {
		t.Run(fmt.Sprintf("lose an acknowledged one too: %v", lose), func(t *testing.T) {
			s := newServer(t)
			r := s.run(func() {
				s.sql(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
				time.Sleep(100 * time.Millisecond)
				if lose {
					s.sql(`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
					time.Sleep(100 * time.Millisecond) // from here on it acknowledges alone
				}
				s.crash()
				saved := s.data + ".before"
				require.NoError(t, exec.Command("cp", "-a", s.data, saved).Run())
				s.start()
				time.Sleep(time.Second) // what happens here is undone
				s.crash()
				require.NoError(t, os.RemoveAll(s.data))
				require.NoError(t, os.Rename(saved, s.data))
				s.start()
				s.sql(`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
			})
			if lose {
				require.Error(t, r.Err())
				return
			}
			require.Positive(t, r.Warned)
			require.NoError(t, r.Err())
		})
	}
}
