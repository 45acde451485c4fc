package reparent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/reparent"
)

// Reconciler carries out the Reparents people create, closes those whose coordinator died, and removes old ones.
type Reconciler struct {
	Runner *Runner
	// Keep is how many ended Reparents are kept per shard, KeepFor for how long. Defaults 20 and 7 days.
	Keep    int
	KeepFor time.Duration
}

// SetupWithManager registers the controller. It runs on the elected leader only.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	r.Keep, r.KeepFor = cmp.Or(r.Keep, 20), cmp.Or(r.KeepFor, 7*24*time.Hour)
	return ctrl.NewControllerManagedBy(mgr).Named("reparent").
		For(&v1alpha1.Reparent{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

// deadAfter is how far a journal without an outcome may be behind the limit of its phase before its coordinator counts as
// dead for good. The next reparent does not wait for that (see package verdict); this tidies up, so that the keeper of the
// cohort goes on.
const deadAfter = 5 * time.Second

// Reconcile looks at one Reparent.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	rp := &v1alpha1.Reparent{}
	if err := r.Runner.Client.Get(ctx, req.NamespacedName, rp); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	switch {
	case !rp.DeletionTimestamp.IsZero():
		return reconcile.Result{}, nil
	case rp.Status.Outcome != "":
		return r.collect(ctx, rp)
	case !rp.Opened():
		return r.start(ctx, rp)
	}
	return r.tidy(ctx, rp)
}

// start carries out a request, in the background: it may take half a minute.
func (r *Reconciler) start(ctx context.Context, rp *v1alpha1.Reparent) (reconcile.Result, error) {
	key := types.NamespacedName{Namespace: rp.Namespace, Name: rp.Spec.Shard}
	sh := &v1alpha1.Shard{}
	if err := r.Runner.Client.Get(ctx, key, sh); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return reconcile.Result{}, r.close(ctx, rp, refused(uint64(rp.Spec.Term), fmt.Errorf("there is no Shard %s", rp.Spec.Shard)))
		}
		return reconcile.Result{}, err
	}
	if !r.acquainted(sh) {
		return reconcile.Result{RequeueAfter: startAgain}, nil
	}
	started := r.Runner.Go(key, func() {
		ctx := context.WithoutCancel(ctx)
		res, err := r.Runner.Run(ctx, key, Request(rp))
		if err != nil {
			res = refused(uint64(rp.Spec.Term), err)
		}
		if res.Outcome == reparent.Overtaken {
			return // somebody else's by now
		}
		// A request that was refused before its term was opened has no journal: people look for the answer here.
		closeCtx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		if err := r.close(closeCtx, rp, res); err != nil {
			r.Runner.Log.Error(err, "Reparent not closed", "reparent", rp.Name)
		}
	})
	if !started {
		return reconcile.Result{RequeueAfter: startAgain}, nil
	}
	return reconcile.Result{RequeueAfter: 5 * time.Second}, nil
}

// startAgain is how soon a request is looked at again that could not be begun yet.
const startAgain = 200 * time.Millisecond

// introduction is how long an operator that is new to a shard listens for its instances before it begins what was asked for.
// An agent that lives is heard within milliseconds; one that is silent for so long is left to the reparent to judge.
const introduction = 2 * time.Second

// acquainted reports whether everybody the record names and who has a Pod was heard of, or had the time for it: a request that
// waited for a new leader would be refused by one that knows nobody yet. Every shard is watched by every operator, if
// only with nobody in it; one that is not has not been come to yet.
func (r *Reconciler) acquainted(sh *v1alpha1.Shard) bool {
	key := client.ObjectKeyFromObject(sh)
	if !slices.Contains(r.Runner.Observer.Shards(), key) {
		return false
	}
	known := r.Runner.Observer.Observations(key)
	return !slices.ContainsFunc(shard.RecordOf(sh).Names(), func(name string) bool {
		o, watched := known[name]
		return watched && o.Status == nil && r.Runner.Clock.Since(o.FailingSince) < introduction
	})
}

