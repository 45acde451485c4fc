//go:build integration

package load

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const unprivileged = 65534 // PostgreSQL does not run as root

// startPostgres runs a server for the test and returns its connection string.
func startPostgres(t *testing.T) string {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		t.Skip("needs PostgreSQL (Debian's postgresql package)")
	}
	bin := bins[len(bins)-1]
	dir, err := os.MkdirTemp("", "load")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(dir, unprivileged, unprivileged))
		attr.Credential = &syscall.Credential{Uid: unprivileged, Gid: unprivileged}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "--no-sync", "-A", "trust", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	out, err := initdb.CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", fmt.Sprint(port), "-k", dir, "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1")
	server.SysProcAttr, server.Dir = attr, dir
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
	})
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", port)
}

func sql(t *testing.T, dsn, statement string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(context.Background(), statement)
	require.NoError(t, err)
}

// acked waits for some acknowledgements to come.
type acked struct{ n atomic.Int64 }

func (a *acked) observe(op Op) {
	if op.Outcome == Acked {
		a.n.Add(1)
	}
}

func (a *acked) await(t *testing.T, n int64) {
	t.Helper()
	n += a.n.Load()
	require.Eventually(t, func() bool { return a.n.Load() >= n }, 30*time.Second, time.Millisecond)
}

func start(c Config) (stop func() (*Summary, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	type result struct {
		s   *Summary
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := Run(ctx, c)
		done <- result{s, err}
	}()
	return func() (*Summary, error) {
		cancel()
		r := <-done
		return r.s, r.err
	}
}

func TestRunCountsWhatHappens(t *testing.T) {
	dsn := startPostgres(t)
	var seen acked
	var live bytes.Buffer
	stop := start(Config{DSN: dsn, Observe: seen.observe, Live: &live, KeepOps: true, SetupTimeout: 30 * time.Second})
	seen.await(t, 100)
	sql(t, dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
	seen.await(t, 100)
	sql(t, dsn, "ALTER TABLE theseus_load ADD CONSTRAINT no CHECK (false) NOT VALID")
	time.Sleep(300 * time.Millisecond)
	sql(t, dsn, "ALTER TABLE theseus_load DROP CONSTRAINT no")
	seen.await(t, 100)
	s, err := stop()
	require.NoError(t, err)
	require.True(t, s.Verified)
	require.Zero(t, s.Lost)
	require.Zero(t, s.FailedPresent)
	require.Positive(t, s.Errors["23514"], "the constraint: failed for certain")
	require.LessOrEqual(t, s.Errors["57P01"], int64(4), "one per connection at most")
	require.GreaterOrEqual(t, s.LongestStallMS, 250.0)
	require.EqualValues(t, len(s.Ops), s.Acked+s.Failed+s.Unknown)
	t.Logf("%.0f/s, stall %.0f ms, errors %v, latency %+v", s.PerSecond, s.LongestStallMS, s.Errors, s.LatencyMS)
	require.Contains(t, live.String()+"writes/s", "writes/s")
}

// A connection to a server that became a standby is of no use for as long as it lasts: the client makes another one.
func TestAReadOnlyServerIsLeft(t *testing.T) {
	dsn := startPostgres(t)
	var seen acked
	stop := start(Config{DSN: dsn, Observe: seen.observe, SetupTimeout: 30 * time.Second})
	seen.await(t, 10)
	admin := dsn + " options='-c default_transaction_read_only=off'"
	sql(t, admin, "ALTER ROLE postgres SET default_transaction_read_only = on") // of the sessions to come
	sql(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
	time.Sleep(300 * time.Millisecond)
	sql(t, admin, "ALTER ROLE postgres RESET default_transaction_read_only")
	seen.await(t, 10)
	s, err := stop()
	require.NoError(t, err)
	require.Positive(t, s.Errors["25006"])
	require.Zero(t, s.Lost)
}

// Connections that end at their age, as a pool's do, are no errors; and they really end.
func TestConnectionsHaveALife(t *testing.T) {
	dsn := startPostgres(t)
	var seen acked
	stop := start(Config{DSN: dsn, Observe: seen.observe, MaxLifetime: 200 * time.Millisecond, SetupTimeout: 30 * time.Second})
	seen.await(t, 10)
	sql(t, dsn, "CREATE TABLE before AS SELECT pid, backend_start FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
	time.Sleep(time.Second)
	sql(t, dsn, "DO $$ BEGIN IF EXISTS (SELECT FROM before JOIN pg_stat_activity USING (pid, backend_start)) THEN RAISE 'a connection is too old'; END IF; END $$")
	s, err := stop()
	require.NoError(t, err)
	require.Empty(t, s.Errors)
}

// A commit whose wait for a standby was cancelled is reported as a success with a warning. It is none.
func TestRunDoesNotBelieveWarnings(t *testing.T) {
	dsn := startPostgres(t)
	var seen acked
	stop := start(Config{DSN: dsn, Observe: seen.observe, Writers: 2, SetupTimeout: 30 * time.Second})
	seen.await(t, 20)
	sql(t, dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	sql(t, dsn, "SELECT pg_reload_conf()")
	time.Sleep(300 * time.Millisecond)
	sql(t, dsn, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	time.Sleep(100 * time.Millisecond)
	sql(t, dsn, "ALTER SYSTEM RESET synchronous_standby_names")
	sql(t, dsn, "SELECT pg_reload_conf()")
	seen.await(t, 20)
	s, err := stop()
	require.NoError(t, err)
	require.Positive(t, s.Warned)
	require.Equal(t, s.Warned, s.Errors["warning"])
	require.Zero(t, s.Lost)
	require.Positive(t, s.UnknownPresent)
}

func TestRunNoticesLoss(t *testing.T) {
	dsn := startPostgres(t)
	var seen acked
	stop := start(Config{DSN: dsn, Observe: seen.observe, Writers: 1, SetupTimeout: 30 * time.Second})
	seen.await(t, 50)
	sql(t, dsn, "DELETE FROM theseus_load WHERE writer = 0 AND seq IN (1, 2, 3)")
	s, err := stop()
	require.NoError(t, err)
	require.True(t, s.Verified)
	require.EqualValues(t, 3, s.Lost)
	require.EqualValues(t, 1, s.LostSamples[0].Seq)
}

func TestRunPacedOverSeveralHosts(t *testing.T) {
	dsn := startPostgres(t)
	several := strings.Replace(dsn, "host=127.0.0.1", "host=127.0.0.2,127.0.0.1", 1)
	several = strings.Replace(several, " port=", " port=1,", 1) + " target_session_attrs=read-write"
	s, err := Run(context.Background(), Config{DSN: several, Interval: 50 * time.Millisecond, Duration: time.Second, SetupTimeout: 30 * time.Second})
	require.NoError(t, err)
	require.Zero(t, s.Failed+s.Unknown, "%+v", s.Samples)
	require.InDelta(t, 80, s.Acked, 30)
}
