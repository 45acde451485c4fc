package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// hub hands each status to every watcher. A slow watcher misses some and always gets the latest.
type hub struct {
	mu       sync.Mutex
	sequence uint64
	latest   *agentpb.Status
	watchers map[*watcher]bool
	// word gets a token when a gateway has said something.
	word chan struct{}
}

type watcher struct {
	updates chan *agentpb.Status
	// name and acknowledges are a gateway's; paused is the term in which it said it has paused, passing that in which it said
	// that it lets clients through all the same.
	gateway         bool
	name            string
	acknowledges    bool
	paused, passing uint64
}

func (h *hub) subscribe(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = map[*watcher]bool{}
	}
	h.watchers[w] = true
	if h.latest != nil {
		w.updates <- h.latest
	}
}

func (h *hub) unsubscribe(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// publish takes the status and hands it out under one lock: of two at the same time the later one is the newer one.
func (h *hub) publish(take func() *agentpb.Status) *agentpb.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := take()
	h.sequence++
	st.Sequence = h.sequence
	h.latest = st
	for w := range h.watchers {
		select {
		case <-w.updates: // replace what it has not read yet
		default:
		}
		w.updates <- st
	}
	return st
}

// acknowledge notes that a gateway has paused, or lets clients through although it was asked not to.
func (h *hub) acknowledge(name string, term uint64, paused bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.name == name && w.acknowledges {
			w.paused, w.passing = 0, term
			if paused {
				w.paused, w.passing = term, 0
			}
		}
	}
	select {
	case h.word <- struct{}{}:
	default:
	}
}

// passing reports whether a gateway said that it lets clients through in term.
func (h *hub) passing(term uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.passing == term {
			return true
		}
	}
	return false
}

// pending is how many connected gateways have not paused in term, of those that say when they do. guessed is how many
// gateways never say.
func (h *hub) pending(term uint64) (pending int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.acknowledges && w.paused != term {
			pending++
		}
	}
	return pending
}

// forgetPauses makes every gateway's word count from now on only.
func (h *hub) forgetPauses() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.paused, w.passing = 0, 0
	}
}

// Watch implements the RPC.
func (a *Agent) Watch(req *agentpb.WatchRequest, stream agentpb.Agent_WatchServer) error {
	who, err := agentapi.PeerFromContext(stream.Context())
	if err != nil {
		return err
	}
	if who.Role == agentapi.RoleOperator {
		if len(req.GetShardEndpoints()) > 0 {
			a.learnEndpoints(stream.Context(), req.GetShardEndpoints())
		}
		defer a.operators.attach(stream.Context())()
	}
	w := &watcher{updates: make(chan *agentpb.Status, 1)}
	if who.Role == agentapi.RoleGateway {
		w.gateway, w.name, w.acknowledges = true, req.GetName(), req.GetAcknowledges()
	}
	a.publish() // a fresh one to begin with
	a.hub.subscribe(w)
	defer a.hub.unsubscribe(w)
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case st := <-w.updates:
			if err := stream.Send(st); err != nil {
				return err
			}
		}
	}
}

// Acknowledge implements the RPC.
func (a *Agent) Acknowledge(_ context.Context, req *agentpb.AcknowledgeRequest) (*agentpb.AcknowledgeReply, error) {
	a.hub.acknowledge(req.GetName(), req.GetTerm(), req.GetPaused())
	return &agentpb.AcknowledgeReply{}, nil
}

// learnEndpoints remembers the members of the shard. It is written to disk in the background: nobody waits for it.
func (a *Agent) learnEndpoints(ctx context.Context, eps []*agentpb.Endpoint) {
	learned := make([]Target, 0, len(eps))
	for _, ep := range eps {
		learned = append(learned, *target(0, ep))
	}
	if slices.Equal(learned, a.snapshot().Endpoints) {
		return
	}
	go func() {
		err := a.update(context.WithoutCancel(ctx), func(s *State) error { s.Endpoints = learned; return nil })
		if err != nil {
			a.log.Warn("members not remembered", "error", err)
		}
		a.publish()
	}()
}

// operators knows when the operator was last heard.
type operators struct {
	mu    sync.Mutex
	last  time.Time
	conns map[int]func() (time.Duration, bool)
	next  int
}

// heardFrom is told of every call.
func (a *Agent) heardFrom(who agentapi.Peer, _ string) {
	if who.Role == agentapi.RoleOperator {
		a.operators.mu.Lock()
		a.operators.last = a.now()
		a.operators.mu.Unlock()
	}
}

// attach counts an open Watch stream of the operator until the returned function is called.
func (o *operators) attach(ctx context.Context) func() {
	lastHeard := func() (time.Duration, bool) { return 0, true } // an open stream: pings close it when the peer is gone
	if p, ok := peer.FromContext(ctx); ok {
		if conn, ok := p.AuthInfo.(agentapi.Connection); ok {
			lastHeard = conn.LastHeard
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		o.conns = map[int]func() (time.Duration, bool){}
	}
	id := o.next
	o.next++
	o.conns[id] = lastHeard
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.conns, id)
	}
}

// heard is when the operator was last heard, the zero time for never. On an open stream each heartbeat is acknowledged
// by the operator's kernel, which tells of a cut sooner than the pings do.
func (o *operators) heard(now time.Time) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := o.last
	for _, ago := range o.conns {
		at := now
		if d, ok := ago(); ok {
			at = now.Add(-d)
		}
		if at.After(last) {
			last = at
		}
	}
	o.last = last
	return last
}

// allAcknowledge says whether there are gateways and every one of them says when it has paused.
func (h *hub) allAcknowledge() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	gateways := 0
	for w := range h.watchers {
		if w.gateway && !w.acknowledges {
			return false
		}
		if w.gateway {
			gateways++
		}
	}
	return gateways > 0
}
