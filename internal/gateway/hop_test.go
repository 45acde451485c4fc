package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/pki"
)

const soon = 5 * time.Second

var testShard = agentapi.Shard{Namespace: "test", Name: "db-0"}

func newSet(t testing.TB) *pki.Set {
	set, err := pki.NewSet("db", time.Now())
	require.NoError(t, err)
	return set
}

func identity(t testing.TB, set *pki.Set, shard agentapi.Shard, role agentapi.Role) *agentapi.StaticIdentity {
	leaf, err := set.Issue(pki.Request{
		CommonName: agentapi.CommonName(role, shard), URI: agentapi.URI(shard, role).String(),
		DNSNames: []string{agentapi.ServerName(shard)}, Server: true, Client: true,
	}, time.Now())
	require.NoError(t, err)
	id, err := agentapi.NewStaticIdentity(set.Bundle(), leaf.CertificatePEM, leaf.KeyPEM)
	require.NoError(t, err)
	return id
}

// fakeServer speaks as much of PostgreSQL's protocol as a test scripts.
type fakeServer struct {
	t        *testing.T
	addr     string
	listener net.Listener
	tls      *tls.Config
	plain    bool // answers N
	conns    chan net.Conn
}

func newFakeServer(t *testing.T, id agentapi.Identity) *fakeServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cert, err := id.Certificate()
	require.NoError(t, err)
	s := &fakeServer{
		t: t, addr: l.Addr().String(), listener: l, conns: make(chan net.Conn, 16),
		tls: &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13},
	}
	t.Cleanup(func() { _ = l.Close() })
	go s.accept()
	return s
}

func (s *fakeServer) accept() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.t.Cleanup(func() { _ = raw.Close() })
		head := make([]byte, 8)
		if _, err := io.ReadFull(raw, head); err != nil {
			continue
		}
		if s.plain {
			_, _ = raw.Write([]byte{'N'})
			continue
		}
		_, _ = raw.Write([]byte{'S'})
		conn := tls.Server(raw, s.tls)
		if conn.Handshake() == nil {
			s.conns <- conn
		} else {
			_ = raw.Close()
		}
	}
}

// next is the next connection, its startup packet read.
func (s *fakeServer) next() (net.Conn, []byte) {
	s.t.Helper()
	select {
	case conn := <-s.conns:
		_ = conn.SetDeadline(time.Now().Add(soon))
		packet, _, err := readStartup(conn)
		require.NoError(s.t, err)
		return conn, packet
	case <-time.After(soon):
		require.Fail(s.t, "nobody connected")
		return nil, nil
	}
}

// forget drops connections nobody has looked at: a session whose server has closed tries the same one again until the route
// changes.
func (s *fakeServer) forget() {
	for {
		select {
		case conn := <-s.conns:
			_ = conn.Close()
		default:
			return
		}
	}
}

func (s *fakeServer) quiet(d time.Duration) {
	s.t.Helper()
	select {
	case <-s.conns:
		require.Fail(s.t, "a connection that should not be")
	case <-time.After(d):
	}
}

var (
	authOK   = message('R', "\x00\x00\x00\x00")
	askSASL  = message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00")
	ready    = message('Z', "I")
	loggedIn = append(append(bytes.Clone(authOK), message('S', "in_hot_standby\x00off\x00")...), ready...)
	query    = message('Q', "SELECT 1\x00")
	row      = message('D', "\x00\x01\x00\x00\x00\x011")
	startup  = startupPacket(3<<16, "user\x00app\x00\x00")
)

type hopLab struct {
	t      *testing.T
	set    *pki.Set
	hop    *hop
	socket string
	a, b   *fakeServer
}

func newHopLab(t *testing.T) *hopLab {
	l := &hopLab{t: t, set: newSet(t), socket: filepath.Join(shortDir(t), "s")}
	l.a = newFakeServer(t, identity(t, l.set, testShard, agentapi.RoleAgent))
	l.b = newFakeServer(t, identity(t, l.set, testShard, agentapi.RoleAgent))
	l.hop = &hop{
		gate: newGate(clock.RealClock{}), maxPause: 400 * time.Millisecond, clock: clock.RealClock{},
		tls: agentapi.ClientTLS(identity(t, l.set, testShard, agentapi.RoleGateway), testShard),
		log: slog.New(slog.DiscardHandler), metrics: newMetrics(func() float64 { return 0 }),
		refused: func([]byte) {},
	}
	listener, err := net.Listen("unix", l.socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, l.hop.serve(ctx, listener)) })
	t.Cleanup(func() {
		cancel()
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done: // every session has ended
		case <-time.After(soon):
			t.Error("a session does not end")
		}
		require.Zero(t, l.hop.open.Load())
	})
	return l
}

