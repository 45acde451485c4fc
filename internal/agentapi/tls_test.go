package agentapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T) *ca {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &ca{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

type leaf struct {
	shard   Shard
	role    Role
	usage   []x509.ExtKeyUsage
	dns     []string
	expired bool
	serial  int64
}

func (c *ca) issue(t *testing.T, l leaf) (cert, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	if l.usage == nil {
		l.usage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	if l.dns == nil {
		l.dns = []string{ServerName(l.shard)}
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(l.serial + 2), Subject: pkix.Name{CommonName: CommonName(l.role, l.shard)}, DNSNames: l.dns,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: l.usage,
		URIs: []*url.URL{URI(l.shard, l.role)},
	}
	if l.expired {
		tmpl.NotAfter = time.Now().Add(-time.Minute)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &k.PublicKey, c.key)
	require.NoError(t, err)
	kder, err := x509.MarshalECPrivateKey(k)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})
}

func (c *ca) identity(t *testing.T, l leaf) Identity {
	cert, key := c.issue(t, l)
	id, err := NewStaticIdentity(c.pem, cert, key)
	require.NoError(t, err)
	return id
}

var shardA, shardB = Shard{"ns", "db-0"}, Shard{"ns", "db-1"}

// fake answers every call it is asked to.
type fake struct {
	agentpb.UnimplementedAgentServer
	silent bool
}

func (f *fake) GetStatus(context.Context, *agentpb.GetStatusRequest) (*agentpb.Status, error) {
	return &agentpb.Status{Instance: "one"}, nil
}

func (f *fake) Promise(context.Context, *agentpb.PromiseRequest) (*agentpb.PromiseReply, error) {
	return &agentpb.PromiseReply{}, nil
}

func (f *fake) Testify(context.Context, *agentpb.TestifyRequest) (*agentpb.TestifyReply, error) {
	return &agentpb.TestifyReply{}, nil
}

func (f *fake) Watch(_ *agentpb.WatchRequest, s agentpb.Agent_WatchServer) error {
	_ = s.Send(&agentpb.Status{Instance: "one"})
	if !f.silent {
		return nil
	}
	<-s.Context().Done()
	return nil
}

func serve(t *testing.T, id Identity, shard Shard, f *fake) *agentpb.Endpoint {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(ServerOptions(id, shard, &Authorizer{Instance: "one"})...)
	agentpb.RegisterAgentServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return &agentpb.Endpoint{Instance: "one", Host: "127.0.0.1", AgentPort: uint32(l.Addr().(*net.TCPAddr).Port)}
}

func TestWhoGetsIn(t *testing.T) {
	c, other := newCA(t), newCA(t)
	ep := serve(t, c.identity(t, leaf{shard: shardA, role: RoleAgent}), shardA, &fake{})
	clientOnly := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, tc := range []struct {
		name string
		id   Identity
		ok   bool
	}{
		{"operator of the shard", c.identity(t, leaf{shard: shardA, role: RoleOperator, usage: clientOnly}), true},
		{"operator of all shards of the CA", c.identity(t, leaf{shard: Shard{"ns", AnyShard}, role: RoleOperator, usage: clientOnly}), true},
		{"gateway of the shard", c.identity(t, leaf{shard: shardA, role: RoleGateway, usage: clientOnly}), true},
		{"operator of another shard", c.identity(t, leaf{shard: shardB, role: RoleOperator}), false},
		{"operator of another namespace", c.identity(t, leaf{shard: Shard{"elsewhere", AnyShard}, role: RoleOperator}), false},
		{"wildcard agent", c.identity(t, leaf{shard: Shard{"ns", AnyShard}, role: RoleAgent}), false},
		{"wildcard gateway", c.identity(t, leaf{shard: Shard{"ns", AnyShard}, role: RoleGateway}), false},
		{"unknown role", c.identity(t, leaf{shard: shardA, role: "admin"}), false},
		{"expired", c.identity(t, leaf{shard: shardA, role: RoleOperator, expired: true}), false},
		{"server certificate as a client", c.identity(t, leaf{shard: shardA, role: RoleOperator, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}), false},
		{"another CA", other.identity(t, leaf{shard: shardA, role: RoleOperator}), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			client, err := NewClient(ep, shardA, tc.id)
			require.NoError(t, err)
			defer func() { _ = client.Close() }()
			_, err = client.GetStatus(ctx, &agentpb.GetStatusRequest{})
			if tc.ok {
				require.NoError(t, err)
			} else {
				require.Error(t, err)
			}
		})
	}
}

