package agentapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

const (
	// ConnectTimeout bounds one attempt to reach an agent: a Pod on the same network answers in milliseconds, and
	// every emergency has a deadline of a few seconds.
	ConnectTimeout = time.Second
	// deadPeer is how long a peer's kernel may leave sent bytes unacknowledged before the connection is given up.
	// gRPC's own client pings cannot be more frequent than one in 10 s, so the kernel is asked instead.
	deadPeer = 1500 * time.Millisecond
	// Silence is how long a Watch stream may be quiet before it counts as dead: four heartbeats of 500 ms. It
	// notices what the kernel cannot: a frozen process on a living machine.
	Silence = 2 * time.Second
)

// Client calls one agent. After a failure gRPC dials afresh; a connection to a Pod that has gone is never waited on
// for longer than deadPeer.
type Client struct {
	agentpb.AgentClient
	conn *grpc.ClientConn
	// Instance is the name given in the Endpoint.
	Instance string
}

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }

// Dial connects to the agent at ep and returns when the TLS handshake is done, or with the reason why not, within
// the context's deadline and ConnectTimeout, whichever is sooner.
func Dial(ctx context.Context, ep *agentpb.Endpoint, shard Shard, id Identity) (*Client, error) {
	c, last, err := newClient(ep, shard, id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	c.conn.Connect()
	for {
		state := c.conn.GetState()
		if state == connectivity.Ready {
			return c, nil
		}
		failed := state == connectivity.TransientFailure || state == connectivity.Shutdown
		if failed || !c.conn.WaitForStateChange(ctx, state) {
			_ = c.Close()
			why := last.Load()
			if why == nil {
				why = &dialError{errors.New("timed out")}
			}
			return nil, fmt.Errorf("agent %s at %s: %w", ep.GetInstance(), Address(ep), why.error)
		}
	}
}

// NewClient makes a client that connects when it is first used, and again after every failure.
func NewClient(ep *agentpb.Endpoint, shard Shard, id Identity) (*Client, error) {
	c, _, err := newClient(ep, shard, id)
	return c, err
}

// Address is host:port of the agent at ep.
func Address(ep *agentpb.Endpoint) string {
	port := ep.GetAgentPort()
	if port == 0 {
		port = AgentPort
	}
	return net.JoinHostPort(ep.GetHost(), strconv.Itoa(int(port)))
}

type dialError struct{ error }

func newClient(ep *agentpb.Endpoint, shard Shard, id Identity) (*Client, *atomic.Pointer[dialError], error) {
	last := &atomic.Pointer[dialError]{}
	dialer := &net.Dialer{
		Timeout:         ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2},
		Control:         userTimeout,
	}
	tlsConf := ClientTLS(id, shard)
	conn, err := grpc.NewClient("passthrough:///"+Address(ep),
		grpc.WithTransportCredentials(&noting{TransportCredentials: credentials.NewTLS(tlsConf), last: last}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := dialer.DialContext(ctx, "tcp", addr)
			if err != nil {
				last.Store(&dialError{err})
			}
			return nc, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: ConnectTimeout,
		}),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(meant(ctx, ep), method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return streamer(meant(ctx, ep), desc, cc, method, opts...)
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, nil, err
	}
	return &Client{AgentClient: agentpb.NewAgentClient(conn), conn: conn, Instance: ep.GetInstance()}, last, nil
}

func meant(ctx context.Context, ep *agentpb.Endpoint) context.Context {
	if ep.GetInstance() == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, instanceHeader, ep.GetInstance())
}

// userTimeout sets TCP_USER_TIMEOUT, which bounds both unacknowledged data and unanswered keepalive probes.
func userTimeout(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
	})
	if err != nil {
		return err
	}
	if errors.Is(failed, unix.ENOPROTOOPT) || errors.Is(failed, unix.EOPNOTSUPP) {
		return nil // sandboxes without it still have the keepalives and Silence
	}
	return failed
}

// noting remembers why a handshake failed, which gRPC would only log.
type noting struct {
	credentials.TransportCredentials
	last *atomic.Pointer[dialError]
}

func (n *noting) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := n.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		n.last.Store(&dialError{err})
	}
	return conn, info, err
}

func (n *noting) Clone() credentials.TransportCredentials {
	return &noting{TransportCredentials: n.TransportCredentials.Clone(), last: n.last}
}

// ErrSilent ends a WatchStatus whose agent has said nothing for Silence.
var ErrSilent = errors.New("agent silent")

// WatchStatus watches until the context ends, the stream breaks, or the agent is silent for longer than Silence.
// Each status is given to got, on the caller's goroutine; the error is never nil.
func (c *Client) WatchStatus(ctx context.Context, req *agentpb.WatchRequest, got func(*agentpb.Status)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(Silence, func() { cancel(ErrSilent) })
	defer quiet.Stop()
	stream, err := c.Watch(ctx, req)
	for err == nil {
		var st *agentpb.Status
		if st, err = stream.Recv(); err == nil {
			quiet.Reset(Silence)
			got(st)
		}
	}
	if errors.Is(context.Cause(ctx), ErrSilent) {
		return ErrSilent
	}
	return err
}
