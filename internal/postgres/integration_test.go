//go:build integration

package postgres

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/postgres/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// pair is a primary and how to make standbys of it.
type pair struct {
	t     *testing.T
	tls   string
	procs *Processes
}

const (
	testCN         = "agent.test"
	testServerName = "agent.test.internal"
)

func newPair(t *testing.T) *pair {
	p := &pair{t: t, tls: t.TempDir(), procs: NewProcesses()}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go p.procs.Reap(ctx)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: testCN}, DNSNames: []string{testServerName}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	kder, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"ca.crt": cert, "tls.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})} {
		require.NoError(t, os.WriteFile(filepath.Join(p.tls, name), data, 0o600))
	}
	return p
}

func (p *pair) server(name string) *Server {
	t := p.t
	dir, err := os.MkdirTemp("", "s")
	require.NoError(t, err)
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	s := NewServer(Config{
		Bin: pgtest.Bin(t), Data: filepath.Join(dir, "pgdata"), Run: filepath.Join(dir, "run"), Instance: name,
		Listen: fmt.Sprintf("127.78.%d.%d", mrand.IntN(250)+1, mrand.IntN(250)+1), Port: 15433, AgentCN: testCN, GatewayCN: "gateway.test",
		ServerName: testServerName, Parameters: map[string]string{"shared_buffers": "16MB"},
	}, p.procs, NewLogs(log, "", nil), slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, s.InstallTLS(p.tls))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = s.Stop(ctx, Immediate)
		if t.Failed() {
			t.Logf("---- %s\n%s", name, s.logs.Tail(4000))
		}
		_ = os.RemoveAll(dir)
	})
	return s
}

func (p *pair) primary(ctx context.Context) *Server {
	s := p.server("primary")
	require.NoError(p.t, s.Init(ctx))
	require.NoError(p.t, s.Start(ctx, AsPrimary, Runtime{}))
	require.NoError(p.t, s.CreateRoles(ctx, "app", "owner", "secret"))
	return s
}

func (s *Server) upstream() Upstream {
	return Upstream{Instance: s.conf.Instance, Host: s.conf.Listen, Port: s.conf.Port}
}

