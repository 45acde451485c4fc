package shard

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/certificates"
	"theseus.dev/theseus/internal/observer"
)

// desk is a Reconciler over a fake API server, without agents: what needs a shard that lives is tested against the real
// API server with played agents.
type desk struct {
	*Reconciler
	t      *testing.T
	clock  *clocktesting.FakeClock
	events *events.FakeRecorder
	// create stands in the way of creations, when it is set.
	create func(client.Object) error
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(s))
	require.NoError(t, clientgoscheme.AddToScheme(s))
	d := &desk{t: t, clock: clocktesting.NewFakeClock(now), events: events.NewFakeRecorder(1000)}
	sh := aShard()
	sh.UID, sh.Generation, sh.Finalizers = "s", 7, []string{v1alpha1.Finalizer}
	db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "d"}}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(sh, db).WithStatusSubresource(&v1alpha1.Shard{}).
		WithIndex(&v1alpha1.Replacement{}, IndexReplacementShard, func(o client.Object) []string { return []string{o.(*v1alpha1.Replacement).Spec.Shard} }).
		WithIndex(&v1alpha1.Reparent{}, IndexReparentShard, func(o client.Object) []string { return []string{o.(*v1alpha1.Reparent).Spec.Shard} }).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if d.create != nil {
					if err := d.create(o); err != nil {
						return err
					}
				}
				return c.Create(ctx, o, opts...)
			},
		}).Build()
	_, _, err := certificates.EnsureAuthority(t.Context(), c, c, db, now)
	require.NoError(t, err)
	d.Reconciler = &Reconciler{
		Client: c, Live: c, Observer: observer.New(observer.Options{Clock: d.clock}), Recorder: d.events, Clock: d.clock,
		Params: DefaultParams(), Draw: rand.New(rand.NewPCG(1, 2)).IntN,
	}
	d.Init(t.Context())
	return d
}

