package story

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }

func instance(name string, born int, st State) Subject {
	return Subject{Kind: Instance, Name: name, Place: "n1", Born: at(born), State: st}
}

func TestWhatIsNewIsSaidOnce(t *testing.T) {
	c := &Chronicle{}
	old := Reparent{Name: "s-2", Kind: "Planned", Outcome: "Succeeded"}
	require.Empty(t, c.Add(Observation{At: at(0), Subjects: []Subject{instance("a", -60, Primary)}, Reparents: []Reparent{old}}), "what was there before is no news")
	require.Empty(t, c.Add(Observation{At: at(1), Subjects: []Subject{instance("a", -60, Primary)}}))
	news := c.Add(Observation{At: at(2), Term: 3, Subjects: []Subject{instance("a", -60, Standby), instance("b", 1, Joining)}})
	require.Equal(t, []string{"instance b appears on n1"}, news)
	r := Reparent{Name: "s-3", Kind: "Planned", Reason: "Expired", Outcome: "Succeeded", From: "a", To: "b", Unavailable: 120 * time.Millisecond}
	p := Replacement{Name: "r1", Instance: "a", Successor: "b", Reason: "Expired", Phase: "Retiring"}
	o := Observation{At: at(3), Term: 3, Subjects: []Subject{instance("b", 1, Primary)}, Reparents: []Reparent{r}, Replacements: []Replacement{p}, Clients: Clients{Failed: 1, Unknown: 1}}
	require.Equal(t, []string{
		"instance b is the primary, term 3", "instance a is gone, 1m3s old",
		"Planned reparent (Expired): a → b, Succeeded, writes unavailable for 120ms",
		"replacement of a (Expired): Retiring, by b", "clients saw 2 errors",
	}, c.Add(o))
	o.At = at(4)
	require.Empty(t, c.Add(o), "nothing changed")
	require.Equal(t, []string{"b"}, c.Alive(Instance))
}

func TestTheDrawingFitsAndShowsShortPrimaries(t *testing.T) {
	c := &Chronicle{}
	for s := range 600 {
		var subjects []Subject
		for i := range 12 {
			if s >= i*50 && s < i*50+120 {
				st := Standby
				if s == i*50+7 {
					st = Primary
				}
				subjects = append(subjects, instance(fmt.Sprintf("shop-0-abcdefghijklmnopqrstuvw%d", i), i*50, st),
					Subject{Kind: Node, Name: fmt.Sprintf("node-%d", i), Born: at(i * 50), State: Standby})
			}
		}
		c.Add(Observation{At: at(s), Subjects: subjects})
	}
	for _, size := range [][2]int{{80, 24}, {120, 50}, {10, 3}} {
		lines := c.Draw("shop", size[0], size[1])
		require.LessOrEqual(t, len(lines), max(size[1], 16)+1)
		for _, l := range lines {
			require.LessOrEqual(t, len([]rune(l)), max(size[0], 60)+4, l)
		}
	}
	whole := strings.Join(c.Draw("shop", 120, 60), "\n")
	require.Equal(t, 12, strings.Count(whole, "█")-1, "every primary of a second is drawn, and the legend:\n%s", whole)
}

func TestALifelineEndsAndAShortAbsenceIsForgiven(t *testing.T) {
	c := &Chronicle{}
	c.Add(Observation{At: at(0), Subjects: []Subject{instance("a", 0, Standby)}})
	c.Add(Observation{At: at(1)})
	require.Empty(t, c.Alive(Instance))
	c.Add(Observation{At: at(2), Subjects: []Subject{instance("a", 0, Standby)}})
	require.Equal(t, []string{"a"}, c.Alive(Instance))
	c.Add(Observation{At: at(10)})
	l := c.Lifelines(Instance)[0]
	require.Equal(t, 10*time.Second, l.Age(at(100)))
	require.Equal(t, Absent, l.at(at(11)))
	require.Equal(t, Standby, l.at(at(3)))
}

