package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/recorder"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/observer"
)

// IndexReparentShard and IndexReplacementShard index Reparents and Replacements by the name of their shard.
const (
	IndexReparentShard    = "spec.shard"
	IndexReplacementShard = "spec.shard"
)

// Agents calls the agent at an endpoint of a shard. The caller closes the connection; contexts bound the calls.
type Agents func(ctx context.Context, shard types.NamespacedName, endpoint *agentpb.Endpoint) (c agentpb.AgentClient, closeConn func(), err error)

// Reconciler keeps Shards. Fill in the exported fields, then call SetupWithManager.
type Reconciler struct {
	Client client.Client
	// Live reads from the API server itself, what the cache leaves out.
	Live     client.Reader
	Observer *observer.Observer
	Agents   Agents
	Recorder recorder.EventRecorder
	Clock    clock.PassiveClock
	Params   Params
	// ClusterDomain for certificates, such as "cluster.local"; may be empty.
	ClusterDomain string
	// Suspects are the instances of a shard that a verdict speaks against, with the reason: they do not belong into the
	// cohort. Nil is none.
	Suspects func(types.NamespacedName) map[string]string
	// Lifetimes are the conditions of a shard that its instances' ages have; nil before the first plan. Nil has none.
	Lifetimes func(types.NamespacedName) []metav1.Condition
	// Draw is the randomness of names: a number in [0, n).
	Draw func(n int) int

	tasks    *tasks
	mu       sync.Mutex
	memories map[types.NamespacedName]*memory
	queue    workqueue.TypedRateLimitingInterface[reconcile.Request]
	base     context.Context
}

// SetupWithManager registers the controller. It runs on the elected leader only.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	r.Init(context.Background())
	if err := mgr.Add(&stopper{r}); err != nil {
		return err
	}
	if err := mgr.Add(manager.RunnableFunc(forgetMetrics)); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).Named("shard").
		For(&v1alpha1.Shard{}).
		Owns(&corev1.Pod{}).Owns(&corev1.Secret{}).Owns(&corev1.Service{}).
		Owns(&policyv1.PodDisruptionBudget{}).Owns(&appsv1.Deployment{}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(shardOf)).
		Watches(&v1alpha1.Reparent{}, handler.EnqueueRequestsFromMapFunc(shardOf)).
		Watches(&v1alpha1.Replacement{}, handler.EnqueueRequestsFromMapFunc(shardOf)).
		Watches(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(r.shardsOfAuthority)).
		WatchesRawSource(source.Func(r.watchObserver)).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, RateLimiter: RateLimiter()}).
		Complete(r)
}

// RateLimiter is the pace at which what failed is tried again. What was in the way (a name that is taken, a quota) often goes
// without an event that we would hear of, so the pause never grows to the quarter of an hour it does by default.
func RateLimiter() workqueue.TypedRateLimiter[reconcile.Request] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, quietInterval)
}

