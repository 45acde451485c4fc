package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/names"
)

// updateStatus writes the sum of the shards. With ensureErr set the Database is not Ready for that, and the shards may be
// missing: the status then keeps what was known.
func (r *Reconciler) updateStatus(ctx context.Context, db *v1alpha1.Database, shards []v1alpha1.Shard, ensureErr error) error {
	before := db.DeepCopy()
	if ensureErr != nil && shards == nil {
		meta.SetStatusCondition(&db.Status.Conditions, failed(db, ensureErr))
	} else {
		Sum(db, shards, ensureErr)
	}
	if equality.Semantic.DeepEqual(before.Status, db.Status) {
		return nil
	}
	return r.Client.Status().Patch(ctx, db, client.MergeFrom(before))
}

// failed is the condition Ready of a Database that cannot have all it needs.
func failed(db *v1alpha1.Database, err error) metav1.Condition {
	reason := "EnsureFailed"
	var taken *owned.TakenError
	var lost *passwordLostError
	switch {
	case errors.As(err, &taken):
		reason = "NameTaken"
	case errors.As(err, &lost):
		reason = "PasswordLost"
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: err.Error(), ObservedGeneration: db.Generation,
	}
}

// leaving is a shard that a Database being deleted waits for, and what that waits for.
func leaving(sh *v1alpha1.Shard) string {
	if c := meta.FindStatusCondition(sh.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == shard.ReasonDeleting {
		return sh.Name + ", " + c.Message
	}
	return sh.Name
}

// saysDeleting writes what a Database being deleted waits for.
func (r *Reconciler) saysDeleting(ctx context.Context, db *v1alpha1.Database, shards []string) error {
	before := db.DeepCopy()
	meta.SetStatusCondition(&db.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: shard.ReasonDeleting,
		Message: "it is being deleted and waits for its shards: " + some(shards), ObservedGeneration: db.Generation,
	})
	if equality.Semantic.DeepEqual(before.Status, db.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.Client.Status().Patch(ctx, db, client.MergeFrom(before)))
}

// some are the first three, and how many more there are.
func some(shards []string) string {
	if len(shards) > 3 {
		return strings.Join(shards[:3], "; ") + fmt.Sprintf("; and %d more shards", len(shards)-3)
	}
	return strings.Join(shards, "; ")
}

// Sum fills in the status of db from its shards. A condition is that of all shards: true when true of each, otherwise
// with the reason of the first of which it is not. Progressing is the other way round. With ensureErr the Database is not
// Ready, whatever its shards are.
func Sum(db *v1alpha1.Database, shards []v1alpha1.Shard, ensureErr error) {
	st := &db.Status
	st.ObservedGeneration = db.Generation
	st.Term, st.OldestInstance = 0, nil
	readyShards, primaries := 0, 0
	instances, wanted := 0, 0
	for i := range shards {
		sh := &shards[i]
		if current(sh, v1alpha1.ConditionReady) {
			readyShards++
		}
		if sh.Status.Primary != "" {
			primaries++
		}
		st.Term = max(st.Term, sh.Status.Term)
		wanted += int(db.Spec.Instances)
		for _, in := range sh.Status.Instances {
			if in.Ready {
				instances++
			}
		}
		if o := sh.Status.OldestInstance; o != nil && (st.OldestInstance == nil || o.Before(st.OldestInstance)) {
			st.OldestInstance = o.DeepCopy()
		}
	}
	st.Shards = fmt.Sprintf("%d/%d", readyShards, len(shards))
	st.Instances = fmt.Sprintf("%d/%d", instances, wanted)
	st.Primary = fmt.Sprintf("%d of %d shards", primaries, len(shards))
	host := names.ReadWrite(names.Shard(db.Name, 0))
	if len(shards) == 1 {
		st.Primary, host = shards[0].Status.Primary, names.ReadWrite(db.Name)
	}
	st.Endpoint = net.JoinHostPort(host+"."+db.Namespace+".svc", strconv.Itoa(agentapi.PostgresPort))
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionWritable, v1alpha1.ConditionRedundant, v1alpha1.ConditionProgressing, v1alpha1.ConditionPlanHolds, v1alpha1.ConditionFrozen} {
		c := sumCondition(kind, shards)
		c.ObservedGeneration = db.Generation
		if kind == v1alpha1.ConditionReady && ensureErr != nil {
			c = failed(db, ensureErr)
		}
		meta.SetStatusCondition(&st.Conditions, c)
	}
}

// current reports whether the condition is true of the shard's present spec.
func current(sh *v1alpha1.Shard, kind string) bool {
	c := meta.FindStatusCondition(sh.Status.Conditions, kind)
	return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == sh.Generation
}

func sumCondition(kind string, shards []v1alpha1.Shard) metav1.Condition {
	out := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: kind, Message: fmt.Sprintf("all %d shards", len(shards))}
	switch kind {
	case v1alpha1.ConditionProgressing:
		out = metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: "Stable", Message: "nothing is under way"}
	case v1alpha1.ConditionFrozen:
		out = metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: "Going", Message: "instances go when they are due"}
	}
	bad := out.Status == metav1.ConditionFalse // what makes a shard the one to tell of
	var telling []string
	for i := range shards {
		sh := &shards[i]
		c := meta.FindStatusCondition(sh.Status.Conditions, kind)
		if c == nil || c.ObservedGeneration != sh.Generation {
			c = &metav1.Condition{Reason: "Pending", Message: "not looked at yet"}
		}
		if (c.Status == metav1.ConditionTrue) != bad {
			continue
		}
		if len(telling) == 0 {
			out.Reason = c.Reason
			out.Status = metav1.ConditionFalse
			if bad {
				out.Status = metav1.ConditionTrue
			}
		}
		telling = append(telling, sh.Name+": "+c.Message)
	}
	switch {
	case len(telling) > 0:
		out.Message = some(telling)
	case len(shards) == 1:
		if c := meta.FindStatusCondition(shards[0].Status.Conditions, kind); c != nil {
			out.Reason, out.Message = c.Reason, c.Message
		}
	}
	return out
}
