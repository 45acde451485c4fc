//go:build integration

package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/controller/shard"
)

// bed is a namespace with its kubelet, its agents and, while started, an operator that watches only this namespace.
type bed struct {
	t         *testing.T
	ctx       context.Context
	namespace string
	fleet     *fleet

	stops []func()
}

func newBed(t *testing.T) *bed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	b := &bed{t: t, ctx: ctx, namespace: namespace(t), fleet: newFleet()}
	var wg sync.WaitGroup
	wg.Go(func() { b.fleet.run(ctx) })
	wg.Go(func() { b.kubelet(ctx) })
	t.Cleanup(func() {
		b.stopOperators()
		cancel()
		wg.Wait()
		b.fleet.mu.Lock()
		defer b.fleet.mu.Unlock()
		require.Empty(t, b.fleet.violations)
	})
	return b
}

// params are those of the operator, with less patience where only waiting is tested.
func params() shard.Params {
	p := shard.DefaultParams()
	p.RestartAfter, p.LostAfter, p.StuckAfter = time.Second, 3*time.Second, time.Second
	return p
}

// operator starts a replica and returns how to stop it, as a crash would.
func (b *bed) operator(name string, change ...func(*controller.Options)) (stop func()) {
	b.t.Helper()
	log := logr.Discard()
	if testing.Verbose() {
		log = funcr.New(func(prefix, args string) { fmt.Println(time.Now().Format("15:04:05.000"), name, prefix, args) }, funcr.Options{})
	}
	ctrl.SetLogger(log)
	opts := controller.Options{
		OperandImage: "theseus.local/operand:pg%d", ClusterDomain: "cluster.local", Workers: 2, Params: params(),
		Agents: b.fleet.dial, Stream: b.fleet.stream, Name: name,
		Namespaces: []string{b.namespace},
	}
	for _, c := range change {
		c(&opts)
	}
	mgr, err := ctrl.NewManager(cluster.config, ctrl.Options{
		Scheme: controller.Scheme(), Logger: log, Cache: controller.CacheOptions([]string{b.namespace}),
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		GracefulShutdownTimeout: ptr.To(5 * time.Second),
		LeaderElection:          true, LeaderElectionID: "theseus-operator", LeaderElectionNamespace: b.namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 ptr.To(3 * time.Second), RenewDeadline: ptr.To(2 * time.Second), RetryPeriod: ptr.To(300 * time.Millisecond),
		Controller: crconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	require.NoError(b.t, err)
	ctx, cancel := context.WithCancel(b.ctx)
	require.NoError(b.t, controller.Setup(ctx, mgr, opts))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = mgr.Start(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	b.stops = append(b.stops, stop)
	return stop
}

func (b *bed) stopOperators() {
	for _, stop := range b.stops {
		stop()
	}
	b.stops = nil
}

// kubelet runs Pods and binds claims: it gives every Pod an address and a running agent, finishes deletions, and lets go
// of claims nobody uses.
func (b *bed) kubelet(ctx context.Context) {
	addresses := map[string]string{}
	for ctx.Err() == nil {
		if err := b.kubeletPass(ctx, addresses); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			b.t.Log("kubelet:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (b *bed) kubeletPass(ctx context.Context, addresses map[string]string) error {
	pods, claims := &corev1.PodList{}, &corev1.PersistentVolumeClaimList{}
	if err := cluster.client.List(ctx, pods, client.InNamespace(b.namespace)); err != nil {
		return err
	}
	if err := cluster.client.List(ctx, claims, client.InNamespace(b.namespace)); err != nil {
		return err
	}
	hasPod, hasClaim := map[string]bool{}, map[string]bool{}
	for i := range claims.Items {
		c := &claims.Items[i]
		hasClaim[c.Name] = true
		if c.Status.Phase != corev1.ClaimBound {
			c.Status.Phase = corev1.ClaimBound
			if err := cluster.client.Status().Update(ctx, c); err != nil {
				return err
			}
		}
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Labels[v1alpha1.LabelComponent] != v1alpha1.ComponentInstance {
			continue
		}
		hasPod[p.Name] = true
		switch {
		case p.DeletionTimestamp != nil:
			b.fleet.stop(p.Name, false)
			if err := cluster.client.Delete(ctx, p, client.GracePeriodSeconds(0)); err != nil {
				return err
			}
		case strings.Contains(p.Spec.Containers[0].Image, "broken"):
			if len(p.Status.ContainerStatuses) == 0 {
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "postgres", State: corev1.ContainerState{
					Waiting: &corev1.ContainerStateWaiting{Reason: "InvalidImageName", Message: "it cannot start"},
				}}}
				if err := cluster.client.Status().Update(ctx, p); err != nil {
					return err
				}
			}
		case p.Status.PodIP == "":
			if addresses[string(p.UID)] == "" {
				addresses[string(p.UID)] = fmt.Sprintf("10.1.%d.%d", len(addresses)/250, len(addresses)%250+1)
			}
			p.Status.Phase, p.Status.PodIP = corev1.PodRunning, addresses[string(p.UID)]
			p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
			if err := cluster.client.Status().Update(ctx, p); err != nil {
				return err
			}
			b.fleet.start(p.Labels[v1alpha1.LabelShard], p.Name, string(p.UID))
		}
	}
	gateways := &appsv1.DeploymentList{}
	if err := cluster.client.List(ctx, gateways, client.InNamespace(b.namespace)); err != nil {
		return err
	}
	for i := range gateways.Items {
		d := &gateways.Items[i]
		if n := *d.Spec.Replicas; d.Status.ReadyReplicas != n || d.Status.ObservedGeneration != d.Generation {
			d.Status = appsv1.DeploymentStatus{Replicas: n, ReadyReplicas: n, AvailableReplicas: n, UpdatedReplicas: n, ObservedGeneration: d.Generation}
			if err := cluster.client.Status().Update(ctx, d); err != nil {
				return err
			}
		}
	}
	for _, name := range b.fleet.names() {
		if !hasPod[name] {
			b.fleet.stop(name, !hasClaim[name])
		}
	}
	for i := range claims.Items {
		c := &claims.Items[i]
		if c.DeletionTimestamp != nil && !hasPod[c.Name] && len(c.Finalizers) > 0 {
			c.Finalizers = nil
			if err := cluster.client.Update(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fleet) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for n := range f.agents {
		out = append(out, n)
	}
	return out
}

// database makes one, named db.
func (b *bed) database(change ...func(*v1alpha1.Database)) *v1alpha1.Database {
	b.t.Helper()
	db := &v1alpha1.Database{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "db"},
		Spec:       v1alpha1.DatabaseSpec{Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")}},
	}
	for _, c := range change {
		c(db)
	}
	require.NoError(b.t, cluster.client.Create(b.ctx, db))
	return db
}

func (b *bed) shard() *v1alpha1.Shard {
	b.t.Helper()
	sh := &v1alpha1.Shard{}
	if err := cluster.client.Get(b.ctx, client.ObjectKey{Namespace: b.namespace, Name: "db-0"}, sh); client.IgnoreNotFound(err) != nil {
		require.NoError(b.t, err)
	}
	return sh
}

// until waits until ok; the test fails with what is there after two minutes.
func (b *bed) until(what string, ok func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			sh := b.shard()
			var words []string
			for _, c := range sh.Status.Conditions {
				words = append(words, fmt.Sprintf("%s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message))
			}
			b.t.Fatalf("waited in vain until %s\nrecord %+v\nbootstrap %+v\ninstances %+v\n%s", what, sh.Status.Record, sh.Status.Bootstrap, sh.Status.Instances, strings.Join(words, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func isTrue(conditions []metav1.Condition, kind string) bool {
	return meta.IsStatusConditionTrue(conditions, kind)
}

func (b *bed) untilReady() {
	b.t.Helper()
	b.until("the Database is Ready", func() bool {
		db := &v1alpha1.Database{}
		require.NoError(b.t, cluster.client.Get(b.ctx, client.ObjectKey{Namespace: b.namespace, Name: "db"}, db))
		c := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == db.Generation && b.shard().Status.InstancesReady == fmt.Sprintf("%d/%d", db.Spec.Instances, db.Spec.Instances)
	})
}

// pods of instances that are not being deleted, by name.
func (b *bed) pods() map[string]*corev1.Pod {
	b.t.Helper()
	list := &corev1.PodList{}
	require.NoError(b.t, cluster.client.List(b.ctx, list, client.InNamespace(b.namespace), client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentInstance}))
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			out[list.Items[i].Name] = &list.Items[i]
		}
	}
	return out
}

func (b *bed) claims() map[string]*corev1.PersistentVolumeClaim {
	b.t.Helper()
	list := &corev1.PersistentVolumeClaimList{}
	require.NoError(b.t, cluster.client.List(b.ctx, list, client.InNamespace(b.namespace)))
	out := map[string]*corev1.PersistentVolumeClaim{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out
}

func (b *bed) bootstraps() int {
	b.fleet.mu.Lock()
	defer b.fleet.mu.Unlock()
	return b.fleet.bootstraps["db-0"]
}

// change changes a Database as a user would who tries again.
func (b *bed) change(db *v1alpha1.Database, edit func()) {
	b.t.Helper()
	require.NoError(b.t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if err := cluster.client.Get(b.ctx, client.ObjectKeyFromObject(db), db); err != nil {
			return err
		}
		edit()
		return cluster.client.Update(b.ctx, db)
	}))
}

// delete deletes an object as a user would.
func (b *bed) delete(o client.Object) {
	b.t.Helper()
	require.NoError(b.t, client.IgnoreNotFound(cluster.client.Delete(b.ctx, o)))
}
