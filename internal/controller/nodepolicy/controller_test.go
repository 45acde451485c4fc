package nodepolicy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine"
)

// run reconciles and plays for so long.
func (tn *town) run(d time.Duration, each func()) {
	tn.t.Helper()
	for end := tn.clock.Now().Add(d); tn.clock.Now().Before(end); {
		next, err := tn.reconcile()
		require.NoError(tn.t, err)
		require.Positive(tn.t, next)
		if each != nil {
			each()
		}
		tn.clock.Step(max(next, tn.step))
	}
}

// A day of nodes that live ten hours: none gets older, none is taken from under an instance, never more than the
// budget at once, never two zones of one shard.
func TestEveryNodeGoesInTime(t *testing.T) {
	tn := newTown(t, func(p *v1alpha1.NodePolicy) { p.Spec.Budget = intstr.FromInt32(2) })
	tn.step = 2 * time.Minute
	zones := []string{"z1", "z2", "z3"}
	var nodes []string
	for i := range 6 {
		nodes = append(nodes, tn.node(zones[i%3]))
	}
	tn.shard("a", nodes[0], nodes[1], nodes[2])
	tn.shard("b", nodes[3], nodes[4], nodes[5])
	tn.run(24*time.Hour, func() {
		tn.replace()
		p := tn.get()
		busy, byShard := 0, map[string]string{}
		for i := range p.Status.Rotations {
			rot := &p.Status.Rotations[i]
			if !underWay(rot) {
				continue
			}
			busy++
			for _, pod := range tn.pods(rot.Node) {
				s := pod.Labels[v1alpha1.LabelShard]
				require.Contains(t, []string{"", rot.Zone}, byShard[s], "two zones of one shard at once")
				byShard[s] = rot.Zone
			}
		}
		require.LessOrEqual(t, busy, 2)
		for _, n := range tn.nodes() {
			require.LessOrEqual(t, tn.clock.Since(n.CreationTimestamp.Time), 10*time.Hour, n.Name)
		}
	})
	require.Greater(t, len(tn.replaced), 2*6-1, "every node at least twice")
	p := tn.get()
	require.True(t, isTrue(p, v1alpha1.ConditionPlanHolds), "%+v", p.Status.Conditions)
	require.True(t, isTrue(p, v1alpha1.ConditionReady))
	require.EqualValues(t, 6, p.Status.Nodes-int32(len(tn.surgedNow())))
	for _, n := range tn.nodes() {
		if n.Spec.Unschedulable {
			require.True(t, slices.ContainsFunc(p.Status.Rotations, func(r v1alpha1.NodeRotation) bool { return r.Node == n.Name }))
		}
	}
}

// surgedNow are nodes on their way out whose successor is there already.
func (tn *town) surgedNow() (out []string) {
	for name := range tn.nodes() {
		if tn.surged[name] {
			out = append(out, name)
		}
	}
	return out
}

// old makes a policy whose only node is due.
func old(t *testing.T, change func(*v1alpha1.NodePolicy)) (*town, string) {
	t.Helper()
	tn := newTown(t, change)
	n := tn.node("z1")
	tn.shard("a", n)
	tn.clock.Step(9*time.Hour + 45*time.Minute)
	return tn, n
}

func (tn *town) phase() machine.Phase {
	tn.t.Helper()
	r := tn.get().Status.Rotations
	require.Len(tn.t, r, 1)
	return machine.Phase(r[0].Phase)
}

