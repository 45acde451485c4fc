//go:build integration

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/nodepolicy"
	"theseus.dev/theseus/internal/machine/clusterapi"
	"theseus.dev/theseus/internal/machine/karpenter"
)

func installKarpenter(t *testing.T) {
	t.Helper()
	installCRDs(t, karpenterModule, "pkg/apis/crds/karpenter.sh_nodeclaims.yaml", "pkg/apis/crds/karpenter.sh_nodepools.yaml")
}

func installClusterAPI(t *testing.T) {
	t.Helper()
	const bases = "core/config/crd/bases/cluster.x-k8s.io_"
	installCRDs(t, clusterAPIModule, bases+"machines.yaml", bases+"machinesets.yaml", bases+"machinedeployments.yaml")
}

// ahead is a clock that is so far ahead of the real one: nodes are as old as the API server says.
type ahead struct {
	clock.RealClock
	by time.Duration
}

func (a ahead) Now() time.Time                  { return a.RealClock.Now().Add(a.by) }
func (a ahead) Since(t time.Time) time.Duration { return a.Now().Sub(t) }

// almost29Days is when a node of the default maximum age is due.
const almost29Days = 29*24*time.Hour - 6*time.Hour

// policies runs the controllers of nodes for a policy over the yard's nodes, which are as old as said.
func (y *yard) policies(age time.Duration, provider v1alpha1.MachineProvider) *v1alpha1.NodePolicy {
	y.t.Helper()
	y.manager(func(mgr ctrl.Manager) error {
		if err := drainController(mgr); err != nil {
			return err
		}
		return (&nodepolicy.Reconciler{
			Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: mgr.GetEventRecorder("test"), Clock: ahead{by: age},
		}).SetupWithManager(mgr)
	})
	p := &v1alpha1.NodePolicy{ObjectMeta: metav1.ObjectMeta{Name: y.namespace}, Spec: v1alpha1.NodePolicySpec{
		Selector: metav1.LabelSelector{MatchLabels: map[string]string{"yard": y.namespace}},
		Machine:  v1alpha1.MachineSpec{Provider: provider}, Budget: intstr.FromInt32(1),
	}}
	y.create(p)
	y.t.Cleanup(func() { _ = cluster.client.Delete(y.ctx, p) })
	return p
}

func (y *yard) rotation(p *v1alpha1.NodePolicy) v1alpha1.NodeRotation {
	y.t.Helper()
	require.NoError(y.t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(p), p))
	if len(p.Status.Rotations) == 0 {
		return v1alpha1.NodeRotation{}
	}
	return p.Status.Rotations[0]
}

func (y *yard) untilPhase(p *v1alpha1.NodePolicy, phase string) {
	y.t.Helper()
	require.Eventually(y.t, func() bool { return y.rotation(p).Phase == phase }, time.Minute, 50*time.Millisecond,
		"phase %s; it is %+v, %+v", phase, &p.Status.Rotations, &p.Status.Conditions)
}

// object makes one from YAML, with the placeholders filled in.
func (y *yard) object(text string, args ...any) *unstructured.Unstructured {
	y.t.Helper()
	o := &unstructured.Unstructured{}
	require.NoError(y.t, yaml.Unmarshal(fmt.Appendf(nil, text, args...), &o.Object))
	status, had := o.Object["status"]
	y.create(o)
	if had {
		o.Object["status"] = status
		require.NoError(y.t, cluster.client.Status().Update(y.ctx, o))
	}
	return o
}

func (y *yard) read(o *unstructured.Unstructured) bool {
	y.t.Helper()
	err := cluster.client.Get(y.ctx, client.ObjectKeyFromObject(o), o)
	if apierrors.IsNotFound(err) {
		return false
	}
	require.NoError(y.t, err)
	return true
}

func (y *yard) nodeClaim(node, expireAfter string) *unstructured.Unstructured {
	y.t.Helper()
	return y.object(`
apiVersion: karpenter.sh/v1
kind: NodeClaim
metadata: {name: %q, labels: {karpenter.sh/nodepool: default}, finalizers: [karpenter.sh/termination]}
spec:
  expireAfter: %s
  nodeClassRef: {group: karpenter.test.sh, kind: TestNodeClass, name: default}
  requirements: [{key: karpenter.sh/capacity-type, operator: In, values: [on-demand]}]
status: {nodeName: %q, providerID: "test://%s"}
`, y.namespace+"-"+node, expireAfter, y.namespace+"-"+node, node)
}

