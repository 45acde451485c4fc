package faults

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range append(All(), Extra()...) {
		require.False(t, seen[f.Name], f.Name)
		seen[f.Name] = true
		require.NotEmpty(t, f.About, f.Name)
		require.NotNil(t, f.Inject, f.Name)
		require.Contains(t, []Effect{Moves, Recovers, Stays}, f.Effect, f.Name)
	}
	for _, f := range All() {
		require.Equal(t, f.Effect != Stays, len(f.Verdicts) > 0, f.Name)
		found, err := Named(f.Name)
		require.NoError(t, err)
		require.Equal(t, f.About, found.About)
	}
	_, err := Named("Sabotage")
	require.Error(t, err)
}

func TestPartRules(t *testing.T) {
	require.Equal(t, `table ip fault_1 {
	chain forward {
		type filter hook forward priority -200; policy accept;
		ip saddr 10.128.0.2 ip daddr { 10.128.1.2, 10.128.2.2 } drop
		ip saddr { 10.128.1.2, 10.128.2.2 } ip daddr 10.128.0.2 drop
	}
}
`, partRules("fault_1", "10.128.0.2", []string{"10.128.1.2", "10.128.2.2"}))
	require.NotEqual(t, tableName("a", []string{"10.0.0.1"}), tableName("a", []string{"10.0.0.2"}))
	require.Equal(t, tableName("a", []string{"10.0.0.1"}), tableName("a", []string{"10.0.0.1"}))
}

func TestTogether(t *testing.T) {
	var done atomic.Int32
	one := func() error { done.Add(1); return nil }
	bad := errors.New("bad")
	require.NoError(t, together(one, one))
	require.ErrorIs(t, together(one, func() error { return bad }, one), bad)
	require.EqualValues(t, 4, done.Load(), "one that fails keeps no other from being done")
}

// A leader that is gone, or that has given the Lease back, is not killed a second time.
func TestOnlyALeaderThatIsThereIsKilled(t *testing.T) {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: labkit.OperatorNamespace, Name: "theseus-operator"}}
	lease.Spec.HolderIdentity = ptr.To("operator-a_1234")
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: labkit.OperatorNamespace, Name: name}}
	}
	c := fake.NewClientBuilder().WithScheme(labkit.Scheme()).WithObjects(lease, pod("operator-a"), pod("operator-b")).Build()
	target := Target{Kit: &labkit.Kit{Client: c}}
	for _, want := range []bool{true, false} {
		killed, err := target.KillLeader(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, killed)
	}
	lease.Spec.HolderIdentity = ptr.To("")
	require.NoError(t, c.Update(t.Context(), lease))
	killed, err := target.KillLeader(t.Context())
	require.NoError(t, err)
	require.False(t, killed)
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(pod("operator-b")), &corev1.Pod{}), "the other one lives")
}

// A shard is whole only when nothing at all is left of a fault.
func TestShardMissing(t *testing.T) {
	whole := func() *v1alpha1.Shard {
		ready := func(kind string) metav1.Condition { return metav1.Condition{Type: kind, Status: metav1.ConditionTrue} }
		s := &v1alpha1.Shard{}
		s.Spec.Template.Instances = 3
		s.Status = v1alpha1.ShardStatus{
			Primary: "a", Instances: []v1alpha1.InstanceStatus{{Name: "a", Ready: true}, {Name: "b", Ready: true}, {Name: "c", Ready: true}},
			Record:     v1alpha1.CohortRecord{EstablishedTerm: 4, Cohorts: []v1alpha1.CohortStatus{{Term: 4, Primary: "a", Members: []string{"b", "c"}}}},
			Conditions: []metav1.Condition{ready(v1alpha1.ConditionReady), ready(v1alpha1.ConditionRedundant)},
		}
		return s
	}
	require.Empty(t, shardMissing(whole()))
	for name, spoil := range map[string]func(*v1alpha1.ShardStatus){
		"no cohort":              func(s *v1alpha1.ShardStatus) { s.Record.Cohorts = nil },
		"two cohorts":            func(s *v1alpha1.ShardStatus) { s.Record.Cohorts = append(s.Record.Cohorts, s.Record.Cohorts[0]) },
		"not established":        func(s *v1alpha1.ShardStatus) { s.Record.EstablishedTerm = 3 },
		"another primary":        func(s *v1alpha1.ShardStatus) { s.Primary = "b" },
		"a member short":         func(s *v1alpha1.ShardStatus) { s.Record.Cohorts[0].Members = []string{"b"} },
		"an instance not ready":  func(s *v1alpha1.ShardStatus) { s.Instances[2].Ready = false },
		"an instance short":      func(s *v1alpha1.ShardStatus) { s.Instances = s.Instances[:2] },
		"an instance too many":   func(s *v1alpha1.ShardStatus) { s.Instances = append(s.Instances, v1alpha1.InstanceStatus{Name: "d"}) },
		"not ready":              func(s *v1alpha1.ShardStatus) { s.Conditions[0].Status = metav1.ConditionFalse },
		"redundancy not told of": func(s *v1alpha1.ShardStatus) { s.Conditions = s.Conditions[:1] },
	} {
		s := whole()
		spoil(&s.Status)
		require.NotEmpty(t, shardMissing(s), name)
	}
}
