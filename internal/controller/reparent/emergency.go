package reparent

import (
	"context"
	"errors"
	"fmt"
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
	// Dead is told of every instance that is judged dead, again and again; nil for nobody. It must not block.
	Dead func(ctx context.Context, instance types.NamespacedName)
	// Leading reports whether this replica is the leader: what is not urgent is left to it.
	Leading func() bool
	// Changed is called when Suspects of a shard are others. Nil is nobody.
	Changed func(types.NamespacedName)

	mu      sync.Mutex
	dirty   map[types.NamespacedName]bool
	uneasy  map[types.NamespacedName]bool // looked at on every tick
	history map[types.NamespacedName]*history
	// suspects by shard, and why.
	suspects map[types.NamespacedName]map[string]string
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
			delete(e.suspects, key)
			e.mu.Unlock()
		}
		return
	}
	if !sh.DeletionTimestamp.IsZero() || e.Runner.Busy(key) && !e.Runner.Cancellable(key) {
		return
	}
	h := e.historyOf(key)
	h.mu.Lock()
	defer h.mu.Unlock()
	o, err := e.observed(ctx, sh, h)
	if err != nil {
		log.Error(err, "cannot observe")
		return
	}
	if e.Runner.Busy(key) {
		e.doubt(ctx, log, key, h, o)
		return
	}
	j := verdict.Judge(o, e.Runner.Params)
	h.note(j.Verdict, o, e.Runner.Clock.Now())
	if j.Verdict != h.last {
		h.last = j.Verdict
		verdicts.WithLabelValues(string(j.Verdict), string(j.Action)).Inc()
		log.Info("verdict", "verdict", j.Verdict, "subject", j.Subject, "action", j.Action, "why", j.Why)
	}
	if e.Dead != nil && j.Subject != "" && (j.Verdict == verdict.PrimaryDead || j.Verdict == verdict.StandbyDead) {
		e.Dead(ctx, types.NamespacedName{Namespace: key.Namespace, Name: j.Subject})
	}
	e.mu.Lock()
	if j.Verdict == verdict.Healthy {
		delete(e.uneasy, key)
	} else {
		e.uneasy[key] = true
	}
	e.mu.Unlock()
	e.suspect(key, verdict.Suspects(o, e.Runner.Params))
	now := e.Runner.Clock.Now()
	if stands := h.standing(j, now); !e.concerns(j) || j.Action == verdict.Replace && (stands < e.patience(j.Verdict) || now.Sub(h.condemned) < condemnAfter) {
		h.wantedSince = time.Time{}
		return
	}
	beside := o.Reparent != nil && o.Reparent.Planned && o.Reparent.Failures == 0
	if h.wantedSince.IsZero() || h.beside != beside {
		h.wantedSince, h.beside = now, beside
	}
	if now.Before(h.retryAfter) || !e.Leading() && now.Sub(h.wantedSince) < turn(j.Action, beside) {
		return
	}
	if j.Action == verdict.Replace {
		h.condemned = now
	}
	e.Runner.Go(key, func() { e.act(ctx, log, key, sh, h, o, j) })
}

// yield is how long a replica that is not the leader waits for the leader to act first. Both acting costs a term and the
// time to find out; a leader that died with the primary costs this much. yieldBeside is the same while a planned reparent
// is under way, which the leader has to take back first. yieldPlanned is the same for a primary that is to be moved away
// from: it answers still, and trying the planned way twice holds the clients twice.
const (
	yield        = 150 * time.Millisecond
	yieldBeside  = 600 * time.Millisecond
	yieldPlanned = time.Second
)

func turn(action verdict.Action, beside bool) time.Duration {
	switch {
	case action == verdict.PRS:
		return yieldPlanned
	case beside:
		return yieldBeside
	}
	return yield
}

// errEmergency is why a planned reparent is taken back: see doubt.
var errEmergency = errors.New("an emergency reparent is needed")