func ownedBy(claim *unstructured.Unstructured) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Labels["karpenter.sh/nodepool"] = "default"
		n.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(claim, karpenter.GVK)}
		n.Finalizers = []string{"karpenter.sh/termination"}
	}
}

// Somebody deletes a NodeClaim: Karpenter drains its node, and the instance is moved off first.
func TestKarpenterRemovesANode(t *testing.T) {
	installKarpenter(t)
	y := newYard(t)
	y.drains()
	claim := y.nodeClaim("a", "720h")
	y.instance("db-0-a", y.node("a", ownedBy(claim)))
	y.instance("db-0-b", y.node("b"))
	time.Sleep(quiet)
	require.Empty(t, y.asked())
	require.NoError(t, cluster.client.Delete(y.ctx, claim))
	y.until("the instance is asked to go", func() bool { return y.asked()["db-0-a-draining"] != nil })
	require.Contains(t, y.asked()["db-0-a-draining"].Spec.Message, "NodeClaim is being deleted")
	require.Len(t, y.asked(), 1)
}

// A node of Karpenter's gets old: held, emptied, and only then deleted by its NodeClaim.
func TestANodeOfKarpenterExpires(t *testing.T) {
	installKarpenter(t)
	y := newYard(t)
	claim := y.nodeClaim("a", "720h")
	node := y.node("a", ownedBy(claim))
	pod := y.instance("db-0-a", node)
	p := y.policies(almost29Days, v1alpha1.MachineKarpenter)
	y.untilPhase(p, "Moving")
	require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(node), node))
	require.True(t, node.Spec.Unschedulable)
	require.Equal(t, "true", node.Annotations[karpenter.DoNotDisrupt])
	require.Equal(t, v1alpha1.ReasonNodeExpiring, y.asked()["db-0-a-nodeexpiring"].Spec.Reason)
	require.NotNil(t, y.asked()["db-0-a-nodeexpiring"].Spec.Deadline)
	require.True(t, y.read(claim))
	require.Nil(t, claim.GetDeletionTimestamp(), "not while an instance is on it")

	require.NoError(t, cluster.client.Delete(y.ctx, pod, client.GracePeriodSeconds(0)))
	y.until("the NodeClaim is deleted", func() bool { return y.read(claim) && claim.GetDeletionTimestamp() != nil })
	// Karpenter.
	y.patch(claim, func() { claim.SetFinalizers(nil) })
	y.patch(node, func() { node.Finalizers = nil })
	require.NoError(t, client.IgnoreNotFound(cluster.client.Delete(y.ctx, node)))
	y.untilPhase(p, "Done")
	require.False(t, y.read(claim))
}

// Karpenter's own expiry is forceful: one that is shorter than ours is said long before.
func TestKarpentersExpiryIsTheBackstop(t *testing.T) {
	installKarpenter(t)
	y := newYard(t)
	y.node("a", ownedBy(y.nodeClaim("a", "240h")))
	p := y.policies(time.Hour, v1alpha1.MachineKarpenter)
	y.until("it is said", func() bool {
		y.rotation(p)
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionPlanHolds)
		return c != nil && c.Reason == "ProviderExpiresFirst"
	})
}

const machineTemplate = `{clusterName: c, bootstrap: {dataSecretName: none}, infrastructureRef: {apiGroup: infrastructure.cluster.x-k8s.io, kind: TestMachine, name: none}}`

