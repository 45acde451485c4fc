package gateways

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
)

// Only gateways of this shard that are on a node which does not exist are removed, and not while the cache may lag.
func TestOrphanedGatewaysAreRemoved(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	one := func(name, node, shard, component string, age time.Duration) *corev1.Pod {
		p := pod(name, component, node, "10.0.0.1")
		p.Namespace, p.CreationTimestamp = "ns", metav1.NewTime(now.Add(-age))
		p.Labels[v1alpha1.LabelShard] = shard
		return p
	}
	c := fake.NewClientBuilder().WithObjects(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}},
		one("lost", "gone", "db-0", v1alpha1.ComponentGateway, time.Hour),
		one("well", "here", "db-0", v1alpha1.ComponentGateway, time.Hour),
		one("young", "gone", "db-0", v1alpha1.ComponentGateway, time.Second),
		one("pending", "", "db-0", v1alpha1.ComponentGateway, time.Hour),
		one("other-shard", "gone", "db-1", v1alpha1.ComponentGateway, time.Hour),
		one("instance", "gone", "db-0", v1alpha1.ComponentInstance, time.Hour),
	).Build()
	for range 2 {
		require.NoError(t, RemoveOrphaned(t.Context(), c, clocktesting.NewFakePassiveClock(now), types.NamespacedName{Namespace: "ns", Name: "db-0"}))
		left := &corev1.PodList{}
		require.NoError(t, c.List(t.Context(), left, client.InNamespace("ns")))
		var names []string
		for i := range left.Items {
			names = append(names, left.Items[i].Name)
		}
		require.ElementsMatch(t, []string{"well", "young", "pending", "other-shard", "instance"}, names)
	}
}
