//go:build integration

package integration

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
)

func TestADatabaseBecomesReady(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()

	sh := b.shard()
	require.Len(t, sh.Status.Record.Cohorts, 1)
	require.Len(t, sh.Status.Record.Cohorts[0].Members, 2)
	require.EqualValues(t, 1, sh.Status.Record.Cohorts[0].Acks)
	require.True(t, sh.Status.Bootstrap.Done)
	require.Equal(t, "42", sh.Status.SystemIdentifier)
	require.Equal(t, 1, b.bootstraps())
	require.Equal(t, []string{"db-0 term 1 acks 1"}, b.fleet.established, "established with the acknowledgements of the spec, once")

	pods := b.pods()
	require.Len(t, pods, 3, "the namespace enforces Pod Security restricted, so they comply")
	roles := map[string]int{}
	for _, p := range pods {
		roles[p.Labels[v1alpha1.LabelRole]]++
		require.False(t, *p.Spec.AutomountServiceAccountToken)
	}
	require.Equal(t, map[string]int{"primary": 1, "standby": 2}, roles)
	require.Len(t, b.claims(), 3)

	get := func(o client.Object, name string) {
		require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKey{Namespace: b.namespace, Name: name}, o), name)
	}
	for _, name := range []string{"db-rw", "db-ro", "db-direct", "db-0-rw", "db-0-ro", "db-0-direct", "db-0-instances"} {
		get(&corev1.Service{}, name)
	}
	budget := &policyv1.PodDisruptionBudget{}
	get(budget, "db-0")
	require.Equal(t, 2, budget.Spec.MinAvailable.IntValue())
	get(&appsv1.Deployment{}, "db-0-gateway")
	app := &corev1.Secret{}
	get(app, "db-app")
	for _, key := range []string{"username", "password", "host", "port", "dbname", "uri", "ca.crt"} {
		require.NotEmpty(t, app.Data[key], key)
	}
	for _, name := range []string{"db-ca", "db-0-agent-tls", "db-0-gateway-tls"} {
		get(&corev1.Secret{}, name)
	}
}

func TestOneInstanceGrowsToThree(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	db := b.database(func(db *v1alpha1.Database) {
		db.Spec.Instances = 1
		db.Spec.Gateway.Enabled = ptr.To(false)
	})
	b.untilReady()
	svc := &corev1.Service{}
	require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKey{Namespace: b.namespace, Name: "db-rw"}, svc))
	require.Equal(t, v1alpha1.RolePrimary, svc.Spec.Selector[v1alpha1.LabelRole])
	b.change(db, func() { db.Spec.Instances = 3 })
	b.untilReady()
	require.EqualValues(t, 1, b.shard().Status.Record.Cohorts[0].Acks)
}

func TestADeletedPodAndADeletedClaimComeBackAsNewInstances(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	for _, victim := range []string{"pod", "claim"} {
		before := b.pods()
		var name string
		for n, p := range before {
			if p.Labels[v1alpha1.LabelRole] == v1alpha1.RoleStandby {
				name = n
			}
		}
		if victim == "pod" {
			b.delete(before[name])
		} else {
			b.delete(b.claims()[name])
		}
		b.until("a new instance has taken its place and nothing is left of it", func() bool {
			return len(b.pods()) == 3 && b.pods()[name] == nil && len(b.claims()) == 3 && b.claims()[name] == nil
		})
		b.untilReady()
	}
	require.Equal(t, 1, b.bootstraps())
}

func TestAnOperatorThatKeepsCrashingChangesNothing(t *testing.T) {
	b := newBed(t)
	b.database()
	for range 12 {
		stop := b.operator("op")
		time.Sleep(time.Duration(200+rand.IntN(500)) * time.Millisecond)
		stop()
	}
	b.operator("op")
	b.untilReady()
	require.Equal(t, 1, b.bootstraps())
	require.Equal(t, []string{"db-0 term 1 acks 1"}, b.fleet.established)
	require.Len(t, b.claims(), 3)
}

func TestAllPodsGoneAreStartedAgainOnTheirVolumes(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	before := b.pods()
	for _, p := range before {
		b.delete(p)
	}
	b.until("the primary of before serves again, or another in a higher term", func() bool {
		sh := b.shard()
		was, is := before[sh.Status.Primary], b.pods()[sh.Status.Primary]
		return isTrue(sh.Status.Conditions, v1alpha1.ConditionWritable) && is != nil && (was == nil || was.UID != is.UID)
	})
	b.untilReady()
	require.Equal(t, 1, b.bootstraps())
}

func TestWithEveryVolumeGoneNothingIsCreatedInItsPlace(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	b.stopOperators()
	for _, c := range b.claims() {
		b.delete(c)
	}
	for _, p := range b.pods() {
		b.delete(p)
	}
	b.until("everything is gone", func() bool { return len(b.claims()) == 0 && len(b.pods()) == 0 })
	b.operator("op")
	b.until("the condition says so", func() bool {
		c := meta.FindStatusCondition(b.shard().Status.Conditions, v1alpha1.ConditionWritable)
		return c != nil && c.Reason == "DataLost"
	})
	time.Sleep(3 * time.Second)
	require.Equal(t, 1, b.bootstraps())
	require.Empty(t, b.pods())
}

