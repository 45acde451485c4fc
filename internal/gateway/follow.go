package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// Bounds of following agents.
const (
	// resolveCalm and resolveLost are the pauses between look-ups while a primary is served, and while none is.
	resolveCalm = 5 * time.Second
	resolveLost = 250 * time.Millisecond
	lookupBound = time.Second
	// maxWatched bounds the streams; a shard has at most nine instances and a few that come or go.
	maxWatched = 32
	// forgetStream is how long an address that nobody names any more is still tried, forgetStatus how long the last
	// words of an instance that cannot be reached are kept. The served instance's are kept for ever.
	forgetStream = 30 * time.Second
	forgetStatus = 10 * time.Minute
	watchRetry   = 50 * time.Millisecond
	watchRetries = time.Second
	// acknowledgeBound is for one Acknowledge on a stream that is open.
	acknowledgeBound = 500 * time.Millisecond
)

// follower keeps a status stream open to every agent of the shard that it hears of, and turns what they say into a
// route. Addresses come from DNS (the headless Service) and from the agents themselves, so that it starts without
// agents and goes on without DNS.
type follower struct {
	name     string // of this gateway
	shard    agentapi.Shard
	identity agentapi.Identity
	host     string
	port     int
	lookup   func(ctx context.Context, host string) ([]string, error)
	apply    func(Route)
	metrics  *metrics
	clock    clock.WithTicker
	log      *slog.Logger

	nudge chan struct{}

	mu      sync.Mutex
	route   Route
	seen    map[string]*sighting // by instance
	streams map[string]*stream   // by host:port of the agent
	named   map[string]time.Time // when an address was last named
}

type sighting struct {
	Observation
	from string // address
}

type stream struct {
	stop     context.CancelFunc
	open     bool
	instance string           // at the other end, while open
	client   *agentapi.Client // while open
}

// run follows until the context ends.
func (f *follower) run(ctx context.Context) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for ctx.Err() == nil {
		f.resolve(ctx)
		f.reconcile(ctx, &streams)
		f.mu.Lock()
		wait := resolveCalm
		if f.route.Mode != Serve {
			wait = resolveLost
		}
		f.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-f.nudge:
		case <-f.clock.After(wait):
		}
	}
}

// resolve asks DNS. When that fails, the addresses known stay.
func (f *follower) resolve(ctx context.Context) {
	if f.host == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookupBound)
	defer cancel()
	ips, err := f.lookup(ctx, f.host)
	if err != nil {
		f.log.Debug("looking up the instances", "host", f.host, "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ip := range ips {
		f.named[net.JoinHostPort(ip, strconv.Itoa(f.port))] = f.clock.Now()
	}
}

// reconcile opens streams to new addresses and ends those to addresses long gone.
func (f *follower) reconcile(ctx context.Context, wg *sync.WaitGroup) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock.Now()
	for _, s := range f.seen {
		if st := f.streams[s.from]; st == nil || !st.open {
			continue // only the living may name others
		}
		for _, ep := range s.Status.GetShardEndpoints() {
			if ep.GetHost() != "" {
				f.named[agentapi.Address(ep)] = now
			}
		}
	}
	for addr, last := range f.named {
		st := f.streams[addr]
		switch {
		case st == nil && len(f.streams) < maxWatched:
			ctx, stop := context.WithCancel(ctx)
			st := &stream{stop: stop}
			f.streams[addr] = st
			wg.Go(func() { f.watch(ctx, addr, st) })
		case st == nil:
			delete(f.named, addr) // named again at the next look-up, if it still exists
		case !st.open && now.Sub(last) > forgetStream:
			st.stop()
			delete(f.streams, addr)
			delete(f.named, addr)
		}
	}
	for instance, s := range f.seen {
		if f.streams[s.from] == nil && instance != f.route.Instance && now.Sub(s.Received) > forgetStatus {
			delete(f.seen, instance)
		}
	}
}