func TestWhomAClientBelieves(t *testing.T) {
	c := newCA(t)
	operator := c.identity(t, leaf{shard: Shard{"ns", AnyShard}, role: RoleOperator})
	for _, tc := range []struct {
		name   string
		server leaf
		ok     bool
	}{
		{"an agent of the shard", leaf{shard: shardA, role: RoleAgent}, true},
		{"an agent of another shard", leaf{shard: shardB, role: RoleAgent}, false},
		{"one of another shard that claims the name", leaf{shard: shardB, role: RoleAgent, dns: []string{ServerName(shardA)}}, false},
		{"a gateway that claims the name", leaf{shard: shardA, role: RoleGateway}, false},
		{"an agent without the name", leaf{shard: shardA, role: RoleAgent, dns: []string{"localhost"}}, false},
		{"one for clients only", leaf{shard: shardA, role: RoleAgent, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, false},
		{"an expired one", leaf{shard: shardA, role: RoleAgent, expired: true}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ep := serve(t, c.identity(t, tc.server), tc.server.shard, &fake{})
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			client, err := Dial(ctx, ep, shardA, operator)
			if tc.ok {
				require.NoError(t, err)
				_ = client.Close()
				return
			}
			require.Error(t, err)
			require.NotContains(t, err.Error(), "timed out", "the reason has to be told")
		})
	}
}

func TestMethodsByRole(t *testing.T) {
	c := newCA(t)
	ep := serve(t, c.identity(t, leaf{shard: shardA, role: RoleAgent}), shardA, &fake{})
	call := func(role Role, f func(context.Context, *Client) error) codes.Code {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		client, err := Dial(ctx, ep, shardA, c.identity(t, leaf{shard: shardA, role: role}))
		require.NoError(t, err)
		defer func() { _ = client.Close() }()
		return status.Code(f(ctx, client))
	}
	promise := func(ctx context.Context, c *Client) error {
		_, err := c.Promise(ctx, &agentpb.PromiseRequest{})
		return err
	}
	testify := func(ctx context.Context, c *Client) error {
		_, err := c.Testify(ctx, &agentpb.TestifyRequest{})
		return err
	}
	require.Equal(t, codes.OK, call(RoleOperator, promise))
	require.Equal(t, codes.PermissionDenied, call(RoleAgent, promise))
	require.Equal(t, codes.PermissionDenied, call(RoleGateway, promise))
	require.Equal(t, codes.OK, call(RoleAgent, testify))
	require.Equal(t, codes.PermissionDenied, call(RoleGateway, testify))
}

func TestAllowedIsClosedByDefault(t *testing.T) {
	for _, method := range agentpb.Agent_ServiceDesc.Methods {
		name := method.MethodName
		require.True(t, Allowed(RoleOperator, name))
		require.False(t, Allowed("", name))
		switch name {
		case "GetStatus":
		case "Testify":
			require.False(t, Allowed(RoleGateway, name))
		case "Acknowledge":
			require.False(t, Allowed(RoleAgent, name))
		default:
			require.False(t, Allowed(RoleAgent, name), name)
			require.False(t, Allowed(RoleGateway, name), name)
		}
	}
}

func TestACallForAnotherInstanceIsRefused(t *testing.T) {
	c := newCA(t)
	ep := serve(t, c.identity(t, leaf{shard: shardA, role: RoleAgent}), shardA, &fake{})
	ep.Instance = "two"
	client, err := NewClient(ep, shardA, c.identity(t, leaf{shard: shardA, role: RoleOperator}))
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = client.Promise(ctx, &agentpb.PromiseRequest{Term: 7})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
}

