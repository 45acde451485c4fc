package database

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
)

func shardWith(name, primary string, term int64, conditions ...metav1.Condition) v1alpha1.Shard {
	sh := v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 2}}
	sh.Status.Primary, sh.Status.Term = primary, term
	sh.Status.Instances = []v1alpha1.InstanceStatus{{Name: "a", Ready: primary != ""}, {Name: "b"}}
	for _, c := range conditions {
		if c.ObservedGeneration == 0 {
			c.ObservedGeneration = 2
		}
		meta.SetStatusCondition(&sh.Status.Conditions, c)
	}
	return sh
}

func ready() metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "a is primary"}
}

func database(shards int32) *v1alpha1.Database {
	return &v1alpha1.Database{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", Generation: 7},
		Spec:       v1alpha1.DatabaseSpec{Shards: shards, Instances: 2},
	}
}

func condition(t *testing.T, db *v1alpha1.Database, kind string) metav1.Condition {
	t.Helper()
	c := meta.FindStatusCondition(db.Status.Conditions, kind)
	require.NotNil(t, c)
	require.EqualValues(t, 7, c.ObservedGeneration)
	return *c
}

func TestOneShardSpeaksForItself(t *testing.T) {
	db := database(1)
	sh := shardWith("db-0", "db-0-x", 4, ready())
	oldest := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	sh.Status.OldestInstance = &oldest
	Sum(db, []v1alpha1.Shard{sh}, nil)
	require.Equal(t, "db-0-x", db.Status.Primary)
	require.EqualValues(t, 4, db.Status.Term)
	require.Equal(t, "1/1", db.Status.Shards)
	require.Equal(t, "1/2", db.Status.Instances)
	require.Equal(t, &oldest, db.Status.OldestInstance)
	require.Equal(t, "db-rw.ns.svc:5432", db.Status.Endpoint)
	c := condition(t, db, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Equal(t, "a is primary", c.Message)
}

func TestSeveralShardsAreAsGoodAsTheWorst(t *testing.T) {
	db := database(3)
	bad := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "NoPrimary", Message: "gone"}
	busy := metav1.Condition{Type: v1alpha1.ConditionProgressing, Status: metav1.ConditionTrue, Reason: "Working", Message: "seeding"}
	Sum(db, []v1alpha1.Shard{shardWith("db-0", "x", 1, ready()), shardWith("db-1", "", 9, bad), shardWith("db-2", "y", 2, ready(), busy)}, nil)
	require.Equal(t, "2 of 3 shards", db.Status.Primary)
	require.EqualValues(t, 9, db.Status.Term)
	require.Equal(t, "2/3", db.Status.Shards)
	require.Equal(t, "db-0-rw.ns.svc:5432", db.Status.Endpoint)
	c := condition(t, db, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionFalse, c.Status)
	require.Equal(t, "NoPrimary", c.Reason)
	require.Equal(t, "db-1: gone", c.Message)
	c = condition(t, db, v1alpha1.ConditionProgressing)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Equal(t, "db-2: seeding", c.Message)
	require.Equal(t, metav1.ConditionFalse, condition(t, db, v1alpha1.ConditionWritable).Status, "what no shard has said is not true")
}

func TestAConditionOfAnOlderSpecCountsForNothing(t *testing.T) {
	db := database(1)
	stale := ready()
	stale.ObservedGeneration = 1
	Sum(db, []v1alpha1.Shard{shardWith("db-0", "x", 1, stale)}, nil)
	c := condition(t, db, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionFalse, c.Status)
	require.Equal(t, "Pending", c.Reason)
	require.Equal(t, "0/1", db.Status.Shards)
}

func TestTheSecretSaysHowToConnect(t *testing.T) {
	r := &Reconciler{ClusterDomain: "cluster.local"}
	db := database(1)
	db.Spec.Application = v1alpha1.ApplicationSpec{Database: "app", Owner: "owner"}
	data := r.connection(db, "p@ss/w")
	require.Equal(t, "postgresql://owner:p%40ss%2Fw@db-rw.ns.svc:5432/app?sslmode=require", string(data["uri"]))
	require.Equal(t, "db-ro.ns.svc", string(data["host-ro"]))
	db.Spec.Shards = 3
	data = r.connection(db, "x")
	require.Equal(t, "db-0-rw.ns.svc", string(data["host"]))
	require.Equal(t, 3, len(strings.Split(string(data["hosts"]), ",")))
}