// close writes the outcome into an object that has none.
func (r *Reconciler) close(ctx context.Context, rp *v1alpha1.Reparent, res reparent.Result) error {
	live := &v1alpha1.Reparent{}
	if err := r.Runner.Live.Get(ctx, client.ObjectKeyFromObject(rp), live); err != nil {
		return client.IgnoreNotFound(err)
	}
	if live.Status.Outcome != "" {
		return nil
	}
	patch := client.MergeFromWithOptions(live.DeepCopy(), client.MergeFromWithOptimisticLock{})
	conclude(&live.Status, live.Generation, res, r.Runner.Clock.Now())
	return r.Runner.Client.Status().Patch(ctx, live, patch)
}

// tidy closes a journal whose coordinator is not heard of any more. One at work here is alive, whatever the journal says:
// before its first phase is written, a request that has waited long for an operator looks as old as it is.
func (r *Reconciler) tidy(ctx context.Context, rp *v1alpha1.Reparent) (reconcile.Result, error) {
	key := types.NamespacedName{Namespace: rp.Namespace, Name: rp.Spec.Shard}
	if r.Runner.Busy(key) {
		return reconcile.Result{RequeueAfter: deadAfter}, nil
	}
	last := rp.CreationTimestamp.Time
	for _, p := range rp.Status.Phases {
		last = p.StartedAt.Time
		if p.FinishedAt != nil {
			last = p.FinishedAt.Time
		}
	}
	limits := reparent.Limits{Drain: rp.Spec.DrainTimeout.Duration}
	patience := limits.Phase(reparent.PhaseName(rp.Status.Phase)) + deadAfter
	if left := patience - r.Runner.Clock.Since(last); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	sh := &v1alpha1.Shard{}
	if err := r.Runner.Client.Get(ctx, key, sh); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	res := reparent.Result{Outcome: reparent.Failed, Term: uint64(rp.Spec.Term), OldPrimary: rp.Status.OldPrimary, Message: "its coordinator died before the end"}
	for _, c := range shard.RecordOf(sh).Cohorts {
		if c.Term == res.Term && c.Term == shard.RecordOf(sh).Established {
			res.Outcome, res.NewPrimary = reparent.Succeeded, c.Primary
			res.Message = "established; its coordinator died before it could say so"
		}
	}
	return reconcile.Result{}, r.close(ctx, rp, res)
}

// collect removes ended Reparents of the shard beyond the number and the age to keep.
func (r *Reconciler) collect(ctx context.Context, rp *v1alpha1.Reparent) (reconcile.Result, error) {
	list := &v1alpha1.ReparentList{}
	if err := r.Runner.Client.List(ctx, list, client.InNamespace(rp.Namespace), client.MatchingFields{shard.IndexReparentShard: rp.Spec.Shard}); err != nil {
		return reconcile.Result{}, err
	}
	for _, old := range expired(list.Items, r.Keep, r.Runner.Clock.Now().Add(-r.KeepFor)) {
		if err := r.Runner.Client.Delete(ctx, &old); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{RequeueAfter: max(r.KeepFor-r.Runner.Clock.Since(rp.CreationTimestamp.Time), time.Minute)}, nil
}

// expired are the ended ones that are older than before, or beyond the newest keep. The one of the highest term always
// stays: it shows that its term is spent. So does the highest that was opened, whatever was asked for above it.
func expired(items []v1alpha1.Reparent, keep int, before time.Time) []v1alpha1.Reparent {
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b v1alpha1.Reparent) int { return cmp.Compare(b.Spec.Term, a.Spec.Term) })
	highest := slices.IndexFunc(items, func(rp v1alpha1.Reparent) bool { return rp.Opened() })
	var out []v1alpha1.Reparent
	for n, rp := range items {
		if n > 0 && n != highest && rp.Status.Outcome != "" && rp.DeletionTimestamp.IsZero() && (n >= keep || rp.CreationTimestamp.Time.Before(before)) {
			out = append(out, rp)
		}
	}
	return out
}
