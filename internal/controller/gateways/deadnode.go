package gateways

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
)

// avoidFor is how long a dead node is avoided: longer than Kubernetes takes to notice by itself that it is not ready (50 s by
// default). A node that is ready by then lives.
const avoidFor = 90 * time.Second

// avoid taints the node so that nothing new is scheduled onto it. To the scheduler it is ready until its heartbeats are
// overdue, and the emptiest of all: what was deleted from it would be put there again, and wait.
func avoid(ctx context.Context, read client.Reader, c client.Client, name string, now time.Time) error {
	node := &corev1.Node{}
	if err := read.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return client.IgnoreNotFound(err)
	}
	if slices.ContainsFunc(node.Spec.Taints, ours) {
		return nil
	}
	patch := client.MergeFromWithOptions(node.DeepCopy(), client.MergeFromWithOptimisticLock{})
	added := metav1.NewTime(now)
	node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: v1alpha1.TaintDead, Effect: corev1.TaintEffectNoSchedule, TimeAdded: &added})
	return c.Patch(ctx, node, patch)
}

func ours(t corev1.Taint) bool { return t.Key == v1alpha1.TaintDead }

// Avoided takes the taint of dead nodes away once it is not needed any more.
type Avoided struct {
	Client client.Client
	Clock  clock.PassiveClock
}

// SetupWithManager registers the controller. It runs on the elected leader only.
func (a *Avoided) SetupWithManager(mgr ctrl.Manager) error {
	tainted := predicate.NewPredicateFuncs(func(o client.Object) bool {
		node, ok := o.(*corev1.Node)
		return ok && slices.ContainsFunc(node.Spec.Taints, ours)
	})
	return ctrl.NewControllerManagedBy(mgr).Named("dead-nodes").For(&corev1.Node{}, builder.WithPredicates(tainted)).Complete(a)
}

// Reconcile looks at one node.
func (a *Avoided) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	node := &corev1.Node{}
	if err := a.Client.Get(ctx, req.NamespacedName, node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	left, tainted := avoidedStill(node.Spec.Taints, a.Clock.Now())
	switch {
	case !tainted:
		return reconcile.Result{}, nil
	case left > 0:
		return reconcile.Result{RequeueAfter: left}, nil
	}
	patch := client.MergeFromWithOptions(node.DeepCopy(), client.MergeFromWithOptimisticLock{})
	node.Spec.Taints = slices.DeleteFunc(node.Spec.Taints, ours)
	err := a.Client.Patch(ctx, node, patch)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	return reconcile.Result{}, client.IgnoreNotFound(err)
}

// avoidedStill is for how long a node with these taints is to be avoided on our account, and whether it is at all. Once
// Kubernetes says itself that it cannot be reached, its own taint is enough.
func avoidedStill(taints []corev1.Taint, now time.Time) (left time.Duration, tainted bool) {
	i := slices.IndexFunc(taints, ours)
	if i < 0 {
		return 0, false
	}
	noticed := slices.ContainsFunc(taints, func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeUnreachable || t.Key == corev1.TaintNodeNotReady
	})
	if noticed || taints[i].TimeAdded == nil {
		return 0, true
	}
	return max(0, taints[i].TimeAdded.Add(avoidFor).Sub(now)), true
}