func TestSummary(t *testing.T) {
	c := &Chronicle{}
	c.Add(Observation{At: at(0), Subjects: []Subject{instance("a", -100, Primary)}})
	c.Add(Observation{
		At: at(20), Subjects: []Subject{instance("b", 10, Primary)}, Replacements: []Replacement{{Name: "r", Reason: "Expired", Phase: "Done", Outcome: "Succeeded"}},
		Reparents: []Reparent{{Name: "x", Kind: "Emergency", Reason: "PrimaryDead", Outcome: "Succeeded"}},
	})
	table := func(e Ending) string {
		var b strings.Builder
		require.NoError(t, c.Summary(&b, e))
		return regexp.MustCompile("  +").ReplaceAllString(b.String(), "  ")
	}
	planned := Part{When: "while everything was replaced", Planned: true, LongestStall: 1234567 * time.Microsecond}
	text := table(Ending{Acked: 5, Verified: true, Parts: []Part{planned, {When: "from the power cut on", Errors: 4, LongestStall: 2 * time.Second}}})
	for _, want := range []string{
		"oldest instance ever seen  2m0s\n", "Expired Succeeded", "Emergency PrimaryDead Succeeded", "acknowledged writes lost  0\n",
		"longest stall of writes while everything was replaced  1.235s\n", "errors clients saw while everything was replaced  0\n",
		"longest stall of writes from the power cut on  2s\n", "errors clients saw from the power cut on  4\n",
	} {
		require.Contains(t, text, want)
	}
	planned.Errors = 3
	text = table(Ending{Parts: []Part{planned}})
	require.Contains(t, text, "not known")
	require.Contains(t, text, "errors clients saw while everything was replaced  3, and there should be none\n")
	require.NotContains(t, text, "power cut", "a story that ended early has no such part")
}

func TestTheDrawingShowsWhatClientsSee(t *testing.T) {
	c := &Chronicle{}
	seen := Clients{
		PerSecond: 399, P50: 1234 * time.Microsecond, P99: 1234500 * time.Microsecond, Failed: 100, Unknown: 23, Stall: 2 * time.Millisecond, Longest: 12345 * time.Millisecond,
	}
	c.Add(Observation{At: at(0), Clients: seen})
	whole := strings.Join(c.Draw("shop", 80, 24), "\n")
	require.Contains(t, whole, "CLIENTS    399 writes/s   latency p50 1.2ms p99 1.2345s   errors 123\n")
	require.Contains(t, whole, "since the last write 2ms   longest stall 12.345s")
	require.NotContains(t, whole, "…", "nothing of it is cut off")
	c.Add(Observation{At: at(1), Clients: Clients{Stall: time.Second}})
	require.Contains(t, strings.Join(c.Draw("shop", 80, 24), "\n"), "0 writes/s   no write in the last second   errors 0", "no latency of what was not written")
}

func TestWhatIsObserved(t *testing.T) {
	old := metav1.NewTime(at(-100))
	db := map[string]string{v1alpha1.LabelDatabase: "shop", v1alpha1.LabelComponent: v1alpha1.ComponentInstance}
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: db, CreationTimestamp: old}, Spec: corev1.PodSpec{NodeName: "n1"}}
	}
	node := func(name string, ready corev1.ConditionStatus, since int) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: old},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, LastTransitionTime: metav1.NewTime(at(since))}}},
		}
	}
	shard := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "shop-0", Labels: map[string]string{v1alpha1.LabelDatabase: "shop"}}}
	shard.Status = v1alpha1.ShardStatus{Term: 4, Instances: []v1alpha1.InstanceStatus{{Name: "a", Role: "primary"}, {Name: "b", Role: "member"}, {Name: "c", Role: "learner"}, {Name: "d", Role: "unreachable"}}}
	other := pod("of-another-database")
	other.Labels = map[string]string{v1alpha1.LabelDatabase: "other", v1alpha1.LabelComponent: v1alpha1.ComponentInstance}
	under := &v1alpha1.Reparent{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "shop-0-5"}}
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(shard, pod("a"), pod("b"), pod("c"), pod("d"), other, under,
		node("n1", corev1.ConditionTrue, -90), node("n2", corev1.ConditionUnknown, -10), node("n3", corev1.ConditionFalse, -100)).Build()
	o, err := Observe(t.Context(), c, "ns", "shop", at(0))
	require.NoError(t, err)
	states := map[string]State{}
	for _, s := range o.Subjects {
		states[s.Name] = s.State
	}
	require.Equal(t, map[string]State{"a": Primary, "b": Standby, "c": Joining, "d": Failing, "n1": Standby, "n2": Failing, "n3": Joining}, states)
	require.EqualValues(t, 4, o.Term)
	require.Empty(t, o.Reparents, "one that has not ended")
}
