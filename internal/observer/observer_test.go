package observer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

var shard = types.NamespacedName{Namespace: "ns", Name: "db-0"}

// fakeAgents plays the streams: each opened stream is announced on opened and driven by its own channels.
type fakeAgents struct{ opened chan *fakeStream }

type fakeStream struct {
	target Target
	req    *agentpb.WatchRequest
	got    func(*agentpb.Status)
	broken chan error
	ended  chan struct{}
}

func (f *fakeAgents) stream(ctx context.Context, _ types.NamespacedName, t Target, req *agentpb.WatchRequest, got func(*agentpb.Status)) error {
	s := &fakeStream{target: t, req: req, got: got, broken: make(chan error), ended: make(chan struct{})}
	defer close(s.ended)
	select {
	case f.opened <- s:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-s.broken:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeAgents) next(t *testing.T) *fakeStream {
	t.Helper()
	select {
	case s := <-f.opened:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no stream was opened")
		return nil
	}
}

type changes struct {
	mu   sync.Mutex
	seen []Change
}

func (c *changes) add(_ types.NamespacedName, change Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, change)
}

func (c *changes) take() []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.seen
	c.seen = nil
	return out
}

func target(name, uid string) Target {
	return Target{Instance: name, UID: types.UID(uid), Endpoint: &agentpb.Endpoint{Instance: name, Host: "10.0.0.1"}}
}

func status(name, uid string, edit func(*agentpb.Status)) *agentpb.Status {
	s := &agentpb.Status{Instance: name, PodUid: uid, Role: agentpb.Role_STANDBY, Term: 3}
	if edit != nil {
		edit(s)
	}
	return s
}

func setup(t *testing.T) (*Observer, *fakeAgents, *changes) {
	f := &fakeAgents{opened: make(chan *fakeStream)}
	o := New(Options{Stream: f.stream, Log: logr.Discard(), Backoff: 4 * time.Millisecond})
	t.Cleanup(o.Close)
	c := &changes{}
	o.Subscribe(c.add)
	return o, f, c
}

func TestStatusesAreKeptAndJudged(t *testing.T) {
	o, f, c := setup(t)
	o.Sync(shard, []Target{target("a", "1")})
	before := o.Observations(shard)["a"]
	require.False(t, before.Connected)
	require.NotZero(t, before.FailingSince, "one that never answered counts as failing from the start")

	s := f.next(t)
	s.got(status("a", "1", nil))
	require.Equal(t, []Change{Significant}, c.take())
	s.got(status("a", "1", func(s *agentpb.Status) { s.ReplayedLsn, s.Sequence, s.AtUnixMs = 10, 11, 12 }))
	require.Equal(t, []Change{Heartbeat}, c.take(), "a position that moves is no news")
	for name, edit := range map[string]func(*agentpb.Status){
		"role":        func(s *agentpb.Status) { s.Role = agentpb.Role_PRIMARY },
		"term":        func(s *agentpb.Status) { s.Term = 4 },
		"established": func(s *agentpb.Status) { s.Established = true },
		"draining":    func(s *agentpb.Status) { s.Draining = true },
		"fenced":      func(s *agentpb.Status) { s.Fenced = "alone" },
		"diverged":    func(s *agentpb.Status) { s.Diverged = true },
		"peer":        func(s *agentpb.Status) { s.Peers = []*agentpb.ReplicationPeer{{Instance: "b"}} },
		"receiver":    func(s *agentpb.Status) { s.Receiver = &agentpb.Receiver{Streaming: true} },
		"probe":       func(s *agentpb.Status) { s.DiskProbe = &agentpb.Probe{Failures: 1} },
		"restart":     func(s *agentpb.Status) { s.BootId = "other" },
	} {
		s.got(status("a", "1", nil))
		c.take()
		s.got(status("a", "1", edit))
		require.Equal(t, []Change{Significant}, c.take(), name)
	}
	peer := func(age int64) *agentpb.Status {
		return status("a", "1", func(s *agentpb.Status) { s.Peers = []*agentpb.ReplicationPeer{{Instance: "c", ReplyAgeMs: age}} })
	}
	s.got(peer(10))
	c.take()
	s.got(peer(900))
	require.Equal(t, []Change{Heartbeat}, c.take(), "a reply that is on its way is no news")
	s.got(peer(2600))
	require.Equal(t, []Change{Significant}, c.take(), "a standby that falls silent is")
	s.got(peer(3100))
	require.Equal(t, []Change{Heartbeat}, c.take(), "that it goes on to be silent is not")
	require.True(t, o.Observations(shard)["a"].Connected)
}