func (l *hopLab) route(mode Mode, term uint64, s *fakeServer) {
	l.hop.gate.set(Route{Mode: mode, Term: term, Instance: s.addr, Address: s.addr, Why: "a test"})
}

// login is a new connection of PgBouncer.
func (l *hopLab) login() net.Conn { return l.loginAs(startup) }

func (l *hopLab) loginAs(packet []byte) net.Conn {
	conn, err := net.Dial("unix", l.socket)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(soon))
	_, err = conn.Write(packet)
	require.NoError(l.t, err)
	return conn
}

func (l *hopLab) write(conn net.Conn, data []byte) {
	l.t.Helper()
	_, err := conn.Write(data)
	require.NoError(l.t, err)
}

func (l *hopLab) expect(conn net.Conn, want []byte) {
	l.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(conn, got)
	require.NoError(l.t, err, "%q of %q", got[:n], want)
	require.Equal(l.t, want, got)
}

// silent requires that nothing comes for a while.
func (l *hopLab) silent(conn net.Conn, d time.Duration) {
	l.t.Helper()
	require.NoError(l.t, conn.SetReadDeadline(time.Now().Add(d)))
	n, err := conn.Read(make([]byte, 1))
	require.ErrorIs(l.t, err, os.ErrDeadlineExceeded)
	require.Zero(l.t, n)
	require.NoError(l.t, conn.SetReadDeadline(time.Now().Add(soon)))
}

// end reads to the end and returns the fields of the error said last, if any.
func (l *hopLab) end(conn net.Conn) (sqlstate, text string) {
	l.t.Helper()
	all, err := io.ReadAll(conn)
	require.NoError(l.t, err)
	if len(all) == 0 {
		return "", ""
	}
	require.Equal(l.t, byte('E'), all[0], "%q", all)
	require.Equal(l.t, len(all)-1, int(binary.BigEndian.Uint32(all[1:])), "one message: %q", all)
	return errorField(all[5:], 'C'), errorField(all[5:], 'M')
}

// open is a session that has logged in to s.
func (l *hopLab) open(s *fakeServer) (pooler, server net.Conn) {
	l.t.Helper()
	return l.openAs(startup, s)
}

func (l *hopLab) openAs(as []byte, s *fakeServer) (pooler, server net.Conn) {
	l.t.Helper()
	pooler = l.loginAs(as)
	server, packet := s.next()
	require.Equal(l.t, as, packet)
	l.write(server, loggedIn)
	l.expect(pooler, loggedIn)
	return pooler, server
}

func TestHopCarries(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, server := l.open(l.a)
	big := message('Q', string(bytes.Repeat([]byte("x"), 200_000)))
	go func() { _, _ = pooler.Write(big) }()
	l.expect(server, big)
	answer := append(message('D', string(bytes.Repeat([]byte("y"), 300_000))), ready...)
	go func() { _, _ = server.Write(answer) }()
	l.expect(pooler, answer)

	bye := message('X', "")
	l.write(pooler, bye)
	require.NoError(t, pooler.Close())
	l.expect(server, bye) // PgBouncer's goodbye arrives although it closes at once
	_, err := server.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestHopHoldsLoginsUntilThereIsAPrimary(t *testing.T) {
	l := newHopLab(t)
	pooler := l.login()
	l.a.quiet(50 * time.Millisecond)
	l.route(Serve, 1, l.a)
	server, _ := l.a.next()
	l.write(server, loggedIn)
	l.expect(pooler, loggedIn)
}

func TestHopHidesWhatPasses(t *testing.T) {
	for name, obstacle := range map[string]func(*hopLab, net.Conn){
		"closed at once": func(_ *hopLab, server net.Conn) { _ = server.Close() },
		"starting up":    func(l *hopLab, server net.Conn) { l.write(server, errorMessage(stateNotYet, "starting", "")) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newHopLab(t)
			l.hop.maxPause = time.Minute
			l.route(Serve, 1, l.a)
			pooler := l.login()
			for range 3 {
				server, _ := l.a.next()
				obstacle(l, server)
			}
			l.route(Serve, 2, l.b)
			server, packet := l.b.next()
			require.Equal(t, startup, packet)
			l.write(server, loggedIn)
			l.expect(pooler, loggedIn)
		})
	}
}

func TestHopPassesOnRealRefusals(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler := l.login()
	server, _ := l.a.next()
	l.write(server, errorMessage("28P01", "wrong password", ""))
	require.NoError(t, server.Close())
	sqlstate, text := l.end(pooler)
	require.Equal(t, "28P01", sqlstate)
	require.Equal(t, "wrong password", text)
}

