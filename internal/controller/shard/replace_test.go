package shard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/replacement"
)

// replacing is a Replacement with a status.
func replacing(instance string, reason v1alpha1.Reason, st v1alpha1.ReplacementStatus) v1alpha1.Replacement {
	return v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Name: instance + "-" + string(reason)},
		Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: instance, Reason: reason}, Status: st,
	}
}

func micro(t time.Time) *metav1.MicroTime { m := metav1.NewMicroTime(t); return &m }

func TestWhoLeavesIsReadFromTheStoredPhase(t *testing.T) {
	at := micro(now)
	for name, c := range map[string]struct {
		rp    v1alpha1.Replacement
		leave string
		unfit bool
	}{
		"waits":                           {rp: replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{})},
		"its successor is seeded":         {rp: replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Seeding", AdmittedAt: at, Successor: "d"})},
		"is to be swapped out":            {rp: replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Swapping", AdmittedAt: at, Successor: "d"}), leave: "a"},
		"condemned, and waits":            {rp: replacing("a", v1alpha1.ReasonCondemned, v1alpha1.ReplacementStatus{Phase: "Pending"}), leave: "a", unfit: true},
		"the surge failed":                {rp: replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "RollingBack", AdmittedAt: at, Successor: "d", Undo: "Failed"}), leave: "d", unfit: true},
		"failed after the stop had begun": {rp: replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "RollingBack", AdmittedAt: at, Successor: "d", Undo: "Failed", StopBegun: true}), leave: "d", unfit: true},
		"nobody wants it any more":        {rp: replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "RollingBack", AdmittedAt: at, Successor: "d", Undo: "Cancelled"}), leave: "d"},
	} {
		t.Run(name, func(t *testing.T) {
			got := UnderWay([]v1alpha1.Replacement{c.rp, replacing("z", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Done"})})
			require.Len(t, got, 1)
			require.Equal(t, c.leave, got[0].Leaving)
			require.Equal(t, c.unfit, got[0].Unfit != "")
		})
	}
}

func TestNobodyIsAskedToGoTwice(t *testing.T) {
	ended := func(reason v1alpha1.Reason, ago time.Duration) v1alpha1.Replacement {
		return replacing("a", reason, v1alpha1.ReplacementStatus{Phase: "Failed", FinishedAt: micro(now.Add(-ago))})
	}
	for name, c := range map[string]struct {
		list  []v1alpha1.Replacement
		ended int
		ok    bool
	}{
		"first":                                 {ok: true},
		"asked already":                         {list: []v1alpha1.Replacement{replacing("a", v1alpha1.ReasonCondemned, v1alpha1.ReplacementStatus{})}},
		"under way for another reason":          {list: []v1alpha1.Replacement{replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Seeding", AdmittedAt: micro(now)})}},
		"waits for another reason":              {list: []v1alpha1.Replacement{replacing("a", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Pending"})}, ok: true},
		"it is the surge of another":            {list: []v1alpha1.Replacement{replacing("b", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Seeding", Successor: "a"})}},
		"it was the surge of one that is over":  {list: []v1alpha1.Replacement{replacing("b", v1alpha1.ReasonExpired, v1alpha1.ReplacementStatus{Phase: "Done", Successor: "a"})}, ok: true},
		"failed a moment ago":                   {list: []v1alpha1.Replacement{ended(v1alpha1.ReasonCondemned, 30*time.Second)}, ended: 1},
		"failed a while ago":                    {list: []v1alpha1.Replacement{ended(v1alpha1.ReasonCondemned, 3*time.Minute)}, ended: 1, ok: true},
		"failed twice, the pause is longer":     {list: []v1alpha1.Replacement{ended(v1alpha1.ReasonCondemned, time.Hour), ended(v1alpha1.ReasonCondemned, 90*time.Second)}, ended: 2},
		"failed for another reason is no pause": {list: []v1alpha1.Replacement{ended(v1alpha1.ReasonExpired, time.Second)}, ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			n, ok := mayAsk(c.list, Ask{Instance: "a", Reason: v1alpha1.ReasonCondemned}, now)
			require.Equal(t, c.ok, ok)
			require.Equal(t, c.ended, n)
		})
	}
}

func TestASurgeMayStandBesideWhatItReplacesAndNobodyElse(t *testing.T) {
	s := Surge{Replacement: "r", Replaces: "db-0-old", Node: "n1", Zone: "z1"}
	pod := newPod(aShard(), "db-0-new", &s)
	require.NotContains(t, pod.Labels, v1alpha1.LabelSettled, "or the old one's rule would keep it away")
	require.Equal(t, "r", pod.Labels[v1alpha1.LabelReplacement])
	term := pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0]
	selector, err := metav1.LabelSelectorAsSelector(term.LabelSelector)
	require.NoError(t, err)
	require.True(t, selector.Matches(labelsOf(newPod(aShard(), "db-0-other", nil))))
	require.True(t, selector.Matches(labelsOf(newPod(aShard(), "db-0-surge", &Surge{Replacement: "q"}))), "nor beside another surge")
	require.False(t, selector.Matches(labelsOf(newPod(aShard(), "db-0-old", nil))))

	theirs, err := metav1.LabelSelectorAsSelector(newPod(aShard(), "db-0-old", nil).Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector)
	require.NoError(t, err)
	require.False(t, theirs.Matches(labelsOf(pod)))
	require.True(t, theirs.Matches(labelsOf(newPod(aShard(), "db-0-other", nil))))

	nodes := pod.Spec.Affinity.NodeAffinity
	require.Nil(t, nodes.RequiredDuringSchedulingIgnoredDuringExecution)
	require.Len(t, nodes.PreferredDuringSchedulingIgnoredDuringExecution, 3)
	s.Avoid = true
	nodes = newPod(aShard(), "db-0-new", &s).Spec.Affinity.NodeAffinity
	require.Equal(t, []string{"n1"}, nodes.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values)
	s.Node = ""
	require.Equal(t, notAging, newPod(aShard(), "db-0-new", &s).Spec.Affinity.NodeAffinity, "it is not known where the old one was")
}

// notAging is all that an instance wishes of its node that takes nobody's place.
var notAging = &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
	Weight: 50, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
		{Key: "theseus.dev/aging", Operator: corev1.NodeSelectorOpDoesNotExist},
	}},
}}}

// An instance that came to a node that goes soon would have to be copied once more. It is a wish, below that for the zone.
func TestInstancesAvoidNodesThatGoSoon(t *testing.T) {
	require.Equal(t, notAging, newPod(aShard(), "db-0-first", nil).Spec.Affinity.NodeAffinity)
	for _, avoid := range []bool{false, true} {
		nodes := newPod(aShard(), "db-0-new", &Surge{Replacement: "r", Replaces: "db-0-old", Node: "n1", Zone: "z1", Avoid: avoid}).Spec.Affinity.NodeAffinity
		weights := map[int32]bool{}
		for _, term := range nodes.PreferredDuringSchedulingIgnoredDuringExecution {
			weights[term.Weight] = true
		}
		require.Contains(t, nodes.PreferredDuringSchedulingIgnoredDuringExecution, notAging.PreferredDuringSchedulingIgnoredDuringExecution[0])
		require.True(t, weights[zoneWeight] && zoneWeight > agingWeight)
		require.Equal(t, !avoid, weights[nodeWeight])
	}
}

type podLabels map[string]string

func (l podLabels) Has(k string) bool              { _, ok := l[k]; return ok }
func (l podLabels) Get(k string) string            { return l[k] }
func (l podLabels) Lookup(k string) (string, bool) { v, ok := l[k]; return v, ok }

func labelsOf(p *corev1.Pod) podLabels { return p.Labels }

func TestWhatKeepsAPodFromEverRunning(t *testing.T) {
	waiting := func(reason string, restarts int32, age time.Duration) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-age))},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				RestartCount: restarts, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
			}}},
		}
	}
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		broken bool
	}{
		"no such name for an image":    {waiting("InvalidImageName", 0, time.Second), true},
		"a registry that hiccups":      {waiting("ImagePullBackOff", 0, time.Minute), false},
		"an image that is not there":   {waiting("ImagePullBackOff", 0, 3*time.Minute), true},
		"it crashed":                   {waiting("CrashLoopBackOff", 2, time.Hour), false},
		"it crashes again and again":   {waiting("CrashLoopBackOff", 3, time.Minute), true},
		"it is being created":          {waiting("ContainerCreating", 0, time.Hour), false},
		"it has ended":                 {&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}, true},
		"a Secret comes a little late": {waiting("CreateContainerConfigError", 0, time.Second), false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.broken, broken(c.pod, now) != "") })
	}
}

