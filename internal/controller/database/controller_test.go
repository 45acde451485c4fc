package database

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	"theseus.dev/theseus/internal/controller/certificates"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/pki"
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

// bootstrapped marks the shard as one whose PostgreSQL was told the password.
func (d *desk) bootstrapped() {
	d.t.Helper()
	sh := &v1alpha1.Shard{}
	d.get("db-0", sh)
	sh.Status.Bootstrap = &v1alpha1.BootstrapStatus{Instance: "db-0-a"}
	require.NoError(d.t, d.Client.Status().Update(d.t.Context(), sh))
}

// secret is the data of a Secret; delete removes the Secret, edit changes it as a person would.
func (d *desk) secret(name string) map[string][]byte {
	d.t.Helper()
	s := &corev1.Secret{}
	d.get(name, s)
	return s.Data
}

func (d *desk) delete(name string) {
	d.t.Helper()
	require.NoError(d.t, d.Client.Delete(d.t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}))
}

func (d *desk) edit(name string, edit func(map[string][]byte)) {
	d.t.Helper()
	s := &corev1.Secret{}
	d.get(name, s)
	edit(s.Data)
	require.NoError(d.t, d.Client.Update(d.t.Context(), s))
}

func TestADeletedPasswordComesBackAsItWas(t *testing.T) {
	d := newDesk(t)
	require.NoError(t, d.reconcile())
	password := string(d.secret("db-app")["password"])
	require.Len(t, password, 32)
	require.Equal(t, password, string(d.secret("db-ca")[certificates.KeyPassword]))
	for _, e := range d.told() {
		require.NotContains(t, e, "PasswordRestored")
	}
	d.bootstrapped()
	for _, gone := range []func(){
		func() { d.delete("db-app") },
		func() { d.edit("db-app", func(data map[string][]byte) { delete(data, "password") }) },
	} {
		gone()
		require.NoError(t, d.reconcile())
		require.Equal(t, password, string(d.secret("db-app")["password"]))
		require.Contains(t, string(d.secret("db-app")["uri"]), password)
		require.Contains(t, strings.Join(d.told(), "\n"), "Warning PasswordRestored")
	}
}

func TestTheCopyFollowsAPasswordThatIsChanged(t *testing.T) {
	d := newDesk(t)
	require.NoError(t, d.reconcile())
	d.bootstrapped()
	d.edit("db-app", func(data map[string][]byte) { data["password"] = []byte("chosen") })
	require.NoError(t, d.reconcile())
	require.Equal(t, "chosen", string(d.secret("db-ca")[certificates.KeyPassword]))
	require.Contains(t, string(d.secret("db-app")["uri"]), "chosen")
	d.delete("db-ca") // the authority goes, and the copy with it
	require.NoError(t, d.reconcile())
	require.Equal(t, "chosen", string(d.secret("db-ca")[certificates.KeyPassword]))
	d.delete("db-app")
	require.NoError(t, d.reconcile())
	require.Equal(t, "chosen", string(d.secret("db-app")["password"]))
}

func TestTheCopySurvivesTheRotationOfTheAuthority(t *testing.T) {
	d := newDesk(t)
	clock := clocktesting.NewFakePassiveClock(d.Clock.Now())
	d.Clock = clock
	require.NoError(t, d.reconcile())
	password := d.secret("db-app")["password"]
	for range 4 {
		before := d.secret("db-ca")
		clock.SetTime(clock.Now().Add(pki.AuthorityRenewAfter))
		d.delete("db-app")
		require.NoError(t, d.reconcile())
		require.NotEqual(t, before[pki.KeyBundle], d.secret("db-ca")[pki.KeyBundle])
		require.Equal(t, password, d.secret("db-app")["password"])
	}
}

func TestALostPasswordIsNotMadeUp(t *testing.T) {
	d := newDesk(t)
	require.NoError(t, d.reconcile())
	d.bootstrapped()
	d.delete("db-app")
	d.edit("db-ca", func(data map[string][]byte) { delete(data, certificates.KeyPassword) }) // as an older operator left it
	for range 2 {
		require.ErrorContains(t, d.reconcile(), "the password of role app")
		require.Equal(t, "PasswordLost", d.ready().Reason)
		require.Contains(t, d.ready().Message, "into the key app-password of Secret db-ca")
		require.True(t, apierrors.IsNotFound(d.Client.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "db-app"}, &corev1.Secret{})))
	}
	db := &v1alpha1.Database{}
	d.get("db", db)
	require.Equal(t, "0/1", db.Status.Shards, "the rest of the status is kept true")
	db.Spec.Instances = 5
	require.NoError(t, d.Client.Update(t.Context(), db))
	require.Error(t, d.reconcile())
	sh := &v1alpha1.Shard{}
	d.get("db-0", sh)
	require.EqualValues(t, 5, sh.Spec.Template.Instances, "and the shards hear of changes")

	d.edit("db-ca", func(data map[string][]byte) { data[certificates.KeyPassword] = []byte("chosen") })
	require.NoError(t, d.reconcile())
	require.Equal(t, "chosen", string(d.secret("db-app")["password"]))
	require.NotEqual(t, "PasswordLost", d.ready().Reason)
}
