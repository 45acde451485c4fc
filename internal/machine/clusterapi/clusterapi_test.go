package clusterapi

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/internal/machine"
)

var ctx = context.Background()

func object(kind, name, ownerKind, owner string, age time.Duration, extra map[string]any) *unstructured.Unstructured {
	meta := map[string]any{
		"name": name, "namespace": "caas", "uid": "uid-" + name, "finalizers": []any{"x/y"},
		"creationTimestamp": time.Date(2026, 1, 20, 0, 0, 0, 0, time.UTC).Add(-age).Format(time.RFC3339),
		"labels":            map[string]any{deploymentName: "md", setName: "ms"},
	}
	if owner != "" {
		meta["ownerReferences"] = []any{map[string]any{
			"apiVersion": "cluster.x-k8s.io/v1beta2", "kind": ownerKind, "name": owner, "uid": "uid-" + owner, "controller": true,
		}}
	}
	o := map[string]any{"apiVersion": "cluster.x-k8s.io/v1beta2", "kind": kind, "metadata": meta}
	for k, v := range extra {
		o[k] = v
	}
	return &unstructured.Unstructured{Object: o}
}

func set(replicas, available int64) map[string]any {
	return map[string]any{"spec": map[string]any{"replicas": replicas}, "status": map[string]any{"availableReplicas": available}}
}

func node(machineName string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "nuid", Annotations: map[string]string{
		nodeMachine: machineName, nodeNamespace: "caas",
	}}}
}

func provider(objs ...client.Object) Provider {
	return Provider{fake.NewClientBuilder().WithScheme(runtime.NewScheme()).WithObjects(objs...).Build()}
}

func standard() Provider {
	return provider(
		object("MachineDeployment", "md", "", "", 0, set(3, 3)), object("MachineSet", "ms", "MachineDeployment", "md", 0, set(3, 3)),
		object("Machine", "m1", "MachineSet", "ms", 9*time.Hour, nil), object("Machine", "m2", "MachineSet", "ms", 2*time.Hour, nil),
		object("Machine", "m3", "MachineSet", "ms", 5*time.Hour, nil),
	)
}

func (p Provider) read(t *testing.T, kind, name string) *unstructured.Unstructured {
	u, err := p.get(ctx, kind, client.ObjectKey{Namespace: "caas", Name: name})
	require.NoError(t, err)
	return u
}

func replicas(t *testing.T, p Provider) int64 {
	n, _, err := unstructured.NestedInt64(p.read(t, "MachineDeployment", "md").Object, "spec", "replicas")
	require.NoError(t, err)
	return n
}

func TestFind(t *testing.T) {
	p := standard()
	m, err := p.Find(ctx, node("m1"))
	require.NoError(t, err)
	require.Equal(t, "caas/m1", m.ID)
	require.False(t, m.Removing)
	for _, name := range []string{"", "unknown"} {
		_, err = p.Find(ctx, node(name))
		require.ErrorIs(t, err, machine.ErrNotMine)
	}
	p = provider(object("Machine", "alone", "", "", 0, nil), object("Machine", "cp", "KubeadmControlPlane", "kcp", 0, nil),
		object("Machine", "orphan", "MachineSet", "gone", 0, nil),
		object("Machine", "elsewhere", "", "", 0, map[string]any{"status": map[string]any{"nodeRef": map[string]any{"name": "other"}}}))
	for _, name := range []string{"alone", "cp", "orphan", "elsewhere"} {
		_, err = p.Find(ctx, node(name))
		require.ErrorIs(t, err, machine.ErrNotMine, "nobody would make another one: %s", name)
	}
}

func TestHooks(t *testing.T) {
	p := standard()
	m, err := p.Find(ctx, node("m1"))
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, p.Hold(ctx, m))
	}
	a := p.read(t, "Machine", "m1").GetAnnotations()
	require.Contains(t, a, PreDrainHook)
	require.Contains(t, a, PreTerminateHook)
	held, err := p.Find(ctx, node("m1"))
	require.NoError(t, err)
	require.True(t, held.Held)
	for range 2 {
		require.NoError(t, p.Release(ctx, m))
	}
	require.NotContains(t, p.read(t, "Machine", "m1").GetAnnotations(), PreDrainHook)
	m.UID = "an older one"
	require.NoError(t, p.Hold(ctx, m))
	require.NotContains(t, p.read(t, "Machine", "m1").GetAnnotations(), PreDrainHook)
}

