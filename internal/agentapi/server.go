package agentapi

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// ServerOptions are the gRPC options of an agent's listener: mutual TLS, authorization, and pings that close the
// connection of a frozen caller within four seconds (a caller that was cut off is noticed sooner: see LastHeard).
func ServerOptions(id Identity, shard Shard, auth *Authorizer) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(&capturing{TransportCredentials: credentials.NewTLS(ServerTLS(id, shard))}),
		grpc.ChainUnaryInterceptor(auth.Unary),
		grpc.ChainStreamInterceptor(auth.Stream),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Second, Timeout: 3 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(5 * time.Second),
		grpc.MaxConcurrentStreams(64),
	}
}

// Connection is the AuthInfo of an agent's connections. It keeps the socket, so that the agent can ask the kernel
// when the peer's kernel was last heard.
type Connection struct {
	credentials.TLSInfo
	raw net.Conn
}

// TLS gives the plain TLS information.
func (c Connection) TLS() credentials.TLSInfo { return c.TLSInfo }

// LastHeard is how long ago the peer's kernel acknowledged or sent anything. ok is false where the kernel does not
// tell (a sandbox, or not TCP).
func (c Connection) LastHeard() (ago time.Duration, ok bool) {
	tcp, isTCP := c.raw.(*net.TCPConn)
	if !isTCP {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
		return 0, false
	}
	if info.Last_ack_recv == 0 && info.Last_data_recv == 0 && info.Last_data_sent == 0 {
		return 0, false
	}
	return time.Duration(min(info.Last_ack_recv, info.Last_data_recv)) * time.Millisecond, true
}

type capturing struct {
	credentials.TransportCredentials
}

func (c *capturing) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	if t, ok := info.(credentials.TLSInfo); ok {
		return conn, Connection{TLSInfo: t, raw: raw}, nil
	}
	return conn, info, nil
}

func (c *capturing) Clone() credentials.TransportCredentials {
	return &capturing{TransportCredentials: c.TransportCredentials.Clone()}
}
