package replacement

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
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
	if answer := apierrors.APIStatus(nil); errors.As(err, &answer) && !apierrors.IsConflict(err) {
		r.event(w.shard, rp, corev1.EventTypeWarning, shard.ReasonInstanceRefused, a.Kind, "The API server refuses %s, to replace %s (%s): %v", a.Instance, rp.Spec.Instance, rp.Spec.Reason, err)
	}
	return err
}

// reparentPause is the time between a reparent that failed and the next, doubling: what was missing may come.
const reparentPause = 2 * time.Second

// reparent asks for a reparent away from the instance.
func (r *Reconciler) reparent(ctx context.Context, w *world, rp *v1alpha1.Replacement, a replacement.Action) error {
	failures := w.observed.Reparent.Failures
	if failures > 0 && r.Clock.Since(w.failed) < reparentPause<<min(failures-1, 5) {
		return nil
	}
	spec := v1alpha1.ReparentSpec{Kind: v1alpha1.ReparentPlanned, Reason: string(rp.Spec.Reason), AwayFrom: a.Instance, ExpectPrimary: a.Instance}
	if a.Kind == replacement.Emergency {
		spec.Kind = v1alpha1.ReparentEmergency
	}
	// The successor is the youngest there is. When it could not take over, the best placed of all may.
	if failures == 0 {
		spec.To = a.To
	}
	_, err := shard.AskReparent(ctx, r.Client, r.Live, client.ObjectKeyFromObject(w.shard), spec, rp.Name)
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
	if !shard.OwnsClaim(w.shard, claim) || !claim.DeletionTimestamp.IsZero() {
		return nil
	}
	if err := shard.Retire(ctx, r.Client, client.ObjectKeyFromObject(w.shard), name); err != nil {
		return err
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
