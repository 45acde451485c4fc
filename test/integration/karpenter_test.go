//go:build integration && karpenter

package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine/karpenter"
)

// startKarpenter runs Karpenter's own controllers with its KWOK provider, whose nodes are objects only. The executable is
// made by `make test-karpenter`.
func startKarpenter(t *testing.T) {
	t.Helper()
	installCRDs(t, karpenterModule, "pkg/apis/crds", "kwok/apis/crds")
	port := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener
	}
	cmd := exec.Command(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "tools", "karpenter-kwok"))
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cluster.kubeconfig, "DISABLE_LEADER_ELECTION=true", "SYSTEM_NAMESPACE=default",
		fmt.Sprint("METRICS_PORT=", port()), fmt.Sprint("HEALTH_PROBE_PORT=", port()), "BATCH_IDLE_DURATION=200ms")
	log, err := os.Create(filepath.Join(t.TempDir(), "karpenter.log"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("Karpenter said:\n%s", said[max(0, len(said)-6000):])
		}
	})
}

// pool makes a NodePool, and plays what KWOK would for its nodes: kubelets that say they are ready.
func (y *yard) pool() {
	y.t.Helper()
	y.object("apiVersion: karpenter.kwok.sh/v1alpha1\nkind: KWOKNodeClass\nmetadata: {name: %s}\n", y.namespace)
	y.object(`
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {name: %s}
spec:
  template:
    metadata: {labels: {yard: %s}}
    spec:
      requirements: [{key: karpenter.sh/capacity-type, operator: In, values: [on-demand]}]
      nodeClassRef: {group: karpenter.kwok.sh, kind: KWOKNodeClass, name: %s}
      expireAfter: 720h
  disruption: {consolidationPolicy: WhenEmpty, consolidateAfter: Never}
`, y.namespace, y.namespace, y.namespace)
	ctx, cancel := context.WithCancel(y.ctx)
	y.t.Cleanup(cancel)
	go func() {
		for ctx.Err() == nil {
			list := &corev1.NodeList{}
			_ = cluster.client.List(ctx, list, client.MatchingLabels{"yard": y.namespace})
			for i := range list.Items {
				n := &list.Items[i]
				// The API server adds it to every new node; a controller that is not here takes it away.
				if taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady }); len(taints) != len(n.Spec.Taints) {
					n.Spec.Taints = taints
					_ = cluster.client.Update(ctx, n)
					continue
				}
				if len(n.Status.Conditions) == 0 {
					n.Status.Conditions = []corev1.NodeCondition{{
						Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
					}}
					_ = cluster.client.Status().Update(ctx, n)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
}

// provisioned makes an instance that has no place, waits for the node that Karpenter makes for it, and puts it there.
func (y *yard) provisioned(name string) (*corev1.Pod, *corev1.Node, *unstructured.Unstructured) {
	y.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: y.namespace, Name: name, Labels: map[string]string{
			v1alpha1.LabelDatabase: "db", v1alpha1.LabelShard: "db-0", v1alpha1.LabelInstance: name, v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
		}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To[int64](0), AutomountServiceAccountToken: ptr.To(false),
			NodeSelector: map[string]string{"yard": y.namespace},
			Containers: []corev1.Container{{Name: "postgres", Image: "none", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m")},
			}}},
		},
	}
	require.NoError(y.t, controllerutil.SetControllerReference(y.shard, p, scheme()))
	before := map[string]bool{}
	for _, n := range y.kwokNodes() {
		before[n.Name] = true
	}
	y.create(p)
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable}}
	require.NoError(y.t, cluster.client.Status().Update(y.ctx, p))
	var node *corev1.Node
	y.until("Karpenter has made a node", func() bool {
		for _, n := range y.kwokNodes() {
			if !before[n.Name] && n.Labels["karpenter.sh/initialized"] == "true" {
				node = &n
				return true
			}
		}
		return false
	})
	require.NoError(y.t, cluster.client.SubResource("binding").Create(y.ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node.Name}}))
	require.NoError(y.t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(p), p))
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	require.NoError(y.t, cluster.client.Status().Update(y.ctx, p))
	claim := &unstructured.Unstructured{}
	claim.SetGroupVersionKind(karpenter.GVK)
	require.NotEmpty(y.t, node.OwnerReferences, "Karpenter says who owns the node")
	claim.SetName(node.OwnerReferences[0].Name)
	require.True(y.t, y.read(claim))
	return p, node, claim
}

func (y *yard) kwokNodes() []corev1.Node {
	y.t.Helper()
	list := &corev1.NodeList{}
	require.NoError(y.t, cluster.client.List(y.ctx, list, client.MatchingLabels{"yard": y.namespace}))
	return list.Items
}

func (y *yard) gone(o client.Object) bool {
	return client.IgnoreNotFound(cluster.client.Get(y.ctx, client.ObjectKeyFromObject(o), o)) == nil &&
		cluster.client.Get(y.ctx, client.ObjectKeyFromObject(o), o) != nil
}

// Karpenter itself removes a node (somebody deleted its NodeClaim): it taints, its evictions are refused, the instance is
// asked to go, and once it has gone Karpenter finishes.
func TestKarpenterItselfDrains(t *testing.T) {
	y := newYard(t)
	startKarpenter(t)
	y.pool()
	y.webhook()
	pod, node, claim := y.provisioned("db-0-a")
	require.NoError(t, cluster.client.Delete(y.ctx, claim))
	y.until("the instance is asked to go", func() bool { return y.asked()["db-0-a-draining"] != nil })
	y.until("Karpenter's eviction was refused", func() bool {
		require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(pod), pod))
		return pod.Annotations[v1alpha1.AnnotationEvictionRequested] != ""
	})
	require.Nil(t, pod.DeletionTimestamp)
	require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(node), node))
	taints := fmt.Sprint(node.Spec.Taints)
	require.Contains(t, taints, karpenter.TaintDisrupted)
	require.NoError(t, cluster.client.Delete(y.ctx, pod, client.GracePeriodSeconds(0)), "as a replacement does at its end")
	y.until("Karpenter has removed node and machine", func() bool { return y.gone(node) && !y.read(claim) })
}

// The whole rotation of a node for its age, against Karpenter itself.
func TestANodeOfKarpenterItselfExpires(t *testing.T) {
	y := newYard(t)
	startKarpenter(t)
	y.pool()
	pod, node, claim := y.provisioned("db-0-a")
	p := y.policies(almost29Days, v1alpha1.MachineKarpenter)
	y.untilPhase(p, "Moving")
	require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(node), node))
	require.Equal(t, "true", node.Annotations[karpenter.DoNotDisrupt])
	require.True(t, y.read(claim))
	require.Nil(t, claim.GetDeletionTimestamp())
	_, second, _ := y.provisioned("db-0-b")
	require.NotEqual(t, node.Name, second.Name, "Karpenter makes room for the successor")
	require.NoError(t, cluster.client.Delete(y.ctx, pod, client.GracePeriodSeconds(0)))
	y.untilPhase(p, "Done")
	require.True(t, y.gone(node))
	require.False(t, y.read(claim))
}