func TestABrokenStreamIsOpenedAgainAndItsLastWordKept(t *testing.T) {
	o, f, c := setup(t)
	o.Sync(shard, []Target{target("a", "1")})
	s := f.next(t)
	s.got(status("a", "1", nil))
	c.take()
	s.broken <- errors.New("reset")
	s = f.next(t)
	got := o.Observations(shard)["a"]
	require.False(t, got.Connected)
	require.Equal(t, "reset", got.LastError)
	require.NotNil(t, got.Status)
	require.Equal(t, []Change{Significant}, c.take())
	since := got.FailingSince
	s.broken <- errors.New("refused")
	s = f.next(t)
	require.Equal(t, since, o.Observations(shard)["a"].FailingSince, "failing since the first failure")
	require.Empty(t, c.take(), "going on to fail is no news")
	s.got(status("a", "1", nil))
	require.True(t, o.Observations(shard)["a"].Connected)
	require.Equal(t, []Change{Significant}, c.take())
}

func TestARefusedConnectionIsTold(t *testing.T) {
	o, f, c := setup(t)
	o.Sync(shard, []Target{target("a", "1")})
	s := f.next(t)
	s.got(status("a", "1", nil))
	s.broken <- errors.New("reset")
	s = f.next(t)
	c.take()
	s.broken <- fmt.Errorf("agent a: %w", syscall.ECONNREFUSED)
	s = f.next(t)
	require.Equal(t, []Change{Significant}, c.take(), "the process is gone, not only out of reach")
	require.True(t, o.Observations(shard)["a"].Refused)
	s.got(status("a", "1", nil))
	require.False(t, o.Observations(shard)["a"].Refused)
}

func TestAnotherPodAtTheAddressIsNotBelieved(t *testing.T) {
	o, f, _ := setup(t)
	o.Sync(shard, []Target{target("a", "1")})
	s := f.next(t)
	s.got(status("b", "9", nil))
	s.got(status("a", "9", nil))
	got := o.Observations(shard)["a"]
	require.False(t, got.Connected)
	require.Nil(t, got.Status)
	require.Contains(t, got.LastError, "answered at the address")
}

func TestSyncStopsStartsAndTellsEndpoints(t *testing.T) {
	o, f, _ := setup(t)
	o.Sync(shard, []Target{target("a", "1")})
	a := f.next(t)
	require.Len(t, a.req.GetShardEndpoints(), 1)
	a.got(status("a", "1", nil))

	o.Sync(shard, []Target{target("a", "1"), target("b", "2")})
	<-a.ended
	first, second := f.next(t), f.next(t)
	require.ElementsMatch(t, []string{"a", "b"}, []string{first.target.Instance, second.target.Instance})
	for _, s := range []*fakeStream{first, second} {
		require.Len(t, s.req.GetShardEndpoints(), 2)
	}
	require.True(t, o.Observations(shard)["a"].Connected, "opening a stream again to pass endpoints on is no failure")

	o.Sync(shard, []Target{target("a", "1"), target("b", "2")})
	o.Sync(shard, []Target{target("a", "7")})
	<-first.ended
	<-second.ended
	again := f.next(t)
	require.Equal(t, types.UID("7"), again.target.UID)
	require.Nil(t, o.Observations(shard)["a"].Status, "another UID is another instance")
	require.NotContains(t, o.Observations(shard), "b")

	o.Forget(shard)
	<-again.ended
	require.Empty(t, o.Observations(shard))
	require.Empty(t, o.Shards())
}

func TestUnsubscribe(t *testing.T) {
	o, f, c := setup(t)
	extra := &changes{}
	cancel := o.Subscribe(extra.add)
	cancel()
	o.Sync(shard, []Target{target("a", "1")})
	f.next(t).got(status("a", "1", nil))
	require.Len(t, c.take(), 1)
	require.Empty(t, extra.take())
}

func TestNothingIsWatchedAfterClose(t *testing.T) {
	o, _, _ := setup(t)
	o.Close()
	o.Sync(shard, []Target{target("a", "1")})
	require.Empty(t, o.Shards())
}
