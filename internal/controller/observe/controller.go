// Package observe tells the observer whom to watch: every instance with a Pod that has an address. It runs on every
// replica of the operator.
package observe

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
}

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
	r.Observer.Sync(req.NamespacedName, Targets(shard, pods.Items))
	return reconcile.Result{}, nil
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