func (d *desk) reconcile() reconcile.Result {
	d.t.Helper()
	result, err := d.Reconcile(d.t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ns", Name: "db-0"}})
	require.NoError(d.t, err)
	return result
}

func (d *desk) shard() *v1alpha1.Shard {
	d.t.Helper()
	sh := &v1alpha1.Shard{}
	require.NoError(d.t, d.Client.Get(d.t.Context(), client.ObjectKey{Namespace: "ns", Name: "db-0"}, sh))
	return sh
}

func (d *desk) condition(kind string) metav1.Condition {
	d.t.Helper()
	c := meta.FindStatusCondition(d.shard().Status.Conditions, kind)
	require.NotNil(d.t, c)
	require.EqualValues(d.t, 7, c.ObservedGeneration)
	return *c
}

func (d *desk) pods() []corev1.Pod {
	d.t.Helper()
	list := &corev1.PodList{}
	require.NoError(d.t, d.Client.List(d.t.Context(), list))
	return list.Items
}

func (d *desk) told() []string {
	var out []string
	for {
		select {
		case e := <-d.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

func TestAShardBeingDeletedSaysWhatItWaitsFor(t *testing.T) {
	d := newDesk(t)
	d.reconcile()
	require.Len(t, d.pods(), 3)
	slow := d.pods()[1]
	slow.Finalizers = []string{"test/slow"}
	require.NoError(t, d.Client.Update(t.Context(), &slow))
	require.NoError(t, d.Client.Delete(t.Context(), d.shard()))
	require.Equal(t, time.Second, d.reconcile().RequeueAfter)
	require.Equal(t, metav1.ConditionFalse, d.condition(v1alpha1.ConditionReady).Status)
	require.Equal(t, ReasonDeleting, d.condition(v1alpha1.ConditionReady).Reason)
	d.reconcile()
	require.Equal(t, "waiting for its Pods to end: "+slow.Name, d.condition(v1alpha1.ConditionReady).Message)
	require.NoError(t, d.Client.Get(t.Context(), client.ObjectKeyFromObject(&slow), &slow))
	slow.Finalizers = nil
	require.NoError(t, d.Client.Update(t.Context(), &slow))
	d.reconcile()
	require.True(t, apierrors.IsNotFound(d.Client.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "db-0"}, &v1alpha1.Shard{})))
}

func (d *desk) claims() []corev1.PersistentVolumeClaim {
	d.t.Helper()
	list := &corev1.PersistentVolumeClaimList{}
	require.NoError(d.t, d.Client.List(d.t.Context(), list))
	return list.Items
}

// refusing is an API server that lacks something an object of that kind needs.
func refusing(kind client.Object, why string) func(client.Object) error {
	return func(o client.Object) error {
		if reflect.TypeOf(o) != reflect.TypeOf(kind) {
			return nil
		}
		return apierrors.NewForbidden(schema.GroupResource{Resource: "things"}, o.GetName(), errors.New(why))
	}
}

// run has the shard looked at as often as its controller asks for, for that long.
func (d *desk) run(t time.Duration) {
	d.t.Helper()
	for end := d.clock.Now().Add(t); d.clock.Now().Before(end); {
		after := d.reconcile().RequeueAfter
		require.Positive(d.t, after)
		require.LessOrEqual(d.t, after, 10*time.Second)
		d.clock.Step(after)
	}
}

func TestAPodThatIsRefusedIsSeenAndTriedAgain(t *testing.T) {
	d := newDesk(t)
	const why = "no PriorityClass with name gold was found"
	d.create = refusing(&corev1.Pod{}, why)
	d.reconcile()
	require.Contains(t, strings.Join(d.told(), "\n"), "Warning InstanceRefused The API server refuses the Pod of db-0-")
	d.run(16 * time.Second) // until the pauses are as long as they get
	require.Empty(t, d.pods())
	require.Len(t, d.claims(), 3, "those there are, are used")
	ready := d.condition(v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionFalse, ready.Status)
	require.Equal(t, ReasonInstanceRefused, ready.Reason)
	require.Contains(t, ready.Message, why)
	require.Contains(t, d.condition(v1alpha1.ConditionWritable).Message, "waiting for the first instance: the API server refuses db-0-")
	require.Contains(t, d.condition(v1alpha1.ConditionWritable).Message, why)
	for _, is := range d.shard().Status.Instances {
		require.Equal(t, "starting", is.Role)
		require.Contains(t, is.Message, "the API server refuses its Pod: ")
	}
	asked := 0
	d.create = func(o client.Object) error {
		if _, ok := o.(*corev1.Pod); ok {
			asked++
		}
		return refusing(&corev1.Pod{}, why)(o)
	}
	d.run(20 * time.Second)
	require.InDelta(t, 3*2, asked, 3, "each every ten seconds")

	d.create = nil
	d.run(11 * time.Second)
	require.Len(t, d.pods(), 3)
	require.Len(t, d.claims(), 3)
	require.NotEqual(t, ReasonInstanceRefused, d.condition(v1alpha1.ConditionReady).Reason)
}

func TestAClaimThatIsRefusedIsSeenAndTriedAgain(t *testing.T) {
	d := newDesk(t)
	d.create = refusing(&corev1.PersistentVolumeClaim{}, "exceeded quota")
	d.run(3 * time.Second)
	require.Equal(t, ReasonInstanceRefused, d.condition(v1alpha1.ConditionReady).Reason)
	require.Contains(t, d.condition(v1alpha1.ConditionReady).Message, "the API server refuses another instance: ")
	require.Contains(t, d.condition(v1alpha1.ConditionReady).Message, "exceeded quota")
	d.create = nil
	d.run(11 * time.Second)
	require.Len(t, d.pods(), 3)
	require.NotEqual(t, ReasonInstanceRefused, d.condition(v1alpha1.ConditionReady).Reason)
}

// Errors that are no answer about the instance go where errors go.
func TestAnAPIServerOutOfReachRefusesNothing(t *testing.T) {
	d := newDesk(t)
	d.create = func(o client.Object) error {
		if _, ok := o.(*corev1.Pod); ok {
			return errors.New("connection refused")
		}
		return nil
	}
	_, err := d.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ns", Name: "db-0"}})
	require.ErrorContains(t, err, "connection refused")
	require.NotEqual(t, ReasonInstanceRefused, d.condition(v1alpha1.ConditionReady).Reason)
}
