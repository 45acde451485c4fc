package reparent

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

// Emergency watches all shards and starts the reparents that verdicts ask for. It runs on every replica: two that act on
// the same emergency get one winner from the lock of the term.
type Emergency struct {
	Runner *Runner
	Params verdict.Params
	// Leading reports whether this replica is the leader: what is not urgent is left to it.
	Leading func() bool

	mu      sync.Mutex
	dirty   map[types.NamespacedName]bool
	uneasy  map[types.NamespacedName]bool // looked at on every tick
	history map[types.NamespacedName]*history
}

// tick is how often a shard is looked at while something is suspicious: ages decide, and they grow without an event.
const tick = 100 * time.Millisecond

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (e *Emergency) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable.
func (e *Emergency) Start(ctx context.Context) error {
	e.mu.Lock()
	e.dirty, e.uneasy, e.history = map[types.NamespacedName]bool{}, map[types.NamespacedName]bool{}, map[types.NamespacedName]*history{}
	e.mu.Unlock()
	wake := make(chan struct{}, 1)
	cancel := e.Runner.Observer.Subscribe(func(key types.NamespacedName, change observer.Change) {
		e.mu.Lock()
		e.dirty[key] = true
		e.mu.Unlock()
		if change == observer.Significant {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	ticker := e.Runner.Clock.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			e.Runner.Wait()
			return nil
		case <-wake:
		case <-ticker.C():
		}
		for _, key := range e.due() {
			e.look(ctx, key)
		}
	}
}

// due are the shards to look at: those of which something was heard, those that are suspicious, and those of which
// nothing was heard for too long.
func (e *Emergency) due() []types.NamespacedName {
	now := e.Runner.Clock.Now()
	e.mu.Lock()
	dirty := e.dirty
	e.dirty = map[types.NamespacedName]bool{}
	for key := range e.uneasy {
		dirty[key] = true
	}
	e.mu.Unlock()
	for _, key := range e.Runner.Observer.Shards() {
		if dirty[key] {
			continue
		}
		for _, o := range e.Runner.Observer.Observations(key) {
			if !o.Connected || now.Sub(o.ReceivedAt) >= time.Second {
				dirty[key] = true
			}
		}
	}
	var due []types.NamespacedName
	for key := range dirty {
		due = append(due, key)
	}
	return due
}

// look judges one shard and starts what the verdict asks for.
func (e *Emergency) look(ctx context.Context, key types.NamespacedName) {
	log := e.Runner.Log.WithValues("shard", key)
	sh := &v1alpha1.Shard{}
	if err := e.Runner.Client.Get(ctx, key, sh); err != nil {
		if client.IgnoreNotFound(err) == nil {
			e.mu.Lock()
			delete(e.history, key)
			delete(e.uneasy, key)
			e.mu.Unlock()
		}
		return
	}
	if !sh.DeletionTimestamp.IsZero() || e.Runner.Busy(key) {
		return
	}
	h := e.historyOf(key)
	o, err := e.observed(ctx, sh, h)
	if err != nil {
		log.Error(err, "cannot observe")
		return
	}
	j := verdict.Judge(o, e.Params)
	if j.Verdict != h.last {
		h.last = j.Verdict
		verdicts.WithLabelValues(string(j.Verdict), string(j.Action)).Inc()
		log.Info("verdict", "verdict", j.Verdict, "subject", j.Subject, "action", j.Action, "why", j.Why)
	}
	e.mu.Lock()
	if j.Verdict == verdict.Healthy {
		delete(e.uneasy, key)
	} else {
		e.uneasy[key] = true
	}
	e.mu.Unlock()
	if !e.concerns(j) {
		h.wantedSince = time.Time{}
		return
	}
	now := e.Runner.Clock.Now()
	if h.wantedSince.IsZero() {
		h.wantedSince = now
	}
	if now.Before(h.retryAfter) || !e.Leading() && now.Sub(h.wantedSince) < yield {
		return
	}
	e.Runner.Go(key, func() { e.act(ctx, log, key, sh, h, o, j) })
}

// yield is how long a replica that is not the leader waits for the leader to act first. Both acting costs a term and the
// time to find out; a leader that died with the primary costs this much.
const yield = 150 * time.Millisecond

// concerns reports whether the action is this replica's business.
func (e *Emergency) concerns(j verdict.Judgement) bool {
	return j.Action == verdict.ERS || j.Action == verdict.PRS && e.Leading()
}

func (e *Emergency) historyOf(key types.NamespacedName) *history {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.history[key]
	if h == nil {
		h = newHistory()
		e.history[key] = h
	}
	return h
}

// act confirms the verdict and carries out the reparent. No one else looks at the shard meanwhile: see Runner.Go.
func (e *Emergency) act(ctx context.Context, log logr.Logger, key types.NamespacedName, sh *v1alpha1.Shard, h *history, o verdict.Observed, j verdict.Judgement) {
	confirmed, err := e.confirm(ctx, key, sh, h, o)
	if err != nil || confirmed.Action != j.Action || confirmed.Subject != j.Subject {
		log.Info("verdict not confirmed", "verdict", j.Verdict, "now", confirmed.Verdict, "why", confirmed.Why, "error", err)
		h.retryAfter = e.Runner.Clock.Now().Add(tick)
		return
	}
	expect := shard.RecordOf(sh).Primary()
	req := reparent.Request{Kind: reparent.Emergency, Reason: string(j.Verdict), ExpectPrimary: expect, AwayFrom: j.Subject}
	if j.Subject != expect {
		req.AwayFrom = ""
	}
	log.Info("acting", "verdict", j.Verdict, "subject", j.Subject, "action", j.Action, "why", confirmed.Why)
	if j.Action == verdict.PRS {
		req.Kind = reparent.Planned
		res, err := e.Runner.Run(ctx, key, req)
		if err == nil && (res.Outcome == reparent.Succeeded || res.Outcome == reparent.Overtaken) {
			e.ended(h, res, err)
			return
		}
		log.Info("the planned reparent did not do, an emergency one follows", "outcome", res.Outcome, "message", res.Message)
		req.Kind = reparent.Emergency
	}
	res, err := e.Runner.Run(ctx, key, req)
	if err != nil {
		log.Error(err, "reparent could not begin")
	}
	e.ended(h, res, err)
}

// Pauses after an emergency reparent that did not succeed, doubling.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// ended notes how a reparent went: one that failed is tried again after a pause that grows.
func (e *Emergency) ended(h *history, res reparent.Result, err error) {
	if err == nil && res.Outcome == reparent.Succeeded {
		h.failures, h.retryAfter = 0, time.Time{}
		return
	}
	h.failures++
	h.retryAfter = e.Runner.Clock.Now().Add(min(firstRetry<<min(h.failures-1, 10), lastRetry))
}

// confirmTimeout bounds the fresh look before an emergency. An agent that lives answers in milliseconds.
const confirmTimeout = 150 * time.Millisecond

// confirm asks everybody again, all at once: the instances for their status, the standbys for what they know of the
// primary. The verdict given on the answers is the one that counts.
func (e *Emergency) confirm(ctx context.Context, key types.NamespacedName, sh *v1alpha1.Shard, h *history, o verdict.Observed) (verdict.Judgement, error) {
	live := &v1alpha1.Shard{}
	getCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := e.Runner.Live.Get(getCtx, key, live); err != nil {
		return verdict.Judgement{}, err
	}
	o.Record = shard.RecordOf(live)
	primary := o.Record.Primary()
	observations := e.Runner.Observer.Observations(key)
	type answer struct {
		name    string
		status  *agentpb.Status
		testify *agentpb.TestifyReply
	}
	answers := make(chan answer, len(observations))
	askCtx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	for name, ob := range observations {
		go func() {
			a := answer{name: name}
			defer func() { answers <- a }()
			c, closeConn, err := e.Runner.Agents(askCtx, key, ob.Endpoint)
			if err != nil {
				return
			}
			defer closeConn()
			if st, err := c.GetStatus(askCtx, &agentpb.GetStatusRequest{}); err == nil {
				a.status = st
			}
			if name != primary {
				if t, err := c.Testify(askCtx, &agentpb.TestifyRequest{Primary: primary}); err == nil {
					a.testify = t
				}
			}
		}()
	}
	fresh := map[string]answer{}
	for range observations {
		a := <-answers
		fresh[a.name] = a
	}
	now := e.Runner.Clock.Now()
	scratch := newHistory() // the durations stay those of the observation
	for k := range o.Instances {
		i := &o.Instances[k]
		a := fresh[i.Name]
		if a.status != nil && a.status.GetInstance() == i.Name {
			ob := observer.Observation{Status: a.status, ReceivedAt: now, Connected: true}
			next := scratch.instance(i.Name, &ob, now)
			keep(&next, i)
			*i = next
		}
		if a.testify != nil {
			i.PrimaryPostgres, i.PrimaryAgent = reach(a.testify.GetPostgresReachable()), reach(a.testify.GetAgentReachable())
		}
	}
	// Another replica may have begun while we asked.
	var err error
	if o.Reparent, err = e.inFlight(ctx, sh, h, now); err != nil {
		return verdict.Judgement{}, err
	}
	return verdict.Judge(o, e.Params), nil
}

// keep carries over what a single status cannot say.
func keep(next, before *verdict.Instance) {
	next.PodGone, next.PodGoneFor, next.NodeNotReadyFor, next.Leaving = before.PodGone, before.PodGoneFor, before.NodeNotReadyFor, before.Leaving
	next.Receiver.AdvanceAge = before.Receiver.AdvanceAge
	next.WriteProbe.SlowFor, next.CommitProbe.SlowFor = before.WriteProbe.SlowFor, before.CommitProbe.SlowFor
	next.DiskProbe.SlowFor, next.ConnectProbe.SlowFor = before.DiskProbe.SlowFor, before.ConnectProbe.SlowFor
}

func reach(ok bool) verdict.Reach {
	if ok {
		return verdict.Reached
	}
	return verdict.NotReached
}