func (p *pair) standby(ctx context.Context, of *Server, name string) *Server {
	s := p.server(name)
	require.NoError(p.t, s.Seed(ctx, of.upstream(), "mark", &Progress{}, anyTimeline))
	up := of.upstream()
	require.NoError(p.t, s.Start(ctx, AsStandby, Runtime{Upstream: &up, Sync: Nobody}))
	require.Eventually(p.t, func() bool { return len(s.auxiliaries("walreceiver")) == 1 }, 10*time.Second, 5*time.Millisecond)
	return s
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (s *Server) write(ctx context.Context, rows int) error {
	return s.Exec(ctx, "test", fmt.Sprintf("CREATE TABLE IF NOT EXISTS t (x text); INSERT INTO t SELECT repeat('x', 100) FROM generate_series(1, %d)", rows))
}

func TestTheEndOfACrashedPrimarysWAL(t *testing.T) {
	ctx := bounded(t)
	s := newPair(t).primary(ctx)
	for round := range 3 {
		require.NoError(t, s.write(ctx, 20000*(round+1)))
		if round == 1 {
			require.NoError(t, s.Exec(ctx, "test", "SELECT pg_switch_wal()"))
		}
		require.NoError(t, s.Signal(syscall.SIGKILL))
		require.Eventually(t, func() bool { return !s.Running() }, 5*time.Second, time.Millisecond)
		require.NoError(t, s.awaitCleaned(ctx))
		control, err := s.Control(ctx)
		require.NoError(t, err)
		require.False(t, control.Clean())
		begun := time.Now()
		end, err := s.EndOfWAL(ctx, control)
		require.NoError(t, err)
		t.Logf("read to %s in %v", end.LSN, time.Since(begun).Round(time.Microsecond))

		require.NoError(t, s.Start(ctx, AsStandby, Runtime{Sync: Nobody}))
		pos, err := s.Position(ctx)
		require.NoError(t, err)
		require.Equal(t, pos.LSN.String(), end.LSN.String(), "what recovery finds is what was read")
		require.Equal(t, pos.Timeline, end.Timeline)
		promoted, err := s.Promote(ctx)
		require.NoError(t, err)
		require.EqualValues(t, round+2, promoted.Timeline)
		require.NoError(t, s.SetSynchronous(ctx, nil, 0))
	}
}

func TestACleanStopEndsBehindItsCheckpoint(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	primary := p.primary(ctx)
	standby := p.standby(ctx, primary, "standby")
	require.NoError(t, primary.write(ctx, 1000))
	clean, err := primary.Stop(ctx, Fast)
	require.NoError(t, err)
	require.True(t, clean)
	control, err := primary.Control(ctx)
	require.NoError(t, err)
	require.True(t, control.Clean())
	end, err := primary.ShutdownPosition(control)
	require.NoError(t, err)
	scanned, err := primary.EndOfWAL(ctx, control)
	require.NoError(t, err)
	require.Equal(t, end, scanned)
	require.NoError(t, standby.StopReceiver(ctx))
	pos, err := standby.Position(ctx)
	require.NoError(t, err)
	require.Equal(t, end, pos, "a fast stop ships its last record")
}

// A receiver that was stopped must acknowledge nothing more, whatever state it and the postmaster are in.
func TestStopReceiver(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, standby *Server)
	}{
		{"at rest", func(*testing.T, *Server) {}},
		{"with the postmaster stopped", func(t *testing.T, s *Server) {
			require.NoError(t, s.Signal(syscall.SIGSTOP))
			t.Cleanup(func() { _ = s.Signal(syscall.SIGCONT) })
		}},
		{"with the receiver stopped", func(t *testing.T, s *Server) {
			for _, pid := range s.auxiliaries("walreceiver") {
				require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
			}
		}},
		{"with the startup process stopped", func(t *testing.T, s *Server) {
			pids := s.auxiliaries("startup")
			require.Len(t, pids, 1)
			require.NoError(t, syscall.Kill(pids[0], syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(pids[0], syscall.SIGCONT) })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := bounded(t)
			p := newPair(t)
			primary := p.primary(ctx)
			standby := p.standby(ctx, primary, "standby")
			require.NoError(t, primary.SetSynchronous(ctx, []string{"standby"}, 1))
			require.NoError(t, primary.write(ctx, 10))
			tc.do(t, standby)
			begun := time.Now()
			require.NoError(t, standby.StopReceiver(ctx))
			t.Logf("stopped in %v", time.Since(begun).Round(time.Microsecond))

			short, cancel := context.WithTimeout(ctx, 2500*time.Millisecond)
			defer cancel()
			require.Error(t, primary.write(short, 10), "nobody acknowledges")
			for _, pid := range standby.auxiliaries("startup") {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
			_ = standby.Signal(syscall.SIGCONT)
			short, cancel = context.WithTimeout(ctx, 1500*time.Millisecond)
			defer cancel()
			require.Error(t, primary.write(short, 10), "nobody acknowledges later either")
			pos, err := standby.Position(ctx)
			require.NoError(t, err)
			time.Sleep(500 * time.Millisecond)
			again, err := standby.Position(ctx)
			require.NoError(t, err)
			require.Equal(t, pos, again)

			require.NoError(t, standby.Follow(primary.upstream()))
			require.NoError(t, primary.write(ctx, 10), "and it can follow again")
		})
	}
}

