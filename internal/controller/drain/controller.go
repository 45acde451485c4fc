// Package drain moves instances off a node before somebody takes it away. It watches nodes and the marks that those
// who remove nodes leave on them, on the machines below and (through the webhook of package evictions) on Pods; each
// instance on such a node gets one Replacement with the reason Draining, which is taken back when the drain is. It
// touches neither nodes nor Pods: once a replacement has retired the instance its Pod is gone, and the drain ends by itself.
package drain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/machine"
)

// Reconciler looks at one node at a time.
type Reconciler struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.WithTicker
	// Machines are asked whether the machine under a node is being removed, and their objects are watched. Those the cluster
	// does not have say ErrNotMine. Those that the operator may not read must not be here: to ask them fails, and a watch that
	// never begins ends the manager. Drains by taint need none of them.
	Machines []machine.Provider
}

// SetupWithManager registers the controller. It runs on the elected leader only.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	c, err := ctrl.NewControllerManagedBy(mgr).Named("drain").
		For(&corev1.Node{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: nodeChanged})).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(nodeOfPod), builder.WithPredicates(predicate.Funcs{UpdateFunc: podChanged})).
		Watches(&v1alpha1.Replacement{}, handler.EnqueueRequestsFromMapFunc(nodeOfReplacement)).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Build(r)
	if err != nil {
		return err
	}
	// A replica that leads no longer knows nothing of drains.
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		<-ctx.Done()
		draining.Reset()
		return nil
	})); err != nil {
		return err
	}
	return mgr.Add(&marks{controller: c, mgr: mgr, clock: r.Clock, kinds: kinds(r.Machines)})
}

// nodeChanged ignores what kubelets report every few seconds.
func nodeChanged(e event.UpdateEvent) bool {
	before, ok1 := e.ObjectOld.(*corev1.Node)
	after, ok2 := e.ObjectNew.(*corev1.Node)
	return !ok1 || !ok2 || before.Generation != after.Generation || before.Spec.Unschedulable != after.Spec.Unschedulable ||
		fmt.Sprint(before.Spec.Taints) != fmt.Sprint(after.Spec.Taints) ||
		(before.DeletionTimestamp == nil) != (after.DeletionTimestamp == nil) || !maps.Equal(before.Annotations, after.Annotations)
}

func podChanged(e event.UpdateEvent) bool {
	before, ok1 := e.ObjectOld.(*corev1.Pod)
	after, ok2 := e.ObjectNew.(*corev1.Pod)
	return !ok1 || !ok2 || before.Spec.NodeName != after.Spec.NodeName ||
		before.Annotations[v1alpha1.AnnotationEvictionRequested] != after.Annotations[v1alpha1.AnnotationEvictionRequested]
}

func nodeOfPod(_ context.Context, o client.Object) []reconcile.Request {
	p, ok := o.(*corev1.Pod)
	if !ok || p.Spec.NodeName == "" || p.Labels[v1alpha1.LabelComponent] != v1alpha1.ComponentInstance {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: p.Spec.NodeName}}}
}

func nodeOfReplacement(_ context.Context, o client.Object) []reconcile.Request {
	if node := o.GetAnnotations()[v1alpha1.AnnotationNode]; node != "" {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: node}}}
	}
	return nil
}

// Intervals between looks at a node with instances on it: seldom, because everything that matters comes as an event; and
// oftener while it is drained, to ask again for what failed.
const (
	quietInterval = time.Minute
	busyInterval  = 10 * time.Second
)

// Reconcile asks for what has to leave a node, and takes back what has not.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	node := &corev1.Node{}
	if err := r.Client.Get(ctx, req.NamespacedName, node); err != nil {
		count(req.Name, 0)
		return reconcile.Result{}, client.IgnoreNotFound(err) // instances of a node that is gone are not drained but lost
	}
	pods, err := request.Requests{Client: r.Client}.Instances(ctx, node.Name)
	if err != nil || len(pods) == 0 {
		count(node.Name, 0)
		return reconcile.Result{}, err
	}
	m, errs := r.find(ctx, node)
	now := r.Clock.Now()
	next, leaving := quietInterval, 0
	for i := range pods {
		if pods[i].DeletionTimestamp != nil {
			continue
		}
		w := Decide(node, m, &pods[i], now)
		if w.Why != "" {
			next = min(next, busyInterval)
			leaving++
		}
		if left := w.Until.Sub(now); !w.Until.IsZero() && left < next {
			next = max(left, time.Second)
		}
		errs = errors.Join(errs, r.apply(ctx, node, &pods[i], w, now))
	}
	count(node.Name, leaving)
	return reconcile.Result{RequeueAfter: next}, errs
}

// find asks every provider. What one of them cannot say must not keep what others say from being heard.
func (r *Reconciler) find(ctx context.Context, node *corev1.Node) (machine.Machine, error) {
	var errs error
	for _, p := range r.Machines {
		m, err := p.Find(ctx, node)
		switch {
		case err == nil:
			return m, nil
		case errors.Is(err, machine.ErrNotMine) || meta.IsNoMatchError(err):
		default:
			errs = errors.Join(errs, fmt.Errorf("the machine of node %s, as %s knows it: %w", node.Name, p.Name(), err))
		}
	}
	return machine.Machine{}, errs
}

func (r *Reconciler) apply(ctx context.Context, node *corev1.Node, pod *corev1.Pod, w Wanted, now time.Time) error {
	log := logr.FromContextOrDiscard(ctx).WithValues("instance", pod.Namespace+"/"+pod.Name)
	requests := request.Requests{Client: r.Client}
	if w.Why != "" {
		rp, asked, err := requests.Make(ctx, request.Ask{Pod: pod, Reason: v1alpha1.ReasonDraining, Message: w.Why, Deadline: w.Deadline}, now)
		switch {
		case err != nil:
			return fmt.Errorf("asking for the replacement of %s: %w", pod.Name, err)
		case asked:
			drainsTotal.WithLabelValues("begun").Inc()
			log.Info("the instance is moved off its node", "why", w.Why, "replacement", rp.Name)
			r.Recorder.Eventf(pod, node, corev1.EventTypeNormal, "Draining", "Drain", "it is moved off node %s: %s", node.Name, w.Why)
		}
	} else {
		gone, err := requests.Withdraw(ctx, pod, v1alpha1.ReasonDraining)
		if err != nil {
			return fmt.Errorf("taking back the replacement of %s: %w", pod.Name, err)
		}
		if gone {
			drainsTotal.WithLabelValues("withdrawn").Inc()
			log.Info("the instance may stay after all")
			r.Recorder.Eventf(pod, node, corev1.EventTypeNormal, "DrainWithdrawn", "Drain", "it stays on node %s", node.Name)
		}
	}
	if !w.Stale {
		return nil
	}
	patch := client.MergeFrom(pod.DeepCopy())
	delete(pod.Annotations, v1alpha1.AnnotationEvictionRequested)
	delete(pod.Annotations, v1alpha1.AnnotationEvictionCordoned)
	return client.IgnoreNotFound(r.Client.Patch(ctx, pod, patch))
}
