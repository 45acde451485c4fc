package gateways

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// young is the age below which a Pod's node may only not have reached the cache yet.
const young = 15 * time.Second

// RemoveOrphaned deletes the gateways of a shard whose node does not exist any more. Kubernetes does so too, a minute later;
// until then they are Ready as last heard of, and the Service sends every so many a client to nobody.
func RemoveOrphaned(ctx context.Context, c client.Client, now clock.PassiveClock, shard types.NamespacedName) error {
	pods := &corev1.PodList{}
	if err := c.List(ctx, pods, client.InNamespace(shard.Namespace), client.MatchingLabels{
		v1alpha1.LabelShard: shard.Name, v1alpha1.LabelComponent: v1alpha1.ComponentGateway,
	}); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == "" || now.Since(p.CreationTimestamp.Time) < young {
			continue
		}
		err := c.Get(ctx, types.NamespacedName{Name: p.Spec.NodeName}, &corev1.Node{})
		if !apierrors.IsNotFound(err) {
			continue // a node that cannot be read now is there until the opposite is known
		}
		if err := client.IgnoreNotFound(c.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})); err != nil {
			return fmt.Errorf("gateway %s, whose node is gone: %w", p.Name, err)
		}
		logr.FromContextOrDiscard(ctx).Info("removed a gateway whose node is gone", "pod", p.Name, "node", p.Spec.NodeName)
	}
	return nil
}
