package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// Bounds of one attempt to open a server connection. A healthy primary on the same network needs 10 ms; these leave
// room for one lost SYN (1 s) and for a machine that is busy with a failover.
const (
	dialTimeout  = 1500 * time.Millisecond
	openTimeout  = 4 * time.Second
	loginTimeout = 10 * time.Second
	firstRetry   = 2 * time.Millisecond
	lastRetry    = 100 * time.Millisecond
	cancelBound  = 3 * time.Second
	// poolerBound is for writing to PgBouncer on this machine.
	poolerBound = 30 * time.Second
)

// hopBuffer is the size of the two buffers of a server connection. PostgreSQL sends in units of 8 KiB.
const hopBuffer = 16 << 10

// hop is the server side of PgBouncer: a local listener whose connections are carried to the primary over mutual TLS.
type hop struct {
	gate     *gate
	tls      *tls.Config
	maxPause time.Duration
	clock    clock.WithTicker
	log      *slog.Logger
	metrics  *metrics

	// refused is told of each login that was turned down for want of a primary, by its startup packet.
	refused func(startup []byte)

	// open is the number of sessions, those that wait for a primary included.
	open atomic.Int64
}

// serve accepts until the context ends, and returns when every connection has ended.
func (h *hop) serve(ctx context.Context, l net.Listener) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			h.log.Error("accepting a connection of PgBouncer", "error", err)
			select { // out of descriptors: wait for some to be given back
			case <-h.clock.After(lastRetry):
			case <-ctx.Done():
			}
			continue
		}
		all.Go(func() {
			defer func() { _ = conn.Close() }()
			h.handle(ctx, conn)
		})
	}
}

func (h *hop) handle(ctx context.Context, pooler net.Conn) {
	_ = pooler.SetReadDeadline(time.Now().Add(loginTimeout)) // sockets know the real clock only
	startup, isCancel, err := readStartup(pooler)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			h.log.Warn("reading PgBouncer's startup packet", "error", err)
		}
		return
	}
	_ = pooler.SetReadDeadline(time.Time{})
	if isCancel {
		h.cancel(ctx, startup)
		return
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	s := &session{hop: h, pooler: pooler, startup: startup, ready: make(chan struct{}), gone: end}
	if looksUp(startup) {
		s.lookup = newLookup()
	}
	// Closing the pooler's side is what ends fromPooler, on every way out of here.
	defer context.AfterFunc(ctx, func() { _ = pooler.Close() })()
	go s.fromPooler(ctx)
	h.open.Add(1)
	defer h.open.Add(-1)
	s.run(ctx)
}

// cancel carries a request to cancel to the primary, when there is one.
func (h *hop) cancel(ctx context.Context, packet []byte) {
	t, _, _ := h.gate.state()
	if t == nil {
		return
	}
	ctx, end := context.WithTimeout(ctx, cancelBound)
	defer end()
	up, err := h.dial(ctx, t)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	if _, err := up.Write(packet); err == nil {
		_, _ = up.Read(make([]byte, 1)) // PostgreSQL closes once it has signalled
	}
}

// dial opens an encrypted connection to the target, within the context, which must have a deadline, and the target's
// life.
func (h *hop) dial(ctx context.Context, t *target) (*upstream, error) {
	d := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control:         userTimeout,
	}
	raw, err := d.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("%T is not TCP", raw)
	}
	up := &upstream{raw: tcp}
	release := context.AfterFunc(ctx, up.cut)
	defer release()
	if _, err := raw.Write(sslRequest()); err != nil {
		up.cut()
		return nil, err
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(raw, answer); err != nil {
		up.cut()
		return nil, err
	}
	if answer[0] != 'S' {
		up.cut()
		return nil, errors.New("server refuses TLS")
	}
	up.Conn = tls.Client(raw, h.tls)
	if err := up.Conn.HandshakeContext(ctx); err != nil {
		up.cut()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return up, nil
}

// upstream is a connection to PostgreSQL.
type upstream struct {
	*tls.Conn
	raw *net.TCPConn
}

// cut ends the connection without a word: a frozen machine would not hear it, and must not keep our end open.
func (u *upstream) cut() {
	_ = u.raw.SetLinger(0)
	_ = u.raw.Close()
}

// leave ends the connection after what has been written: PgBouncer says goodbye to the server before it closes.
func (u *upstream) leave() { _ = u.raw.Close() }

// userTimeout sets TCP_USER_TIMEOUT. It is a backstop for peers that vanish; the route is what ends connections.
func userTimeout(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 15_000)
	})
	if err != nil {
		return err
	}
	if errors.Is(failed, unix.ENOPROTOOPT) || errors.Is(failed, unix.EOPNOTSUPP) {
		return nil // some sandboxes have none
	}
	return failed
}