// clusterAPI makes a MachineDeployment with one Machine per node given.
func (y *yard) clusterAPI(nodes ...string) (deployment *unstructured.Unstructured, machines map[string]*unstructured.Unstructured) {
	y.t.Helper()
	deployment = y.object(`
apiVersion: cluster.x-k8s.io/v1beta2
kind: MachineDeployment
metadata: {name: md, namespace: %s}
spec: {clusterName: c, replicas: %d, selector: {matchLabels: {md: md}}, template: {metadata: {labels: {md: md}}, spec: `+machineTemplate+`}}
status: {observedGeneration: 1, replicas: %d, availableReplicas: %d}
`, y.namespace, len(nodes), len(nodes), len(nodes))
	set := y.object(`
apiVersion: cluster.x-k8s.io/v1beta2
kind: MachineSet
metadata:
  name: ms
  namespace: %s
  ownerReferences: [{apiVersion: cluster.x-k8s.io/v1beta2, kind: MachineDeployment, name: md, uid: %s, controller: true}]
spec: {clusterName: c, replicas: %d, selector: {matchLabels: {md: md}}, template: {metadata: {labels: {md: md}}, spec: `+machineTemplate+`}}
`, y.namespace, deployment.GetUID(), len(nodes))
	machines = map[string]*unstructured.Unstructured{}
	for _, n := range nodes {
		machines[n] = y.object(`
apiVersion: cluster.x-k8s.io/v1beta2
kind: Machine
metadata:
  name: %s
  namespace: %s
  labels: {md: md, cluster.x-k8s.io/deployment-name: md, cluster.x-k8s.io/set-name: ms}
  finalizers: [machine.cluster.x-k8s.io]
  ownerReferences: [{apiVersion: cluster.x-k8s.io/v1beta2, kind: MachineSet, name: ms, uid: %s, controller: true}]
spec: `+machineTemplate+`
status: {nodeRef: {name: %s}}
`, n, y.namespace, set.GetUID(), y.namespace+"-"+n)
	}
	return deployment, machines
}

func onMachine(y *yard, name string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Annotations = map[string]string{"cluster.x-k8s.io/machine": name, "cluster.x-k8s.io/cluster-namespace": y.namespace}
	}
}

func TestClusterAPIRemovesANode(t *testing.T) {
	installClusterAPI(t)
	y := newYard(t)
	y.drains()
	_, machines := y.clusterAPI("a", "b")
	y.instance("db-0-a", y.node("a", onMachine(y, "a")))
	y.instance("db-0-b", y.node("b", onMachine(y, "b")))
	time.Sleep(quiet)
	require.Empty(t, y.asked())
	require.NoError(t, cluster.client.Delete(y.ctx, machines["b"]))
	y.until("the instance is asked to go", func() bool { return y.asked()["db-0-b-draining"] != nil })
	require.Len(t, y.asked(), 1)
}

// A node of Cluster API's gets old: hooks set, one replica more, emptied, and then it is the one that goes.
func TestANodeOfClusterAPIExpires(t *testing.T) {
	installClusterAPI(t)
	y := newYard(t)
	deployment, machines := y.clusterAPI("a")
	node := y.node("a", onMachine(y, "a"))
	pod := y.instance("db-0-a", node)
	p := y.policies(almost29Days, v1alpha1.MachineClusterAPI)
	y.untilPhase(p, "Surging")
	require.True(t, y.read(machines["a"]))
	require.Equal(t, "theseus.dev", machines["a"].GetAnnotations()[clusterapi.PreDrainHook])
	y.until("there is to be a second machine", func() bool {
		y.read(deployment)
		n, _, _ := unstructured.NestedInt64(deployment.Object, "spec", "replicas")
		return n == 2
	})
	require.Empty(t, y.asked(), "nothing moves before there is room")
	// Cluster API.
	require.NoError(t, unstructured.SetNestedField(deployment.Object, int64(2), "status", "availableReplicas"))
	require.NoError(t, unstructured.SetNestedField(deployment.Object, deployment.GetGeneration(), "status", "observedGeneration"))
	require.NoError(t, cluster.client.Status().Update(y.ctx, deployment))
	y.untilPhase(p, "Moving")
	y.until("the instance is asked to go", func() bool { return y.asked()["db-0-a-nodeexpiring"] != nil })
	require.NoError(t, cluster.client.Delete(y.ctx, pod, client.GracePeriodSeconds(0)))
	y.until("the machine is marked and let go", func() bool {
		y.read(machines["a"])
		y.read(deployment)
		n, _, _ := unstructured.NestedInt64(deployment.Object, "spec", "replicas")
		a := machines["a"].GetAnnotations()
		return n == 1 && a[clusterapi.DeleteMachine] != "" && a[clusterapi.PreDrainHook] == ""
	})
	// Cluster API.
	y.patch(machines["a"], func() { machines["a"].SetFinalizers(nil) })
	require.NoError(t, cluster.client.Delete(y.ctx, machines["a"]))
	require.NoError(t, cluster.client.Delete(y.ctx, node))
	y.untilPhase(p, "Done")
}