func TestNoRoomIsGivenBackAndTriedAgain(t *testing.T) {
	tn, n := old(t, nil)
	tn.noRoom, tn.step = true, 30*time.Second
	tn.run(10*time.Second, nil)
	require.Equal(t, machine.Surging, tn.phase())
	require.True(t, tn.nodes()[n].Spec.Unschedulable)
	require.Equal(t, "p", tn.nodes()[n].Annotations[v1alpha1.AnnotationCordonedFor])
	require.Empty(t, tn.asked(), "nothing moves before there is room")
	tn.run(32*time.Minute, nil)
	require.Equal(t, machine.RotFailed, tn.phase())
	require.False(t, tn.nodes()[n].Spec.Unschedulable)
	require.Empty(t, tn.nodes()[n].Annotations)
	require.Contains(t, tn.calls, "giveback "+n)
	require.Contains(t, tn.calls, "release "+n)
	p := tn.get()
	require.False(t, isTrue(p, v1alpha1.ConditionPlanHolds))
	require.True(t, isTrue(p, v1alpha1.ConditionFrozen))
	tn.noRoom = false
	other := tn.node("z2")
	tn.run(30*time.Minute, tn.replace)
	require.NotContains(t, tn.nodes(), n)
	require.Contains(t, tn.nodes(), other)
	require.False(t, isTrue(tn.get(), v1alpha1.ConditionFrozen))
}

func TestFreezeStopsAndThawGoesOn(t *testing.T) {
	tn, n := old(t, func(p *v1alpha1.NodePolicy) { p.Spec.Freeze = "holidays" })
	tn.run(time.Minute, nil)
	p := tn.get()
	require.Empty(t, p.Status.Rotations)
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionPlanHolds)
	require.Equal(t, "Frozen", c.Reason, "said before it fails: %s", c.Message)
	require.Equal(t, "holidays", meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionFrozen).Message)
	tn.clock.Step(time.Hour)
	tn.run(time.Minute, nil)
	require.Equal(t, "DeadlineMissed", meta.FindStatusCondition(tn.get().Status.Conditions, v1alpha1.ConditionPlanHolds).Reason)
	tn.change(func(p *v1alpha1.NodePolicy) { p.Spec.Freeze = "" })
	tn.node("z1")
	tn.run(time.Minute, tn.replace)
	require.NotContains(t, tn.nodes(), n)
}

func TestAFreezeOfOneUnderWayGivesItBack(t *testing.T) {
	tn, n := old(t, nil)
	tn.run(10*time.Second, nil)
	require.Equal(t, machine.Moving, tn.phase())
	require.Len(t, tn.asked(), 1)
	require.Equal(t, v1alpha1.ReasonNodeExpiring, tn.asked()[0].Spec.Reason)
	tn.change(func(p *v1alpha1.NodePolicy) { p.Spec.Freeze = "stop" })
	tn.run(10*time.Second, nil)
	require.Equal(t, machine.RotFailed, tn.phase())
	require.Empty(t, tn.asked(), "what had not begun is taken back")
	require.False(t, tn.nodes()[n].Spec.Unschedulable)
	require.Empty(t, tn.replaced)
}

func TestNodesOfTwoPoliciesAreLeftAlone(t *testing.T) {
	tn, _ := old(t, nil)
	other := &v1alpha1.NodePolicy{ObjectMeta: metav1.ObjectMeta{Name: "q"}}
	require.NoError(t, tn.c.Create(t.Context(), other))
	tn.run(time.Minute, nil)
	p := tn.get()
	require.Empty(t, p.Status.Rotations)
	require.Equal(t, "PoliciesOverlap", meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady).Reason)
}

// Two cordons are told apart: ours is undone, a person's is not.
func TestAPersonsCordonStays(t *testing.T) {
	tn, n := old(t, nil)
	tn.noRoom, tn.step = true, 30*time.Second
	node := tn.nodes()[n]
	node.Spec.Unschedulable = true
	require.NoError(t, tn.c.Update(t.Context(), node))
	tn.run(40*time.Minute, nil)
	require.True(t, tn.nodes()[n].Spec.Unschedulable)
}

func TestADeletedPolicyLetsGo(t *testing.T) {
	tn, n := old(t, nil)
	tn.run(10*time.Second, nil)
	require.Equal(t, machine.Moving, tn.phase())
	require.NoError(t, tn.c.Delete(t.Context(), tn.get()))
	_, err := tn.reconcile()
	require.NoError(t, err)
	require.True(t, apierrors.IsNotFound(tn.c.Get(t.Context(), client.ObjectKey{Name: "p"}, &v1alpha1.NodePolicy{})))
	require.False(t, tn.nodes()[n].Spec.Unschedulable)
	require.Empty(t, tn.asked())
	require.Contains(t, tn.calls, "release "+n)
}

