package cluster

import (
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"theseus.dev/theseus/lab/internal/state"
)

func TestACutIsOneOrTwoOneWayCuts(t *testing.T) {
	both, err := cutsFor("a", state.Everyone, Both)
	require.NoError(t, err)
	require.Equal(t, []state.Cut{{From: "a", To: "*"}, {From: "*", To: "a"}}, both)
	in, err := cutsFor("a", "b", Incoming)
	require.NoError(t, err)
	require.Equal(t, []state.Cut{{From: "b", To: "a"}}, in)
	out, err := cutsFor("a", "b", Outgoing)
	require.NoError(t, err)
	require.Equal(t, []state.Cut{{From: "a", To: "b"}}, out)
	_, err = cutsFor("a", "b", "sideways")
	require.ErrorContains(t, err, "in, out")
}

func TestReservationsKeepBackWhatANodeDoesNotOffer(t *testing.T) {
	cpu, memory, err := reservations("", "")
	require.NoError(t, err)
	require.Empty(t, cpu+memory)

	cpu, memory, err = reservations("500m", "64Mi")
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(runtime.NumCPU()*1000-500)+"m", cpu)
	require.NotEmpty(t, memory)

	for _, bad := range [][2]string{{"0", ""}, {"-1", ""}, {"much", ""}, {"", "9000Ti"}, {strconv.Itoa(runtime.NumCPU() + 1), ""}} {
		_, _, err := reservations(bad[0], bad[1])
		require.Error(t, err, bad)
	}
}

func TestWhatIsTheMatterWithANode(t *testing.T) {
	require.Equal(t, "killed", describe(&state.Machine{Phase: state.Killed}, nil))
	require.Equal(t, "dead", describe(&state.Machine{Phase: state.Running}, nil))
	me := &state.Machine{Name: "n", Phase: state.Running, Init: self(t)}
	require.Equal(t, "running", describe(me, []state.Cut{{From: "x", To: "y"}}))
	me.Frozen = true
	require.Equal(t, "frozen,cut", describe(me, []state.Cut{{From: "x", To: "n"}}))
}

func self(t *testing.T) state.Process {
	t.Helper()
	p, err := state.Identify(1)
	require.NoError(t, err)
	return p
}

func TestNodeReadiness(t *testing.T) {
	n := &corev1.Node{}
	ready, why := nodeReady(n)
	require.False(t, ready)
	require.NotEmpty(t, why)
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	ready, why = nodeReady(n)
	require.False(t, ready)
	require.Contains(t, why, "NodeStatusUnknown")
	n.Status.Conditions[0].Status = corev1.ConditionTrue
	ready, _ = nodeReady(n)
	require.True(t, ready)
}

func TestClientsDoNotInheritAKubeconfig(t *testing.T) {
	require.Equal(t, []string{"A=1", "NOKUBECONFIG=x"}, withoutKubeconfig([]string{"A=1", "KUBECONFIG=/host", "NOKUBECONFIG=x"}))
}