func TestHopUnreachablePrimary(t *testing.T) {
	l := newHopLab(t)
	require.NoError(t, l.a.listener.Close())
	l.route(Serve, 1, l.a)
	sqlstate, text := l.end(l.login())
	require.Equal(t, stateLost, sqlstate)
	require.Contains(t, text, "cannot be reached")
}

func TestHopBelievesOnlyAgentsOfItsShard(t *testing.T) {
	for name, change := range map[string]func(*hopLab, *fakeServer){
		"no TLS": func(_ *hopLab, s *fakeServer) { s.plain = true },
		"another shard of the database": func(l *hopLab, s *fakeServer) {
			cert, _ := identity(l.t, l.set, agentapi.Shard{Namespace: "test", Name: "db-1"}, agentapi.RoleAgent).Certificate()
			s.tls.Certificates = []tls.Certificate{*cert}
		},
		"a gateway": func(l *hopLab, s *fakeServer) {
			cert, _ := identity(l.t, l.set, testShard, agentapi.RoleGateway).Certificate()
			s.tls.Certificates = []tls.Certificate{*cert}
		},
		"another database": func(l *hopLab, s *fakeServer) {
			cert, _ := identity(l.t, newSet(l.t), testShard, agentapi.RoleAgent).Certificate()
			s.tls.Certificates = []tls.Certificate{*cert}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newHopLab(t)
			change(l, l.a)
			l.route(Serve, 1, l.a)
			sqlstate, _ := l.end(l.login())
			require.Equal(t, stateLost, sqlstate)
			for len(l.a.conns) > 0 { // TLS 1.3: the server may have finished before it was turned down
				conn := <-l.a.conns
				_ = conn.SetDeadline(time.Now().Add(soon))
				_, err := conn.Read(make([]byte, 1))
				require.Error(t, err, "something was said to a stranger")
			}
		})
	}
}

func TestHopCutsTheOldTerm(t *testing.T) {
	for name, next := range map[string]func(*hopLab){
		"another instance":                func(l *hopLab) { l.route(Serve, 2, l.b) },
		"the same instance in a new term": func(l *hopLab) { l.route(Serve, 2, l.a) },
		"nobody":                          func(l *hopLab) { l.route(Hold, 1, l.a) },
		"drain, then another": func(l *hopLab) {
			l.route(Drain, 1, l.a)
			l.route(Serve, 2, l.b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newHopLab(t)
			l.route(Serve, 1, l.a)
			busy, busyServer := l.open(l.a)
			idle, _ := l.open(l.a)
			l.write(busy, query)
			l.expect(busyServer, query)
			next(l)
			sqlstate, text := l.end(busy)
			require.Equal(t, stateMoved, sqlstate)
			require.Contains(t, text, "term 1")
			sqlstate, _ = l.end(idle)
			require.Empty(t, sqlstate, "PgBouncer has nobody to tell")
		})
	}
}

func TestHopDrainEndsNothing(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, server := l.open(l.a)
	l.write(pooler, query)
	l.expect(server, query)
	l.route(Drain, 1, l.a)
	l.write(server, append(bytes.Clone(row), ready...))
	l.expect(pooler, append(bytes.Clone(row), ready...))
	l.open(l.a) // a login under way must not fail either
	l.route(Serve, 1, l.a)
	l.write(pooler, query)
	l.expect(server, query)
}

func TestHopNeverSpeaksInTheMiddleOfAMessage(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, server := l.open(l.a)
	l.write(pooler, query)
	l.expect(server, query)
	l.write(server, row[:len(row)-3])
	l.expect(pooler, row[:len(row)-3])
	l.route(Serve, 2, l.b)
	rest, err := io.ReadAll(pooler)
	require.NoError(t, err)
	require.Empty(t, rest)
}

func TestHopServerDies(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, server := l.open(l.a)
	l.write(pooler, query)
	l.expect(server, query)
	require.NoError(t, server.(*tls.Conn).NetConn().Close())
	sqlstate, text := l.end(pooler)
	require.Equal(t, stateLost, sqlstate)
	require.Contains(t, text, "was lost")
}

// A login that is lost half-way is kept open while there is no primary, because PgBouncer answers its end by failing
// everybody.
func TestHopParksHalfLogins(t *testing.T) {
	l := newHopLab(t)
	l.hop.maxPause = time.Minute
	l.route(Serve, 1, l.a)
	pooler := l.login()
	server, _ := l.a.next()
	l.write(server, askSASL)
	l.expect(pooler, askSASL)
	l.route(Hold, 1, l.a)
	_ = pooler.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	_, err := pooler.Read(make([]byte, 1))
	require.ErrorContains(t, err, "timeout")
	_ = pooler.SetReadDeadline(time.Now().Add(soon))
	l.route(Serve, 2, l.b)
	sqlstate, _ := l.end(pooler)
	require.Empty(t, sqlstate)
}

