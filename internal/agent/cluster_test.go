//go:build integration

package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres/pgtest"
)

var testShard = agentapi.Shard{Namespace: "test", Name: "db-0"}

// authority issues the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t *testing.T, shard agentapi.Shard, role agentapi.Role) (cert, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(mrand.Int64()), Subject: pkix.Name{CommonName: agentapi.CommonName(role, shard)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{agentapi.URI(shard, role)},
	}
	if role == agentapi.RoleAgent {
		tmpl.DNSNames = []string{agentapi.ServerName(shard), "localhost"}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	require.NoError(t, err)
	kder, err := x509.MarshalECPrivateKey(k)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})
}

func (a *authority) identity(t *testing.T, role agentapi.Role) agentapi.Identity {
	cert, key := a.issue(t, testShard, role)
	id, err := agentapi.NewStaticIdentity(a.pem, cert, key)
	require.NoError(t, err)
	return id
}

// node is one agent of the test, in a process of its own.
type node struct {
	t      *testing.T
	name   string
	conf   Config
	out    *lockedBuffer
	cmd    *exec.Cmd
	client *agentapi.Client
	// quiet calls as a gateway, so that looking does not count as the operator being heard.
	quiet *agentapi.Client
	ids   [2]agentapi.Identity
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// shardUnderTest is a shard of agents on loopback addresses.
type shardUnderTest struct {
	t        *testing.T
	ca       *authority
	operator agentapi.Identity
	gateway  agentapi.Identity
	nodes    map[string]*node
}

const (
	testPostgresPort = 15432
	testAgentPort    = 17420
	testHealthPort   = 17421
)

func newShard(t *testing.T, names ...string) *shardUnderTest {
	s := &shardUnderTest{t: t, ca: newAuthority(t), nodes: map[string]*node{}}
	s.operator, s.gateway = s.ca.identity(t, agentapi.RoleOperator), s.ca.identity(t, agentapi.RoleGateway)
	subnet := mrand.IntN(250) + 1
	for i, name := range names {
		s.add(name, fmt.Sprintf("127.77.%d.%d", subnet, i+1))
	}
	return s
}

func (s *shardUnderTest) add(name, ip string) *node {
	t := s.t
	dir, err := os.MkdirTemp("", "n")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tlsDir := filepath.Join(dir, "tls")
	require.NoError(t, os.MkdirAll(tlsDir, 0o700))
	cert, key := s.ca.issue(t, testShard, agentapi.RoleAgent)
	for file, data := range map[string][]byte{"ca.crt": s.ca.pem, "tls.crt": cert, "tls.key": key} {
		require.NoError(t, os.WriteFile(filepath.Join(tlsDir, file), data, 0o600))
	}
	n := &node{t: t, name: name, out: &lockedBuffer{}, conf: Config{
		Shard: testShard, Instance: name, PodUID: "uid-" + name, Node: "node-" + name, DataDir: filepath.Join(dir, "data"),
		RunDir: filepath.Join(dir, "run"), TLSDir: tlsDir, Bin: pgtest.Bin(t), Listen: ip, Advertise: ip,
		PostgresPort: testPostgresPort, AgentPort: testAgentPort, HealthPort: testHealthPort,
		Parameters: map[string]string{"shared_buffers": "32MB"}, FenceAfter: 2 * time.Second,
	}}
	s.nodes[name] = n
	n.ids = [2]agentapi.Identity{s.operator, s.gateway}
	n.start()
	t.Cleanup(func() {
		n.kill()
		if strings.Contains(n.out.String(), "DATA RACE") {
			t.Errorf("%s has a data race", name)
		}
		if t.Failed() {
			t.Logf("---- %s\n%s", name, lastBytes(n.out.String(), 6000))
		}
	})
	return n
}

func lastBytes(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}

func (n *node) start() {
	encoded, err := json.Marshal(n.conf)
	require.NoError(n.t, err)
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), "THESEUS_TEST_AGENT="+string(encoded))
	n.cmd.Stdout, n.cmd.Stderr = io.MultiWriter(n.out), n.out
	require.NoError(n.t, n.cmd.Start())
	require.Eventually(n.t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c, err := agentapi.Dial(ctx, n.endpoint(), testShard, n.ids[1])
		if err == nil {
			n.quiet = c
			n.client, err = agentapi.NewClient(n.endpoint(), testShard, n.ids[0])
		}
		return err == nil
	}, 10*time.Second, 20*time.Millisecond, "agent %s does not answer", n.name)
}