// watch holds the stream to one address, opening it again whenever it breaks.
func (f *follower) watch(ctx context.Context, addr string, st *stream) {
	pause := watchRetry
	for ctx.Err() == nil {
		err := f.watchOnce(ctx, addr, func(c *agentapi.Client, s *agentpb.Status) {
			pause = watchRetry
			f.got(addr, st, c, s)
		})
		f.closed(st)
		if ctx.Err() != nil {
			return
		}
		f.log.Debug("status stream ended", "address", addr, "error", err)
		select {
		case <-ctx.Done():
		case <-f.clock.After(pause):
			pause = min(2*pause, watchRetries)
		}
	}
}

func (f *follower) watchOnce(ctx context.Context, addr string, got func(*agentapi.Client, *agentpb.Status)) error {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return err
	}
	// A client of its own for each attempt: nothing of a connection to a Pod that has gone is used again.
	c, err := agentapi.NewClient(&agentpb.Endpoint{Host: host, AgentPort: uint32(port)}, f.shard, f.identity)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	req := &agentpb.WatchRequest{Watcher: string(agentapi.RoleGateway), Name: f.name, Acknowledges: true}
	return c.WatchStatus(ctx, req, func(s *agentpb.Status) { got(c, s) })
}

func (f *follower) closed(st *stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st.open {
		st.open, st.client = false, nil
		f.metrics.watches.Dec()
	}
}

// paused tells the agent of the route's primary that nothing goes there any more, or that things do all the same.
func (f *follower) paused(ctx context.Context, r Route, paused bool) error {
	f.mu.Lock()
	var client *agentapi.Client
	for _, st := range f.streams {
		if st.open && st.instance == r.Instance {
			client = st.client
		}
	}
	f.mu.Unlock()
	if client == nil {
		return fmt.Errorf("no stream to instance %s", r.Instance)
	}
	ctx, cancel := context.WithTimeout(ctx, acknowledgeBound)
	defer cancel()
	_, err := client.Acknowledge(ctx, &agentpb.AcknowledgeRequest{Name: f.name, Term: r.Term, Paused: paused})
	return err
}

// got takes one status. The new route is applied before the next status of any agent is looked at.
func (f *follower) got(addr string, st *stream, c *agentapi.Client, s *agentpb.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st.instance, st.client = s.GetInstance(), c
	if !st.open {
		st.open = true
		f.metrics.watches.Inc()
		f.log.Info("following", "instance", s.GetInstance(), "address", addr, "role", s.GetRole(), "term", s.GetTerm())
	}
	if err := f.accept(addr, s); err != nil {
		f.log.Debug("status ignored", "address", addr, "error", err)
		return
	}
	observations := make([]Observation, 0, len(f.seen))
	for _, seen := range f.seen {
		observations = append(observations, seen.Observation)
	}
	next := Decide(f.route, observations)
	if next == f.route {
		return
	}
	f.route = next
	f.apply(next)
}

// accept remembers a status unless it is older than the one there is, and asks for new streams when it names
// addresses without one. The mutex is held.
func (f *follower) accept(addr string, s *agentpb.Status) error {
	if s.GetInstance() == "" {
		return fmt.Errorf("no instance named")
	}
	if shard := s.GetShard(); shard != "" && shard != f.shard.String() {
		return fmt.Errorf("shard %s, not %s", shard, f.shard)
	}
	last := f.seen[s.GetInstance()]
	if last != nil && last.Status.GetBootId() == s.GetBootId() && s.GetSequence() != 0 &&
		s.GetSequence() <= last.Status.GetSequence() {
		return fmt.Errorf("status %d of %s is older than %d", s.GetSequence(), s.GetInstance(), last.Status.GetSequence())
	}
	f.seen[s.GetInstance()] = &sighting{Observation: Observation{Status: s, Received: f.clock.Now()}, from: addr}
	unknown := slices.ContainsFunc(s.GetShardEndpoints(), func(ep *agentpb.Endpoint) bool {
		return ep.GetHost() != "" && f.streams[agentapi.Address(ep)] == nil
	})
	if unknown {
		select {
		case f.nudge <- struct{}{}:
		default:
		}
	}
	return nil
}