func TestDialingNobodyIsQuick(t *testing.T) {
	c := newCA(t)
	// A listener whose backlog is never accepted from answers TCP and then says nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	ep := &agentpb.Endpoint{Instance: "one", Host: "127.0.0.1", AgentPort: uint32(l.Addr().(*net.TCPAddr).Port)}
	begun := time.Now()
	_, err = Dial(context.Background(), ep, shardA, c.identity(t, leaf{shard: shardA, role: RoleOperator}))
	require.Error(t, err)
	require.Less(t, time.Since(begun), 5*time.Second)
}

func TestASilentAgentIsNoticed(t *testing.T) {
	c := newCA(t)
	ep := serve(t, c.identity(t, leaf{shard: shardA, role: RoleAgent}), shardA, &fake{silent: true})
	client, err := NewClient(ep, shardA, c.identity(t, leaf{shard: shardA, role: RoleOperator}))
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	got := 0
	err = client.WatchStatus(context.Background(), &agentpb.WatchRequest{}, func(*agentpb.Status) { got++ })
	require.ErrorIs(t, err, ErrSilent)
	require.Equal(t, 1, got)
}

func writeTLS(t *testing.T, dir string, ca, cert, key []byte) {
	for name, data := range map[string][]byte{CAFile: ca, CertFile: cert, KeyFile: key} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	future := time.Now().Add(time.Duration(time.Now().UnixNano()%1000) * time.Second)
	require.NoError(t, os.Chtimes(filepath.Join(dir, CertFile), future, future))
}

func TestRotation(t *testing.T) {
	c := newCA(t)
	dir := t.TempDir()
	cert, key := c.issue(t, leaf{shard: shardA, role: RoleAgent, serial: 1})
	writeTLS(t, dir, c.pem, cert, key)
	id, err := NewFileIdentity(dir)
	require.NoError(t, err)
	serial := func() int64 {
		pair, err := id.Certificate()
		require.NoError(t, err)
		parsed, err := x509.ParseCertificate(pair.Certificate[0])
		require.NoError(t, err)
		return parsed.SerialNumber.Int64() - 2
	}
	require.EqualValues(t, 1, serial())

	next, nextKey := c.issue(t, leaf{shard: shardA, role: RoleAgent, serial: 2})
	writeTLS(t, dir, c.pem, next, key)
	require.EqualValues(t, 1, serial(), "half a rotation is not used")
	writeTLS(t, dir, c.pem, next, nextKey)
	require.EqualValues(t, 2, serial())

	require.NoError(t, os.Remove(filepath.Join(dir, KeyFile)))
	require.EqualValues(t, 2, serial(), "what was loaded stays in use")
	_, err = NewFileIdentity(dir)
	require.Error(t, err)
}

func TestANewCAIsTrustedWithoutARestart(t *testing.T) {
	old, next := newCA(t), newCA(t)
	dir := t.TempDir()
	cert, key := old.issue(t, leaf{shard: shardA, role: RoleAgent})
	writeTLS(t, dir, old.pem, cert, key)
	id, err := NewFileIdentity(dir)
	require.NoError(t, err)
	ep := serve(t, id, shardA, &fake{})
	newcomer, nkey := next.issue(t, leaf{shard: shardA, role: RoleOperator})
	operator, err := NewStaticIdentity(append(append([]byte{}, old.pem...), next.pem...), newcomer, nkey)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// In TLS 1.3 the client believes itself connected before the server has judged it.
	call := func() error {
		client, err := NewClient(ep, shardA, operator)
		require.NoError(t, err)
		defer func() { _ = client.Close() }()
		_, err = client.GetStatus(ctx, &agentpb.GetStatusRequest{})
		return err
	}
	require.Error(t, call())
	writeTLS(t, dir, append(append([]byte{}, old.pem...), next.pem...), cert, key)
	require.NoError(t, call())
}
