//go:build integration

package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// addNodes makes Nodes for the bed, named after it.
func (b *bed) addNodes(names ...string) []*corev1.Node {
	b.t.Helper()
	var out []*corev1.Node
	for i, name := range names {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: b.namespace + "-" + name, Labels: map[string]string{"bed": b.namespace, corev1.LabelTopologyZone: fmt.Sprint("z", i%3)},
		}}
		require.NoError(b.t, cluster.client.Create(b.ctx, n))
		b.t.Cleanup(func() { _ = cluster.client.Delete(context.Background(), n) })
		out = append(out, n)
	}
	return out
}

// schedule gives every Pod of an instance a node that is not cordoned and has none of its shard.
func (b *bed) schedule() {
	ctx := b.ctx
	pass := func() {
		nodes, pods := &corev1.NodeList{}, &corev1.PodList{}
		if cluster.client.List(ctx, nodes, client.MatchingLabels{"bed": b.namespace}) != nil || cluster.client.List(ctx, pods, client.InNamespace(b.namespace)) != nil {
			return
		}
		taken := map[string]bool{}
		for i := range pods.Items {
			taken[pods.Items[i].Spec.NodeName] = true
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.Spec.NodeName != "" || p.DeletionTimestamp != nil {
				continue
			}
			for j := range nodes.Items {
				if n := &nodes.Items[j]; !taken[n.Name] && !n.Spec.Unschedulable {
					taken[n.Name] = true
					_ = cluster.client.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: n.Name}})
					break
				}
			}
		}
	}
	go func() {
		for ctx.Err() == nil {
			pass()
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
}

// on are the instances on a node.
func (b *bed) on(n *corev1.Node) []string {
	b.t.Helper()
	var out []string
	for name, p := range b.pods() {
		if p.Spec.NodeName == n.Name {
			out = append(out, name)
		}
	}
	return out
}

func (b *bed) patchNode(n *corev1.Node, change func(*corev1.Node)) {
	b.t.Helper()
	require.NoError(b.t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(n), n))
	before := n.DeepCopy()
	change(n)
	require.NoError(b.t, cluster.client.Patch(b.ctx, n, client.MergeFrom(before)))
}

// All nodes are taken away at once, as an autoscaler does, while there are as many new ones: every instance moves, never
// fewer copies than the spec asks for, and nothing is left to wait for.
func TestAllNodesAreDrainedAtOnce(t *testing.T) {
	b := newBed(t)
	old := b.addNodes("a", "b", "c")
	b.schedule()
	b.operator("op")
	b.database()
	b.untilReady()
	b.neverFewer(3)
	b.addNodes("d", "e", "f")
	for _, n := range old {
		b.patchNode(n, func(n *corev1.Node) {
			n.Spec.Unschedulable = true
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule})
		})
	}
	b.until("the old nodes are empty", func() bool {
		return len(b.on(old[0]))+len(b.on(old[1]))+len(b.on(old[2])) == 0
	})
	b.untilReady()
	list := &v1alpha1.ReplacementList{}
	b.until("three replacements have succeeded", func() bool {
		require.NoError(t, cluster.client.List(b.ctx, list, client.InNamespace(b.namespace)))
		require.Len(t, list.Items, 3)
		done := 0
		for i := range list.Items {
			require.Equal(t, v1alpha1.ReasonDraining, list.Items[i].Spec.Reason)
			if list.Items[i].Status.Outcome == "Succeeded" {
				done++
			}
		}
		return done == 3
	})
}

// An only instance is moved as well: its successor is there before it stops.
func TestADrainOfTheOnlyInstance(t *testing.T) {
	b := newBed(t)
	old := b.addNodes("a")
	b.schedule()
	b.operator("op")
	b.database(func(db *v1alpha1.Database) { db.Spec.Instances = 1 })
	b.untilReady()
	b.neverFewer(1)
	first := b.on(old[0])
	b.patchNode(old[0], func(n *corev1.Node) {
		n.Spec.Unschedulable = true
		n.Annotations = map[string]string{v1alpha1.AnnotationDrain: "the fan is loud"}
	})
	b.addNodes("b")
	b.until("it has moved", func() bool { return len(b.on(old[0])) == 0 })
	b.untilReady()
	require.Len(t, b.pods(), 1)
	require.NotContains(t, b.pods(), first[0])
}