// A machine that was told to go may go at any moment: nothing new comes to its node, in the hour after it did not go in
// time, when it is asked for again, and when its policy is gone. Others go meanwhile.
func TestAMachineThatWasToldToGoStaysCordoned(t *testing.T) {
	tn, n := old(t, nil)
	tn.node("z1")
	tn.stuck, tn.step = true, 3*time.Minute
	tn.run(7*time.Minute, tn.replace)
	require.Equal(t, machine.Replacing, tn.phase())
	cordoned := func() {
		tn.replace()
		require.True(t, tn.nodes()[n].Spec.Unschedulable, "%+v", tn.get().Status.Rotations)
		require.Equal(t, "p", tn.nodes()[n].Annotations[v1alpha1.AnnotationCordonedFor])
	}
	tn.run(time.Hour+4*time.Minute, cordoned)
	require.Equal(t, machine.RotFailed, tn.phase())
	require.Equal(t, string(machine.Replacing), tn.get().Status.Rotations[0].FailedIn)
	tn.calls = nil
	tn.run(90*time.Minute, cordoned)
	require.Contains(t, tn.calls, "replace "+n)
	require.NotContains(t, tn.calls, "surge "+n, "there is room already")
	tn.stuck = false
	tn.run(time.Hour, tn.replace)
	require.Equal(t, []string{n}, tn.replaced)

	tn, n = old(t, nil)
	tn.node("z1")
	tn.stuck, tn.step = true, 3*time.Minute
	tn.run(time.Hour+10*time.Minute, tn.replace)
	require.Equal(t, machine.RotFailed, tn.phase())
	require.NoError(t, tn.c.Delete(t.Context(), tn.get()))
	_, err := tn.reconcile()
	require.NoError(t, err)
	require.True(t, tn.nodes()[n].Spec.Unschedulable)
}

// A provider that cannot be asked holds the deletion up only for a while.
func TestADeletedPolicyDoesNotWaitForEver(t *testing.T) {
	tn, _ := old(t, nil)
	tn.run(10*time.Second, nil)
	tn.failing = errors.New("the cloud is down")
	require.NoError(t, tn.c.Delete(t.Context(), tn.get()))
	_, err := tn.reconcile()
	require.ErrorContains(t, err, "the cloud is down")
	// The fake client stamps deletions with the real time.
	tn.clock.SetTime(time.Now().Add(releaseWithin + time.Minute))
	_, err = tn.reconcile()
	require.NoError(t, err)
	require.True(t, apierrors.IsNotFound(tn.c.Get(t.Context(), client.ObjectKey{Name: "p"}, &v1alpha1.NodePolicy{})))
}

func TestAProviderThatFailsIsSaid(t *testing.T) {
	tn, _ := old(t, nil)
	tn.failing = errors.New("the cloud is down")
	_, err := tn.reconcile()
	require.ErrorContains(t, err, "the cloud is down")
	require.Contains(t, meta.FindStatusCondition(tn.get().Status.Conditions, v1alpha1.ConditionReady).Message, "the cloud is down")
	tn.failing = nil
	tn.run(time.Second, nil)
	require.True(t, isTrue(tn.get(), v1alpha1.ConditionReady))
}

// Gateways hold nothing that would have to be moved first; they are evicted, and the machine waits for that.
func TestGatewaysAreEvictedFirst(t *testing.T) {
	tn, n := old(t, nil)
	tn.node("z1")
	require.NoError(t, tn.c.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gw", Finalizers: []string{"test/slow"}, Labels: map[string]string{
			v1alpha1.LabelShard: "a", v1alpha1.LabelComponent: v1alpha1.ComponentGateway,
		}},
		Spec: corev1.PodSpec{NodeName: n},
	}))
	tn.run(time.Minute, tn.replace)
	gw := &corev1.Pod{}
	require.NoError(t, tn.c.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "gw"}, gw))
	require.NotNil(t, gw.DeletionTimestamp)
	require.Empty(t, tn.replaced)
	gw.Finalizers = nil
	require.NoError(t, tn.c.Update(t.Context(), gw))
	tn.run(time.Minute, tn.replace)
	require.Equal(t, []string{n}, tn.replaced)
}