// kill ends the agent and everything under it, as the end of its container would.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	// What the agent leaves becomes a child of this process, which therefore can wait for it: to PostgreSQL a zombie is a
	// postmaster that still runs, and nobody says how soon the machine's own first process reaps.
	require.NoError(n.t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	pids := descendants(n.cmd.Process.Pid)
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range pids {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
	_ = n.client.Close()
	_ = n.quiet.Close()
	n.cmd = nil
}

func (n *node) endpoint() *agentpb.Endpoint {
	return &agentpb.Endpoint{Instance: n.name, Host: n.conf.Advertise, PostgresPort: testPostgresPort, AgentPort: testAgentPort}
}

func (n *node) status() *agentpb.Status {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	st, err := n.quiet.GetStatus(ctx, &agentpb.GetStatusRequest{})
	if err != nil {
		return &agentpb.Status{Message: err.Error()}
	}
	return st
}

func (n *node) eventually(what string, ok func(*agentpb.Status) bool) *agentpb.Status {
	n.t.Helper()
	var last *agentpb.Status
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if last = n.status(); ok(last) {
			return last
		}
	}
	require.FailNow(n.t, what, "%s: %v", n.name, last)
	return nil
}

func (n *node) streaming(from string) *agentpb.Status {
	n.t.Helper()
	return n.eventually("streaming from "+from, func(st *agentpb.Status) bool {
		return st.GetRole() == agentpb.Role_STANDBY && st.GetReceiver().GetStreaming() && st.GetReceiver().GetSource() == from
	})
}

// socket opens a superuser session through the agent's own socket.
func (n *node) socket(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable application_name=test",
		filepath.Join(n.conf.RunDir, "sock"), testPostgresPort))
}

// app opens a session of the application's owner over TLS.
func (s *shardUnderTest) app(ctx context.Context, n *node) (*pgx.Conn, error) {
	conf, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d user=owner password=secret dbname=app sslmode=require", n.conf.Advertise, testPostgresPort))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.ca.pem)
	conf.TLSConfig = &tls.Config{RootCAs: pool, ServerName: agentapi.ServerName(testShard)}
	return pgx.ConnectConfig(ctx, conf)
}

func (n *node) postmaster() int {
	data, err := os.ReadFile(filepath.Join(n.conf.DataDir, "pgdata", "postmaster.pid"))
	require.NoError(n.t, err)
	var pid int
	_, err = fmt.Sscan(string(data), &pid)
	require.NoError(n.t, err)
	return pid
}

func (s *shardUnderTest) endpoints() (eps []*agentpb.Endpoint) {
	for _, n := range s.nodes {
		eps = append(eps, n.endpoint())
	}
	return eps
}

// watchAll watches all agents as the operator does.
func (s *shardUnderTest) watchAll(got func(*agentpb.Status)) {
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	var mu sync.Mutex
	for _, n := range s.nodes {
		go func() {
			for ctx.Err() == nil {
				c, err := agentapi.NewClient(n.endpoint(), testShard, s.operator)
				if err != nil {
					return
				}
				_ = c.WatchStatus(ctx, &agentpb.WatchRequest{Watcher: "operator", ShardEndpoints: s.endpoints()}, func(st *agentpb.Status) {
					mu.Lock()
					defer mu.Unlock()
					got(st)
				})
				_ = c.Close()
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		}()
	}
}

// bootstrap makes the usual shard: a primary and its standbys in the cohort, one acknowledgement.
func (s *shardUnderTest) bootstrap(primary string, standbys ...string) {
	t, p := s.t, s.nodes[primary]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	begun := time.Now()
	_, err := p.client.Bootstrap(ctx, &agentpb.BootstrapRequest{
		Term: 1, Cohort: &agentpb.Cohort{Term: 1, Primary: primary}, Database: "app", Owner: "owner", OwnerPassword: "secret",
	})
	require.NoError(t, err)
	_, err = p.client.Establish(ctx, &agentpb.EstablishRequest{Term: 1, Kind: "bootstrap", Reason: "test"})
	require.NoError(t, err)
	t.Logf("bootstrap and establish: %v", time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	for _, name := range standbys {
		_, err := s.nodes[name].client.Seed(ctx, &agentpb.SeedRequest{Term: 1, Source: p.endpoint(), Primary: p.endpoint(), TimelineTerms: p.status().GetTimelineTerms()})
		require.NoError(t, err)
	}
	for _, name := range standbys {
		s.nodes[name].streaming(primary)
	}
	t.Logf("%d seeded and streaming: %v", len(standbys), time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	if len(standbys) > 0 {
		_, err = p.client.Configure(ctx, &agentpb.ConfigureRequest{Term: 1, Cohort: &agentpb.Cohort{Term: 1, Primary: primary, Members: standbys, Acks: 1}})
		require.NoError(t, err)
		t.Logf("configure: %v", time.Since(begun).Round(time.Millisecond))
	}
}

func descendants(root int) []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		end := bytes.LastIndexByte(data, ')')
		var state string
		var parent int
		if _, err := fmt.Sscan(string(data[end+1:]), &state, &parent); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	var all []int
	queue := []int{root}
	for len(queue) > 0 {
		pid := queue[0]
		queue = append(queue[1:], children[pid]...)
		if pid != root {
			all = append(all, pid)
		}
	}
	return all
}
