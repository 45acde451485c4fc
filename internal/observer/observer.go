// Package observer keeps, for every shard, what its agents last said and when: one Watch stream to each, in memory. It
// runs on every replica of the operator, because emergencies do not wait for a leader.
//
// A stream that ends or falls silent is dialled afresh, never reused: a connection to a Pod that is gone can hang for
// half a minute where a new one fails at once. What was heard before is kept with its time, so that a reader judges
// the age itself; the observer never invents a status.
package observer

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// Target is one instance to watch. An instance whose UID changes is another instance: what its predecessor said is
// forgotten.
type Target struct {
	Instance string
	UID      types.UID
	Endpoint *agentpb.Endpoint
}

// Observation is what is known of one instance.
type Observation struct {
	Target
	// Status it sent last; nil before the first. Shared: do not modify.
	Status *agentpb.Status
	// ReceivedAt is when, by our clock; zero before the first.
	ReceivedAt time.Time
	// Connected is true while the stream stands.
	Connected bool
	// FailingSince is when the stream broke, or the first attempt to connect was made; zero while Connected.
	FailingSince time.Time
	// LastError says why it is not Connected.
	LastError string
	// Refused is true when the machine answered that nobody listens there any more: the agent has ended.
	Refused bool
}

// Change says what is new about a shard.
type Change int

const (
	// Heartbeat: positions, lags and times moved on, nothing else.
	Heartbeat Change = iota
	// Significant: a decision may depend on it (a role, a term, a connection, a probe's verdict …).
	Significant
)

// Stream watches one agent until ctx ends or the stream breaks, and says why; the error is never nil. Each status is
// given to got. Implementations bound the time to connect and the silence between two statuses.
type Stream func(ctx context.Context, shard types.NamespacedName, target Target, req *agentpb.WatchRequest, got func(*agentpb.Status)) error

// Options of New.
type Options struct {
	Stream Stream
	Clock  clock.WithTicker
	Log    logr.Logger
	// Backoff is the longest pause between two attempts to connect; it begins at a quarter. Default 200 ms.
	Backoff time.Duration
}

// Observer watches shards. Its methods may be called from any goroutine.
type Observer struct {
	opts Options

	mu          sync.Mutex
	closed      bool
	shards      map[types.NamespacedName]*group
	subscribers map[int]func(types.NamespacedName, Change)
	nextID      int
	running     sync.WaitGroup
}

type group struct {
	watchers map[string]*watcher
}

// New makes an observer that watches nothing yet.
func New(opts Options) *Observer {
	if opts.Backoff == 0 {
		opts.Backoff = 200 * time.Millisecond
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	return &Observer{
		opts:        opts,
		shards:      map[types.NamespacedName]*group{},
		subscribers: map[int]func(types.NamespacedName, Change){},
	}
}

// Subscribe calls f after every change of any shard until cancel is called. f is called from many goroutines and must
// not block: put the key into a work queue.
func (o *Observer) Subscribe(f func(types.NamespacedName, Change)) (cancel func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := o.nextID
	o.nextID++
	o.subscribers[id] = f
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.subscribers, id)
	}
}

// Sync makes the observer watch exactly targets in the shard. Streams to unchanged targets go on; when the set of
// endpoints changed they are opened again, because the agents pass the endpoints on to the gateways.
func (o *Observer) Sync(shard types.NamespacedName, targets []Target) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	g := o.shards[shard]
	if g == nil {
		g = &group{watchers: map[string]*watcher{}}
		o.shards[shard] = g
	}
	endpoints := make([]*agentpb.Endpoint, 0, len(targets))
	wanted := map[string]Target{}
	for _, t := range targets {
		wanted[t.Instance] = t
		endpoints = append(endpoints, t.Endpoint)
	}
	slices.SortFunc(endpoints, func(a, b *agentpb.Endpoint) int {
		switch {
		case a.GetInstance() < b.GetInstance():
			return -1
		case a.GetInstance() > b.GetInstance():
			return 1
		}
		return 0
	})
	for name, w := range g.watchers {
		if t, ok := wanted[name]; !ok || t.UID != w.target.UID || !proto.Equal(t.Endpoint, w.target.Endpoint) {
			w.stop()
			delete(g.watchers, name)
		}
	}
	for name, t := range wanted {
		if w, ok := g.watchers[name]; ok {
			w.tell(endpoints)
			continue
		}
		w := newWatcher(o, shard, t, endpoints)
		g.watchers[name] = w
		o.running.Go(w.run)
	}
}

// Forget stops watching the shard.
func (o *Observer) Forget(shard types.NamespacedName) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if g := o.shards[shard]; g != nil {
		for _, w := range g.watchers {
			w.stop()
		}
		delete(o.shards, shard)
	}
}

// Close stops everything and returns when all streams have ended.
func (o *Observer) Close() {
	o.mu.Lock()
	o.closed = true
	for shard, g := range o.shards {
		for _, w := range g.watchers {
			w.stop()
		}
		delete(o.shards, shard)
	}
	o.mu.Unlock()
	o.running.Wait()
}

// Shards that are watched.
func (o *Observer) Shards() []types.NamespacedName {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.shards))
}

// Observations of the shard by instance; none when it is not watched.
func (o *Observer) Observations(shard types.NamespacedName) map[string]Observation {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[string]Observation{}
	if g := o.shards[shard]; g != nil {
		for name, w := range g.watchers {
			out[name] = w.observation()
		}
	}
	return out
}

func (o *Observer) notify(shard types.NamespacedName, change Change) {
	o.mu.Lock()
	fs := slices.Collect(maps.Values(o.subscribers))
	o.mu.Unlock()
	for _, f := range fs {
		f(shard, change)
	}
}
