package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
)

// What is not ours never reaches the memory of the operator, Secrets of others above all.
func TestTheCacheHoldsOursOnly(t *testing.T) {
	opts := CacheOptions(nil)
	require.Nil(t, opts.DefaultNamespaces, "all of them")
	for o, by := range opts.ByObject {
		if _, node := o.(*corev1.Node); node {
			continue
		}
		require.NotNil(t, by.Label, "%T", o)
		require.True(t, by.Label.Matches(labels.Set{v1alpha1.LabelDatabase: "shop"}), "%T", o)
		require.False(t, by.Label.Matches(labels.Set{"app": "theirs"}), "%T", o)
	}
	opts = CacheOptions([]string{"a", "b"})
	require.Len(t, opts.DefaultNamespaces, 2)
	require.Contains(t, opts.DefaultNamespaces, "b")
}

func TestSlimNode(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", ManagedFields: []metav1.ManagedFieldsEntry{{}}}}
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"x"}}}
	n.Spec.Unschedulable = true
	out, err := slimNode(n)
	require.NoError(t, err)
	slim, ok := out.(*corev1.Node)
	require.True(t, ok)
	require.Empty(t, slim.Status.Images)
	require.Empty(t, slim.ManagedFields)
	require.True(t, slim.Spec.Unschedulable, "what decisions are made from stays")
	same, err := slimNode("not a node")
	require.NoError(t, err)
	require.Equal(t, "not a node", same)
}

func TestOperandImage(t *testing.T) {
	require.Equal(t, "r/operand:pg17", OperandImage("r/operand:pg%d", 17))
	require.Equal(t, "r/pg-15/operand:15-x", OperandImage("r/pg-%d/operand:%d-x", 15))
	require.Equal(t, "r/operand:fixed", OperandImage("r/operand:fixed", 17))
}

func TestTheFreezeSwitchSaysWhy(t *testing.T) {
	require.Empty(t, frozen(ledger.Limits{}))
	require.Contains(t, frozen(ledger.Limits{Freeze: ledger.FreezePlanned, FreezeWhy: "audit"}), "audit")
	require.Contains(t, frozen(ledger.Limits{Freeze: ledger.FreezeAll}), "no reason given")
}

// What the operator has no permission for is not asked.
func TestOnlyMachinesThatMayBeUsedAreAsked(t *testing.T) {
	names := func(o Options) (out []string) {
		for _, p := range o.machines(nil) {
			out = append(out, p.Name())
		}
		return out
	}
	require.Equal(t, []string{"Karpenter", "ClusterAPI"}, names(Options{}))
	require.Equal(t, []string{"ClusterAPI"}, names(Options{Machines: []v1alpha1.MachineProvider{v1alpha1.MachineClusterAPI}}))
	require.Empty(t, names(Options{Machines: []v1alpha1.MachineProvider{}}))
}

func TestTheSchemeKnowsOurKinds(t *testing.T) {
	s := Scheme()
	for _, kind := range []string{"Database", "Shard", "Reparent", "Replacement", "NodePolicy"} {
		require.True(t, s.Recognizes(v1alpha1.GroupVersion.WithKind(kind)), kind)
	}
}
