package reparent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/recorder"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

// Runner carries out reparents, one at a time per shard in this process.
type Runner struct {
	Client   client.Client
	Live     client.Reader // the API server itself
	Observer *observer.Observer
	Agents   shard.Agents
	Recorder recorder.EventRecorder
	Clock    clock.WithTicker
	Log      logr.Logger
	// Name of this replica, for the journal.
	Name string
	// Params of what verdicts take for dead, sick and full.
	Params verdict.Params

	mu   sync.Mutex
	busy map[types.NamespacedName]*work
	wg   sync.WaitGroup
}

// work is a reparent under way in this process.
type work struct {
	// cancel takes a planned one back; nil while, or once, there is nothing that could be taken back.
	cancel context.CancelCauseFunc
}

// claim takes the shard for one reparent in this process.
func (r *Runner) claim(key types.NamespacedName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[key] != nil {
		return false
	}
	if r.busy == nil {
		r.busy = map[types.NamespacedName]*work{}
	}
	r.busy[key] = &work{}
	return true
}

func (r *Runner) release(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, key)
}

// Busy reports whether a reparent of the shard is under way in this process.
func (r *Runner) Busy(key types.NamespacedName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy[key] != nil
}

// offer makes the work on the shard one that Cancel takes back with cancel, or with nil one that it does not.
func (r *Runner) offer(key types.NamespacedName, cancel context.CancelCauseFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.busy[key]; w != nil {
		w.cancel = cancel
	}
}

// Cancellable reports whether a planned reparent is under way in this process that has not told the primary to stop yet.
func (r *Runner) Cancellable(key types.NamespacedName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.busy[key]
	return w != nil && w.cancel != nil
}

// Cancel has such a one taken back, and reports whether there is one.
func (r *Runner) Cancel(key types.NamespacedName, cause error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.busy[key]
	if w == nil || w.cancel == nil {
		return false
	}
	w.cancel(cause)
	return true
}

// Go runs f for the shard in the background unless a reparent of it is under way here, and reports whether it does.
func (r *Runner) Go(key types.NamespacedName, f func()) bool {
	if !r.claim(key) {
		return false
	}
	r.wg.Go(func() {
		defer r.release(key)
		f()
	})
	return true
}

// Beside runs f in the background, whatever is under way.
func (r *Runner) Beside(f func()) { r.wg.Go(f) }

// Wait returns when all reparents under way have ended.
func (r *Runner) Wait() { r.wg.Wait() }

// calls makes the connections for one reparent of the shard and begins to connect.
func (r *Runner) calls(key types.NamespacedName) *agents {
	endpoints := map[string]*agentpb.Endpoint{}
	for name, o := range r.Observer.Observations(key) {
		endpoints[name] = o.Endpoint
	}
	// Unique to this reparent and not only to this process: a term that was opened is never opened again.
	a := newAgents(r.Agents, key, r.coordinator(), endpoints)
	a.warm(context.Background())
	return a
}

func (r *Runner) coordinator() string { return r.Name + "/" + strconv.FormatUint(rand.Uint64(), 36) }

// Run carries out one reparent of the shard. What is known of the instances and the journals is filled into req. Call it
// within Go.
func (r *Runner) Run(ctx context.Context, key types.NamespacedName, req reparent.Request) (reparent.Result, error) {
	calls := r.calls(key)
	defer calls.Close()
	return r.run(ctx, key, req, calls)
}

func (r *Runner) run(ctx context.Context, key types.NamespacedName, req reparent.Request, calls *agents) (reparent.Result, error) {
	sh := &v1alpha1.Shard{}
	if err := r.Client.Get(ctx, key, sh); err != nil {
		return reparent.Result{}, err
	}
	var err error
	if req.Instances, err = r.instances(ctx, sh); err != nil {
		return reparent.Result{}, err
	}
	if req.Spent, err = r.spent(ctx, sh, req.Term, req.Instances); err != nil {
		return reparent.Result{}, err
	}
	asked := req.Limits.WithDefaults()
	req.Limits.Patience, req.Limits.Drain = asked.Patience, drainLimit(&sh.Spec.Template, asked.Drain)
	req.Size = max(int(sh.Spec.Template.Instances)-1, 0)
	req.Coordinator = r.coordinator()
	calls.coordinator = req.Coordinator
	story := tell(ctx, key, &req, r.Clock.Now())
	observe := story.phase
	if req.Kind == reparent.Planned {
		cancellable, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		r.offer(key, cancel)
		defer r.offer(key, nil)
		ctx = cancellable
		observe = func(p reparent.Phase) {
			if p.Name == reparent.PhaseDemote {
				r.offer(key, nil)
			}
			story.phase(p)
		}
	}
	j := &journal{
		client: r.Client, live: r.Live, clock: r.Clock, log: r.Log.WithValues("shard", key), shard: sh,
		drain: asked.Drain, observe: observe, entries: map[uint64]*entry{},
	}
	c := reparent.Coordinator{
		Records: &records{live: r.Live, write: r.Client, key: key, clock: r.Clock},
		Agents:  calls, Journal: j, Runtime: reparent.ClockRuntime{Clock: r.Clock},
	}
	log := r.Log.WithValues("shard", key, "kind", req.Kind, "reason", req.Reason)
	log.Info("reparent begins")
	result := c.Run(ctx, req)
	story.end(result, r.Clock.Now())
	log.Info("reparent ended", "outcome", result.Outcome, "term", result.Term, "from", result.OldPrimary, "to", result.NewPrimary,
		"why", result.Why, "message", result.Message, "writeUnavailable", result.WriteUnavailable.String())
	r.announce(sh, &req, result)
	return result, nil
}

