package shard

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// removeLostGateways deletes the gateways whose node does not exist any more. Kubernetes does so too, a minute later; until
// then they are Ready as last heard of, and the Service sends every so many a client to nobody. A young Pod's node may only
// not have reached the cache yet.
func (r *Reconciler) removeLostGateways(ctx context.Context, shard *v1alpha1.Shard) error {
	pods := &corev1.PodList{}
	if err := r.Client.List(ctx, pods, client.InNamespace(shard.Namespace), client.MatchingLabels{
		v1alpha1.LabelShard: shard.Name, v1alpha1.LabelComponent: v1alpha1.ComponentGateway,
	}); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == "" || r.Clock.Since(p.CreationTimestamp.Time) < expectation {
			continue
		}
		err := r.Client.Get(ctx, types.NamespacedName{Name: p.Spec.NodeName}, &corev1.Node{})
		if !apierrors.IsNotFound(err) {
			continue // a node that cannot be read now is there until the opposite is known
		}
		if err := client.IgnoreNotFound(r.Client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})); err != nil {
			return fmt.Errorf("gateway %s, whose node is gone: %w", p.Name, err)
		}
		logr.FromContextOrDiscard(ctx).Info("removed a gateway whose node is gone", "pod", p.Name, "node", p.Spec.NodeName)
	}
	return nil
}
