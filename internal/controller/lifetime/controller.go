package lifetime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/recorder"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/replacement"
)

// Expiry has instances replaced before they are too old. Fill in the exported fields, then call SetupWithManager.
type Expiry struct {
	Client   client.Client
	Live     client.Reader
	Recorder recorder.EventRecorder
	Clock    clock.WithTicker
	// Account is the ledger at this moment.
	Account func(ctx context.Context) (*ledger.Account, error)
	// Freeze is why nothing that is planned may begin; empty is not frozen.
	Freeze string
	// Changed is called when the conditions of a shard are others. Nil is nobody.
	Changed func(types.NamespacedName)

	mu         sync.Mutex
	conditions map[types.NamespacedName][]metav1.Condition
	perHour    map[string]float64
	missed     map[string]bool // instances of which it was told
}

// SetupWithManager adds it to the manager. It runs on the elected leader only.
func (e *Expiry) SetupWithManager(mgr ctrl.Manager, _ int) error { return mgr.Add(e) }

// Bounds of the time between two looks. A database that is made while nobody looks may live for a minute only.
const (
	shortest = time.Second
	longest  = 10 * time.Second
)

// Start implements manager.Runnable.
func (e *Expiry) Start(ctx context.Context) error {
	log := logf.FromContext(ctx).WithName("lifetime")
	defer forgetMetrics()
	for {
		next, err := e.look(ctx)
		if err != nil && ctx.Err() == nil {
			log.Error(err, "lifetimes are not looked after")
			next = 10 * shortest
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.Clock.After(next):
		}
	}
}

// look plans, asks for what is due, and says when to look again.
func (e *Expiry) look(ctx context.Context) (time.Duration, error) {
	w, err := e.gather(ctx)
	if err != nil {
		return 0, err
	}
	next := longest
	var failed error // of one namespace, which must not keep the others waiting
	perHour, told := 0.0, map[types.NamespacedName][]metav1.Condition{}
	for _, p := range w.plans() {
		perHour += p.Rate
		failed = errors.Join(failed, e.ask(ctx, w, &p))
		p.tell(w, told)
		next = min(next, p.next(w.now))
	}
	led, err := e.failOver(ctx, w)
	failed = errors.Join(failed, err)
	e.publish(told, perHour)
	e.measure(w)
	return max(min(next, led), shortest), failed
}

// ask asks for the replacement of the instances that are due.
func (e *Expiry) ask(ctx context.Context, w *world, p *plan) (failed error) {
	for _, s := range p.Due() {
		in := p.instances[s.Index]
		if in.asked {
			continue
		}
		rp, err := shard.Replace(ctx, e.Client, e.Clock, in.shard, shard.Ask{
			Instance: in.name, Reason: v1alpha1.ReasonExpired, Deadline: s.Deadline,
			Message: fmt.Sprintf("it reaches its maximum age of %s at %s", p.maxAge, s.Deadline.UTC().Format(time.DateTime)),
		})
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s/%s: %w", in.shard.Namespace, in.name, err))
			continue
		}
		if rp != nil {
			e.Recorder.Eventf(in.shard, rp, corev1.EventTypeNormal, "Expiring", "Expire", "Instance %s: %s", in.name, rp.Spec.Message)
		}
		if w.asked++; w.asked >= atOnce {
			break // the others at the next look
		}
	}
	return failed
}

// atOnce bounds what is asked for in one look, after an outage. The ledger lets far fewer through.
const atOnce = 200

// Conditions are what the last plan says about a shard; nil before the first.
func (e *Expiry) Conditions(key types.NamespacedName) []metav1.Condition {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.conditions[key])
}

// PerHour is the most replacements for age that may begin in an hour by the last plans; nil before the first.
func (e *Expiry) PerHour() map[string]float64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.perHour
}

// publish makes what was planned known.
func (e *Expiry) publish(told map[types.NamespacedName][]metav1.Condition, perHour float64) {
	e.mu.Lock()
	before := e.conditions
	e.conditions = told
	e.perHour = nil
	if perHour > 0 {
		e.perHour = map[string]float64{"": perHour}
	}
	e.mu.Unlock()
	if e.Changed == nil {
		return
	}
	for key, c := range told {
		if !equality.Semantic.DeepEqual(before[key], c) {
			e.Changed(key)
		}
	}
}

// instance is one that may grow too old.
type instance struct {
	shard *v1alpha1.Shard
	name  string
	id    string
	zone  string
	born  time.Time
	// asked: it is on its way out, or its replacement waits. begun: it has begun.
	asked, begun bool
}