// doubt judges a shard while a planned reparent of it is under way here, and has that taken back when the primary turns out to
// need an emergency one: it would wait for a primary that is frozen, for half a minute in the worst case. What follows
// is the next look's business. It looks as if there were no reparent, for it is ours, and stops when there is nothing
// that could be taken back any more: a primary that was told to stop looks like one that needs an emergency.
func (e *Emergency) doubt(ctx context.Context, log logr.Logger, key types.NamespacedName, h *history, o verdict.Observed) {
	o.Reparent = nil
	j := verdict.Judge(o, e.Runner.Params)
	h.note(j.Verdict, o, e.Runner.Clock.Now())
	if h.doubted || j.Action != verdict.ERS {
		return
	}
	h.doubted = true
	e.mu.Lock()
	e.uneasy[key] = true
	e.mu.Unlock()
	e.Runner.Beside(func() {
		calls := e.Runner.calls(key)
		defer calls.Close()
		o, err := e.again(ctx, key, o, calls)
		j := verdict.Judge(o, e.Runner.Params)
		if err == nil && j.Action == verdict.ERS && e.Runner.Cancel(key, fmt.Errorf("%w: %s", errEmergency, j.Why)) {
			log.Info("the planned reparent is taken back", "verdict", j.Verdict, "subject", j.Subject, "why", j.Why)
		}
		h.mu.Lock()
		h.doubted = false
		h.mu.Unlock()
	})
}

