package drain

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"theseus.dev/theseus/internal/machine"
	"theseus.dev/theseus/internal/machine/clusterapi"
	"theseus.dev/theseus/internal/machine/karpenter"
)

// marks watches the objects of machines for deletion, as metadata only. A cluster may have one kind, none, or get one
// while the operator runs: to watch a kind that is not there would be an error.
type marks struct {
	controller controller.Controller
	mgr        ctrl.Manager
	clock      clock.WithTicker
	kinds      []schema.GroupVersionKind
}

// kinds of the objects of those providers that have some.
func kinds(machines []machine.Provider) []schema.GroupVersionKind {
	var out []schema.GroupVersionKind
	for _, p := range machines {
		switch p.(type) {
		case karpenter.Provider:
			out = append(out, karpenter.GVK)
		case clusterapi.Provider:
			out = append(out, clusterapi.GVK)
		}
	}
	return out
}

// lookInterval is how often it is looked for kinds that were not there.
const lookInterval = time.Minute

// Start implements manager.Runnable.
func (w *marks) Start(ctx context.Context) error {
	missing := w.kinds
	ticker := w.clock.NewTicker(lookInterval)
	defer ticker.Stop()
	for len(missing) > 0 {
		var still []schema.GroupVersionKind
		for _, gvk := range missing {
			if err := w.watch(gvk); err != nil {
				if !meta.IsNoMatchError(err) {
					w.mgr.GetLogger().Error(err, "cannot watch machines; nodes are looked at every minute", "kind", gvk.String())
				}
				still = append(still, gvk)
			}
		}
		missing = still
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
	return nil
}

func (w *marks) watch(gvk schema.GroupVersionKind) error {
	if _, err := w.mgr.GetRESTMapper().RESTMapping(gvk.GroupKind(), gvk.Version); err != nil {
		return err
	}
	obj := &metav1.PartialObjectMetadata{}
	obj.SetGroupVersionKind(gvk)
	return w.controller.Watch(source.Kind(w.mgr.GetCache(), obj, handler.TypedEnqueueRequestsFromMapFunc(
		func(ctx context.Context, o *metav1.PartialObjectMetadata) []reconcile.Request {
			return nodesOf(ctx, w.mgr.GetClient(), o)
		})))
}

// nodesOf finds the node of a machine that is being deleted by what the node says of its machine.
func nodesOf(ctx context.Context, c client.Reader, o *metav1.PartialObjectMetadata) []reconcile.Request {
	if o.DeletionTimestamp == nil {
		return nil
	}
	nodes := &corev1.NodeList{}
	if err := c.List(ctx, nodes); err != nil {
		return nil // the interval finds it
	}
	var out []reconcile.Request
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if karpenter.Owns(o.Name, n) || clusterapi.Owns(types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, n) {
			out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Name: n.Name}})
		}
	}
	return out
}
