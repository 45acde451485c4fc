// Package owned creates and updates the objects a controller owns, and refuses to touch what somebody else made.
package owned

import (
	"context"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// TakenError says that a name is in use by an object that is not ours.
type TakenError struct {
	Kind, Name string
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("%s %s exists and was not made by Theseus for this object: rename or delete it", e.Kind, e.Name)
}

// Apply brings obj to what mutate makes of it: created when absent, updated when mutate changes it. Owner becomes its
// controller. An existing object with another controller, or with none, is a *TakenError. What c reads from may be a cache
// of labelled objects only; live reads where nothing is hidden, and is asked only when a creation says that there is more.
func Apply(ctx context.Context, c client.Client, live client.Reader, owner, obj client.Object, mutate func()) (controllerutil.OperationResult, error) {
	result, err := controllerutil.CreateOrUpdate(ctx, c, obj, func() error {
		if obj.GetResourceVersion() != "" && !metav1.IsControlledBy(obj, owner) {
			return taken(c, obj)
		}
		mutate()
		return controllerutil.SetControllerReference(owner, obj, c.Scheme())
	})
	return result, Exists(ctx, c, live, owner, obj, err)
}

// Exists says what it means when err, of creating obj for owner, is that there is one: a *TakenError when it is somebody
// else's. When it is the owner's, obj was made a moment ago, or its labels were taken off and the cache does not show it for
// that: they are put back, and err stays what it is, a lost race. So does any other error.
func Exists(ctx context.Context, c client.Client, live client.Reader, owner, obj client.Object, err error) error {
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	gvk, gvkErr := c.GroupVersionKindFor(obj)
	if gvkErr != nil {
		return gvkErr
	}
	// No more of it than whose it is: what is in the Secrets of others is not for us.
	have := &metav1.PartialObjectMetadata{}
	have.SetGroupVersionKind(gvk)
	if getErr := live.Get(ctx, client.ObjectKeyFromObject(obj), have); getErr != nil {
		if apierrors.IsNotFound(getErr) {
			return err // gone again
		}
		return getErr
	}
	if !metav1.IsControlledBy(have, owner) {
		return taken(c, obj)
	}
	before := have.DeepCopy()
	SetLabels(have, obj.GetLabels())
	if !maps.Equal(before.Labels, have.Labels) {
		if patchErr := c.Patch(ctx, have, client.MergeFrom(before)); client.IgnoreNotFound(patchErr) != nil {
			return patchErr
		}
	}
	return err
}

func taken(c client.Client, obj client.Object) error {
	gvk, err := c.GroupVersionKindFor(obj)
	if err != nil {
		return err
	}
	return &TakenError{Kind: gvk.Kind, Name: obj.GetName()}
}

// Delete removes obj when it exists and owner controls it; it is no error when it does not exist.
func Delete(ctx context.Context, c client.Client, owner, obj client.Object) (deleted bool, err error) {
	if err := c.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	if !metav1.IsControlledBy(obj, owner) || !obj.GetDeletionTimestamp().IsZero() {
		return false, nil
	}
	uid := obj.GetUID()
	err = c.Delete(ctx, obj, client.Preconditions{UID: &uid})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// SetLabels adds labels to obj, keeping others.
func SetLabels(obj client.Object, labels map[string]string) {
	have := obj.GetLabels()
	if have == nil {
		have = map[string]string{}
	}
	for k, v := range labels {
		have[k] = v
	}
	obj.SetLabels(have)
}