// shardOf is the shard a Reparent, a Replacement or a claim is about.
func shardOf(_ context.Context, o client.Object) []reconcile.Request {
	name := ""
	switch o := o.(type) {
	case *v1alpha1.Reparent:
		name = o.Spec.Shard
	case *corev1.PersistentVolumeClaim:
		name = o.Labels[v1alpha1.LabelShard]
	case *v1alpha1.Replacement:
		name = o.Spec.Shard
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

// Init prepares the reconciler; base is the context of everything it runs in the background. SetupWithManager calls it.
func (r *Reconciler) Init(base context.Context) {
	r.base = base
	r.memories = map[types.NamespacedName]*memory{}
	r.tasks = newTasks(r.Clock, r.enqueue)
}

// stopper ends background commands with the manager.
type stopper struct{ r *Reconciler }

func (s *stopper) Start(ctx context.Context) error {
	<-ctx.Done()
	s.r.tasks.wait()
	return nil
}

func (r *Reconciler) watchObserver(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	r.mu.Lock()
	r.queue = queue
	r.mu.Unlock()
	r.Observer.Subscribe(func(shard types.NamespacedName, change observer.Change) {
		if change == observer.Significant {
			queue.Add(reconcile.Request{NamespacedName: shard})
		}
	})
	return nil
}

// Wake has the shard looked at.
func (r *Reconciler) Wake(shard types.NamespacedName) { r.enqueue(shard) }

func (r *Reconciler) enqueue(shard types.NamespacedName) {
	r.mu.Lock()
	queue := r.queue
	r.mu.Unlock()
	if queue != nil {
		queue.Add(reconcile.Request{NamespacedName: shard})
	}
}

// shardsOfAuthority finds the shards whose leaves an authority signs. Secrets a Shard owns come in through Owns.
func (r *Reconciler) shardsOfAuthority(ctx context.Context, o client.Object) []reconcile.Request {
	database := o.GetLabels()[v1alpha1.LabelDatabase]
	if database == "" || o.GetLabels()[v1alpha1.LabelShard] != "" {
		return nil
	}
	list := &v1alpha1.ShardList{}
	if err := r.Client.List(ctx, list, client.InNamespace(o.GetNamespace()), client.MatchingLabels{v1alpha1.LabelDatabase: database}); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return out
}

// Intervals between looks at a shard nothing is heard of: often while something is under way, since much is decided by
// how long it has lasted; seldom when all is well.
const (
	busyInterval  = 500 * time.Millisecond
	quietInterval = 10 * time.Second
)

// Reconcile brings one shard a step closer to its spec.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	shard := &v1alpha1.Shard{}
	if err := r.Client.Get(ctx, req.NamespacedName, shard); err != nil {
		if apierrors.IsNotFound(err) {
			r.forget(req.NamespacedName)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, err
	}
	if !shard.DeletionTimestamp.IsZero() {
		return r.finalize(ctx, shard)
	}
	if controllerutil.AddFinalizer(shard, v1alpha1.Finalizer) {
		// The update comes back as an event.
		return reconcile.Result{}, r.Client.Update(ctx, shard)
	}
	m := r.memory(req.NamespacedName)
	if wait := m.standBack(RecordOf(shard), r.Clock.Now()); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	renew, objectsErr := r.ensureObjects(ctx, shard)
	s, err := r.gather(ctx, shard, m)
	if err != nil {
		return reconcile.Result{}, err
	}
	actions := Plan(s, r.Params)
	s.wanted(m, actions)
	// What could not be ensured must not keep a member that died in the cohort: instances are looked after anyway.
	err = errors.Join(objectsErr, r.act(ctx, shard, s, m, actions), r.resizeClaims(ctx, shard))
	if allConflicts(objectsErr) {
		objectsErr = nil // a lost race is nothing to tell
	}
	if summaryErr := r.summarize(ctx, shard, s, m, len(actions) > 0, objectsErr); summaryErr != nil {
		err = errors.Join(err, summaryErr)
	}
	if err != nil {
		if allConflicts(err) {
			// Somebody else wrote first; look again with fresh eyes, soon and without noise.
			return reconcile.Result{RequeueAfter: 50 * time.Millisecond}, nil
		}
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: r.next(s, actions, renew)}, nil
}

func (r *Reconciler) next(s *State, actions []Action, renew time.Time) time.Duration {
	next := quietInterval
	if len(actions) > 0 || !s.redundant(r.Params) || len(s.Instances) != s.Wanted {
		next = busyInterval
	}
	if until := renew.Sub(s.Now); !renew.IsZero() && until < next {
		next = max(until, time.Second)
	}
	return next
}

// allConflicts reports whether every error joined in err is a lost race about a resource version or a name.
func allConflicts(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if !allConflicts(e) {
				return false
			}
		}
		return true
	}
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

func (r *Reconciler) memory(key types.NamespacedName) *memory {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.memories[key]
	if m == nil {
		m = newMemory()
		r.memories[key] = m
	}
	return m
}

func (r *Reconciler) forget(key types.NamespacedName) {
	r.mu.Lock()
	delete(r.memories, key)
	r.mu.Unlock()
	r.tasks.forget(key, func(string) bool { return false })
	unmeasure(key)
}

// finalize removes what the shard made: Pods first, so that nothing runs on volumes that go, then claims, or their
// owner when volumes are to be kept.
func (r *Reconciler) finalize(ctx context.Context, shard *v1alpha1.Shard) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(shard, v1alpha1.Finalizer) {
		return reconcile.Result{}, nil
	}
	log := logr.FromContextOrDiscard(ctx)
	selector := []client.ListOption{client.InNamespace(shard.Namespace), client.MatchingLabels(instanceSelector(shard.Name))}
	claims, err := r.claims(ctx, shard)
	if err != nil {
		return reconcile.Result{}, err
	}
	retain := shard.Spec.Template.DeletionPolicy == v1alpha1.DeletionPolicyRetainVolumes
	if retain {
		// Before any Pod goes: from then on nothing of ours takes them for its own, whatever comes in between.
		for i := range claims {
			if err := r.orphan(ctx, shard, &claims[i]); err != nil {
				return reconcile.Result{}, fmt.Errorf("keeping claim %s: %w", claims[i].Name, err)
			}
		}
	}
	pods := &corev1.PodList{}
	if err := r.Client.List(ctx, pods, selector...); err != nil {
		return reconcile.Result{}, err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.DeletionTimestamp.IsZero() {
			if err := client.IgnoreNotFound(r.Client.Delete(ctx, p)); err != nil {
				return reconcile.Result{}, err
			}
		} else if r.Clock.Since(p.DeletionTimestamp.Time) > r.Params.StuckAfter {
			if err := client.IgnoreNotFound(r.Client.Delete(ctx, p, client.GracePeriodSeconds(0))); err != nil {
				return reconcile.Result{}, err
			}
		}
	}
	if len(pods.Items) > 0 {
		return reconcile.Result{RequeueAfter: time.Second}, r.saysDeleting(ctx, shard, pods.Items)
	}
	if !retain {
		for i := range claims {
			if err := client.IgnoreNotFound(r.Client.Delete(ctx, &claims[i])); err != nil {
				return reconcile.Result{}, err
			}
		}
	}
	log.Info("shard removed", "volumesKept", retain)
	controllerutil.RemoveFinalizer(shard, v1alpha1.Finalizer)
	r.forget(client.ObjectKeyFromObject(shard))
	return reconcile.Result{}, client.IgnoreNotFound(r.Client.Update(ctx, shard))
}

