package database

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
)

// desk is a Reconciler over a fake API server, with a Database of one shard that was let to its clients.
type desk struct {
	*Reconciler
	t      *testing.T
	events *events.FakeRecorder
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(s))
	require.NoError(t, clientgoscheme.AddToScheme(s))
	db := &v1alpha1.Database{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "d", Generation: 7, Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.DatabaseSpec{
			Shards: 1, Instances: 3, Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
			Postgres: v1alpha1.PostgresSpec{Major: 17}, Application: v1alpha1.ApplicationSpec{Owner: "app", Database: "app"},
		},
	}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(db).WithStatusSubresource(&v1alpha1.Database{}, &v1alpha1.Shard{}).Build()
	recorder := events.NewFakeRecorder(1000)
	d := &desk{t: t, events: recorder, Reconciler: &Reconciler{
		Client: c, Live: c, Recorder: recorder, Clock: clocktesting.NewFakePassiveClock(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)),
		Image: func(int32) string { return "operand" },
	}}
	return d
}

func (d *desk) reconcile() error {
	_, err := d.Reconcile(d.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "db"}})
	return err
}

func (d *desk) get(name string, o client.Object) {
	d.t.Helper()
	require.NoError(d.t, d.Client.Get(d.t.Context(), client.ObjectKey{Namespace: "ns", Name: name}, o), name)
}

// database is read anew, with its condition Ready.
func (d *desk) ready() metav1.Condition {
	d.t.Helper()
	db := &v1alpha1.Database{}
	d.get("db", db)
	return condition(d.t, db, v1alpha1.ConditionReady)
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

func TestADatabaseBeingDeletedSaysWhatItWaitsFor(t *testing.T) {
	d := newDesk(t)
	require.NoError(t, d.reconcile())
	sh := &v1alpha1.Shard{}
	d.get("db-0", sh)
	controllerutil.AddFinalizer(sh, v1alpha1.Finalizer)
	require.NoError(t, d.Client.Update(t.Context(), sh))
	meta.SetStatusCondition(&sh.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"})
	require.NoError(t, d.Client.Status().Update(t.Context(), sh))
	require.NoError(t, d.reconcile())
	require.Equal(t, metav1.ConditionTrue, d.ready().Status)

	db := &v1alpha1.Database{}
	d.get("db", db)
	require.NoError(t, d.Client.Delete(t.Context(), db))
	require.NoError(t, d.reconcile())
	require.Equal(t, metav1.ConditionFalse, d.ready().Status)
	require.Equal(t, shard.ReasonDeleting, d.ready().Reason)
	require.Contains(t, d.ready().Message, "waits for its shards: db-0")

	d.get("db-0", sh)
	meta.SetStatusCondition(&sh.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: shard.ReasonDeleting, Message: "waiting for its Pods to end: db-0-a",
	})
	require.NoError(t, d.Client.Status().Update(t.Context(), sh))
	require.NoError(t, d.reconcile())
	require.Contains(t, d.ready().Message, "db-0, waiting for its Pods to end: db-0-a")
	d.get("db", db)
	version := db.ResourceVersion
	require.NoError(t, d.reconcile())
	d.get("db", db)
	require.Equal(t, version, db.ResourceVersion, "nothing is written while nothing changes")

	d.get("db-0", sh)
	controllerutil.RemoveFinalizer(sh, v1alpha1.Finalizer)
	require.NoError(t, d.Client.Update(t.Context(), sh))
	require.NoError(t, d.reconcile())
	require.Error(t, d.Client.Get(t.Context(), client.ObjectKeyFromObject(db), db), "gone")
}
