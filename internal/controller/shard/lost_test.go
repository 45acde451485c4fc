package shard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
)

// Only gateways of this shard that are on a node which does not exist are removed, and not while the cache may lag.
func TestLostGatewaysAreRemoved(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	shard := aShard()
	pod := func(name, node string, age time.Duration, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: name, Labels: gatewayLabels(shard), CreationTimestamp: metav1.NewTime(now.Add(-age))},
			Spec:       corev1.PodSpec{NodeName: node},
		}
		if change != nil {
			change(p)
		}
		return p
	}
	c := fake.NewClientBuilder().WithObjects(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}},
		pod("lost", "gone", time.Hour, nil),
		pod("well", "here", time.Hour, nil),
		pod("young", "gone", time.Second, nil),
		pod("pending", "", time.Hour, nil),
		pod("other-shard", "gone", time.Hour, func(p *corev1.Pod) { p.Labels[v1alpha1.LabelShard] = "db-1" }),
		pod("instance", "gone", time.Hour, func(p *corev1.Pod) { p.Labels = instanceLabels(shard, "instance") }),
	).Build()
	r := &Reconciler{Client: c, Clock: clocktesting.NewFakePassiveClock(now)}
	for range 2 {
		require.NoError(t, r.removeLostGateways(t.Context(), shard))
		left := &corev1.PodList{}
		require.NoError(t, c.List(t.Context(), left, client.InNamespace(shard.Namespace)))
		var names []string
		for i := range left.Items {
			names = append(names, left.Items[i].Name)
		}
		require.ElementsMatch(t, []string{"well", "young", "pending", "other-shard", "instance"}, names)
	}
}