func (w *world) seen(name string) replacement.Instance {
	for _, in := range w.view(DefaultParams()).Instances {
		if in.Name == name {
			return in
		}
	}
	return replacement.Instance{}
}

func TestTheViewOfAReplacement(t *testing.T) {
	v := healthy().view(DefaultParams())
	require.Equal(t, "a", v.Primary)
	require.True(t, v.Writable)
	for _, in := range v.Instances {
		require.True(t, in.Healthy && in.InRecord && in.PodExists && in.Running && in.Seeded && !in.Dead, "%+v", in)
	}
	behind := healthy().edit("a", func(it *Instance) { it.Status.Flushed.Lsn = 64 << 20 })
	require.False(t, behind.seen("b").Healthy, "far behind is no copy")
	require.True(t, behind.seen("a").Healthy)
	for name, edit := range map[string]func(*Instance){
		"its Pod is gone":    podGone,
		"its Pod has ended":  func(it *Instance) { it.Failed = true },
		"it has diverged":    func(it *Instance) { it.Status.Diverged = true },
		"its disk hangs":     func(it *Instance) { it.Status.AtUnixMs, it.Status.DiskProbe = 20_000, probing(1_000) },
		"it will never run":  func(it *Instance) { it.Broken = "no image" },
		"its node is a loss": func(it *Instance) { it.NodeNotReadyFor, it.Connected = time.Hour, false },
	} {
		require.True(t, healthy().unheard("c").edit("c", edit).seen("c").Dead, name)
	}
	for name, edit := range map[string]func(*Instance){
		"out of our reach only":     silentFor(time.Hour),
		"its node has a hiccup":     func(it *Instance) { it.NodeNotReadyFor = time.Second },
		"its disk was slow once":    func(it *Instance) { it.Status.AtUnixMs, it.Status.DiskProbe = 20_000, probing(19_000) },
		"it is being stopped":       func(it *Instance) { it.Terminating, it.Failed, it.Broken = true, true, "its Pod has ended" },
		"its kubelet is dead alone": func(it *Instance) { it.NodeNotReadyFor = time.Hour },
	} {
		require.False(t, healthy().edit("c", edit).seen("c").Dead, name)
	}
	require.False(t, healthy().seen("c").Suspect)
	for name, edit := range map[string]func(*Instance){
		"its node is not ready": func(it *Instance) { it.NodeNotReadyFor = time.Second },
		"its agent is silent":   silentFor(10 * time.Second),
		"its disk hangs":        func(it *Instance) { it.Status.AtUnixMs, it.Status.DiskProbe = 20_000, probing(19_000) },
	} {
		c := healthy().edit("c", edit).seen("c")
		require.True(t, c.Suspect && c.Healthy && !c.Dead, name)
	}
	full := healthy()
	full.suspects = map[string]string{"c": "its volume is full"}
	require.True(t, full.seen("c").Suspect)
	require.False(t, full.seen("b").Suspect)
	begun := healthy()
	begun.Record.Cohorts = append(begun.Record.Cohorts, cohortOf(4, "b", 1, "c"))
	require.Empty(t, begun.view(DefaultParams()).Primary, "nobody knows until the reparent has an end")
	require.True(t, begun.seen("b").InRecord)

	lost := newWorld(2).add("a", primaryOf(2, true, cohortOf(2, "a", 1, "b"), "b"), silentFor(time.Minute)).add("b", standbyOf(2, "a"))
	lost.Record = quorum.Record{Cohorts: []quorum.Cohort{cohortOf(2, "a", 1, "b")}, Established: 2}
	v = lost.view(DefaultParams())
	require.False(t, v.Writable)
	require.True(t, v.Source("a"))
	require.False(t, v.Source("b"))
}

