package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

type followLab struct {
	*follower
	mu     sync.Mutex
	routes []Route
}

func newFollowLab(t *testing.T, id agentapi.Identity, c clock.WithTicker) *followLab {
	l := &followLab{}
	l.follower = &follower{
		name: "gateway-1", shard: testShard, identity: id, clock: c, log: slog.New(slog.DiscardHandler),
		metrics: newMetrics(func() float64 { return 0 }), nudge: make(chan struct{}, 1),
		seen: map[string]*sighting{}, streams: map[string]*stream{}, named: map[string]time.Time{},
		apply: func(r Route) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.routes = append(l.routes, r)
		},
	}
	return l
}

func (l *followLab) last() Route {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.routes) == 0 {
		return Route{}
	}
	return l.routes[len(l.routes)-1]
}

func (l *followLab) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// Over real mutual TLS: one address from DNS is enough to find all, to follow the primary from one to the other, to
// acknowledge a drain, and to come through the death of DNS.
func TestFollowerFindsAndFollows(t *testing.T) {
	set := newSet(t)
	agentID := identity(t, set, testShard, agentapi.RoleAgent)
	a, b := newFakeAgent(t, agentID, testShard, "a", 1001), newFakeAgent(t, agentID, testShard, "b", 1002)
	introduce(a, b)
	a.establish(1)
	l := newFollowLab(t, identity(t, set, testShard, agentapi.RoleGateway), clock.RealClock{})
	l.host, l.port = "instances", a.port
	asked := 0
	l.lookup = func(_ context.Context, host string) ([]string, error) {
		if asked++; asked > 1 {
			return nil, errors.New("DNS is down")
		}
		require.Equal(t, "instances", host)
		return []string{"127.0.0.1"}, nil
	}
	l.start(t)
	require.Eventually(t, func() bool { return l.last().Mode == Serve }, soon, time.Millisecond)
	require.Equal(t, "127.0.0.1:1001", l.last().Address)
	require.Eventually(t, func() bool { return len(b.watched()) == 1 }, soon, time.Millisecond)
	require.Equal(t, "gateway-1", b.watched()[0].GetName())
	require.True(t, b.watched()[0].GetAcknowledges())

	a.drain(true)
	require.Eventually(t, func() bool { return l.last().Mode == Drain }, soon, time.Millisecond)
	require.NoError(t, l.paused(context.Background(), l.last(), true))
	a.awaitPause(soon)
	require.Empty(t, a.passing)
	require.NoError(t, l.paused(context.Background(), l.last(), false))
	require.Len(t, a.passing, 1)

	a.server.Stop()
	begin := time.Now()
	b.establish(2)
	require.Eventually(t, func() bool { return l.last().Mode == Serve && l.last().Term == 2 }, soon, time.Millisecond)
	t.Logf("new primary known after %s", time.Since(begin))
	require.Equal(t, "127.0.0.1:1002", l.last().Address)
	require.Error(t, l.paused(context.Background(), Route{Instance: "a"}, true), "nobody there to tell")
}

func TestFollowerBelievesOnlyItsShard(t *testing.T) {
	set := newSet(t)
	other := agentapi.Shard{Namespace: "test", Name: "db-1"}
	stranger := newFakeAgent(t, identity(t, set, other, agentapi.RoleAgent), other, "x", 1001)
	stranger.establish(9)
	l := newFollowLab(t, identity(t, set, testShard, agentapi.RoleGateway), clock.RealClock{})
	l.named[stranger.addr] = time.Now()
	l.start(t)
	time.Sleep(200 * time.Millisecond)
	require.Empty(t, l.last())
	require.Empty(t, stranger.watched())
}

func TestFollowerAccepts(t *testing.T) {
	l := newFollowLab(t, nil, clock.RealClock{})
	give := func(change func(*agentpb.Status)) error {
		s := &agentpb.Status{Instance: "a", Shard: "test/db-0", BootId: "1", Sequence: 5}
		change(s)
		return l.accept("addr", s)
	}
	require.NoError(t, give(func(*agentpb.Status) {}))
	require.Error(t, give(func(*agentpb.Status) {}), "the same again")
	require.Error(t, give(func(s *agentpb.Status) { s.Sequence = 4 }), "overtaken on the way")
	require.NoError(t, give(func(s *agentpb.Status) { s.Sequence = 6 }))
	require.NoError(t, give(func(s *agentpb.Status) { s.BootId, s.Sequence = "2", 1 }), "a new process counts from the beginning")
	require.NoError(t, give(func(s *agentpb.Status) { s.BootId, s.Sequence = "2", 0 }), "who does not count is believed")
	require.Error(t, give(func(s *agentpb.Status) { s.Instance, s.Sequence = "", 9 }))
	require.Error(t, give(func(s *agentpb.Status) { s.Shard, s.Sequence = "test/db-1", 9 }))
	require.Empty(t, l.nudge)
	require.NoError(t, give(func(s *agentpb.Status) {
		s.BootId = "3"
		s.ShardEndpoints = []*agentpb.Endpoint{{Host: "h"}, {}}
	}))
	require.Len(t, l.nudge, 1)
}

func TestFollowerForgets(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	l := newFollowLab(t, nil, c)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // streams end at once
	var wg sync.WaitGroup
	defer wg.Wait()
	stopped := 0
	add := func(addr string, open bool) {
		l.streams[addr] = &stream{open: open, stop: func() { stopped++ }}
		l.named[addr] = c.Now()
	}
	add("gone:1", false)
	add("alive:1", true)
	l.seen["gone"] = &sighting{Observation: status("gone", 1), from: "gone:1"}
	l.seen["served"] = &sighting{Observation: status("served", 2), from: "gone:1"}
	l.seen["alive"] = &sighting{Observation: status("alive", 1), from: "alive:1"}
	for _, s := range l.seen {
		s.Received = c.Now()
	}
	l.route = Route{Mode: Serve, Instance: "served", Term: 2}

	l.reconcile(ctx, &wg)
	require.Len(t, l.streams, 2)
	c.Step(forgetStream + time.Second)
	l.reconcile(ctx, &wg)
	require.Equal(t, 1, stopped)
	require.Contains(t, l.streams, "alive:1", "an open stream is never given up, whoever names it")
	require.Len(t, l.seen, 3)
	c.Step(forgetStatus)
	l.reconcile(ctx, &wg)
	require.NotContains(t, l.seen, "gone")
	require.Contains(t, l.seen, "served", "the claim of the primary served does not age")
	require.Contains(t, l.seen, "alive")
}

func TestFollowerIsBounded(t *testing.T) {
	l := newFollowLab(t, nil, clock.RealClock{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range 3 * maxWatched {
		l.named[fmt.Sprintf("h%d:1", i)] = time.Now()
	}
	l.reconcile(ctx, &wg)
	require.Len(t, l.streams, maxWatched)
	require.Len(t, l.named, maxWatched)
}