// concerns reports whether the action is this replica's business.
func (e *Emergency) concerns(j verdict.Judgement) bool {
	return j.Action == verdict.ERS || j.Action == verdict.PRS || j.Action == verdict.Replace && e.Leading()
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

// sickCheckpoint is how long a primary that is moved away from because it is sick may take for the checkpoint. One that is as
// slow as that had better be left without: the emergency that follows a refusal costs no client more.
const sickCheckpoint = 3 * time.Second

// act confirms the verdict and carries out the reparent. No one else acts on the shard meanwhile: see Runner.Go.
func (e *Emergency) act(ctx context.Context, log logr.Logger, key types.NamespacedName, sh *v1alpha1.Shard, h *history, o verdict.Observed, j verdict.Judgement) {
	calls := e.Runner.calls(key)
	defer calls.Close()
	confirmed, err := e.confirm(ctx, key, sh, h, o, calls)
	if err != nil || confirmed.Action != j.Action || confirmed.Subject != j.Subject {
		log.Info("verdict not confirmed", "verdict", j.Verdict, "now", confirmed.Verdict, "why", confirmed.Why, "error", err)
		h.mu.Lock()
		h.retryAfter = e.Runner.Clock.Now().Add(tick)
		h.mu.Unlock()
		return
	}
	j = confirmed // a moment later it may be clearer what it is
	if j.Action == verdict.Replace {
		e.condemn(ctx, log, sh, j.Subject, j.Verdict, j.Why)
		return
	}
	expect := shard.RecordOf(sh).Primary()
	req := reparent.Request{Kind: reparent.Emergency, Reason: string(j.Verdict), ExpectPrimary: expect, AwayFrom: j.Subject}
	if j.Subject != expect {
		req.AwayFrom = ""
	}
	log.Info("acting", "verdict", j.Verdict, "subject", j.Subject, "action", j.Action, "why", j.Why)
	if j.Action == verdict.PRS {
		req.Kind, req.Limits.Checkpoint = reparent.Planned, sickCheckpoint
		if e.misbehaves(o, j.Subject) {
			req.Limits.Patience = -1 // clients had better wait than go on with it
		}
		req.NoCheckpoint = j.Verdict == verdict.DiskFull
		res, err := e.Runner.run(ctx, key, req, calls)
		if err == nil && (res.Outcome == reparent.Succeeded || res.Outcome == reparent.Overtaken) {
			e.ended(h, res, err)
			e.condemnOld(ctx, log, sh, o, j, res)
			return
		}
		log.Info("the planned reparent did not do, an emergency one follows", "outcome", res.Outcome, "message", res.Message)
		req.Kind = reparent.Emergency
	}
	h.mu.Lock()
	req.Since = h.downSince
	h.mu.Unlock()
	res, err := e.Runner.run(ctx, key, req, calls)
	if err != nil {
		log.Error(err, "reparent could not begin")
	}
	e.ended(h, res, err)
	e.condemnOld(ctx, log, sh, o, j, res)
}

// Pauses after an emergency reparent that did not succeed, doubling.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// ended notes how a reparent went: one that failed is tried again after a pause that grows.
func (e *Emergency) ended(h *history, res reparent.Result, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil && res.Outcome == reparent.Succeeded {
		h.failures, h.retryAfter, h.downSince = 0, time.Time{}, time.Time{}
		return
	}
	h.failures++
	h.retryAfter = e.Runner.Clock.Now().Add(min(firstRetry<<min(h.failures-1, 10), lastRetry))
}

// confirmTimeout bounds the fresh look before an emergency. An agent that lives answers in milliseconds.
const confirmTimeout = 150 * time.Millisecond

// answer is what one instance said when asked again.
type answer struct {
	name    string
	status  *agentpb.Status
	testify *agentpb.TestifyReply
}

// ask asks everybody at once, over the connections the reparent will use: the instances for their status, the standbys
// also for what they know of the primary, when that does not answer itself.
func ask(ctx context.Context, calls *agents, primary string, silent bool) map[string]answer {
	answers := make(chan answer, len(calls.endpoints))
	for name := range calls.endpoints {
		go func() {
			a := answer{name: name}
			defer func() { answers <- a }()
			_ = calls.call(ctx, name, 0, func(ctx context.Context, c agentpb.AgentClient) (err error) {
				if a.status, err = c.GetStatus(ctx, &agentpb.GetStatusRequest{}); err == nil && silent && name != primary {
					a.testify, err = c.Testify(ctx, &agentpb.TestifyRequest{Primary: primary})
				}
				return err
			})
		}()
	}
	out := map[string]answer{}
	for range calls.endpoints {
		a := <-answers
		out[a.name] = a
	}
	return out
}

// confirm looks again before acting. The verdict given on that is the one that counts.
func (e *Emergency) confirm(ctx context.Context, key types.NamespacedName, sh *v1alpha1.Shard, h *history, o verdict.Observed, calls *agents) (verdict.Judgement, error) {
	o, err := e.again(ctx, key, o, calls)
	if err != nil {
		return verdict.Judgement{}, err
	}
	// Another replica may have begun while we asked.
	h.mu.Lock()
	o.Reparent, err = e.inFlight(ctx, sh, h, e.Runner.Clock.Now())
	h.mu.Unlock()
	if err != nil {
		return verdict.Judgement{}, err
	}
	return verdict.Judge(o, e.Runner.Params), nil
}

// again looks at the record itself, and asks everybody. What counts of an instance is its newest word: waiting for the
// slowest answer takes time, and who answered first may have said something else on its stream since. The instances of o
// are changed.
func (e *Emergency) again(ctx context.Context, key types.NamespacedName, o verdict.Observed, calls *agents) (verdict.Observed, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	begun := e.Runner.Clock.Now()
	live, failed := &v1alpha1.Shard{}, make(chan error, 1)
	go func() { failed <- e.Runner.Live.Get(ctx, key, live) }()
	primary := o.Record.Primary()
	silent := true
	for _, i := range o.Instances {
		if i.Name == primary && i.Heard && i.Age < e.Runner.Params.SilentAfter {
			silent = false
		}
	}
	askCtx, done := context.WithTimeout(ctx, confirmTimeout)
	fresh := ask(askCtx, calls, primary, silent)
	done()
	if err := <-failed; err != nil {
		return o, err
	}
	record := shard.RecordOf(live)
	if record.Established != o.Record.Established {
		o.EstablishedFor = 0
	}
	o.Record = record
	now := e.Runner.Clock.Now()
	heard := e.Runner.Observer.Observations(key)
	scratch := newHistory() // the durations stay those of the observation
	for k := range o.Instances {
		i := &o.Instances[k]
		a := fresh[i.Name]
		ob := observer.Observation{ReceivedAt: now, Connected: true}
		if a.status.GetInstance() == i.Name {
			ob.Status = a.status
		}
		if said := heard[i.Name]; said.ReceivedAt.After(begun) && newer(said.Status, ob.Status) {
			ob = said
		}
		if ob.Status != nil {
			next := scratch.instance(i.Name, &ob, now)
			keep(&next, i)
			*i = next
		}
		if a.testify != nil {
			i.PrimaryPostgres, i.PrimaryAgent = reach(a.testify.GetPostgresReachable()), reach(a.testify.GetAgentReachable())
		}
	}
	return o, nil
}

// newer reports whether the agent said a after b, which may be nil. One process counts what it says; of two, the agent's
// clock must tell.
func newer(a, b *agentpb.Status) bool {
	if a.GetBootId() == b.GetBootId() && a.GetSequence() != b.GetSequence() {
		return a.GetSequence() > b.GetSequence()
	}
	return a.GetAtUnixMs() > b.GetAtUnixMs()
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
