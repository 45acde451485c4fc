package gateway

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// fakeAgent serves Watch over real mutual TLS, and says what a test wants it to.
type fakeAgent struct {
	agentpb.UnimplementedAgentServer
	t      testing.TB
	name   string
	addr   string
	port   int // of the agent
	server *grpc.Server

	mu       sync.Mutex
	status   *agentpb.Status
	watchers map[chan *agentpb.Status]*agentpb.WatchRequest
	paused   chan struct{} // the gateway said so
	passing  chan struct{} // it said that clients are let through
}

func newFakeAgent(t testing.TB, id agentapi.Identity, shard agentapi.Shard, name string, postgresPort int) *fakeAgent {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &fakeAgent{
		t: t, name: name, addr: listener.Addr().String(), port: listener.Addr().(*net.TCPAddr).Port,
		watchers: map[chan *agentpb.Status]*agentpb.WatchRequest{}, paused: make(chan struct{}, 1), passing: make(chan struct{}, 1),
	}
	a.status = &agentpb.Status{
		Shard: shard.String(), Instance: name, PodUid: name, BootId: name, Role: agentpb.Role_STANDBY, Term: 1,
		Endpoint: &agentpb.Endpoint{Instance: name, Host: "127.0.0.1", PostgresPort: uint32(postgresPort), AgentPort: uint32(a.port)},
	}
	a.server = grpc.NewServer(agentapi.ServerOptions(id, shard, &agentapi.Authorizer{Instance: name})...)
	agentpb.RegisterAgentServer(a.server, a)
	go func() { _ = a.server.Serve(listener) }()
	t.Cleanup(a.server.Stop)
	return a
}

// introduce makes every agent name all.
func introduce(agents ...*fakeAgent) {
	var all []*agentpb.Endpoint
	for _, a := range agents {
		all = append(all, a.current().GetEndpoint())
	}
	for _, a := range agents {
		a.say(func(s *agentpb.Status) { s.ShardEndpoints = all })
	}
}

// say changes the agent's status and pushes it.
func (a *fakeAgent) say(change func(*agentpb.Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := proto.Clone(a.status).(*agentpb.Status)
	change(next)
	next.Sequence++
	a.status = next
	for w := range a.watchers {
		select {
		case w <- next:
		default:
		}
	}
}

// watched says who watches.
func (a *fakeAgent) watched() (all []*agentpb.WatchRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, req := range a.watchers {
		all = append(all, req)
	}
	return all
}

// establish says that the instance is the established primary of a term.
func (a *fakeAgent) establish(term uint64) {
	a.say(func(s *agentpb.Status) {
		s.Role, s.Term, s.Established, s.Draining = agentpb.Role_PRIMARY, term, true, false
		s.Cohort = &agentpb.Cohort{Term: term, Primary: s.GetInstance()}
	})
}

func (a *fakeAgent) drain(on bool) {
	select {
	case <-a.paused:
	default:
	}
	a.say(func(s *agentpb.Status) { s.Draining = on })
}

// Acknowledge notes that the gateway has paused.
func (a *fakeAgent) Acknowledge(_ context.Context, r *agentpb.AcknowledgeRequest) (*agentpb.AcknowledgeReply, error) {
	word := a.paused
	if !r.GetPaused() {
		word = a.passing
	}
	if r.GetTerm() == a.current().GetTerm() {
		select {
		case word <- struct{}{}:
		default:
		}
	}
	return &agentpb.AcknowledgeReply{}, nil
}

func (a *fakeAgent) current() *agentpb.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// awaitPause waits until the gateway has said that it has paused.
func (a *fakeAgent) awaitPause(bound time.Duration) {
	a.t.Helper()
	select {
	case <-a.paused:
	case <-time.After(bound):
		require.Fail(a.t, "the gateway has not acknowledged the drain")
	}
}

func (a *fakeAgent) Watch(req *agentpb.WatchRequest, stream grpc.ServerStreamingServer[agentpb.Status]) error {
	updates := make(chan *agentpb.Status, 64)
	a.mu.Lock()
	a.watchers[updates] = req
	first := a.status
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, updates)
		a.mu.Unlock()
	}()
	if err := stream.Send(first); err != nil {
		return err
	}
	heartbeat := time.NewTicker(500 * time.Millisecond)
	defer heartbeat.Stop()
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case s := <-updates:
			if err := stream.Send(s); err != nil {
				return err
			}
		case <-heartbeat.C:
			a.say(func(*agentpb.Status) {})
		}
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// shortDir is a directory whose name leaves room for a unix socket's (108 bytes in all).
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "g")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
