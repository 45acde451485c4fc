//go:build integration

package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/controller/drain"
	"theseus.dev/theseus/internal/controller/evictions"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/machine"
	"theseus.dev/theseus/internal/machine/clusterapi"
	"theseus.dev/theseus/internal/machine/karpenter"
)

// yard is a namespace with a Shard, Pods and Nodes made by hand, and the controllers of nodes alone: what a replacement
// does is tested elsewhere.
type yard struct {
	t         *testing.T
	ctx       context.Context
	namespace string
	shard     *v1alpha1.Shard
}

func newYard(t *testing.T) *yard {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "yard-"}}
	require.NoError(t, cluster.client.Create(ctx, ns))
	y := &yard{t: t, ctx: ctx, namespace: ns.Name}
	y.shard = &v1alpha1.Shard{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "db-0"},
		Spec: v1alpha1.ShardSpec{Database: "db", Image: "none", Template: v1alpha1.DatabaseSpec{
			Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
		}},
	}
	require.NoError(t, cluster.client.Create(ctx, y.shard))
	return y
}

func (y *yard) create(o client.Object) {
	y.t.Helper()
	require.NoError(y.t, cluster.client.Create(y.ctx, o))
}

// node makes a Node whose name no other test has.
func (y *yard) node(name string, change ...func(*corev1.Node)) *corev1.Node {
	y.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   y.namespace + "-" + name,
		Labels: map[string]string{"yard": y.namespace, corev1.LabelTopologyZone: "z1"},
	}}
	for _, c := range change {
		c(n)
	}
	y.create(n)
	y.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = cluster.client.Delete(ctx, n)
	})
	return n
}

// instance makes the Pod of one on a node.
func (y *yard) instance(name string, node *corev1.Node) *corev1.Pod {
	y.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: y.namespace, Name: name, Labels: map[string]string{
			v1alpha1.LabelDatabase: "db", v1alpha1.LabelShard: "db-0", v1alpha1.LabelInstance: name, v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
		}},
		Spec: corev1.PodSpec{
			NodeName: node.Name, TerminationGracePeriodSeconds: ptr.To[int64](0), AutomountServiceAccountToken: ptr.To(false),
			Containers: []corev1.Container{{Name: "postgres", Image: "none"}},
		},
	}
	require.NoError(y.t, controllerutil.SetControllerReference(y.shard, p, scheme()))
	y.create(p)
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	require.NoError(y.t, cluster.client.Status().Update(y.ctx, p))
	return p
}

// manager runs what setup adds to it until the test ends.
func (y *yard) manager(setup func(ctrl.Manager) error) {
	y.t.Helper()
	mgr, err := ctrl.NewManager(cluster.config, ctrl.Options{
		Scheme: controller.Scheme(), Logger: logr.Discard(), Cache: controller.CacheOptions([]string{y.namespace}),
		Metrics: metricsserver.Options{BindAddress: "0"}, GracefulShutdownTimeout: ptr.To(5 * time.Second),
		Controller: crconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	require.NoError(y.t, err)
	ctx, cancel := context.WithCancel(y.ctx)
	require.NoError(y.t, request.Index(ctx, mgr.GetFieldIndexer()))
	require.NoError(y.t, setup(mgr))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = mgr.Start(ctx)
	}()
	y.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// drains runs package drain.
func (y *yard) drains() {
	y.manager(func(mgr ctrl.Manager) error { return drainController(mgr) })
}

func drainController(mgr ctrl.Manager) error {
	return (&drain.Reconciler{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("test"), Clock: clock.RealClock{},
		Machines: []machine.Provider{karpenter.Provider{Client: mgr.GetClient()}, clusterapi.Provider{Client: mgr.GetClient()}},
	}).SetupWithManager(mgr, 2)
}

func (y *yard) until(what string, ok func() bool) {
	y.t.Helper()
	require.Eventually(y.t, ok, time.Minute, 50*time.Millisecond, what)
}

// asked are the Replacements there are, by name.
func (y *yard) asked() map[string]*v1alpha1.Replacement {
	y.t.Helper()
	list := &v1alpha1.ReplacementList{}
	require.NoError(y.t, cluster.client.List(y.ctx, list, client.InNamespace(y.namespace)))
	out := map[string]*v1alpha1.Replacement{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out
}

func (y *yard) patch(o client.Object, change func()) {
	y.t.Helper()
	require.NoError(y.t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(o), o))
	before, ok := o.DeepCopyObject().(client.Object)
	require.True(y.t, ok)
	change()
	require.NoError(y.t, cluster.client.Patch(y.ctx, o, client.MergeFrom(before)))
}

// quiet is how long nothing must happen where nothing should.
const quiet = 1500 * time.Millisecond

func TestTaintsAndDeletionMoveInstancesOff(t *testing.T) {
	y := newYard(t)
	y.drains()
	a, b := y.node("a"), y.node("b")
	y.instance("db-0-a", a)
	y.instance("db-0-b", b)

	y.patch(a, func() { a.Spec.Unschedulable = true })
	time.Sleep(quiet)
	require.Empty(t, y.asked(), "a bare cordon moves nothing")

	y.patch(a, func() {
		a.Spec.Taints = append(a.Spec.Taints, corev1.Taint{Key: "DeletionCandidateOfClusterAutoscaler", Effect: corev1.TaintEffectPreferNoSchedule})
	})
	time.Sleep(quiet)
	require.Empty(t, y.asked(), "a candidate may stay")

	y.patch(a, func() {
		a.Spec.Taints = append(a.Spec.Taints, corev1.Taint{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule})
	})
	y.until("the instance on the tainted node is asked to go", func() bool { return y.asked()["db-0-a-draining"] != nil })
	require.Len(t, y.asked(), 1)
	require.Equal(t, v1alpha1.ReasonDraining, y.asked()["db-0-a-draining"].Spec.Reason)

	y.patch(a, func() { a.Spec.Taints = nil })
	y.until("it may stay after all", func() bool { return len(y.asked()) == 0 })

	y.patch(b, func() { b.Finalizers = []string{"test.dev/keep"} })
	require.NoError(t, cluster.client.Delete(y.ctx, b))
	y.until("the instance on the deleted node is asked to go", func() bool { return y.asked()["db-0-b-draining"] != nil })
	y.patch(b, func() { b.Finalizers = nil })
}

func TestWhatHasBegunIsNotTakenBack(t *testing.T) {
	y := newYard(t)
	y.drains()
	a := y.node("a", func(n *corev1.Node) { n.Annotations = map[string]string{v1alpha1.AnnotationDrain: "memory errors"} })
	y.instance("db-0-a", a)
	y.until("the instance is asked to go", func() bool { return y.asked()["db-0-a-draining"] != nil })
	rp := y.asked()["db-0-a-draining"]
	require.Contains(t, rp.Spec.Message, "memory errors")
	rp.Status.Phase, rp.Status.AdmittedAt = "Surging", ptr.To(metav1.NowMicro())
	require.NoError(t, cluster.client.Status().Update(y.ctx, rp))
	y.patch(a, func() { delete(a.Annotations, v1alpha1.AnnotationDrain) })
	time.Sleep(quiet)
	require.Len(t, y.asked(), 1)
}

// webhook serves evictions on a free port; its configuration is the test's own.
func (y *yard) webhook() {
	y.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(y.t, err)
	port := l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener
	require.NoError(y.t, l.Close())
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "evictions-" + y.namespace}}
	y.create(config)
	y.t.Cleanup(func() { _ = cluster.client.Delete(context.Background(), config) })
	y.manager(func(mgr ctrl.Manager) error {
		if err := drainController(mgr); err != nil {
			return err
		}
		return evictions.Setup(mgr, evictions.Options{
			Namespace: y.namespace, Port: port, URL: fmt.Sprintf("https://localhost:%d", port), Configuration: config.Name,
		}, clock.RealClock{})
	})
	y.until("the webhook is configured", func() bool {
		require.NoError(y.t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(config), config))
		return len(config.Webhooks) == 1
	})
}

