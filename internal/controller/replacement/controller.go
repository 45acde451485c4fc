package replacement

import (
	"cmp"
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/recorder"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/replacement"
)

// Reconciler carries Replacements out. Fill in the exported fields, then call SetupWithManager.
type Reconciler struct {
	Client client.Client
	// Live reads from the API server itself.
	Live client.Reader
	// Namespaces that are watched; empty is all. What happens in others draws on another ledger.
	Namespaces []string
	Observer   *observer.Observer
	Recorder   recorder.EventRecorder
	Clock      clock.PassiveClock
	// Params of the shard controller, whose eyes are used.
	Params shard.Params
	// Suspects are the instances of a shard that a verdict speaks against, and why. Nil is nobody.
	Suspects func(types.NamespacedName) map[string]string
	// Timeouts of the steps; zero fields are the defaults. A Seed of zero follows the size of the data.
	Timeouts replacement.Timeouts
	// Limits of the ledger, without PerHour.
	Limits ledger.Limits
	// PerHour are the most starts per hour for age, as the lifetime plans have it: of instances ("") and of the nodes of
	// each NodePolicy. Nil is unlimited.
	PerHour func() map[string]float64
	// Evidence is taken by. Default NoEvidence.
	Evidence EvidenceCollector
	// Keep is how many ended Replacements are kept per shard, KeepFor for how long. Defaults 20 and 7 days.
	Keep    int
	KeepFor time.Duration
	// Draw is the randomness of names: a number in [0, n).
	Draw func(n int) int

	// Point is called before a decision is carried out and after it was, with the status that is stored. An error ends the
	// reconcile there, as the death of the operator would. For tests.
	Point func(rp *v1alpha1.Replacement, point string) error

	viewer    shard.Viewer
	admission sync.Mutex
	evidence  collections
	foreseen  foreseen
	known     struct {
		sync.Mutex
		fleet *fleet
		at    time.Time
	}
}

// SetupWithManager registers the controller. It runs on the elected leader only.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	r.Keep, r.KeepFor = cmp.Or(r.Keep, 20), cmp.Or(r.KeepFor, 7*24*time.Hour)
	if r.Evidence == nil {
		r.Evidence = NoEvidence{}
	}
	r.viewer = shard.Viewer{Nodes: r.Client, Observer: r.Observer, Clock: r.Clock, Params: r.Params, Suspects: r.Suspects}
	ofShard := handler.EnqueueRequestsFromMapFunc(r.ofShard)
	return ctrl.NewControllerManagedBy(mgr).Named("replacement").
		For(&v1alpha1.Replacement{}).
		Watches(&v1alpha1.Replacement{}, handler.EnqueueRequestsFromMapFunc(r.waiting), builder.WithPredicates(madeRoom)).
		Watches(&v1alpha1.Shard{}, ofShard).
		Watches(&corev1.Pod{}, ofShard).
		Watches(&corev1.PersistentVolumeClaim{}, ofShard).
		Watches(&v1alpha1.Reparent{}, ofShard).
		WatchesRawSource(source.Func(r.watchObserver)).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, RateLimiter: shard.RateLimiter()}).
		Complete(r)
}

// watchObserver wakes the replacements of a shard of which something significant was heard.
func (r *Reconciler) watchObserver(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	r.evidence.start(ctx, func(key types.NamespacedName) { queue.Add(reconcile.Request{NamespacedName: key}) })
	r.Observer.Subscribe(func(key types.NamespacedName, change observer.Change) {
		if change == observer.Significant {
			for _, req := range r.unfinished(ctx, key) {
				queue.Add(req)
			}
		}
	})
	return nil
}

// ofShard are the replacements under way of the shard an object belongs to.
func (r *Reconciler) ofShard(ctx context.Context, o client.Object) []reconcile.Request {
	name := o.GetLabels()[v1alpha1.LabelShard]
	switch o := o.(type) {
	case *v1alpha1.Shard:
		name = o.Name
	case *v1alpha1.Reparent:
		name = o.Spec.Shard
	}
	if name == "" {
		return nil
	}
	return r.unfinished(ctx, types.NamespacedName{Namespace: o.GetNamespace(), Name: name})
}

