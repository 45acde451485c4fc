package nodepolicy

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine"
)

// said takes the events of the town.
func (tn *town) said() (out []string) {
	tn.t.Helper()
	rec, ok := tn.r.Recorder.(*events.FakeRecorder)
	require.True(tn.t, ok)
	for {
		select {
		case e := <-rec.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

// The oldest node has no machine that the provider knows; another's cannot be asked for. Neither takes the only place of a
// node that can go, and both are told of.
func TestANodeWithoutAMachineTakesNoPlace(t *testing.T) {
	tn := newTown(t, nil)
	static, hidden, good := tn.node("z1"), tn.node("z1"), tn.node("z1")
	tn.unfound = map[string]error{static: machine.ErrNotMine, hidden: errors.New("the endpoint answers 500")}
	tn.clock.Step(9*time.Hour + 45*time.Minute)
	tn.run(2*time.Minute, tn.replace)
	require.Equal(t, []string{good}, tn.replaced)
	p := tn.get()
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	require.Equal(t, "NoMachine", c.Reason)
	require.Contains(t, c.Message, static)
	require.NotContains(t, c.Message, hidden, "it may well have one")
	waits := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionPlanHolds).Message
	require.Contains(t, waits, "node "+static+" waits: "+machine.ErrNotMine.Error())
	require.Contains(t, waits, "node "+hidden+" waits: the endpoint answers 500")
	told := slices.DeleteFunc(tn.said(), func(e string) bool { return !strings.Contains(e, "NoMachine") })
	require.Len(t, told, 1, "once: %v", told)
	tn.unfound = nil
	tn.run(10*time.Minute, tn.replace)
	require.True(t, isTrue(tn.get(), v1alpha1.ConditionReady), "an answer is not believed for ever")
}

// However many nodes there is no answer about, a look asks about a few of them only, and gets to every one.
func TestLookingForMachinesIsBounded(t *testing.T) {
	tn := newTown(t, func(p *v1alpha1.NodePolicy) { p.Spec.Budget = intstr.FromInt32(2) })
	tn.unfound = map[string]error{}
	for range 3 * asksAtOnce {
		tn.unfound[tn.node("z1")] = errors.New("the endpoint answers 500")
	}
	good := tn.node("z1")
	tn.clock.Step(9*time.Hour + 45*time.Minute)
	for i := range 6 {
		tn.finds = 0
		if _, err := tn.reconcile(); err != nil {
			require.ErrorContains(t, err, "the endpoint answers 500", "of the oldest, whose expiry is looked at")
		}
		require.LessOrEqual(t, tn.finds, asksAtOnce+rounds+1, "look %d", i)
		tn.clock.Step(time.Minute)
	}
	require.Equal(t, []string{good}, tn.replaced)
	for range 4 {
		tn.finds = 0
		_, _ = tn.reconcile()
		tn.clock.Step(time.Second)
	}
	require.LessOrEqual(t, tn.finds, 1, "an answer is good for a while, but for that about the oldest")
}

// A node that cannot be emptied is left alone for a while and sorts last after that: the others of its zone are not frozen,
// and go first.
func TestANodeThatCannotBeEmptiedKeepsNobody(t *testing.T) {
	tn := newTown(t, nil)
	tn.step = time.Minute
	bad := tn.node("z1")
	tn.shard("a", bad)
	tn.clock.Step(40 * time.Minute)
	good := []string{tn.node("z1"), tn.node("z1"), tn.node("z1")}
	tn.clock.Step(8*time.Hour + 30*time.Minute)
	tn.run(61*time.Minute, nil)
	p := tn.get()
	rot := rotationOf(&p.Status, tn.nodes()[bad])
	require.Equal(t, machine.RotFailed, machine.Phase(rot.Phase), "it is the first to be tried: %+v", p.Status.Rotations)
	require.Equal(t, string(machine.Moving), rot.FailedIn)
	tn.run(2*time.Minute, func() {
		p := tn.get()
		require.False(t, isTrue(p, v1alpha1.ConditionFrozen), "%+v", p.Status.Conditions)
		holds := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionPlanHolds)
		require.Contains(t, holds.Message, "the rotation of node "+bad+" failed")
	})
	require.Len(t, tn.replaced, 1, "the next one goes at once")
	tn.run(3*time.Hour, nil)
	require.ElementsMatch(t, good, tn.replaced, "all others go before it is tried again")
	tn.run(6*time.Hour, nil)
	p = tn.get()
	require.Positive(t, rotationOf(&p.Status, tn.nodes()[bad]).Failures, "it is tried again")
}

func TestWhatFailsIsLookedAtAgainSoon(t *testing.T) {
	r := retries()
	for range 1000 {
		require.LessOrEqual(t, r.When(reconcile.Request{}), retryAtMost)
	}
}
