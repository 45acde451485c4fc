// Package owned creates and updates the objects a controller owns, and refuses to touch what somebody else made.
package owned

import (
	"context"
	"fmt"

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
// controller. An existing object with another controller, or with none, is a *TakenError.
func Apply(ctx context.Context, c client.Client, owner, obj client.Object, mutate func()) (controllerutil.OperationResult, error) {
	return controllerutil.CreateOrUpdate(ctx, c, obj, func() error {
		if obj.GetResourceVersion() != "" && !metav1.IsControlledBy(obj, owner) {
			gvk, err := c.GroupVersionKindFor(obj)
			if err != nil {
				return err
			}
			return &TakenError{Kind: gvk.Kind, Name: obj.GetName()}
		}
		mutate()
		return controllerutil.SetControllerReference(owner, obj, c.Scheme())
	})
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
