// Package observe tells the observer whom to watch: every instance with a Pod that has an address, and for a while those
// whose Pod has been deleted. It runs on every replica of the operator.
package observe

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/observer"
)

// Reconciler keeps the observer's targets in step with the Pods.
type Reconciler struct {
	Client   client.Client
	Observer *observer.Observer
	Clock    clock.PassiveClock

	mu      sync.Mutex
	targets map[types.NamespacedName]map[string]lingering
}

// lingering is a target and since when it has had no Pod; zero while it has one.
type lingering struct {
	observer.Target
	since time.Time
}

// linger is how long an instance is watched after its Pod was deleted. Its process outlives a forced deletion by a
// moment, and what it says then (PostgreSQL has stopped) is worth a second and a half of silence.
const linger = 10 * time.Second

// SetupWithManager registers the controller, on every replica.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	return ctrl.NewControllerManagedBy(mgr).Named("observe").
		For(&v1alpha1.Shard{}).
		Owns(&corev1.Pod{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, NeedLeaderElection: ptr.To(false)}).
		Complete(r)
}

// Reconcile gives the observer the shard's present instances.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	shard := &v1alpha1.Shard{}
	if err := r.Client.Get(ctx, req.NamespacedName, shard); err != nil {
		if client.IgnoreNotFound(err) == nil {
			r.Observer.Forget(req.NamespacedName)
			r.mu.Lock()
			delete(r.targets, req.NamespacedName)
			r.mu.Unlock()
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, err
	}
	pods := &corev1.PodList{}
	if err := r.Client.List(ctx, pods, client.InNamespace(req.Namespace), client.MatchingLabels{
		v1alpha1.LabelShard: shard.Name, v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
	}); err != nil {
		return reconcile.Result{}, err
	}
	targets, again := r.withLingering(req.NamespacedName, Targets(shard, pods.Items))
	r.Observer.Sync(req.NamespacedName, targets)
	return reconcile.Result{RequeueAfter: again}, nil
}

// withLingering adds those that had a Pod a moment ago, and says when the first of them has lingered enough.
func (r *Reconciler) withLingering(key types.NamespacedName, targets []observer.Target) ([]observer.Target, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.Clock.Now()
	next := map[string]lingering{}
	for _, t := range targets {
		next[t.Instance] = lingering{Target: t}
	}
	var again time.Duration
	for name, l := range r.targets[key] {
		if _, ok := next[name]; ok {
			continue
		}
		if l.since.IsZero() {
			l.since = now
		}
		left := linger - now.Sub(l.since)
		if left <= 0 {
			continue
		}
		next[name] = l
		targets = append(targets, l.Target)
		if again == 0 || left < again {
			again = left
		}
	}
	if r.targets == nil {
		r.targets = map[types.NamespacedName]map[string]lingering{}
	}
	r.targets[key] = next
	return targets, again
}

// Targets are the shard's Pods that can be watched. A terminating one still is: its last words matter.
func Targets(shard *v1alpha1.Shard, pods []corev1.Pod) []observer.Target {
	var targets []observer.Target
	for i := range pods {
		p := &pods[i]
		ended := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
		if !metav1.IsControlledBy(p, shard) || p.Status.PodIP == "" || ended {
			continue
		}
		targets = append(targets, observer.Target{
			Instance: p.Name, UID: p.UID,
			Endpoint: &agentpb.Endpoint{
				Instance: p.Name, Host: p.Status.PodIP, PostgresPort: agentapi.PostgresPort, AgentPort: agentapi.AgentPort,
			},
		})
	}
	return targets
}
