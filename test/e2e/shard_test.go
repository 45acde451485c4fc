//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// Three instances in three zones, and a commit is on two of them before it is acknowledged: with both standbys frozen
// it waits, with one thawed it is acknowledged.
func TestQuorum(t *testing.T) {
	f := newFixture(t, nil)
	start := time.Now()
	f.waitReady()
	measured(t, "Database created → Ready in %.1f s", time.Since(start).Seconds())

	s := f.shard()
	zones := map[string]bool{}
	for _, in := range s.Status.Instances {
		zones[in.Zone] = true
	}
	require.Len(t, zones, 3, "one instance in each zone: %+v", s.Status.Instances)
	require.Len(t, current(s).Members, 2)
	require.EqualValues(t, 1, current(s).Acks)
	f.psql("CREATE TABLE planks (id int PRIMARY KEY)")

	frozen := []string{f.nodeOf(current(s).Members[0]), f.nodeOf(current(s).Members[1])}
	// A primary that hears neither the operator nor its standbys fences itself: that is another test.
	f.moveOthersOff(frozen...)
	for _, n := range frozen {
		f.lab("node", "freeze", n)
		defer f.lab("node", "thaw", n)
	}
	committed := make(chan error, 1)
	go func() {
		_, err := kit.Run(f.ctx, kit.Bin("lab"), "--name", kit.LabName, "client", "--", "psql", f.directURI(), "-qc", "INSERT INTO planks VALUES (1)")
		committed <- err
	}()
	select {
	case err := <-committed:
		t.Fatalf("a commit was acknowledged with both standbys frozen (error: %v)", err)
	case <-time.After(5 * time.Second):
	}
	f.lab("node", "thaw", frozen[0])
	select {
	case err := <-committed:
		require.NoError(t, err)
	case <-f.ctx.Done():
		t.Fatal("the commit was never acknowledged after a standby came back")
	}
}

// A standby dies with its machine under write load: it is taken out of the cohort, writes go on, and a new instance is
// seeded and joins. Nothing acknowledged is lost, no client sees an error.
func TestStandbyKilled(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	victim := current(f.shard()).Members[0]
	node := f.nodeOf(victim)
	f.moveOthersOff(node) // A gateway that dies with its machine costs its clients an error.
	load := f.startLoad()

	f.lab("node", "kill", node)
	out := f.eventually("the dead standby leaves the cohort", func(s *v1alpha1.Shard) bool {
		return settled(s, 1) && !slices.Contains(current(s).Members, victim)
	})
	measured(t, "standby killed → out of the cohort in %.1f s", out.Seconds())
	f.lab("node", "remove", node)
	f.lab("node", "add")
	joined := f.eventually("a new instance joins the cohort", func(s *v1alpha1.Shard) bool {
		return settled(s, 2) && !slices.Contains(current(s).Members, victim)
	})
	measured(t, "successor seeded under load and in the cohort %.1f s later", joined.Seconds())
	f.eventually("the dead instance's Pod is gone", func(*v1alpha1.Shard) bool { return !slices.Contains(f.instances(), victim) })
	load.stopAndVerify(noErrors)
}

// A deleted Pod comes back as a new instance with a new name and a new volume.
func TestStandbyPodDeleted(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.startLoad()
	before := f.instances()
	victim := current(f.shard()).Members[1]

	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = f.namespace, victim
	require.NoError(t, kit.Client.Delete(f.ctx, pod))
	f.eventually("a new instance joins the cohort", func(s *v1alpha1.Shard) bool {
		return settled(s, 2) && !slices.Contains(current(s).Members, victim)
	})
	after := f.instances()
	require.Len(t, after, 3)
	require.NotContains(t, after, victim)
	require.Len(t, slices.DeleteFunc(slices.Clone(after), func(n string) bool { return slices.Contains(before, n) }), 1)
	f.eventually("the old volume is gone", func(*v1alpha1.Shard) bool { return !f.claimExists(victim) })
	load.stopAndVerify(noErrors)
}

// The operator's Pods die again and again while a standby is replaced: nothing changes in the outcome.
func TestOperatorRestarts(t *testing.T) {
	f := newFixture(t, nil)
	f.killOperators()
	f.waitReady()
	load := f.startLoad()
	victim := current(f.shard()).Members[0]
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = f.namespace, victim
	require.NoError(t, kit.Client.Delete(f.ctx, pod, client.GracePeriodSeconds(0)))

	for range 4 {
		f.killOperators()
		time.Sleep(3 * time.Second) // Long enough for the next leader to get a few steps further.
	}
	f.eventually("a new instance joins the cohort", func(s *v1alpha1.Shard) bool {
		return settled(s, 2) && !slices.Contains(current(s).Members, victim)
	})
	require.Len(t, f.instances(), 3)
	load.stopAndVerify(noErrors)
}

// With API server, etcd, scheduler and controllers down for a minute, clients see nothing.
func TestControlPlaneDown(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.startLoad()
	f.lab("control-plane", "stop")
	time.Sleep(time.Minute)
	f.lab("control-plane", "start")
	s := load.stopAndVerify(noErrors)
	measured(t, "one minute without a control plane: %d acknowledged writes, longest stall %v", s.Acked, time.Duration(s.LongestStallMS*float64(time.Millisecond)))
	f.eventually("the shard is ready again", func(s *v1alpha1.Shard) bool { return settled(s, 2) })
}

