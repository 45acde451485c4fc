package replacement

import (
	"cmp"
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/replacement"
)

// ConditionComplete of a Replacement is True once it has succeeded; its reason is the phase.
const ConditionComplete = "Complete"

// store writes a decision, if it changes anything. The patch carries the resource version the decision was made from.
func (r *Reconciler) store(ctx context.Context, w *world, rp *v1alpha1.Replacement, d replacement.Decision) error {
	now := r.Clock.Now()
	before := rp.DeepCopy()
	next := rp.Status.DeepCopy()
	if w != nil {
		next = w.status.DeepCopy()
	}
	replacement.ToObject(d, next, now)
	next.WaitingFor = waitingFor(w, d)
	if w != nil && next.Node == "" {
		next.Node, next.Zone = w.nodes[rp.Spec.Instance], w.zones[rp.Spec.Instance]
	}
	meta.SetStatusCondition(&next.Conditions, complete(d, rp.Generation, now))
	if equality.Semantic.DeepEqual(before.Status, *next) {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	rp.Status = *next
	if err := r.Client.Status().Patch(ctx, rp, patch); err != nil {
		return err
	}
	r.tell(w, rp, before.Status)
	return nil
}

// waitingFor is why it waits, in a word: the ledger's, or what the last attempt failed of while it is taken back.
func waitingFor(w *world, d replacement.Decision) string {
	switch {
	case d.Status.Phase.Finished():
		return ""
	case d.Status.AdmittedAt.IsZero() && w != nil:
		return w.why
	case d.Status.Phase == replacement.RollingBack:
		return string(d.Status.LastFailure)
	}
	return ""
}

func complete(d replacement.Decision, generation int64, now time.Time) metav1.Condition {
	c := metav1.Condition{
		Type: ConditionComplete, Status: metav1.ConditionFalse, Reason: string(d.Status.Phase), Message: d.Waiting,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now),
	}
	switch {
	case d.Status.Phase == replacement.Done:
		c.Status, c.Message = metav1.ConditionTrue, d.Status.Message
	case d.Status.Phase.Finished():
		c.Message = d.Status.Message
	}
	return c
}

// event tells about the replacement and the shard.
func (r *Reconciler) event(sh *v1alpha1.Shard, rp *v1alpha1.Replacement, kind, reason string, action replacement.Kind, note string, args ...any) {
	r.Recorder.Eventf(sh, rp, kind, reason, string(action), note, args...)
}

// tell makes events and metrics of what a stored status changed.
func (r *Reconciler) tell(w *world, rp *v1alpha1.Replacement, before v1alpha1.ReplacementStatus) {
	st := rp.Status
	if st.WaitingFor != "" && st.AdmittedAt == nil && st.WaitingFor != before.WaitingFor {
		refusals.WithLabelValues(st.WaitingFor).Inc()
		r.Recorder.Eventf(rp, nil, corev1.EventTypeNormal, st.WaitingFor, "Ask", "%s", cmp.Or(st.Waiting, st.WaitingFor))
	}
	if st.Phase == before.Phase {
		return
	}
	kind, note := corev1.EventTypeNormal, cmp.Or(st.Waiting, st.Message, string(st.Phase))
	if phase := replacement.Phase(st.Phase); phase == replacement.Failed || phase == replacement.RollingBack {
		kind, note = corev1.EventTypeWarning, cmp.Or(st.Message, note)
	}
	r.Recorder.Eventf(rp, nil, kind, string(st.Phase), "Replace", "%s", note)
	if !finished(rp) {
		return
	}
	outcomes.WithLabelValues(string(rp.Spec.Reason), st.Outcome).Inc()
	if st.AdmittedAt != nil && replacement.Phase(st.Phase) == replacement.Done {
		seconds.WithLabelValues(string(rp.Spec.Reason)).Observe(st.FinishedAt.Sub(st.AdmittedAt.Time).Seconds())
	}
	if w != nil {
		r.event(w.shard, rp, kind, "Replacement"+st.Outcome, replacement.Finish, "%s (%s): %s", rp.Spec.Instance, rp.Spec.Reason, st.Message)
	}
}

// ended looks after a replacement that has ended: it lets it go, notes where late evidence is, and removes old ones.
func (r *Reconciler) ended(ctx context.Context, rp *v1alpha1.Replacement) (reconcile.Result, error) {
	if done, location := r.evidence.ended(rp); done && location != "" && rp.Status.Evidence == "" {
		patch := client.MergeFrom(rp.DeepCopy())
		rp.Status.Evidence = location
		if err := r.Client.Status().Patch(ctx, rp, patch); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	if controllerutil.ContainsFinalizer(rp, v1alpha1.Finalizer) {
		patch := client.MergeFrom(rp.DeepCopy())
		controllerutil.RemoveFinalizer(rp, v1alpha1.Finalizer)
		if err := r.Client.Patch(ctx, rp, patch); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	if !rp.DeletionTimestamp.IsZero() {
		r.evidence.forget(rp)
		return reconcile.Result{}, nil
	}
	return r.collect(ctx, rp)
}

// collect removes ended Replacements of the shard beyond the number and the age to keep.
func (r *Reconciler) collect(ctx context.Context, rp *v1alpha1.Replacement) (reconcile.Result, error) {
	list := &v1alpha1.ReplacementList{}
	if err := r.Client.List(ctx, list, client.InNamespace(rp.Namespace), client.MatchingFields{shard.IndexReplacementShard: rp.Spec.Shard}); err != nil {
		return reconcile.Result{}, err
	}
	now := r.Clock.Now()
	for _, old := range expired(list.Items, r.Keep, now.Add(-r.KeepFor)) {
		r.evidence.forget(&old)
		if err := r.Client.Delete(ctx, &old); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{RequeueAfter: max(r.KeepFor-now.Sub(rp.CreationTimestamp.Time), time.Minute)}, nil
}

// expired are the ended ones that ended before a time, or beyond the newest keep.
func expired(items []v1alpha1.Replacement, keep int, before time.Time) []v1alpha1.Replacement {
	items = slices.DeleteFunc(slices.Clone(items), func(rp v1alpha1.Replacement) bool {
		return !finished(&rp) || rp.Status.FinishedAt == nil || !rp.DeletionTimestamp.IsZero()
	})
	slices.SortFunc(items, func(a, b v1alpha1.Replacement) int { return b.Status.FinishedAt.Compare(a.Status.FinishedAt.Time) })
	var out []v1alpha1.Replacement
	for n, rp := range items {
		if n >= keep || rp.Status.FinishedAt.Time.Before(before) {
			out = append(out, rp)
		}
	}
	return out
}
