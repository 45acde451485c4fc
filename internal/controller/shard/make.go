package shard

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
)

// Surge says for whom an instance is made that takes another one's place.
type Surge struct {
	// Replacement it is made for.
	Replacement string
	// Replaces is the instance that goes: the surge may share its node until then.
	Replaces string
	// Node and Zone of the instance that goes; empty when they are not known. The surge prefers the zone.
	Node, Zone string
	// Avoid keeps it off Node: the node goes, too. Without it another node is preferred.
	Avoid bool
}

// Make makes an instance of that name to take another one's place, volume first; what is there already is left as it is. It
// reports whether it made anything. The error is an AlreadyExists when the name belongs to somebody else.
func Make(ctx context.Context, c client.Client, shard *v1alpha1.Shard, name string, surge Surge) (bool, error) {
	claim := newClaim(shard, name)
	claim.Labels[v1alpha1.LabelReplacement] = surge.Replacement
	err := createClaim(ctx, c, shard, claim)
	if apierrors.IsAlreadyExists(err) {
		if ours(ctx, c, shard, claim, surge.Replacement) {
			err = nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("claim %s: %w", name, err)
	}
	return createPod(ctx, c, shard, newPod(shard, name, &surge))
}

// ours reports whether the claim that exists was made for the same replacement.
func ours(ctx context.Context, c client.Client, shard *v1alpha1.Shard, claim *corev1.PersistentVolumeClaim, replacement string) bool {
	have := &corev1.PersistentVolumeClaim{}
	if err := c.Get(ctx, client.ObjectKeyFromObject(claim), have); err != nil {
		return apierrors.IsNotFound(err) // made a moment ago; the cache does not show it yet
	}
	return OwnsClaim(shard, have) && have.Labels[v1alpha1.LabelReplacement] == replacement
}

func createClaim(ctx context.Context, c client.Client, shard *v1alpha1.Shard, claim *corev1.PersistentVolumeClaim) error {
	claim.Annotations = map[string]string{v1alpha1.AnnotationShardUID: string(shard.UID)}
	return c.Create(ctx, claim)
}

// OwnsClaim reports whether the claim belongs to an instance of this very shard. One that was kept of an earlier shard of the
// same name has its labels, and is nobody's to touch.
func OwnsClaim(shard *v1alpha1.Shard, claim *corev1.PersistentVolumeClaim) bool {
	return claim.Annotations[v1alpha1.AnnotationShardUID] == string(shard.UID) && shard.UID != "" || metav1.IsControlledBy(claim, shard)
}

// createPod makes the Pod unless it exists: made by the reconcile before this one, and the cache does not show it yet.
func createPod(ctx context.Context, c client.Client, shard *v1alpha1.Shard, pod *corev1.Pod) (bool, error) {
	if err := controllerutil.SetControllerReference(shard, pod, c.Scheme()); err != nil {
		return false, err
	}
	err := c.Create(ctx, pod)
	if apierrors.IsAlreadyExists(err) {
		return false, nil
	}
	return err == nil, err
}