// PostgreSQL 15 starts too, alone: a shard of one instance, and its volume is kept when it is deleted if so asked.
func TestSingleInstanceRetainedVolume(t *testing.T) {
	f := newFixture(t, func(db *v1alpha1.Database) {
		db.Spec.Instances, db.Spec.Postgres.Major = 1, 15
		db.Spec.DeletionPolicy = v1alpha1.DeletionPolicyRetainVolumes
	})
	f.waitReady()
	require.Equal(t, "15", f.psql("SELECT current_setting('server_version_num')::int / 10000"))
	instance := f.instances()[0]
	require.NoError(t, kit.Client.Delete(f.ctx, &v1alpha1.Database{ObjectMeta: f.meta()}))
	require.NoError(t, f.waitDeleted(f.ctx))
	require.NoError(t, labkit.Poll(f.ctx, time.Second, func(context.Context) (bool, string, error) {
		return len(f.instances()) == 0, "the Pod is still there", nil
	}))
	require.True(t, f.claimExists(instance), "the claim is kept")
}

// A Database of several shards gives each its own instances, claims, services and certificates.
func TestShardsShareNothing(t *testing.T) {
	f := newFixture(t, func(db *v1alpha1.Database) {
		db.Spec.Shards, db.Spec.Instances = 2, 1
		db.Spec.Storage.Size = resource.MustParse("512Mi")
	})
	f.waitReady()
	shards, err := kit.Shards(f.ctx, f.namespace, f.database)
	require.NoError(t, err)
	require.Len(t, shards, 2)
	require.NotEqual(t, shards[0].Status.SystemIdentifier, shards[1].Status.SystemIdentifier)
	for _, s := range shards {
		for _, suffix := range []string{"-rw", "-ro", "-direct"} {
			require.NoError(t, kit.Client.Get(f.ctx, client.ObjectKey{Namespace: f.namespace, Name: s.Name + suffix}, &corev1.Service{}))
		}
	}
}

func (f *fixture) claimExists(name string) bool {
	f.t.Helper()
	err := kit.Client.Get(f.ctx, client.ObjectKey{Namespace: f.namespace, Name: name}, &corev1.PersistentVolumeClaim{})
	require.NoError(f.t, client.IgnoreNotFound(err))
	return !apierrors.IsNotFound(err)
}

// killOperators deletes every Pod of the operator without grace.
func (f *fixture) killOperators() {
	f.t.Helper()
	require.NoError(f.t, kit.Client.DeleteAllOf(f.ctx, &corev1.Pod{}, client.InNamespace(labkit.OperatorNamespace),
		client.MatchingLabels{"app.kubernetes.io/name": "theseus"}, client.GracePeriodSeconds(0)))
}

// moveOthersOff makes the operator's Pods and this Database's gateways run on other nodes, so that a fault of these nodes
// is a fault of instances alone: what a gateway's death costs is another question (its own connections).
func (f *fixture) moveOthersOff(nodes ...string) {
	f.t.Helper()
	for _, n := range nodes {
		_, err := kit.Kubectl(f.ctx, "cordon", n)
		require.NoError(f.t, err)
	}
	f.killOperators()
	gateways := &corev1.PodList{}
	require.NoError(f.t, kit.Client.List(f.ctx, gateways, client.InNamespace(f.namespace),
		client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentGateway}))
	for i := range gateways.Items {
		if slices.Contains(nodes, gateways.Items[i].Spec.NodeName) {
			require.NoError(f.t, client.IgnoreNotFound(kit.Client.Delete(f.ctx, &gateways.Items[i])))
		}
	}
	for _, d := range [][2]string{{labkit.OperatorNamespace, "theseus-operator"}, {f.namespace, f.shard().Name + "-gateway"}} {
		_, err := kit.Kubectl(f.ctx, "-n", d[0], "rollout", "status", "deployment", d[1], "--timeout=2m")
		require.NoError(f.t, err)
	}
	for _, n := range nodes {
		_, err := kit.Kubectl(f.ctx, "uncordon", n)
		require.NoError(f.t, err)
	}
}

// operatorsOnto makes the operator's replicas run on these nodes, one on each.
func (f *fixture) operatorsOnto(nodes ...string) {
	f.t.Helper()
	others := slices.DeleteFunc(f.nodes(), func(n string) bool { return slices.Contains(nodes, n) })
	f.cordon(others...)
	defer f.uncordon(others...)
	f.killOperators()
	require.NoError(f.t, labkit.Poll(f.ctx, 500*time.Millisecond, func(context.Context) (bool, string, error) {
		on := f.operatorsReady()
		return len(on) == len(nodes) && !slices.ContainsFunc(nodes, func(n string) bool { return !slices.Contains(on, n) }), fmt.Sprintf("operators are on %v", on), nil
	}))
}

// operatorsReady lists the nodes of the operator's replicas that are ready, other than on some nodes.
func (f *fixture) operatorsReady(except ...string) []string {
	f.t.Helper()
	pods := &corev1.PodList{}
	require.NoError(f.t, kit.Client.List(f.ctx, pods, client.InNamespace(labkit.OperatorNamespace), client.MatchingLabels{"app.kubernetes.io/name": "theseus"}))
	var on []string
	for i := range pods.Items {
		p := &pods.Items[i]
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
		if ready && p.DeletionTimestamp == nil && !slices.Contains(except, p.Spec.NodeName) {
			on = append(on, p.Spec.NodeName)
		}
	}
	return on
}