// Who connects while the server stops is let in only to be told so, once it has spoken; one that never speaks is not waited for.
func TestAFastStopWaitsForNobodyWhoSaysNothing(t *testing.T) {
	ctx := bounded(t)
	s := newPair(t).primary(ctx)
	require.NoError(t, s.write(ctx, 20000))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s.Running() {
			conn, err := net.Dial("tcp", net.JoinHostPort(s.conf.Listen, strconv.Itoa(s.conf.Port)))
			if err == nil {
				defer func() { _ = conn.Close() }()
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	time.Sleep(20 * time.Millisecond)
	limit, cancel := context.WithTimeout(ctx, 20*time.Second) // three times as long is PostgreSQL's own patience
	defer cancel()
	begun := time.Now()
	clean, err := s.Stop(limit, Fast)
	<-ended
	require.NoError(t, err)
	require.True(t, clean, "took %v", time.Since(begun))
	require.True(t, strings.Contains(string(s.logs.Tail(8000)), "shutting down"))
}

// A standby that has everything of the old timeline asks for the new one at once when it knows it before it connects.
func TestAStandbyThatKnowsTheNewTimeline(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	primary := p.primary(ctx)
	next, other := p.standby(ctx, primary, "next"), p.standby(ctx, primary, "other")
	require.NoError(t, primary.write(ctx, 10))
	sender := func(name string) (pid int) {
		conn, err := primary.Connect(ctx, "test")
		require.NoError(t, err)
		defer closeSoon(conn)
		require.NoError(t, conn.QueryRow(ctx, "SELECT pid FROM pg_stat_replication WHERE application_name = $1", name).Scan(&pid))
		return pid
	}
	var laggards []Laggard
	require.Eventually(t, func() bool {
		var err error
		laggards, err = primary.Laggards(ctx, "next")
		require.NoError(t, err)
		return slices.Contains(laggards, Laggard{sender("other"), besideCandidate}) // once it has replied
	}, 10*time.Second, 5*time.Millisecond)
	without, err := primary.Laggards(ctx, "")
	require.NoError(t, err)
	for _, l := range without {
		require.NotContains(t, []int{sender("next"), sender("other")}, l.pid, "without a candidate everybody who keeps up is waited for")
	}
	ended := make(chan bool, 1)
	go func() { ended <- next.AwaitReceiverEnd(ctx, 20*time.Second) }()
	cancel := primary.DisconnectSoon(laggards)
	clean, err := primary.Stop(ctx, Fast)
	cancel()
	require.NoError(t, err)
	require.True(t, clean)
	require.True(t, <-ended, "the receiver ends when the primary has sent everything")

	require.NoError(t, next.StopReceiver(ctx))
	require.True(t, next.isSilent(next.current()))
	promoted, err := next.Promote(ctx)
	require.NoError(t, err)
	history := next.HistoryOf(promoted.Timeline)
	require.NotEmpty(t, history)

	told := other.conf.gateKey(other.Runtime().key)
	require.NoError(t, other.StopReceiver(ctx))
	require.NoFileExists(t, told)
	end, err := other.Position(ctx)
	require.NoError(t, err)
	behind := end
	behind.LSN--
	require.NoError(t, other.LearnTimeline(promoted.Timeline, history, behind))
	require.Empty(t, other.HistoryOf(promoted.Timeline), "one that lacks something is left to PostgreSQL")
	require.Error(t, other.LearnTimeline(promoted.Timeline, "nonsense", end))
	require.NoError(t, other.LearnTimeline(promoted.Timeline, history, end))
	require.Equal(t, history, other.HistoryOf(promoted.Timeline))
	require.Eventually(t, func() bool {
		return strings.Contains(string(other.logs.Tail(4000)), fmt.Sprintf("new target timeline is %d", promoted.Timeline))
	}, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, other.Follow(next.upstream()))
	require.False(t, other.isSilent(other.current()), "the gate was opened")
	require.NoFileExists(t, told, "to another key")
	require.FileExists(t, other.conf.gateKey(other.Runtime().key))
	require.Eventually(t, func() bool {
		return strings.Contains(string(other.logs.Tail(4000)), fmt.Sprintf("on timeline %d\n", promoted.Timeline))
	}, 10*time.Second, 5*time.Millisecond)
	log := string(other.logs.Tail(4000))
	require.NotContains(t, log, "fetching timeline history")
	require.NotContains(t, log, "restarted WAL streaming")
	require.NoError(t, next.SetSynchronous(ctx, []string{"other"}, 1))
	require.NoError(t, next.write(ctx, 10), "it acknowledges")
	require.Eventually(t, func() bool {
		at, err := next.Position(ctx)
		require.NoError(t, err)
		mine, err := other.Position(ctx)
		return err == nil && mine == at
	}, 10*time.Second, 5*time.Millisecond)
}

// The position of a standby must not go back when its receiver starts over at a segment's beginning.
func TestPositionAfterARestart(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	primary := p.primary(ctx)
	standby := p.standby(ctx, primary, "standby")
	require.NoError(t, primary.SetSynchronous(ctx, []string{"standby"}, 1))
	require.NoError(t, primary.write(ctx, 30000))
	require.NoError(t, standby.StopReceiver(ctx))
	before, err := standby.Position(ctx)
	require.NoError(t, err)
	for _, mode := range []StopMode{Fast, Immediate} {
		_, err = standby.Stop(ctx, mode)
		require.NoError(t, err)
		require.NoError(t, standby.Start(ctx, AsStandby, Runtime{Sync: Nobody}))
		after, err := standby.Position(ctx)
		require.NoError(t, err)
		require.Equal(t, before, after)
	}
	up := primary.upstream()
	require.NoError(t, standby.Follow(up))
	require.Eventually(t, func() bool {
		pos, err := standby.Position(ctx)
		require.NoError(t, err)
		require.GreaterOrEqual(t, uint64(pos.LSN), uint64(before.LSN), "never behind what was acknowledged")
		return pos.LSN >= before.LSN && len(standby.auxiliaries("walreceiver")) == 1
	}, 10*time.Second, time.Millisecond)
}

func TestLeftoversOfADeadPostmaster(t *testing.T) {
	ctx := bounded(t)
	s := newPair(t).primary(ctx)
	conn, err := s.Connect(ctx, "test")
	require.NoError(t, err)
	var pid int
	require.NoError(t, conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid))
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	require.NoError(t, s.Signal(syscall.SIGKILL))
	require.NoError(t, s.awaitExitForTest(ctx))
	require.Empty(t, s.procs.Within(s.conf.Data))
	require.NoError(t, s.Start(ctx, AsPrimary, Runtime{}), "shared memory is free")
}

func (s *Server) awaitExitForTest(ctx context.Context) error {
	select {
	case <-s.current().exited:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.awaitCleaned(ctx)
}

func TestStoppingAStoppedPostmaster(t *testing.T) {
	ctx := bounded(t)
	s := newPair(t).primary(ctx)
	for _, mode := range []StopMode{Immediate, Fast} {
		require.NoError(t, s.Signal(syscall.SIGSTOP))
		limit, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		begun := time.Now()
		_, err := s.Stop(limit, mode)
		cancel()
		require.NoError(t, err)
		t.Logf("stopped in %v", time.Since(begun).Round(time.Millisecond))
		require.Less(t, time.Since(begun), 4*time.Second)
		require.NoError(t, s.Start(ctx, AsPrimary, Runtime{}))
	}
}

func TestSetSynchronous(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	primary := p.primary(ctx)
	b, c := p.standby(ctx, primary, "b"), p.standby(ctx, primary, "c")
	steps := []struct {
		members []string
		acks    int
	}{{[]string{"b", "c"}, 1}, {[]string{"b", "c"}, 2}, {[]string{"c"}, 1}, {[]string{"b"}, 1}, {nil, 0}, {[]string{"b", "c"}, 2}, {[]string{"b", "c"}, 1}}
	for _, step := range steps {
		begun := time.Now()
		require.NoError(t, primary.SetSynchronous(ctx, step.members, step.acks))
		t.Logf("%v: %v", SyncNames(step.members, step.acks), time.Since(begun).Round(time.Microsecond))
		require.NoError(t, primary.write(ctx, 1))
	}
	require.Error(t, primary.SetSynchronous(ctx, []string{"b"}, 2))
	// With only b left, a commit that needs c must wait.
	require.NoError(t, primary.SetSynchronous(ctx, []string{"c"}, 1))
	require.NoError(t, c.StopReceiver(ctx))
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	require.Error(t, primary.Journal(short, 2, "test", "must wait"))
	require.NoError(t, primary.SetSynchronous(ctx, []string{"b"}, 1))
	require.NoError(t, primary.Journal(ctx, 3, "test", "must not wait"))
	_ = b
}

func TestACancelledWaitIsNotAnAcknowledgement(t *testing.T) {
	ctx := bounded(t)
	primary := newPair(t).primary(ctx)
	require.NoError(t, primary.SetSynchronous(ctx, []string{"nobody"}, 1))
	result := make(chan error, 1)
	go func() { result <- primary.Journal(ctx, 2, "test", "is cancelled") }()
	require.Eventually(t, func() bool {
		conn, err := primary.Connect(ctx, "test")
		require.NoError(t, err)
		defer closeSoon(conn)
		var n int
		require.NoError(t, conn.QueryRow(ctx, "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").Scan(&n))
		return n == 1
	}, 10*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, <-result, ErrUnacknowledged)
}

func anyTimeline(context.Context, uint32) error { return nil }

func TestSeedingAnUnfinishedCopy(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	primary := p.primary(ctx)
	s := p.server("standby")
	require.NoError(t, os.MkdirAll(filepath.Join(s.seeding(), "base"), 0o700))
	require.False(t, s.Initialised(), "what a crash midway leaves is no data directory")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	require.Error(t, s.Seed(cancelled, primary.upstream(), "mark", &Progress{}, anyTimeline))
	require.False(t, s.Initialised())
	var timeline uint32
	refused := func(_ context.Context, tli uint32) error {
		timeline = tli
		return errors.New("not this one")
	}
	require.ErrorContains(t, s.Seed(ctx, primary.upstream(), "mark", &Progress{}, refused), "not this one")
	require.EqualValues(t, 1, timeline)
	require.False(t, s.Initialised(), "a copy that was not accepted is no data directory")
	progress := &Progress{}
	require.NoError(t, s.Seed(ctx, primary.upstream(), "mark", progress, anyTimeline))
	done, total := progress.Get()
	require.NotZero(t, done)
	require.GreaterOrEqual(t, total, done)
	require.Equal(t, "mark", s.SeedMark())
	require.Error(t, s.Seed(ctx, primary.upstream(), "mark", progress, anyTimeline), "never over an existing one")
}

func TestRewind(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	old := p.primary(ctx)
	next := p.standby(ctx, old, "next")
	require.NoError(t, next.StopReceiver(ctx))
	require.NoError(t, old.write(ctx, 5000)) // diverges
	require.NoError(t, old.Signal(syscall.SIGKILL))
	require.NoError(t, old.awaitExitForTest(ctx))
	_, err := next.Promote(ctx)
	require.NoError(t, err)
	require.NoError(t, next.SetSynchronous(ctx, nil, 0))
	require.NoError(t, next.Exec(ctx, "test", "CREATE TABLE of_the_new (x int)"))
	_, history, err := old.Ask(ctx, next.upstream())
	require.NoError(t, err)
	control, err := old.Control(ctx)
	require.NoError(t, err)
	end, err := old.EndOfWAL(ctx, control)
	require.NoError(t, err)
	require.False(t, Contains(history, end))
	require.NoError(t, old.CheckpointUpstream(ctx, next.upstream()))
	begun := time.Now()
	require.NoError(t, old.Rewind(ctx, next.upstream()))
	t.Logf("rewound in %v", time.Since(begun).Round(time.Millisecond))
	up := next.upstream()
	require.NoError(t, old.Start(ctx, AsStandby, Runtime{Upstream: &up, Sync: Nobody}))
	require.NoError(t, next.SetSynchronous(ctx, []string{"primary"}, 1))
	require.NoError(t, next.write(ctx, 10))
}

func TestAccess(t *testing.T) {
	ctx := bounded(t)
	p := newPair(t)
	s := p.primary(ctx)
	conn, err := s.dialUpstream(ctx, s.upstream(), "", "")
	require.NoError(t, err, "the agent's certificate is the replicator")
	_, err = conn.Exec(ctx, "SELECT rolpassword FROM pg_authid").ReadAll()
	require.Error(t, err, "which is no superuser")
	_ = conn.Close(ctx)

	app, err := s.connect(ctx, "app", "test", nil)
	require.NoError(t, err)
	defer closeSoon(app)
	var name, hash string
	_, err = app.Exec(ctx, "SET ROLE theseus_gateway")
	require.NoError(t, err)
	require.NoError(t, app.QueryRow(ctx, "SELECT uname, phash FROM theseus.user_lookup('owner')").Scan(&name, &hash))
	require.Equal(t, "owner", name)
	require.Regexp(t, `^SCRAM-SHA-256\$4096:`, hash)
	require.Error(t, app.QueryRow(ctx, "SELECT uname, phash FROM theseus.user_lookup('postgres')").Scan(&name, &hash))
	_, err = app.Exec(ctx, "SET ROLE owner")
	require.NoError(t, err)
	_, err = app.Exec(ctx, "SELECT * FROM theseus.user_lookup('owner')")
	require.Error(t, err, "only the gateway may look")
}
