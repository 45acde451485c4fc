package shard

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/quorum"
)

func aShard() *v1alpha1.Shard {
	return &v1alpha1.Shard{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0"},
		Spec: v1alpha1.ShardSpec{Database: "db", Image: "operand:pg15", GatewayImage: "operand:pg17", Template: v1alpha1.DatabaseSpec{
			Shards: 1, Instances: 3, Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
			Postgres: v1alpha1.PostgresSpec{Parameters: map[string]v1alpha1.ParameterValue{"work_mem": "8MB"}},
			Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
				corev1.ResourceMemory: resource.MustParse("1Gi"),
			}},
			Scheduling: v1alpha1.SchedulingSpec{Tolerations: []corev1.Toleration{{Key: "dedicated"}}},
			Gateway:    v1alpha1.GatewaySpec{Replicas: 2, PoolSize: 20},
		}},
	}
}

func TestThePodOfAnInstance(t *testing.T) {
	pod := newPod(aShard(), "db-0-bcdfg", nil)
	c := pod.Spec.Containers[0]
	env := map[string]corev1.EnvVar{}
	for _, e := range c.Env {
		env[e.Name] = e
	}
	require.Equal(t, "db-0", env["THESEUS_SHARD"].Value)
	require.JSONEq(t, `{"work_mem":"8MB"}`, env["THESEUS_PARAMETERS"].Value)
	require.Equal(t, "limits.memory", env["THESEUS_MEMORY_LIMIT"].ValueFrom.ResourceFieldRef.Resource)
	require.Equal(t, "metadata.name", env["THESEUS_INSTANCE"].ValueFrom.FieldRef.FieldPath)
	require.Equal(t, "db-0-bcdfg", pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
	require.Equal(t, newClaim(aShard(), "db-0-bcdfg").Name, pod.Name)
	require.False(t, *pod.Spec.AutomountServiceAccountToken)
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
	require.NotEmpty(t, pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
	for _, tol := range pod.Spec.Tolerations {
		require.Nil(t, tol.TolerationSeconds, "Kubernetes never evicts an instance by itself")
	}
	require.Len(t, pod.Spec.Tolerations, 3)

	sh := aShard()
	sh.Spec.Template.Scheduling.AllowSharedNodes = true
	sh.Spec.Template.Resources = corev1.ResourceRequirements{}
	pod = newPod(sh, "x", nil)
	require.Empty(t, pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
	for _, e := range pod.Spec.Containers[0].Env {
		require.NotEqual(t, "THESEUS_MEMORY_LIMIT", e.Name, "without a limit it would be the node's memory")
	}
}

func TestTheGatewaysTemplate(t *testing.T) {
	template := gatewayTemplate(aShard())
	require.Equal(t, "operand:pg17", template.Spec.Containers[0].Image)
	other := gatewayTemplate(aShard())
	require.Equal(t, templateHash(&template), templateHash(&other))
	sh := aShard()
	sh.Spec.Template.Gateway.PoolSize = 5
	other = gatewayTemplate(sh)
	require.NotEqual(t, templateHash(&template), templateHash(&other))

	require.Empty(t, template.Spec.Containers[0].Resources)
	sh = aShard()
	sh.Spec.Template.Gateway.Resources = &corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
	}
	other = gatewayTemplate(sh)
	require.Equal(t, *sh.Spec.Template.Gateway.Resources, other.Spec.Containers[0].Resources)
	require.NotEqual(t, templateHash(&template), templateHash(&other), "they reach gateways that run")
}

func TestSelectors(t *testing.T) {
	sh := aShard()
	readWrite, readOnly, direct := Selectors(sh.Name, &sh.Spec.Template)
	require.Equal(t, v1alpha1.ComponentGateway, readWrite[v1alpha1.LabelComponent])
	require.Equal(t, v1alpha1.RoleStandby, readOnly[v1alpha1.LabelRole])
	require.Equal(t, v1alpha1.RolePrimary, direct[v1alpha1.LabelRole])
	sh.Spec.Template.Gateway.Enabled = ptr.To(false)
	readWrite, _, direct = Selectors(sh.Name, &sh.Spec.Template)
	require.Equal(t, direct, readWrite)
}

func TestCertificatesNameWhatClientsUse(t *testing.T) {
	sh := aShard()
	agent := agentRequest(sh, "cluster.local")
	for _, name := range []string{
		"db-direct", "db-0-direct.ns.svc.cluster.local", "db-ro.ns", "db-rw", "*.db-0-instances.ns.svc", "localhost",
		agentapi.ServerName(agentapi.Shard{Namespace: "ns", Name: "db-0"}),
	} {
		require.Contains(t, agent.DNSNames, name)
	}
	require.Equal(t, "theseus://ns/db-0/agent", agent.URI)
	gateway := gatewayRequest(sh, "")
	require.Contains(t, gateway.DNSNames, "db-rw.ns.svc")
	require.NotContains(t, gateway.DNSNames, agentapi.ServerName(agentapi.Shard{Namespace: "ns", Name: "db-0"}), "a gateway is no agent")
	sh.Spec.Template.Shards = 2
	require.NotContains(t, agentRequest(sh, "").DNSNames, "db-direct")
}

func TestTheRecordSurvivesItsStatus(t *testing.T) {
	r := quorum.Record{Established: 3, Cohorts: []quorum.Cohort{
		{Term: 3, Primary: "a", Members: []string{"b", "c"}, Acks: 1, Revision: 2},
		{Term: 4, Primary: "b", Members: []string{"a", "c"}, Acks: 1},
	}, Retired: []string{"x", "y"}}
	sh := &v1alpha1.Shard{}
	SetRecord(&sh.Status, r)
	require.Equal(t, r, RecordOf(sh))
	require.EqualValues(t, 4, sh.Status.Term)
	require.Equal(t, "a", sh.Status.Primary, "of the established term")
}

func TestLostRacesAreNoErrors(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{}, "x", errors.New("x"))
	require.True(t, allConflicts(conflict))
	require.True(t, allConflicts(errors.Join(conflict, apierrors.NewAlreadyExists(schema.GroupResource{}, "x"))))
	require.False(t, allConflicts(errors.Join(conflict, errors.New("other"))))
	require.False(t, allConflicts(errors.New("other")))
}

// What Kubernetes says of the Pods that do not run is in the conditions, at every stage, and first of all what to do.
func TestConditionsSayWhyInstancesDoNotRun(t *testing.T) {
	alone := func(it *Instance) {
		it.Status, it.IP, it.Connected, it.Unschedulable = nil, "", false, true
		it.PodMessage = "Unschedulable: 0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."
	}
	noImage := func(it *Instance) { it.Status, it.PodMessage = nil, "ErrImagePull: not found" }
	first := cohortOf(1, "a", 0)
	begun := func() *world {
		w := newWorld(3)
		w.Bootstrap = &v1alpha1.BootstrapStatus{Instance: "a"}
		w.Record = quorum.Record{Cohorts: []quorum.Cohort{first}}
		return w
	}
	for name, c := range map[string]struct {
		w         *world
		condition string
		says      []string
	}{
		"nobody chosen":      {newWorld(3).add("a", noImage), v1alpha1.ConditionWritable, []string{"waiting for the first instance: a: ErrImagePull"}},
		"the first one":      {begun().add("a", noImage), v1alpha1.ConditionWritable, []string{"waiting for a to create the database system: a: ErrImagePull"}},
		"one node":           {begun().add("a", primaryOf(1, false, first)).add("b", alone).add("c", alone), v1alpha1.ConditionWritable, []string{"waiting for 1 standbys", "first commit takes: " + tooFewNodes + "; b: Unschedulable: 0/1", "; c: Unschedulable"}},
		"no redundancy":      {healthy().unheard("c").edit("c", alone), v1alpha1.ConditionRedundant, []string{"1 of 2 standbys", ": " + tooFewNodes + "; c: Unschedulable"}},
		"no primary":         {healthy().edit("a", podGone).edit("c", noImage), v1alpha1.ConditionRedundant, []string{"there is no established primary: c: ErrImagePull"}},
		"not a matter of it": {healthy().unheard("c").edit("c", noImage), v1alpha1.ConditionRedundant, []string{"stream: c: ErrImagePull: not found"}},
		"not ready":          {healthy().edit("c", alone), v1alpha1.ConditionReady, []string{"2 of 3 instances are ready: " + tooFewNodes}},
		"nothing to tell":    {healthy().unheard("c"), v1alpha1.ConditionRedundant, []string{"1 of 2 standbys are in the cohort and stream"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := meta.FindStatusCondition(conditions(&c.w.State, DefaultParams(), 2, false, nil), c.condition)
			require.Equal(t, metav1.ConditionFalse, got.Status)
			for _, says := range c.says {
				require.Contains(t, got.Message, says)
			}
		})
	}
	w := begun().add("a", primaryOf(1, false, first))
	for _, name := range []string{"b", "c", "d", "e", "f"} {
		w.add(name, alone, func(it *Instance) { it.PodMessage += strings.Repeat(" and so on", 100) })
	}
	require.Contains(t, writableCondition(&w.State, DefaultParams()).Message, tooFewNodes, "what to do is not cut off")
}

func TestWhatFailedIsTriedAgainSoon(t *testing.T) {
	limiter := RateLimiter()
	for range 100 {
		require.LessOrEqual(t, limiter.When(reconcile.Request{}), 10*time.Second)
	}
}

func TestATakenNameIsTheReason(t *testing.T) {
	for reason, err := range map[string]error{
		"NameTaken":     fmt.Errorf("Service db-0-rw: %w", &owned.TakenError{Kind: "Service", Name: "db-0-rw"}),
		"ObjectsFailed": errors.New("broken"),
	} {
		ready := conditions(&healthy().State, DefaultParams(), 3, false, err)[0]
		require.Equal(t, v1alpha1.ConditionReady, ready.Type)
		require.Equal(t, metav1.ConditionFalse, ready.Status)
		require.Equal(t, reason, ready.Reason)
	}
}

func TestTasks(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(now)
	done := make(chan types.NamespacedName, 10)
	tk := newTasks(clock, func(k types.NamespacedName) { done <- k })
	key := taskKey{shard: types.NamespacedName{Name: "s"}, instance: "a", verb: AgentSeed}
	ctx := context.Background()

	release := make(chan error)
	f := func(context.Context) error { return <-release }
	require.True(t, tk.start(ctx, key, time.Minute, f))
	require.False(t, tk.start(ctx, key, time.Minute, f), "one of a kind at a time")
	require.True(t, tk.busy(key.shard, "a", now))
	release <- errors.New("broken")
	<-done
	require.Equal(t, "Seed: broken", tk.lastError(key.shard, "a"))
	require.False(t, tk.start(ctx, key, time.Minute, f), "not before a pause")
	require.True(t, tk.busy(key.shard, "a", now), "nothing was heard since it ended")
	require.False(t, tk.busy(key.shard, "a", now.Add(time.Millisecond)))
	clock.SetTime(now.Add(firstPause))
	require.True(t, tk.start(ctx, key, time.Minute, f))
	release <- nil
	<-done
	require.Empty(t, tk.lastError(key.shard, "a"))

	require.Equal(t, firstPause, failure{count: 1}.pause())
	require.Equal(t, 2*firstPause, failure{count: 2}.pause())
	require.Equal(t, maxPause, failure{count: 50}.pause())
	tk.tell(key.shard, "a", "10.0.0.1")
	require.Equal(t, "10.0.0.1", tk.toldAddress(key.shard, "a"))
	tk.forget(key.shard, func(string) bool { return false })
	require.Empty(t, tk.toldAddress(key.shard, "a"))
	tk.wait()
}

func TestConditionsSayWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		w      *world
		reason string
		says   string
	}{
		"healthy":       {healthy(), "Established", "a is primary of term 3"},
		"all gone":      {func() *world { w := healthy(); w.Instances = nil; return w }(), "DataLost", "restore a backup into a new Database"},
		"record lost":   {newWorld(3).add("a", standbyOf(1, "z")), "RecordLost", "nothing is created over it"},
		"cannot commit": {func() *world { w := healthy().unheard("b", "c"); w.CannotCommitFor = 3 * time.Second; return w }(), "CannotCommit", "writes wait, none is lost"},
		"not for long":  {healthy().unheard("b", "c"), "Established", ""},
		"no primary":    {healthy().edit("a", podGone), "NoPrimary", "its Pod is gone"},
		"beginning":     {newWorld(3), "Bootstrapping", "waiting for the first instance"},
		"unschedulable": {newWorld(3).add("a", func(it *Instance) { it.PodMessage, it.Status = "Unschedulable: no nodes", nil }), "Bootstrapping", "no nodes"},
		"begun": {func() *world {
			w := healthy().edit("a", podGone)
			w.Record.Cohorts = append(w.Record.Cohorts, cohortOf(4, "b", 1, "c"))
			return w
		}(), "NotEstablished", "term 4"},
	} {
		t.Run(name, func(t *testing.T) {
			got := writableCondition(&c.w.State, DefaultParams())
			require.Equal(t, c.reason, got.Reason)
			require.Contains(t, got.Message, c.says)
		})
	}
}