// world is everything the plans are made from.
type world struct {
	now       time.Time
	shards    []v1alpha1.Shard
	instances map[time.Duration][]instance // by maximum age
	took      []lasted
	freeze    string
	zones     map[string]string // frozen, and why
	busy      map[types.NamespacedName]bool
	inFlight  map[v1alpha1.Reason]int
	asked     int
}

// lasted is how long a replacement took that has succeeded, and when that was.
type lasted struct {
	ended time.Time
	took  time.Duration
}

// degradedShare of the shards, and at least degradedLeast of them, freezes expiry when they are degraded.
const (
	degradedShare = 10
	degradedLeast = 3
)

// gather reads shards, replacements and the ledger.
func (e *Expiry) gather(ctx context.Context) (*world, error) {
	shards, replacements := &v1alpha1.ShardList{}, &v1alpha1.ReplacementList{}
	if err := e.Client.List(ctx, shards); err != nil {
		return nil, err
	}
	if err := e.Client.List(ctx, replacements); err != nil {
		return nil, err
	}
	account, err := e.Account(ctx)
	if err != nil {
		return nil, err
	}
	w := &world{
		now: e.Clock.Now(), freeze: e.Freeze, zones: account.FrozenZones(), instances: map[time.Duration][]instance{},
		busy: map[types.NamespacedName]bool{}, inFlight: map[v1alpha1.Reason]int{},
	}
	if storm, why := account.Storm(); storm && w.freeze == "" {
		w.freeze = why
	}
	asked, begun, surges := w.underWay(replacements.Items)
	degraded := 0
	for i := range shards.Items {
		sh := &shards.Items[i]
		if !sh.DeletionTimestamp.IsZero() || sh.Status.Bootstrap == nil || !sh.Status.Bootstrap.Done {
			continue
		}
		w.shards = append(w.shards, *sh)
		if isFalse(sh, v1alpha1.ConditionRedundant) {
			degraded++
		}
		age := sh.Spec.Template.Lifetime.MaxAge.Duration
		for _, in := range sh.Status.Instances {
			id := client.ObjectKey{Namespace: sh.Namespace, Name: in.Name}
			if age <= 0 || in.PodUID == "" || surges[id] {
				continue
			}
			w.instances[age] = append(w.instances[age], instance{
				shard: sh, name: in.Name, id: in.PodUID, zone: in.Zone, born: in.CreatedAt.Time, asked: asked[id], begun: begun[id],
			})
		}
	}
	if degraded >= degradedLeast && degraded*degradedShare > len(w.shards) && w.freeze == "" {
		w.freeze = fmt.Sprintf("%d of %d shards are degraded", degraded, len(w.shards))
	}
	return w, nil
}

func isFalse(sh *v1alpha1.Shard, kind string) bool {
	i := slices.IndexFunc(sh.Status.Conditions, func(c metav1.Condition) bool { return c.Type == kind })
	return i >= 0 && sh.Status.Conditions[i].Status == metav1.ConditionFalse
}

// underWay reads from the replacements which instances are asked to go, which have begun to, and which are surges; and how
// long those that succeeded took.
func (w *world) underWay(items []v1alpha1.Replacement) (asked, begun, surges map[client.ObjectKey]bool) {
	asked, begun, surges = map[client.ObjectKey]bool{}, map[client.ObjectKey]bool{}, map[client.ObjectKey]bool{}
	for i := range items {
		rp := &items[i]
		st := replacement.FromObject(rp.Status)
		if st.Phase == replacement.Done && !st.AdmittedAt.IsZero() && st.Attempt > 0 {
			w.took = append(w.took, lasted{st.FinishedAt, st.FinishedAt.Sub(st.AdmittedAt)})
		}
		if st.Phase.Finished() {
			continue
		}
		id := client.ObjectKey{Namespace: rp.Namespace, Name: rp.Spec.Instance}
		w.busy[types.NamespacedName{Namespace: rp.Namespace, Name: rp.Spec.Shard}] = true
		asked[id] = asked[id] || !st.AdmittedAt.IsZero() || rp.Spec.Reason == v1alpha1.ReasonExpired
		if !st.AdmittedAt.IsZero() {
			begun[id] = true
			w.inFlight[rp.Spec.Reason]++
			surges[client.ObjectKey{Namespace: rp.Namespace, Name: st.Successor}] = true
		}
	}
	return asked, begun, surges
}
