//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/lifetime"
)

// pooled is the load of clients whose pool gives connections a maximum lifetime: those notice nothing when gateways move
// (docs/gateway.md).
func (f *fixture) pooled() *running {
	f.t.Helper()
	return f.startLoad("--max-lifetime", "10s")
}

// drain runs what a person runs; it ends by itself, or at the limit.
func (f *fixture) drain(limit time.Duration, nodes ...string) (string, error) {
	args := append([]string{"drain", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=" + limit.String()}, nodes...)
	return kit.Kubectl(f.ctx, args...)
}

// drained drains nodes and requires that it ends well, with nothing of the database left on them.
func (f *fixture) drained(nodes ...string) time.Duration {
	f.t.Helper()
	start := time.Now()
	out, err := f.drain(3*time.Minute, nodes...)
	require.NoError(f.t, err, out)
	for _, in := range f.instances() {
		require.NotContains(f.t, nodes, f.nodeOf(in))
	}
	return time.Since(start)
}

func (f *fixture) cordon(nodes ...string) {
	f.t.Helper()
	_, err := kit.Kubectl(f.ctx, append([]string{"cordon"}, nodes...)...)
	require.NoError(f.t, err)
}

// uncordon also at the end of a test, for the ones that come after.
func (f *fixture) uncordon(nodes ...string) {
	f.t.Helper()
	for _, n := range nodes {
		if slices.Contains(f.nodes(), n) {
			_, err := kit.Kubectl(f.ctx, "uncordon", n)
			require.NoError(f.t, err)
		}
	}
}

func (f *fixture) nodes() []string {
	f.t.Helper()
	return slices.Sorted(maps.Keys(f.births()))
}

// births are when each node was made.
func (f *fixture) births() map[string]time.Time {
	f.t.Helper()
	list := &corev1.NodeList{}
	require.NoError(f.t, kit.Client.List(f.ctx, list))
	out := map[string]time.Time{}
	for i := range list.Items {
		out[list.Items[i].Name] = list.Items[i].CreationTimestamp.Time
	}
	return out
}

// whole waits until the shard has so many members again besides its primary, and nothing is being replaced.
func (f *fixture) whole(members int) {
	f.t.Helper()
	f.eventually("the shard is whole again", func(s *v1alpha1.Shard) bool {
		return settled(s, members) && len(f.instances()) == members+1 && len(f.replacing()) == 0
	})
}

// replacing are the Replacements that are not over.
func (f *fixture) replacing() []v1alpha1.Replacement {
	f.t.Helper()
	list := &v1alpha1.ReplacementList{}
	require.NoError(f.t, kit.Client.List(f.ctx, list, client.InNamespace(f.namespace)))
	return slices.DeleteFunc(list.Items, func(r v1alpha1.Replacement) bool { return r.Status.Outcome != "" })
}

// kubectl drain of each node ends by itself, one after another. Those with an instance go first, so that the last one has got
// one by then: the primary's and those of all standbys are among them, and one more.
func TestDrainOfNodes(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	before := f.instances()
	load := f.pooled()
	defer func() { f.uncordon(f.nodes()...) }()
	order, free := f.occupied()
	drained := map[string]int{}
	for _, node := range append(order, free...) {
		what := f.roleOn(node)
		if what == "" {
			continue // no instance has come to it
		}
		measured(t, "drain of %s's node took %.1f s", what, f.drained(node).Seconds())
		drained[what]++
		f.whole(2)
		f.uncordon(node)
	}
	require.Positive(t, drained[primaryRole])
	require.GreaterOrEqual(t, drained[standbyRole], 2)
	for _, in := range before {
		require.NotContains(t, f.instances(), in, "each node that had an instance was drained")
	}
	load.stopAndVerify(noErrors)
}

const (
	primaryRole = "the primary"
	standbyRole = "a standby"
)

// roleOn says what instance a node has, "" when it has none.
func (f *fixture) roleOn(node string) string {
	f.t.Helper()
	for _, in := range f.instances() {
		switch {
		case f.nodeOf(in) != node:
		case in == current(f.shard()).Primary:
			return primaryRole
		default:
			return standbyRole
		}
	}
	return ""
}

// occupied are the nodes that have an instance, and free those that have none.
func (f *fixture) occupied() (occupied, free []string) {
	f.t.Helper()
	for _, node := range f.nodes() {
		if f.roleOn(node) == "" {
			free = append(free, node)
		} else {
			occupied = append(occupied, node)
		}
	}
	return occupied, free
}

// Every node at once, with as many new ones: the instances go one at a time, and the drain ends by itself.
func TestDrainOfAllNodes(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.pooled()
	old := f.nodes()
	for range old {
		f.lab("node", "add")
	}
	measured(t, "drain of all %d nodes at once took %.1f s", len(old), f.drained(old...).Seconds())
	f.whole(2)
	load.stopAndVerify(noErrors)
	for _, n := range old {
		f.lab("node", "remove", n)
	}
}

// With no room elsewhere the drain waits, says what for, and the database goes on serving. Room ends it.
func TestDrainWithoutRoom(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	_, free := f.occupied()
	require.NotEmpty(t, free)
	load := f.pooled()
	defer func() { f.uncordon(f.nodes()...) }()
	f.cordon(free...)
	node := f.nodeOf(current(f.shard()).Members[0])
	_, err := f.drain(20*time.Second, node)
	require.Error(t, err)
	require.Contains(t, err.Error(), "moved to another node first")
	require.Len(t, f.instances(), 3+len(f.surging()), "nobody went")
	rps := f.replacing()
	require.Len(t, rps, 1)
	require.NotEmpty(t, rps[0].Status.Waiting+rps[0].Status.Message, "it says what it waits for")
	measured(t, "with no room: %s: %s %s", rps[0].Status.Phase, rps[0].Status.Waiting, rps[0].Status.Message)
	f.uncordon(free...)
	f.drained(node)
	f.whole(2)
	load.stopAndVerify(noErrors)
}

// surging are successors that have not taken over.
func (f *fixture) surging() []string {
	f.t.Helper()
	var out []string
	for _, r := range f.replacing() {
		if slices.Contains(f.instances(), r.Status.Successor) {
			out = append(out, r.Status.Successor)
		}
	}
	return out
}

// A cordon says that nothing new should come, not that what is there should go.
func TestABareCordonMovesNothing(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	before := f.instances()
	defer func() { f.uncordon(f.nodes()...) }()
	f.cordon(f.nodes()...)
	time.Sleep(15 * time.Second)
	require.ElementsMatch(t, before, f.instances())
	require.Empty(t, f.replacing())
}

// An only instance is moved as well: there are two for a moment.
func TestASingleInstanceDrains(t *testing.T) {
	f := newFixture(t, func(db *v1alpha1.Database) { db.Spec.Instances = 1 })
	f.waitReady()
	load := f.pooled()
	defer func() { f.uncordon(f.nodes()...) }()
	old := f.instances()
	measured(t, "drain of the only instance's node took %.1f s", f.drained(f.nodeOf(old[0])).Seconds())
	f.whole(0)
	require.NotEqual(t, old, f.instances())
	load.stopAndVerify(noErrors)
}

// Nodes live for minutes: every node there is is replaced by a new machine, with a new name in the same zone. Those of the
// beginning may be older than allowed already, and the plan says so for as long as one of them is there; no other one ever is.
//
// Whether the plan holds besides is only measured. Four nodes that go one at a time in four minutes leave it no room: twice
// what a rotation takes is how early each has to begin, and so it depends on the machine whether it foresees that one is late.
func TestEveryNodeIsReplaced(t *testing.T) {
	f := newFixture(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	f.ctx = ctx
	f.waitReady()
	old, first := f.nodes(), f.instances()
	load := f.pooled()
	const maxAge = 4 * time.Minute
	p := &v1alpha1.NodePolicy{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: v1alpha1.NodePolicySpec{
		MaxAge: metav1.Duration{Duration: maxAge}, Budget: intstr.FromInt32(1),
		Machine: v1alpha1.MachineSpec{Provider: v1alpha1.MachineWebhook, Webhook: &v1alpha1.MachineWebhookSpec{
			URL: strings.TrimSpace(f.lab("machine-webhook")),
		}},
	}}
	require.NoError(t, kit.Client.Create(f.ctx, p))
	defer func() {
		clean, done := context.WithTimeout(context.Background(), time.Minute)
		defer done()
		require.NoError(t, client.IgnoreNotFound(kit.Client.Delete(clean, p)))
		require.NoError(t, labkit.Poll(clean, time.Second, func(ctx context.Context) (bool, string, error) {
			err := kit.Client.Get(ctx, client.ObjectKeyFromObject(p), &v1alpha1.NodePolicy{})
			return client.IgnoreNotFound(err) == nil && err != nil, "the NodePolicy is still there", client.IgnoreNotFound(err)
		}))
		f.uncordon(f.nodes()...)
	}()
	start, oldest, oldestNew := time.Now(), time.Duration(0), time.Duration(0)
	said := map[string]bool{}
	f.eventually("every node is another one, and the plan knows of none that is older than allowed", func(*v1alpha1.Shard) bool {
		require.NoError(t, kit.Client.Get(f.ctx, client.ObjectKeyFromObject(p), p))
		if p.Status.OldestNode != nil {
			oldest = max(oldest, time.Since(p.Status.OldestNode.Time))
		}
		remain := false
		for name, born := range f.births() {
			if slices.Contains(old, name) {
				remain = true
			} else {
				oldestNew = max(oldestNew, time.Since(born))
			}
		}
		require.Less(t, oldestNew, maxAge+2*time.Second, "of a node that was made under the policy: %s", planSays(p))
		require.False(t, meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionFrozen), "there is room, and no rotation fails: %+v", p.Status.Conditions)
		holds := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionPlanHolds)
		if holds == nil {
			return false
		}
		said[holds.Reason] = true
		return !remain && holds.Reason != string(lifetime.DeadlineMissed)
	})
	for _, in := range first {
		require.NotContains(t, f.instances(), in)
	}
	measured(t, "%d nodes replaced in %.0f s; oldest %.0f s, and %.0f s of those made meanwhile, of %.0f s allowed; the plan said %v; %s", len(old),
		time.Since(start).Seconds(), oldest.Seconds(), oldestNew.Seconds(), maxAge.Seconds(), slices.Sorted(maps.Keys(said)), planSays(p))
	load.stopAndVerify(noErrors)
}

func planSays(p *v1alpha1.NodePolicy) string {
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionPlanHolds)
	if c == nil {
		return "no plan"
	}
	return fmt.Sprintf("plan holds: %s, %s", c.Status, c.Message)
}