// An operator that watches some namespaces may list Pods in those only. It asks each of them: an instance that the cache has
// not heard of keeps the machine, in whichever it is.
func TestPodsAreAskedForInTheWatchedNamespaces(t *testing.T) {
	tn, n := old(t, nil)
	tn.r.Namespaces = []string{"other", "ns"}
	tn.r.Live = watched{tn.c, tn.r.Namespaces}
	rot := &rotation{r: tn.r, node: tn.nodes()[n]}
	count, err := rot.really(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, count)
	tn.node("z1")
	tn.run(time.Minute, tn.replace)
	require.Equal(t, []string{n}, tn.replaced)

	tn.r.Namespaces = nil
	_, err = rot.really(t.Context())
	require.ErrorContains(t, err, "forbidden", "or this test proves nothing")
}

// watched reads as an operator may that is bound to these namespaces.
type watched struct {
	client.Reader
	namespaces []string
}

func (w watched) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	o := client.ListOptions{}
	o.ApplyOptions(opts)
	if _, pods := l.(*corev1.PodList); pods && !slices.Contains(w.namespaces, o.Namespace) {
		return fmt.Errorf("Pods in %q are forbidden", o.Namespace)
	}
	return w.Reader.List(ctx, l, opts...)
}

// Nobody replaces the machine: the node is emptied, stays cordoned, and counts no more.
func TestLeftToPeople(t *testing.T) {
	tn, n := old(t, func(p *v1alpha1.NodePolicy) { p.Spec.Machine.Provider = v1alpha1.MachineNone })
	tn.r.Providers = nil
	tn.node("z1")
	tn.run(2*time.Minute, tn.replace)
	require.Equal(t, machine.RotDone, tn.phase())
	require.True(t, tn.nodes()[n].Spec.Unschedulable)
	tn.run(time.Hour, tn.replace)
	p := tn.get()
	require.EqualValues(t, 1, p.Status.Nodes)
	require.True(t, isTrue(p, v1alpha1.ConditionPlanHolds), "%+v", p.Status.Conditions)
}

// A node that appears under the same name is another one.
func TestANewNodeOfTheSameName(t *testing.T) {
	tn, n := old(t, nil)
	tn.run(10*time.Second, nil)
	require.Equal(t, machine.Moving, tn.phase())
	node := tn.nodes()[n]
	require.NoError(t, tn.c.Delete(t.Context(), node))
	require.NoError(t, tn.c.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, UID: "new", CreationTimestamp: metav1.NewTime(tn.clock.Now()), Labels: node.Labels}}))
	tn.run(time.Minute, nil)
	require.False(t, tn.nodes()[n].Spec.Unschedulable)
	require.NotContains(t, tn.replaced, n)
}

func TestBadSpecsAreSaid(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*v1alpha1.NodePolicy)
		want   string
	}{
		"time zone": {func(p *v1alpha1.NodePolicy) {
			p.Spec.Windows = []v1alpha1.Window{{Start: "01:00", Length: metav1.Duration{Duration: time.Hour}, TimeZone: "Atlantis/Main"}}
		}, "spec.windows[0].timeZone"},
		"selector": {func(p *v1alpha1.NodePolicy) {
			p.Spec.Selector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Maybe"}}}
		}, "spec.selector"},
	} {
		t.Run(name, func(t *testing.T) {
			tn, _ := old(t, tc.change)
			_, err := tn.reconcile()
			require.ErrorContains(t, err, tc.want)
			require.Contains(t, meta.FindStatusCondition(tn.get().Status.Conditions, v1alpha1.ConditionReady).Message, tc.want)
		})
	}
}