func TestSurgeThenReplace(t *testing.T) {
	p := standard()
	m, err := p.Find(ctx, node("m1"))
	require.NoError(t, err)
	require.NoError(t, p.Hold(ctx, m))
	for range 3 {
		progress, err := p.Surge(ctx, m)
		require.NoError(t, err)
		require.False(t, progress.Done, progress.Message)
		require.Equal(t, int64(4), replicas(t, p), "raised once however often it is asked")
	}
	md := p.read(t, "MachineDeployment", "md")
	require.NoError(t, unstructured.SetNestedField(md.Object, int64(4), "status", "availableReplicas"))
	require.NoError(t, p.Client.Update(ctx, md))
	progress, err := p.Surge(ctx, m)
	require.NoError(t, err)
	require.True(t, progress.Done, progress.Message)

	_, err = p.Replace(ctx, m)
	require.NoError(t, err)
	require.Equal(t, int64(3), replicas(t, p))
	a := p.read(t, "Machine", "m1").GetAnnotations()
	require.Contains(t, a, DeleteMachine, "marked before the replica was taken back")
	require.NotContains(t, a, PreDrainHook)
	require.Nil(t, p.read(t, "Machine", "m1").GetDeletionTimestamp(), "Cluster API deletes it")
	// Asked again (the operator was restarted, or Cluster API is slow) it deletes the machine and lowers nothing.
	_, err = p.Replace(ctx, m)
	require.NoError(t, err)
	require.Equal(t, int64(3), replicas(t, p))
	require.NotNil(t, p.read(t, "Machine", "m1").GetDeletionTimestamp())
	again, err := p.Find(ctx, node("m1"))
	require.NoError(t, err)
	require.True(t, again.Removing)
	gone, err := p.Gone(ctx, m)
	require.NoError(t, err)
	require.False(t, gone)
	obj := p.read(t, "Machine", "m1")
	obj.SetFinalizers(nil)
	require.NoError(t, p.Client.Update(ctx, obj))
	gone, err = p.Gone(ctx, m)
	require.NoError(t, err)
	require.True(t, gone)
	_, err = p.Replace(ctx, m)
	require.NoError(t, err)
	require.Equal(t, int64(3), replicas(t, p))
}

func TestGiveBackTakesTheNewestMachine(t *testing.T) {
	p := standard()
	m, err := p.Find(ctx, node("m1"))
	require.NoError(t, err)
	require.NoError(t, p.GiveBack(ctx, m))
	require.Equal(t, int64(3), replicas(t, p), "nothing was surged")
	_, err = p.Surge(ctx, m)
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, p.GiveBack(ctx, m))
		require.Equal(t, int64(3), replicas(t, p))
	}
	require.Contains(t, p.read(t, "Machine", "m2").GetAnnotations(), DeleteMachine)
	require.NotContains(t, p.read(t, "Machine", "m1").GetAnnotations(), DeleteMachine)
	require.NotContains(t, p.read(t, "Machine", "m3").GetAnnotations(), DeleteMachine)
}

func TestTwoMachinesSurgeSeparately(t *testing.T) {
	p := standard()
	for _, name := range []string{"m1", "m3"} {
		m, err := p.Find(ctx, node(name))
		require.NoError(t, err)
		_, err = p.Surge(ctx, m)
		require.NoError(t, err)
	}
	require.Equal(t, int64(5), replicas(t, p))
}

func TestDrainDeadline(t *testing.T) {
	began := time.Date(2026, 1, 20, 1, 0, 0, 0, time.UTC)
	obj := object("Machine", "m", "MachineSet", "ms", 0, map[string]any{
		"spec":   map[string]any{"deletion": map[string]any{"nodeDrainTimeoutSeconds": int64(600)}},
		"status": map[string]any{"deletion": map[string]any{"nodeDrainStartTime": began.Format(time.RFC3339)}},
	})
	require.Equal(t, began.Add(10*time.Minute), drainDeadline(obj))
	require.True(t, drainDeadline(object("Machine", "m", "", "", 0, nil)).IsZero())
}