// drainLimit is how long clients may be paused for transactions to finish, of what was asked for. Gateways hold their clients for
// maxPause and then let them through again, whatever they were asked. A drain that is still under way then, or whose primary
// has not stopped yet, would end the transactions of those: so it takes half of that time at most.
func drainLimit(spec *v1alpha1.DatabaseSpec, asked time.Duration) time.Duration {
	if most := spec.Gateway.MaxPause.Duration / 2; most > 0 && ptr.Deref(spec.Gateway.Enabled, true) {
		return min(asked, most)
	}
	return asked
}

func (r *Runner) announce(sh *v1alpha1.Shard, req *reparent.Request, res reparent.Result) {
	switch res.Outcome {
	case reparent.Succeeded:
		r.Recorder.Eventf(sh, nil, corev1.EventTypeNormal, "Reparented", string(req.Kind), "%s → %s in term %d (%s, writes unavailable for %s): %s",
			res.OldPrimary, res.NewPrimary, res.Term, req.Reason, res.WriteUnavailable.Round(time.Millisecond), res.Why)
	case reparent.Overtaken:
	default:
		r.Recorder.Eventf(sh, nil, corev1.EventTypeWarning, "Reparent"+string(res.Outcome), string(req.Kind), "%s reparent (%s): %s", req.Kind, req.Reason, res.Message)
	}
}

// spent is the highest term that is not free any more, by the record, the agents and the Reparents other than own.
func (r *Runner) spent(ctx context.Context, sh *v1alpha1.Shard, own uint64, instances []reparent.Instance) (uint64, error) {
	list := &v1alpha1.ReparentList{}
	if err := r.Client.List(ctx, list, client.InNamespace(sh.Namespace), client.MatchingFields{shard.IndexReparentShard: sh.Name}); err != nil {
		return 0, err
	}
	known := shard.RecordOf(sh).Term()
	for _, i := range instances {
		known = max(known, i.Term)
	}
	others := slices.DeleteFunc(list.Items, func(rp v1alpha1.Reparent) bool { return uint64(rp.Spec.Term) == own })
	return shard.SpentTerm(known, others), nil
}

// reachableAge is the age of a status up to which an agent counts as reachable.
const reachableAge = 1500 * time.Millisecond

// instances is what is known of everybody besides what their agents say.
func (r *Runner) instances(ctx context.Context, sh *v1alpha1.Shard) ([]reparent.Instance, error) {
	pods := &corev1.PodList{}
	if err := r.Client.List(ctx, pods, client.InNamespace(sh.Namespace), client.MatchingLabels{
		v1alpha1.LabelShard: sh.Name, v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
	}); err != nil {
		return nil, err
	}
	leaving, err := shard.Leaving(ctx, r.Client, client.ObjectKeyFromObject(sh))
	if err != nil {
		return nil, err
	}
	now := r.Clock.Now()
	var out []reparent.Instance
	for name, o := range r.Observer.Observations(client.ObjectKeyFromObject(sh)) {
		i := reparent.Instance{
			Name: name, Zone: o.Status.GetZone(), Term: o.Status.GetTerm(), Diverged: o.Status.GetDiverged(),
			Reachable: o.Connected && now.Sub(o.ReceivedAt) < reachableAge, Current: true, Leaving: leaving[name],
			Full: r.Params.Full(diskUsed(o.Status)),
		}
		if flushed, replayed := o.Status.GetFlushed().GetLsn(), o.Status.GetReplayedLsn(); o.Status.GetRole() == agentpb.Role_STANDBY && flushed > replayed {
			i.ReplayLag = flushed - replayed
		}
		r.fromPod(ctx, sh, &i, pods.Items, now)
		out = append(out, i)
	}
	return out, nil
}

// fromPod fills in what the Pod and its node say of an instance, at one moment for all: of two that were made in the same
// second neither is the younger one.
func (r *Runner) fromPod(ctx context.Context, sh *v1alpha1.Shard, i *reparent.Instance, pods []corev1.Pod, now time.Time) {
	for k := range pods {
		p := &pods[k]
		if p.Name != i.Name {
			continue
		}
		if !p.DeletionTimestamp.IsZero() {
			i.Unfit = "its Pod is being deleted"
		}
		i.TimeLeft = max(sh.Spec.Template.Lifetime.MaxAge.Duration-now.Sub(p.CreationTimestamp.Time), 0)
		for _, c := range p.Spec.Containers {
			i.Current = i.Current && c.Image == sh.Spec.Image
		}
		node := &corev1.Node{}
		if err := r.Client.Get(ctx, types.NamespacedName{Name: p.Spec.NodeName}, node); err == nil {
			i.Zone = node.Labels[corev1.LabelTopologyZone]
			if _, aging := node.Labels[v1alpha1.LabelAging]; aging {
				i.TimeLeft = 0 // it lives as long as its node
			}
			i.Leaving = i.Leaving || node.Spec.Unschedulable || !node.DeletionTimestamp.IsZero()
		}
		return
	}
	i.Unfit = "its Pod is gone"
}

// Request is the reparent that a Reparent object asks for.
func Request(rp *v1alpha1.Reparent) reparent.Request {
	return reparent.Request{
		Kind: reparent.Kind(rp.Spec.Kind), Term: uint64(rp.Spec.Term), To: rp.Spec.To, AwayFrom: rp.Spec.AwayFrom,
		ExpectPrimary: rp.Spec.ExpectPrimary, Reason: rp.Spec.Reason,
		Limits: reparent.Limits{Drain: rp.Spec.DrainTimeout.Duration},
	}
}

// refused makes the result of a reparent that could not even begin.
func refused(term uint64, err error) reparent.Result {
	return reparent.Result{Outcome: reparent.Refused, Term: term, Message: fmt.Sprint(err)}
}
