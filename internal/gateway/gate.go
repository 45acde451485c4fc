package gateway

import (
	"context"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// target is one primary in one term. It ends, for good, as soon as the route leaves it; every server connection made
// for it ends with it.
type target struct {
	address  string
	instance string
	term     uint64

	ctx context.Context
	end context.CancelFunc
}

// gate is where server connections wait for a primary. It has a target while the route is Serve or Drain.
type gate struct {
	clock clock.PassiveClock

	mu      sync.Mutex
	route   Route
	target  *target       // nil in Hold
	changed chan struct{} // closed when target changes
	since   time.Time     // when Serve ended
	told    map[string]bool
}

func newGate(c clock.PassiveClock) *gate {
	return &gate{clock: c, changed: make(chan struct{}), since: c.Now(), told: map[string]bool{}}
}

// set takes a new route and returns the old one. When the new one is not for the same primary in the same term the old
// target has ended when set returns: nothing more reaches it.
func (g *gate) set(r Route) (old Route) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, g.route = g.route, r
	if old.Mode == Serve && r.Mode != Serve {
		g.since = g.clock.Now()
	}
	open := r.Mode != Hold
	if g.target != nil {
		if open && g.target.term == r.Term && g.target.instance == r.Instance && g.target.address == r.Address {
			return old
		}
		g.target.end()
		g.target = nil
	} else if !open {
		return old
	}
	if open {
		ctx, end := context.WithCancel(context.Background())
		g.target = &target{address: r.Address, instance: r.Instance, term: r.Term, ctx: ctx, end: end}
		clear(g.told)
	}
	close(g.changed)
	g.changed = make(chan struct{})
	return old
}

// state is the target (nil in Hold), the route, and a channel that is closed when the target changes.
func (g *gate) state() (*target, Route, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.target, g.route, g.changed
}

// held is for how long clients have not been served; 0 when they are.
func (g *gate) held() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.route.Mode == Serve {
		return 0
	}
	return g.clock.Since(g.since)
}

// tell reports whether a login with this startup packet is to be told that there is no primary: once each in a Hold.
func (g *gate) tell(startup []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.told[string(startup)] || len(g.told) >= maxTold {
		return false
	}
	g.told[string(startup)] = true
	return true
}

// asTold reports whether a login with this startup packet has been told in this Hold.
func (g *gate) asTold(startup []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.told[string(startup)] || len(g.told) >= maxTold
}

// maxTold bounds the memory of a long Hold: distinct pairs of user and database.
const maxTold = 4096