func (r *Reconciler) unfinished(ctx context.Context, key types.NamespacedName) []reconcile.Request {
	list := &v1alpha1.ReplacementList{}
	if err := r.Client.List(ctx, list, client.InNamespace(key.Namespace), client.MatchingFields{shard.IndexReplacementShard: key.Name}); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		if !finished(&list.Items[i]) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return out
}

// madeRoom lets through what may make room for those that wait: that one ends, or vanishes without an end. That one has ended
// is no news: a new leader is told of every Replacement there is, and each would have it look at all of them.
var madeRoom = predicate.Funcs{
	CreateFunc:  func(event.CreateEvent) bool { return false },
	UpdateFunc:  func(e event.UpdateEvent) bool { return !hasEnded(e.ObjectOld) && hasEnded(e.ObjectNew) },
	DeleteFunc:  func(e event.DeleteEvent) bool { return !hasEnded(e.Object) },
	GenericFunc: func(event.GenericEvent) bool { return false },
}

func hasEnded(o client.Object) bool {
	rp, ok := o.(*v1alpha1.Replacement)
	return ok && finished(rp)
}

// waiting are those that wait for the ledger, when one has made room.
func (r *Reconciler) waiting(ctx context.Context, _ client.Object) []reconcile.Request {
	r.foreseen.forget()
	list := &v1alpha1.ReplacementList{}
	if err := r.Client.List(ctx, list); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		if w := &list.Items[i]; !finished(w) && w.Status.AdmittedAt == nil {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(w)})
		}
	}
	return out
}

func finished(rp *v1alpha1.Replacement) bool { return replacement.Phase(rp.Status.Phase).Finished() }

// Intervals between looks: much is decided by how long it has lasted, and positions move without an event.
const (
	poll        = time.Second
	pollPending = 10 * time.Second
	soon        = 50 * time.Millisecond
)

// Reconcile takes one replacement a step further.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	rp := &v1alpha1.Replacement{}
	if err := r.Client.Get(ctx, req.NamespacedName, rp); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if finished(rp) {
		return r.ended(ctx, rp)
	}
	// From here on a status that is older than our own last write would have us repeat what was undone since.
	if err := r.Live.Get(ctx, req.NamespacedName, rp); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if finished(rp) {
		return r.ended(ctx, rp)
	}
	res, err := r.step(ctx, rp)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: soon}, nil // somebody else wrote first
	}
	return res, err
}

func (r *Reconciler) step(ctx context.Context, rp *v1alpha1.Replacement) (reconcile.Result, error) {
	sh := &v1alpha1.Shard{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: rp.Namespace, Name: rp.Spec.Shard}, sh)
	switch {
	case apierrors.IsNotFound(err):
		return r.giveUp(ctx, rp, "there is no Shard "+rp.Spec.Shard)
	case err != nil:
		return reconcile.Result{}, err
	case !sh.DeletionTimestamp.IsZero():
		return r.giveUp(ctx, rp, "its Shard is being deleted")
	}
	if changed, err := r.adopt(ctx, sh, rp); changed || err != nil {
		return reconcile.Result{}, err // the change comes back as an event
	}
	d, w, err := r.decideAndStore(ctx, sh, rp)
	if err != nil {
		return reconcile.Result{}, err
	}
	if d.Evidence {
		r.evidence.begin(rp, subject(rp, sh), r.Evidence)
	}
	if err := r.point(rp, "stored"); err != nil {
		return reconcile.Result{}, err
	}
	if d.Status.Phase.Finished() {
		return r.ended(ctx, rp)
	}
	if err := r.act(ctx, w, rp, d.Action); err != nil {
		return reconcile.Result{}, err
	}
	next := poll
	if d.Status.AdmittedAt.IsZero() {
		next = pollPending
	}
	next = max(min(next, d.Recheck.Sub(r.Clock.Now())), soon)
	return reconcile.Result{RequeueAfter: next}, r.point(rp, "acted on "+string(d.Action.Kind))
}

