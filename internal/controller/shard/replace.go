package shard

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/recorder"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/clip"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/replacement"
)

// Pauses before an instance is asked to go again whose replacement for the same reason ended without it gone, doubling.
const (
	askAgain     = time.Minute
	askAgainMost = 30 * time.Minute
)

// Ask is a replacement that is wanted.
type Ask struct {
	Instance string
	Reason   v1alpha1.Reason
	Message  string
	// Deadline by which it should be gone; zero is none.
	Deadline time.Time
}

// Replace asks for the replacement of an instance. It may be called again and again: the name of the Replacement follows
// from instance and reason, and one that is under way for whatever reason does the same. It returns the one it made, or
// nil.
func Replace(ctx context.Context, c client.Client, clk clock.PassiveClock, shard *v1alpha1.Shard, a Ask) (*v1alpha1.Replacement, error) {
	list := &v1alpha1.ReplacementList{}
	if err := c.List(ctx, list, client.InNamespace(shard.Namespace), client.MatchingFields{IndexReplacementShard: shard.Name}); err != nil {
		return nil, err
	}
	ended, ok := mayAsk(list.Items, a, clk.Now())
	if !ok {
		return nil, nil //nolint:nilnil // nobody asks for what was not made
	}
	rp := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: shard.Namespace, Name: names.Replacement(a.Instance, string(a.Reason), ended),
			Labels:     map[string]string{v1alpha1.LabelDatabase: shard.Spec.Database, v1alpha1.LabelShard: shard.Name, v1alpha1.LabelInstance: a.Instance},
			Finalizers: []string{v1alpha1.Finalizer},
		},
		Spec: v1alpha1.ReplacementSpec{Shard: shard.Name, Instance: a.Instance, Reason: a.Reason, Message: clip.Bytes(a.Message, 1000)},
	}
	if !a.Deadline.IsZero() {
		rp.Spec.Deadline = &metav1.Time{Time: a.Deadline}
	}
	if err := controllerutil.SetControllerReference(shard, rp, c.Scheme()); err != nil {
		return nil, err
	}
	for range ended + 2 {
		err := c.Create(ctx, rp)
		if !apierrors.IsAlreadyExists(err) {
			return rp, err
		}
		// It was made a moment ago and the cache does not show it yet; or older ones were deleted, and the count is behind the names.
		have := &v1alpha1.Replacement{}
		if err := c.Get(ctx, client.ObjectKeyFromObject(rp), have); err != nil || !replacement.FromObject(have.Status).Phase.Finished() {
			return nil, client.IgnoreNotFound(err)
		}
		ended++
		rp.Name, rp.ResourceVersion = names.Replacement(a.Instance, string(a.Reason), ended), ""
	}
	return nil, fmt.Errorf("no name left for another replacement of %s (%s): ended ones have them", a.Instance, a.Reason)
}

// CondemnInstance asks for the replacement of an instance that is judged to misbehave. It is the one way from a verdict to a
// repair. It reports whether it asked.
func CondemnInstance(ctx context.Context, c client.Client, events recorder.EventRecorder, clk clock.PassiveClock, shard *v1alpha1.Shard, instance, why string) (bool, error) {
	rp, err := Replace(ctx, c, clk, shard, Ask{Instance: instance, Reason: v1alpha1.ReasonCondemned, Message: why})
	if rp == nil || err != nil {
		return false, err
	}
	events.Eventf(shard, rp, corev1.EventTypeWarning, "Condemned", "Condemn", "Instance %s is condemned: %s", instance, why)
	return true, nil
}

// mayAsk reports whether no replacement of the instance is under way or ended just now, and how many for the same reason
// have ended.
func mayAsk(list []v1alpha1.Replacement, a Ask, now time.Time) (ended int, ok bool) {
	var last time.Time
	for i := range list {
		rp := &list[i]
		st := replacement.FromObject(rp.Status)
		if st.Successor == a.Instance && !st.Phase.Finished() {
			return 0, false // the replacement it was made for sees to it
		}
		if rp.Spec.Instance != a.Instance {
			continue
		}
		switch {
		case !st.Phase.Finished() && (rp.Spec.Reason == a.Reason || !st.AdmittedAt.IsZero()):
			return 0, false
		case st.Phase.Finished() && rp.Spec.Reason == a.Reason:
			ended++
			if st.FinishedAt.After(last) {
				last = st.FinishedAt
			}
		}
	}
	if ended == 0 {
		return 0, true
	}
	return ended, now.Sub(last) >= min(askAgain<<min(ended-1, 10), askAgainMost)
}