func probing(since int64) *agentpb.Probe { return &agentpb.Probe{PendingSinceUnixMs: since} }

func TestTheSurvivorOfTwoIsCopiedBeforeItTakesOver(t *testing.T) {
	c := cohortOf(2, "a", 1, "b")
	lost := func() *world {
		w := newWorld(2).add("a", primaryOf(2, true, c, "b"), silentFor(time.Minute)).add("b", standbyOf(2, "a"))
		w.Bootstrap = &v1alpha1.BootstrapStatus{Instance: "a", Done: true}
		w.Record = quorum.Record{Cohorts: []quorum.Cohort{c}, Established: 2}
		w.NoPrimaryFor = time.Minute
		return w
	}
	w := lost()
	require.Equal(t, []string{"Condemn a"}, w.planned())
	w.add("d").replace("a", "d")
	require.Equal(t, []string{"Seed d from b"}, w.planned())
	w.edit("d", standbyOf(2, "b"))
	require.Empty(t, w.planned(), "an emergency reparent does the rest")

	for name, w := range map[string]*world{
		"the primary has been lost for a moment only": func() *world { w := lost(); w.NoPrimaryFor = 5 * time.Second; return w }(),
		"the primary is there, with a sick agent":     lost().edit("a", silentFor(5*time.Second)),
		"a reparent is under way":                     func() *world { w := lost(); w.Reparenting = true; return w }(),
		"the survivor has diverged":                   lost().edit("b", func(it *Instance) { it.Status.Diverged = true }),
		"the survivor may lack what was acknowledged": func() *world {
			w := lost()
			w.Record.Cohorts = []quorum.Cohort{cohortOf(2, "a", 1, "b", "z")}
			return w
		}(),
		"there are survivors enough": func() *world {
			w := lost().add("z", standbyOf(2, "a"))
			w.Record.Cohorts = []quorum.Cohort{cohortOf(2, "a", 1, "b", "z")}
			return w
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			w.add("d")
			for _, a := range Plan(&w.State, DefaultParams()) {
				require.NotContains(t, []Verb{Condemn, AgentSeed, CreateInstance, DeleteClaim}, a.Verb)
			}
		})
	}
}