func TestHopTellsAfterMaxPause(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	l.route(Hold, 1, l.a)
	begin := time.Now()
	first := l.login()
	sqlstate, text := l.end(first)
	require.Equal(t, stateLost, sqlstate)
	require.Contains(t, text, "a test")
	require.GreaterOrEqual(t, time.Since(begin), l.hop.maxPause-50*time.Millisecond)

	// PgBouncer fails clients by itself now; the next login waits for the primary, so that it notices the end at once.
	second := l.login()
	_ = second.SetReadDeadline(time.Now().Add(2 * l.hop.maxPause))
	_, err := second.Read(make([]byte, 1))
	require.ErrorContains(t, err, "timeout")
	_ = second.SetReadDeadline(time.Now().Add(soon))
	l.route(Serve, 2, l.b)
	server, _ := l.b.next()
	l.write(server, loggedIn)
	l.expect(second, loggedIn)

	// The next Hold is a new one.
	l.route(Hold, 2, l.b)
	sqlstate, _ = l.end(l.login())
	require.Equal(t, stateLost, sqlstate)
}

func TestHopGivesUpAHeldLoginThatPgBouncerCloses(t *testing.T) {
	l := newHopLab(t)
	l.hop.maxPause = time.Minute
	pooler := l.login()
	require.Eventually(t, func() bool { return l.hop.open.Load() == 1 }, soon, time.Millisecond)
	require.NoError(t, pooler.Close())
	require.Eventually(t, func() bool { return l.hop.open.Load() == 0 }, soon, time.Millisecond)
}

func TestHopDoesNotServeAStandby(t *testing.T) {
	hello := append(bytes.Clone(authOK), message('S', "in_hot_standby\x00on\x00")...)
	for name, pieces := range map[string][][]byte{"in pieces": {hello, ready}, "at once": {append(bytes.Clone(hello), ready...)}} {
		t.Run(name, func(t *testing.T) {
			l := newHopLab(t)
			l.route(Serve, 1, l.a)
			pooler := l.login()
			server, _ := l.a.next()
			for _, piece := range pieces {
				_, _ = server.Write(piece) // it may have been left already
			}
			l.route(Hold, 1, l.a)
			all, err := io.ReadAll(pooler)
			require.NoError(t, err)
			require.NotContains(t, string(all), string(ready))
		})
	}
}

func TestHopCarriesCancels(t *testing.T) {
	l := newHopLab(t)
	packet := startupPacket(requestCancel, "12345678")
	send := func() net.Conn {
		conn, err := net.Dial("unix", l.socket)
		require.NoError(t, err)
		_ = conn.SetDeadline(time.Now().Add(soon))
		l.write(conn, packet)
		return conn
	}
	sqlstate, _ := l.end(send()) // nobody to ask: closed
	require.Empty(t, sqlstate)
	l.route(Serve, 1, l.a)
	conn := send()
	select {
	case server := <-l.a.conns:
		l.expect(server, packet)
		_ = server.Close()
	case <-time.After(soon):
		require.Fail(t, "the cancel did not arrive")
	}
	l.end(conn)
}

func TestGate(t *testing.T) {
	g := newGate(clock.RealClock{})
	target, _, changed := g.state()
	require.Nil(t, target)
	a1 := Route{Mode: Serve, Term: 1, Instance: "a", Address: "a:1"}
	g.set(a1)
	<-changed
	first, _, changed := g.state()
	require.NotNil(t, first)
	require.Zero(t, g.held())

	drained := a1
	drained.Mode, drained.Why = Drain, "why"
	require.Equal(t, a1, g.set(drained))
	same, route, _ := g.state()
	require.Same(t, first, same)
	require.Equal(t, drained, route)
	g.set(a1)
	select {
	case <-changed:
		require.Fail(t, "nothing has changed for those who wait")
	default:
	}

	moved := a1
	moved.Address = "a:2" // the same instance at another address has been started anew
	g.set(moved)
	require.Error(t, first.ctx.Err())
	second, _, _ := g.state()
	require.NoError(t, second.ctx.Err())

	require.False(t, g.asTold([]byte("x")))
	require.True(t, g.tell([]byte("x")))
	require.False(t, g.tell([]byte("x")))
	g.set(Route{Mode: Hold, Term: 1})
	require.Error(t, second.ctx.Err())
	require.True(t, g.asTold([]byte("x")))
	g.set(a1)
	require.False(t, g.asTold([]byte("x")))
}