// claims are the shard's own. Those kept of an earlier shard of the same name have its labels, and no owner: they are data that
// somebody wanted to keep, and nobody's to touch.
func (r *Reconciler) claims(ctx context.Context, shard *v1alpha1.Shard) ([]corev1.PersistentVolumeClaim, error) {
	list := &corev1.PersistentVolumeClaimList{}
	if err := r.Client.List(ctx, list, client.InNamespace(shard.Namespace), client.MatchingLabels(instanceSelector(shard.Name))); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(c corev1.PersistentVolumeClaim) bool { return !OwnsClaim(shard, &c) }), nil
}

// orphan makes a claim nobody's.
func (r *Reconciler) orphan(ctx context.Context, shard *v1alpha1.Shard, claim *corev1.PersistentVolumeClaim) error {
	patch := client.MergeFromWithOptions(claim.DeepCopy(), client.MergeFromWithOptimisticLock{})
	claim.OwnerReferences = nil
	if claim.Annotations == nil {
		claim.Annotations = map[string]string{}
	}
	delete(claim.Annotations, v1alpha1.AnnotationShardUID)
	// Whoever restores from it wants to know which of the volumes has everything.
	claim.Annotations["theseus.dev/retained-from"] = shard.Namespace + "/" + shard.Name
	claim.Annotations["theseus.dev/retained-primary"] = shard.Status.Primary
	return r.Client.Patch(ctx, claim, patch)
}