func (y *yard) evict(pod *corev1.Pod) error {
	return cluster.client.SubResource("eviction").Create(y.ctx, pod, &policyv1.Eviction{})
}

// kubectl runs the real one.
func kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), append([]string{"--kubeconfig", cluster.kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The whole of `kubectl drain`, with kubectl itself: it is refused, the refusal is seen, the replacement is asked for, and
// when the replacement has taken the Pod away the drain ends well.
func TestKubectlDrain(t *testing.T) {
	y := newYard(t)
	y.webhook()
	a := y.node("a")
	pod := y.instance("db-0-a", a)
	other := y.instance("db-0-b", y.node("b"))
	y.until("evictions are refused", func() bool {
		err := y.evict(pod)
		if err == nil {
			t.Fatal("the instance was evicted")
		}
		return apierrors.IsTooManyRequests(err) && strings.Contains(err.Error(), "moved to another node first")
	})
	y.until("the eviction is heard of", func() bool { return y.asked()["db-0-a-draining"] != nil })

	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := kubectl(y.ctx, "drain", a.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
		done <- result{out, err}
	}()
	y.until("kubectl has cordoned and asked", func() bool {
		require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(pod), pod))
		return pod.Annotations[v1alpha1.AnnotationEvictionCordoned] == "true"
	})
	require.NoError(t, cluster.client.Delete(y.ctx, pod, client.GracePeriodSeconds(0)), "as a replacement does at its end")
	r := <-done
	require.NoError(t, r.err, r.out)
	require.Contains(t, r.out, "will retry after 5s")
	require.Contains(t, r.out, "drained")
	require.Len(t, y.asked(), 1, "the other node is left alone")
	require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(other), other))
	require.Empty(t, other.Annotations)
}

func TestUncordonTakesADrainBack(t *testing.T) {
	y := newYard(t)
	y.webhook()
	a := y.node("a", func(n *corev1.Node) { n.Spec.Unschedulable = true })
	pod := y.instance("db-0-a", a)
	y.until("evictions are refused", func() bool { return apierrors.IsTooManyRequests(y.evict(pod)) && y.asked()["db-0-a-draining"] != nil })
	y.patch(a, func() { a.Spec.Unschedulable = false })
	y.until("the drain is taken back", func() bool { return len(y.asked()) == 0 })
	y.until("its traces are removed", func() bool {
		require.NoError(t, cluster.client.Get(y.ctx, client.ObjectKeyFromObject(pod), pod))
		return len(pod.Annotations) == 0
	})
	y.patch(a, func() { a.Spec.Unschedulable = true })
	time.Sleep(quiet)
	require.Empty(t, y.asked(), "a later cordon is bare again")
}

// While no replica serves the webhook evictions are decided by the budget, not held up.
func TestADeadWebhookHoldsNothingUp(t *testing.T) {
	y := newYard(t)
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "evictions-" + y.namespace}}
	config.Webhooks = evictions.Webhooks("https://localhost:1", nil, []string{y.namespace})
	y.create(config)
	t.Cleanup(func() { _ = cluster.client.Delete(context.Background(), config) })
	pod := y.instance("db-0-a", y.node("a"))
	start := time.Now()
	require.NoError(t, y.evict(pod))
	require.Less(t, time.Since(start), 10*time.Second)
}
