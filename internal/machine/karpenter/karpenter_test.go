package karpenter

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/internal/machine"
)

var (
	ctx     = context.Background()
	created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func claim(name string, change func(o map[string]any)) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
		"metadata": map[string]any{
			"name": name, "uid": "uid-" + name, "creationTimestamp": created.Format(time.RFC3339),
			"finalizers": []any{"karpenter.sh/termination"},
		},
		"spec":   map[string]any{"expireAfter": "720h"},
		"status": map[string]any{"nodeName": "node-" + name},
	}}
	if change != nil {
		change(u.Object)
	}
	return u
}

func node(name string, owner string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "nuid", Labels: map[string]string{"karpenter.sh/nodepool": "db"}}}
	if owner != "" {
		n.OwnerReferences = []metav1.OwnerReference{{APIVersion: "karpenter.sh/v1", Kind: "NodeClaim", Name: owner, UID: "uid-x"}}
	}
	return n
}

func provider(objs ...client.Object) Provider {
	s := runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(s)
	return Provider{fake.NewClientBuilder().WithScheme(s).WithObjects(objs...).Build()}
}

func TestFind(t *testing.T) {
	p := provider(claim("c", nil), node("node-c", ""))
	m, err := p.Find(ctx, node("node-c", ""))
	require.NoError(t, err)
	require.Equal(t, "c", m.ID)
	require.Equal(t, "uid-c", m.UID)
	require.True(t, m.ExpiresAt.Equal(created.Add(720*time.Hour)))
	require.False(t, m.Removing)
	require.False(t, m.Held)

	m, err = p.Find(ctx, node("whatever", "c"))
	require.NoError(t, err, "by its owner, whatever the names")
	require.Equal(t, "c", m.ID)

	for _, n := range []*corev1.Node{node("other", ""), node("node-c", "gone"), {ObjectMeta: metav1.ObjectMeta{Name: "node-c"}}} {
		_, err = p.Find(ctx, n)
		require.ErrorIs(t, err, machine.ErrNotMine)
	}
}

func TestFindWhatIsBeingRemoved(t *testing.T) {
	n := node("node-c", "")
	n.Spec.Taints = []corev1.Taint{{Key: TaintDisrupted, Effect: corev1.TaintEffectNoSchedule}}
	p := provider(claim("c", func(o map[string]any) {
		_ = unstructured.SetNestedField(o, "Never", "spec", "expireAfter")
		_ = unstructured.SetNestedField(o, "2026-02-01T00:00:00Z", "metadata", "annotations", terminationTime)
		_ = unstructured.SetNestedSlice(o, []any{map[string]any{"type": "DisruptionReason", "status": "True", "reason": "Drifted"}}, "status", "conditions")
	}))
	m, err := p.Find(ctx, n)
	require.NoError(t, err)
	require.True(t, m.Removing)
	require.Contains(t, m.Why, "Drifted")
	require.True(t, m.ExpiresAt.IsZero())
	require.Equal(t, "2026-02-01", m.RemovalDeadline.Format(time.DateOnly))
}

func TestHoldAndRelease(t *testing.T) {
	p := provider(claim("c", nil), node("node-c", ""))
	m, err := p.Find(ctx, node("node-c", ""))
	require.NoError(t, err)
	read := func() *corev1.Node {
		var n corev1.Node
		require.NoError(t, p.Client.Get(ctx, client.ObjectKey{Name: "node-c"}, &n))
		return &n
	}
	for range 2 {
		require.NoError(t, p.Hold(ctx, m))
		require.Equal(t, "true", read().Annotations[DoNotDisrupt])
	}
	again, err := p.Find(ctx, read())
	require.NoError(t, err)
	require.True(t, again.Held)
	for range 2 {
		require.NoError(t, p.Release(ctx, m))
		require.NotContains(t, read().Annotations, DoNotDisrupt)
	}
	m.NodeUID = "another"
	require.NoError(t, p.Hold(ctx, m))
	require.NotContains(t, read().Annotations, DoNotDisrupt, "a node of the same name is left alone")
}

// A do-not-disrupt that was there before is a person's: holding the node is certain of it, and releasing leaves it.
func TestAPersonsAnnotationStays(t *testing.T) {
	theirs := node("node-c", "")
	theirs.Annotations = map[string]string{DoNotDisrupt: "true"}
	p := provider(claim("c", nil), theirs)
	read := func() *corev1.Node {
		var n corev1.Node
		require.NoError(t, p.Client.Get(ctx, client.ObjectKey{Name: "node-c"}, &n))
		return &n
	}
	m, err := p.Find(ctx, read())
	require.NoError(t, err)
	require.False(t, m.Held, "not by us")
	for range 2 {
		require.NoError(t, p.Hold(ctx, m))
		m, err = p.Find(ctx, read())
		require.NoError(t, err)
		require.True(t, m.Held)
	}
	for range 2 {
		require.NoError(t, p.Release(ctx, m))
		require.Equal(t, map[string]string{DoNotDisrupt: "true"}, read().Annotations)
	}

	require.NoError(t, p.Hold(ctx, m))
	n := read()
	delete(n.Annotations, DoNotDisrupt) // they take it back while the node is held
	require.NoError(t, p.Client.Update(ctx, n))
	m, err = p.Find(ctx, read())
	require.NoError(t, err)
	require.False(t, m.Held)
	require.NoError(t, p.Hold(ctx, m))
	require.Equal(t, "true", read().Annotations[DoNotDisrupt])
	require.NoError(t, p.Release(ctx, m))
	require.Empty(t, read().Annotations, "now it was ours")
}

func TestReplaceDeletesThisNodeClaimOnly(t *testing.T) {
	p := provider(claim("c", nil), claim("d", nil))
	m, err := p.Find(ctx, node("node-c", ""))
	require.NoError(t, err)
	surge, err := p.Surge(ctx, m)
	require.NoError(t, err)
	require.True(t, surge.Done)

	stranger := m
	stranger.UID = "an older one"
	gone, err := p.Gone(ctx, stranger)
	require.NoError(t, err)
	require.True(t, gone)

	for range 2 {
		progress, err := p.Replace(ctx, m)
		require.NoError(t, err)
		require.True(t, progress.Done)
	}
	gone, err = p.Gone(ctx, m)
	require.NoError(t, err)
	require.False(t, gone, "its finalizer is Karpenter's")
	again, err := p.Find(ctx, node("node-c", ""))
	require.NoError(t, err)
	require.True(t, again.Removing)

	u := p.empty()
	require.NoError(t, p.Client.Get(ctx, client.ObjectKey{Name: "c"}, u))
	u.SetFinalizers(nil)
	require.NoError(t, p.Client.Update(ctx, u))
	gone, err = p.Gone(ctx, m)
	require.NoError(t, err)
	require.True(t, gone)
	require.NoError(t, p.Client.Get(ctx, client.ObjectKey{Name: "d"}, p.empty()))
}
