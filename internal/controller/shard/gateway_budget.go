package shard

import (
	"context"
	"fmt"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/names"
)

// gatewayBudget lets one gateway go at a time, so that a drain of several nodes leaves clients a gateway. One that is not
// ready may always go, and so may an only one: it has nothing that another has not.
func (r *Reconciler) gatewayBudget(ctx context.Context, shard *v1alpha1.Shard) error {
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.Gateway(shard.Name)}}
	_, err := owned.Apply(ctx, r.Client, r.Live, shard, budget, func() {
		owned.SetLabels(budget, shardLabels(shard))
		budget.Spec.MaxUnavailable = ptr.To(intstr.FromInt32(1))
		budget.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{
			v1alpha1.LabelShard: shard.Name, v1alpha1.LabelComponent: v1alpha1.ComponentGateway,
		}}
		budget.Spec.UnhealthyPodEvictionPolicy = ptr.To(policyv1.AlwaysAllow)
	})
	if err != nil {
		return fmt.Errorf("PodDisruptionBudget %s: %w", budget.Name, err)
	}
	return nil
}
