package shard

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/recorder"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/replacement"
)

// Pauses before an instance is condemned again whose replacement ended without it gone, doubling.
const (
	condemnAgain     = time.Minute
	condemnAgainMost = 30 * time.Minute
)

// CondemnInstance asks for the replacement of an instance that is judged to misbehave. It is the one way from a verdict to a
// repair, and may be called again and again: the name of the Replacement follows from the instance, and one that is
// under way for whatever reason does the same. It reports whether it made one.
func CondemnInstance(ctx context.Context, c client.Client, events recorder.EventRecorder, clk clock.PassiveClock, shard *v1alpha1.Shard, instance, why string) (bool, error) {
	list := &v1alpha1.ReplacementList{}
	if err := c.List(ctx, list, client.InNamespace(shard.Namespace), client.MatchingFields{IndexReplacementShard: shard.Name}); err != nil {
		return false, err
	}
	ended, ok := mayCondemn(list.Items, instance, clk.Now())
	if !ok {
		return false, nil
	}
	rp := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: shard.Namespace, Name: names.Replacement(instance, string(v1alpha1.ReasonCondemned), ended),
			Labels:     map[string]string{v1alpha1.LabelDatabase: shard.Spec.Database, v1alpha1.LabelShard: shard.Name},
			Finalizers: []string{v1alpha1.Finalizer},
		},
		Spec: v1alpha1.ReplacementSpec{Shard: shard.Name, Instance: instance, Reason: v1alpha1.ReasonCondemned, Message: clip(why, 1000)},
	}
	if err := controllerutil.SetControllerReference(shard, rp, c.Scheme()); err != nil {
		return false, err
	}
	if err := c.Create(ctx, rp); err != nil {
		if apierrors.IsAlreadyExists(err) {
			return false, nil // made a moment ago; the cache does not show it yet
		}
		return false, err
	}
	events.Eventf(shard, rp, corev1.EventTypeWarning, "Condemned", "Condemn", "Instance %s is condemned: %s", instance, why)
	return true, nil
}

// mayCondemn reports whether no replacement of the instance is under way or ended just now, and how many condemnations of
// it have ended.
func mayCondemn(list []v1alpha1.Replacement, instance string, now time.Time) (ended int, ok bool) {
	var last time.Time
	for i := range list {
		rp := &list[i]
		st := replacement.FromObject(rp.Status)
		if st.Successor == instance && !st.Phase.Finished() {
			return 0, false // the replacement it was made for sees to it
		}
		if rp.Spec.Instance != instance {
			continue
		}
		switch {
		case !st.Phase.Finished() && (rp.Spec.Reason == v1alpha1.ReasonCondemned || !st.AdmittedAt.IsZero()):
			return 0, false
		case st.Phase.Finished() && rp.Spec.Reason == v1alpha1.ReasonCondemned:
			ended++
			if st.FinishedAt.After(last) {
				last = st.FinishedAt
			}
		}
	}
	if ended == 0 {
		return 0, true
	}
	return ended, now.Sub(last) >= min(condemnAgain<<min(ended-1, 10), condemnAgainMost)
}
