package nodepolicy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/machine"
)

func ended(node string, phase, failedIn machine.Phase, ago, took time.Duration) v1alpha1.NodeRotation {
	return v1alpha1.NodeRotation{
		Node: node, Phase: string(phase), FailedIn: string(failedIn),
		StartedAt: metav1.NewTime(t0.Add(-ago - took)), FinishedAt: &metav1.Time{Time: t0.Add(-ago)},
	}
}

func TestWhatIsKeptOfRotations(t *testing.T) {
	busy := v1alpha1.NodeRotation{Node: "busy", Phase: string(machine.Moving), StartedAt: metav1.NewTime(t0.Add(-30 * 24 * time.Hour))}
	all := []v1alpha1.NodeRotation{
		busy,
		ended("day", machine.RotDone, "", 24*time.Hour, time.Hour),
		ended("month", machine.RotDone, "", 30*24*time.Hour, time.Hour),
		ended("stuck", machine.RotFailed, machine.Replacing, 30*24*time.Hour, time.Hour),
		ended("went", machine.RotFailed, machine.Replacing, 30*24*time.Hour, time.Hour),
		ended("week", machine.RotFailed, machine.Moving, 6*24*time.Hour, time.Hour),
	}
	names := func(list []v1alpha1.NodeRotation) (out []string) {
		for i := range list {
			out = append(out, list[i].Node)
		}
		return out
	}
	there := func(r *v1alpha1.NodeRotation) bool { return r.Node == "stuck" }
	require.Equal(t, []string{"busy", "day", "stuck", "week"}, names(forgotten(all, there, t0)))

	all = []v1alpha1.NodeRotation{busy}
	for i := range 200 { // one every quarter of an hour
		all = append(all, ended(fmt.Sprint("n", i), machine.RotDone, "", time.Duration(i)*15*time.Minute, time.Hour))
	}
	require.Len(t, forgotten(all, there, t0), 1+keptFinished)
	for i := range all[1:] { // a storm of them
		all[1+i] = ended(fmt.Sprint("n", i), machine.RotDone, "", time.Duration(i)*time.Second, time.Hour)
	}
	require.Len(t, forgotten(all, there, t0), 201, "all of the last hour count for the pace")
}

func TestARotationBeginsWhereTheLastOneLeftTheMachine(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u"}}
	for name, tc := range map[string]struct {
		before   *v1alpha1.NodeRotation
		phase    machine.Phase
		machine  string
		failures int32
	}{
		"the first":               {nil, machine.Holding, "", 0},
		"one that was given back": {&v1alpha1.NodeRotation{Phase: "Failed", FailedIn: "Moving", Machine: "m", Failures: 2}, machine.Holding, "", 3},
		"one that was withdrawn":  {&v1alpha1.NodeRotation{Phase: "Failed", Machine: "m", Failures: 2}, machine.Holding, "", 2},
		"told to go":              {&v1alpha1.NodeRotation{Phase: "Failed", FailedIn: "Replacing", Machine: "m"}, machine.Replacing, "m", 1},
	} {
		rot := newRotation(tc.before, node, ledger.NodeRequest{Node: "n"}, t0)
		require.Equal(t, string(tc.phase), rot.Phase, name)
		require.Equal(t, tc.machine, rot.Machine, name)
		require.Equal(t, tc.failures, rot.Failures, name)
		require.Empty(t, rot.FailedIn, name)
	}
}

// With nodes that live for 29 days few go in a day, and none in most hours: how early the next has to begin is still
// measured.
func TestTheLeadOfNodesIsMeasured(t *testing.T) {
	tn := newTown(t, func(p *v1alpha1.NodePolicy) { p.Spec.MaxAge.Duration = 696 * time.Hour })
	tn.step = time.Minute
	n := tn.node("z1")
	tn.clock.Step(695 * time.Hour)
	tn.run(10*time.Minute, tn.replace)
	require.Equal(t, []string{n}, tn.replaced)
	tn.clock.Step(3 * 24 * time.Hour)
	tn.run(time.Minute, nil)
	took := durations(tn.get())
	require.Len(t, took, 1)
	require.Less(t, took[0], 10*time.Minute)
}

// Messages come from providers, and go into one object all together.
func TestMessagesAreClipped(t *testing.T) {
	tn, _ := old(t, nil)
	tn.run(time.Second, nil)
	w, err := tn.r.gather(t.Context(), "p")
	require.NoError(t, err)
	rot := &rotation{r: tn.r, w: w}
	require.NoError(t, rot.store(t.Context(), machine.Rotation{Phase: machine.Surging, Message: strings.Repeat("x", 1<<20)}))
	require.LessOrEqual(t, len(tn.get().Status.Rotations[0].Message), longest)
}
