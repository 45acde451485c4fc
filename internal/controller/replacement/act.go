package replacement

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/replacement"
)

// act carries an action out. Its status is stored; doing it twice does no harm.
func (r *Reconciler) act(ctx context.Context, w *world, rp *v1alpha1.Replacement, a replacement.Action) error {
	var err error
	switch a.Kind {
	case replacement.Surge:
		err = r.surge(ctx, w, rp, a)
	case replacement.Planned, replacement.Emergency:
		err = r.reparent(ctx, w, rp, a)
	case replacement.Stop:
		err = r.stop(ctx, w, rp, a.Instance, a.Force)
	case replacement.DeleteVolume:
		err = r.deleteVolume(ctx, w, a.Instance)
	case replacement.RetireSurge:
		err = r.retireSurge(ctx, w, rp, a)
	case replacement.Wait, replacement.Swap, replacement.Finish:
		// The cohort's keeper reads from the stored phase whom to take out.
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", a.Kind, a.Instance, err)
	}
	return nil
}

func (r *Reconciler) surge(ctx context.Context, w *world, rp *v1alpha1.Replacement, a replacement.Action) error {
	s := shard.Surge{
		Replacement: rp.Name, Replaces: rp.Spec.Instance, Node: rp.Status.Node, Zone: rp.Status.Zone,
		Avoid: rp.Spec.Reason == v1alpha1.ReasonNodeExpiring || rp.Spec.Reason == v1alpha1.ReasonDraining,
	}
	made, err := shard.Make(ctx, r.Client, w.shard, a.Instance, s)
	if made {
		r.event(w.shard, rp, corev1.EventTypeNormal, "InstanceCreated", a.Kind, "Instance %s: to replace %s (%s)", a.Instance, rp.Spec.Instance, rp.Spec.Reason)
	}
	return err
}

// reparentPause is the time between a reparent that failed and the next, doubling: what was missing may come.
const reparentPause = 2 * time.Second

// reparent asks for a reparent away from the instance. Two requests for one term are one: the name is the lock.
func (r *Reconciler) reparent(ctx context.Context, w *world, rp *v1alpha1.Replacement, a replacement.Action) error {
	failures := w.observed.Reparent.Failures
	if failures > 0 && r.Clock.Since(w.failed) < reparentPause<<min(failures-1, 5) {
		return nil
	}
	live := &v1alpha1.Shard{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(w.shard), live); err != nil {
		return err
	}
	if shard.RecordOf(live).Primary() != a.Instance {
		return nil // somebody else was faster
	}
	term := live.Status.Term
	for i := range w.reparents {
		term = max(term, w.reparents[i].Spec.Term)
	}
	one := &v1alpha1.Reparent{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: rp.Namespace, Name: names.Reparent(w.shard.Name, uint64(term+1)),
			Labels: map[string]string{
				v1alpha1.LabelDatabase: w.shard.Spec.Database, v1alpha1.LabelShard: w.shard.Name, v1alpha1.LabelReplacement: rp.Name,
			},
		},
		Spec: v1alpha1.ReparentSpec{
			Shard: w.shard.Name, Term: term + 1, Kind: v1alpha1.ReparentPlanned, Reason: string(rp.Spec.Reason),
			AwayFrom: a.Instance, ExpectPrimary: a.Instance,
		},
	}
	if a.Kind == replacement.Emergency {
		one.Spec.Kind = v1alpha1.ReparentEmergency
	}
	// The successor is the youngest there is. When it could not take over, the best placed of all may.
	if failures == 0 {
		one.Spec.To = a.To
	}
	if err := controllerutil.SetControllerReference(w.shard, one, r.Client.Scheme()); err != nil {
		return err
	}
	err := r.Client.Create(ctx, one)
	if apierrors.IsAlreadyExists(err) {
		return nil // a reparent is under way that the cache does not show yet
	}
	return err
}

// stop deletes a Pod: this one, not another of its name.
func (r *Reconciler) stop(ctx context.Context, w *world, rp *v1alpha1.Replacement, name string, force bool) error {
	pod := &corev1.Pod{}
	if err := r.Live.Get(ctx, client.ObjectKey{Namespace: rp.Namespace, Name: name}, pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !metav1.IsControlledBy(pod, w.shard) || !pod.DeletionTimestamp.IsZero() && !force {
		return nil
	}
	opts := []client.DeleteOption{client.Preconditions{UID: &pod.UID}}
	if force {
		opts = append(opts, client.GracePeriodSeconds(0))
	}
	err := r.Client.Delete(ctx, pod, opts...)
	if err == nil {
		r.event(w.shard, rp, corev1.EventTypeNormal, "InstanceRemoved", replacement.Stop, "Instance %s: replaced (%s)", name, rp.Spec.Reason)
	}
	return client.IgnoreNotFound(err)
}

func (r *Reconciler) deleteVolume(ctx context.Context, w *world, name string) error {
	claim := &corev1.PersistentVolumeClaim{}
	if err := r.Live.Get(ctx, client.ObjectKey{Namespace: w.shard.Namespace, Name: name}, claim); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !metav1.IsControlledBy(claim, w.shard) || !claim.DeletionTimestamp.IsZero() {
		return nil
	}
	return client.IgnoreNotFound(r.Client.Delete(ctx, claim, client.Preconditions{UID: &claim.UID}))
}

// retireSurge takes a surge back, Pod first.
func (r *Reconciler) retireSurge(ctx context.Context, w *world, rp *v1alpha1.Replacement, a replacement.Action) error {
	if err := r.stop(ctx, w, rp, a.Instance, a.Force); err != nil {
		return err
	}
	return r.deleteVolume(ctx, w, a.Instance)
}