func TestDeletion(t *testing.T) {
	for policy, kept := range map[v1alpha1.DeletionPolicy]int{v1alpha1.DeletionPolicyDelete: 0, v1alpha1.DeletionPolicyRetainVolumes: 3} {
		t.Run(string(policy), func(t *testing.T) {
			b := newBed(t)
			b.operator("op")
			db := b.database()
			b.untilReady()
			// The policy at the time of the deletion counts.
			b.change(db, func() { db.Spec.DeletionPolicy = policy })
			b.delete(db)
			b.until("the Database is gone", func() bool {
				return apierrors.IsNotFound(cluster.client.Get(b.ctx, client.ObjectKeyFromObject(db), db))
			})
			require.Empty(t, b.pods())
			b.until("unwanted claims are gone", func() bool { return len(b.claims()) == kept })
			for _, c := range b.claims() {
				require.Empty(t, c.OwnerReferences, "out of the garbage collector's reach")
				require.NotEmpty(t, c.Annotations["theseus.dev/retained-primary"])
			}
		})
	}
}

// Volumes that were kept of an earlier Database belong to nobody, though they have the labels: one made under the same name
// starts empty, and takes only its own volumes along when it is deleted.
func TestKeptVolumesOutliveTheNextDatabaseOfThatName(t *testing.T) {
	b := newBed(t)
	kept := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "db-0-kept0", Labels: map[string]string{
			v1alpha1.LabelDatabase: "db", v1alpha1.LabelShard: "db-0", v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
		}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	require.NoError(t, cluster.client.Create(b.ctx, kept))
	b.operator("op")
	db := b.database()
	b.untilReady()
	require.Len(t, b.claims(), 4)
	b.delete(db)
	b.until("the Database is gone", func() bool {
		return apierrors.IsNotFound(cluster.client.Get(b.ctx, client.ObjectKeyFromObject(db), db))
	})
	b.until("its claims are gone", func() bool { return len(b.claims()) == 1 })
	require.Nil(t, b.claims()[kept.Name].DeletionTimestamp)
}

// Secrets that were deleted come back so that nobody notices: the password is the one PostgreSQL knows, and the certificates
// that are in use are trusted.
func TestDeletedSecretsComeBackAsTheyMustBe(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	read := func(name string) map[string][]byte {
		s := &corev1.Secret{}
		if err := cluster.client.Get(b.ctx, client.ObjectKey{Namespace: b.namespace, Name: name}, s); client.IgnoreNotFound(err) != nil {
			require.NoError(t, err)
		}
		return s.Data
	}
	app, ca, leaf := read("db-app"), read("db-ca"), read("db-0-agent-tls")
	require.Equal(t, app["password"], ca["app-password"])

	b.delete(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "db-app"}})
	b.until("the application's Secret is back", func() bool { return len(read("db-app")["uri"]) > 0 })
	require.Equal(t, app, read("db-app"))

	b.delete(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "db-ca"}})
	b.until("there is an authority again, which agents trust", func() bool {
		now := read("db-ca")
		return len(now["app-password"]) > 0 && string(now["ca.crt"]) != string(ca["ca.crt"]) && string(read("db-0-agent-tls")["ca.crt"]) == string(now["ca.crt"])
	})
	require.Contains(t, string(read("db-ca")["ca.crt"]), string(ca["ca.crt"]))
	require.Equal(t, app["password"], read("db-ca")["app-password"])
	require.Equal(t, leaf["tls.crt"], read("db-0-agent-tls")["tls.crt"])
	b.untilReady()
}

// What the API server lacks is said by the conditions, and noticed soon after it is there.
func TestAnInstanceThatIsRefusedIsSeen(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "gold-" + b.namespace}, Value: 1000}
	db := b.database(func(db *v1alpha1.Database) { db.Spec.Scheduling.PriorityClassName = class.Name })
	b.until("the Database says so", func() bool {
		require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(db), db))
		c := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Reason == shard.ReasonInstanceRefused && strings.Contains(c.Message, class.Name)
	})
	require.LessOrEqual(t, len(b.claims()), 3)
	require.NoError(t, cluster.client.Create(b.ctx, class))
	b.untilReady()
	require.Len(t, b.claims(), 3)
}

// What people make has none of our labels, so the operator's cache does not show it. Once it is out of the way the Database
// goes on, although nothing tells the operator.
func TestANameThatIsTakenIsNotTakenOver(t *testing.T) {
	for _, name := range []string{"db-rw", "db-0-rw"} { // the Database's and the Shard's
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			theirs := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name},
				Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
			}
			require.NoError(t, cluster.client.Create(b.ctx, theirs))
			b.operator("op")
			db := b.database()
			b.until("the Database says so", func() bool {
				require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(db), db))
				c := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionReady)
				return c != nil && c.Reason == "NameTaken" && strings.Contains(c.Message, "Service "+name)
			})
			require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(theirs), theirs))
			require.EqualValues(t, 80, theirs.Spec.Ports[0].Port)
			b.delete(theirs)
			b.untilReady()
		})
	}
}

func TestASecretOfThatNameIsNotTakenOver(t *testing.T) {
	b := newBed(t)
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "db-app"}, StringData: map[string]string{"password": "theirs"}}
	require.NoError(t, cluster.client.Create(b.ctx, theirs))
	b.operator("op")
	db := b.database()
	b.until("the Database says so", func() bool {
		require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(db), db))
		c := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Reason == "NameTaken"
	})
	require.Zero(t, b.bootstraps(), "with a password that is not ours to use")
}