func (r *Reconciler) point(rp *v1alpha1.Replacement, point string) error {
	if r.Point == nil {
		return nil
	}
	return r.Point(rp, point)
}

// adopt makes a Replacement somebody created one of the shard's: it goes with it, is found by its labels, and is not
// deleted before what was begun has an end.
func (r *Reconciler) adopt(ctx context.Context, sh *v1alpha1.Shard, rp *v1alpha1.Replacement) (bool, error) {
	before := rp.DeepCopy()
	changed := rp.DeletionTimestamp.IsZero() && controllerutil.AddFinalizer(rp, v1alpha1.Finalizer)
	if len(rp.OwnerReferences) == 0 {
		changed = true
		if err := controllerutil.SetControllerReference(sh, rp, r.Client.Scheme()); err != nil {
			return false, err
		}
	}
	for k, v := range map[string]string{v1alpha1.LabelDatabase: sh.Spec.Database, v1alpha1.LabelShard: sh.Name} {
		if rp.Labels[k] != v {
			changed = true
			rp.Labels = mergeLabels(rp.Labels, k, v)
		}
	}
	if !changed {
		return false, nil
	}
	return true, r.Client.Patch(ctx, rp, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

func mergeLabels(labels map[string]string, k, v string) map[string]string {
	if labels == nil {
		labels = map[string]string{}
	}
	labels[k] = v
	return labels
}

// decideAndStore decides the next step and stores it. What destroys is decided again on fresh reads, and what the ledger
// allows is decided again and stored under its lock.
func (r *Reconciler) decideAndStore(ctx context.Context, sh *v1alpha1.Shard, rp *v1alpha1.Replacement) (replacement.Decision, *world, error) {
	w, err := r.gather(ctx, r.Client, sh, rp)
	if err != nil {
		return replacement.Decision{}, nil, err
	}
	if rp.Status.AdmittedAt == nil {
		if err := r.foresee(ctx, w, rp); err != nil {
			return replacement.Decision{}, nil, err
		}
		if w.observed.Ledger.Allowed {
			return r.admit(ctx, w, rp)
		}
	}
	d := r.decide(w)
	if destroys(d.Action.Kind) {
		live := &v1alpha1.Shard{}
		if err := r.Live.Get(ctx, client.ObjectKeyFromObject(sh), live); err != nil {
			return d, nil, err
		}
		if w, err = r.gather(ctx, r.Live, live, rp); err != nil {
			return d, nil, err
		}
		d = r.decide(w)
	}
	return d, w, r.store(ctx, w, rp, d)
}

// destroys reports whether an action cannot be taken back.
func destroys(k replacement.Kind) bool {
	return k == replacement.Stop || k == replacement.DeleteVolume || k == replacement.RetireSurge
}

// admit lets a replacement begin for which the ledger has room by what is cached: it asks again with what is.
func (r *Reconciler) admit(ctx context.Context, w *world, rp *v1alpha1.Replacement) (replacement.Decision, *world, error) {
	r.admission.Lock()
	defer r.admission.Unlock()
	if err := r.askLedger(ctx, r.Live, w, rp); err != nil {
		return replacement.Decision{}, nil, err
	}
	d := r.decide(w)
	return d, w, r.store(ctx, w, rp, d)
}

// decide has the pure package decide.
func (r *Reconciler) decide(w *world) replacement.Decision {
	if d, done := w.never(); done {
		return d
	}
	return replacement.Next(w.observed, w.timeouts)
}

// giveUp ends a replacement whose shard is gone.
func (r *Reconciler) giveUp(ctx context.Context, rp *v1alpha1.Replacement, why string) (reconcile.Result, error) {
	now := r.Clock.Now()
	s := replacement.FromObject(rp.Status)
	s.Phase, s.PhaseStartedAt, s.Outcome, s.Message, s.FinishedAt = replacement.Cancelled, now, "Cancelled", why, now
	if err := r.store(ctx, nil, rp, replacement.Decision{Status: s}); err != nil {
		return reconcile.Result{}, err
	}
	return r.ended(ctx, rp)
}