// A provider that the operator has no permission for is not asked; its policy says why nothing happens.
func TestAProviderThatIsTurnedOff(t *testing.T) {
	tn, _ := old(t, nil)
	tn.r.Providers, tn.r.Machines = nil, []v1alpha1.MachineProvider{v1alpha1.MachineClusterAPI}
	_, err := tn.reconcile()
	require.ErrorContains(t, err, "may not use machines of Karpenter")
	c := meta.FindStatusCondition(tn.get().Status.Conditions, v1alpha1.ConditionReady)
	require.Equal(t, "NoProvider", c.Reason)
	require.Contains(t, c.Message, "--machines")
	for kind, machines := range map[v1alpha1.MachineProvider][]v1alpha1.MachineProvider{
		v1alpha1.MachineKarpenter: nil, v1alpha1.MachineClusterAPI: {v1alpha1.MachineClusterAPI}, v1alpha1.MachineNone: {},
	} {
		tn.r.Machines = machines
		p, err := tn.r.provider(t.Context(), &v1alpha1.NodePolicy{Spec: v1alpha1.NodePolicySpec{Machine: v1alpha1.MachineSpec{Provider: kind}}})
		require.NoError(t, err)
		require.Equal(t, string(kind), p.Name())
	}
}

func TestEveryMissedDeadlineIsCountedOnce(t *testing.T) {
	tn, _ := old(t, func(p *v1alpha1.NodePolicy) { p.Spec.Freeze = "holidays" })
	before := testutil.ToFloat64(missedTotal.WithLabelValues("p"))
	tn.run(10*time.Second, nil)
	require.InDelta(t, before, testutil.ToFloat64(missedTotal.WithLabelValues("p")), 0, "not yet")
	tn.clock.Step(time.Hour)
	young := tn.node("z1")
	tn.run(30*time.Second, nil)
	require.InDelta(t, before+1, testutil.ToFloat64(missedTotal.WithLabelValues("p")), 0)
	require.InDelta(t, 1, testutil.ToFloat64(overdue.WithLabelValues("p")), 0)
	tn.clock.Step(11 * time.Hour)
	tn.run(10*time.Second, nil)
	require.InDelta(t, before+2, testutil.ToFloat64(missedTotal.WithLabelValues("p")), 0, "%s, too", young)
}

func TestBudgets(t *testing.T) {
	for text, want := range map[string]int{"10%": 1, "11%": 2, "0%": 0, "100%": 10, "3": 3} {
		b := intstr.Parse(text)
		require.Equal(t, want, budget(&v1alpha1.NodePolicy{Spec: v1alpha1.NodePolicySpec{Budget: b}}, 10), text)
	}
}

func TestABudgetOfNothingLetsNothingGo(t *testing.T) {
	tn, _ := old(t, func(p *v1alpha1.NodePolicy) { p.Spec.Budget = intstr.FromInt32(0) })
	tn.run(time.Minute, nil)
	require.Empty(t, tn.get().Status.Rotations)
	require.Contains(t, meta.FindStatusCondition(tn.get().Status.Conditions, v1alpha1.ConditionPlanHolds).Message, "spec.budget is 0")
}

func TestWindows(t *testing.T) {
	got, err := windows([]v1alpha1.Window{{Days: []string{"Mon", "Sat"}, Start: "22:30", Length: metav1.Duration{Duration: 2 * time.Hour}, TimeZone: "Europe/Berlin"}})
	require.NoError(t, err)
	require.Equal(t, []time.Weekday{time.Monday, time.Saturday}, got[0].Days)
	require.Equal(t, 22*time.Hour+30*time.Minute, got[0].Start)
	require.Equal(t, "Europe/Berlin", got[0].Location.String())
}

func TestAPodThatIsBeingDeletedNeedsItsNode(t *testing.T) {
	deleting := metav1.Now()
	for _, tt := range []struct {
		phase    corev1.PodPhase
		deleting *metav1.Time
		want     bool
	}{
		{corev1.PodRunning, nil, true},
		{corev1.PodRunning, &deleting, true},
		{corev1.PodSucceeded, &deleting, true},
		{corev1.PodFailed, &deleting, true},
		{corev1.PodSucceeded, nil, false},
		{corev1.PodFailed, nil, false},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: tt.deleting}, Status: corev1.PodStatus{Phase: tt.phase}}
		require.Equal(t, tt.want, occupies(p), "%s %v", tt.phase, tt.deleting)
		p.Labels = map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentInstance}
		require.True(t, occupies(p), "the volume of an instance may be there")
	}
}
