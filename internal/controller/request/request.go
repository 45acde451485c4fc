// Package request asks for replacements on account of a node, and takes them back. Drains and expiring nodes do nothing
// else to instances; what happens then is the replacement's business.
//
// The name of a request follows from the instance and the reason, so that asking twice asks once.
package request

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	corev1 "k8s.io/api/core/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/clip"
	"theseus.dev/theseus/internal/names"
)

// RetryAfter is how long a replacement that failed stays before it is asked for again.
const RetryAfter = time.Minute

// IndexInstance is the cache's index of Replacements by their instance.
const IndexInstance = "request.instance"

// IndexNode is the cache's index of instances' Pods by their node.
const IndexNode = "request.node"

// Index adds the indexes this package and its users list by.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	if err := indexer.IndexField(ctx, &v1alpha1.Replacement{}, IndexInstance, func(o client.Object) []string {
		return []string{o.(*v1alpha1.Replacement).Spec.Instance} //nolint:forcetypeassert // the indexer is given no other kind
	}); err != nil {
		return err
	}
	return indexer.IndexField(ctx, &corev1.Pod{}, IndexNode, func(o client.Object) []string {
		p := o.(*corev1.Pod) //nolint:forcetypeassert // the indexer is given no other kind
		if p.Spec.NodeName == "" {
			return nil
		}
		return []string{p.Spec.NodeName}
	})
}

// Requests asks through Client, whose cache has the indexes.
type Requests struct {
	Client client.Client
}

// Ask is what is wanted of one instance.
type Ask struct {
	// Pod of the instance that should go.
	Pod *corev1.Pod
	// Reason and Message of the Replacement.
	Reason  v1alpha1.Reason
	Message string
	// Deadline by which it should be gone; zero is none.
	Deadline time.Time
}

// Name of the Replacement of an instance for a reason.
func Name(instance string, reason v1alpha1.Reason) string {
	return names.Replacement(instance, string(reason), 0)
}

// Instances are the Pods of instances on a node that are not over yet; surges on their way to it are among them.
func (r Requests) Instances(ctx context.Context, node string) ([]corev1.Pod, error) {
	return r.pods(ctx, node, v1alpha1.ComponentInstance)
}

// Gateways are the Pods of gateways on a node that are not over yet.
func (r Requests) Gateways(ctx context.Context, node string) ([]corev1.Pod, error) {
	return r.pods(ctx, node, v1alpha1.ComponentGateway)
}

func (r Requests) pods(ctx context.Context, node, component string) ([]corev1.Pod, error) {
	list := &corev1.PodList{}
	if err := r.Client.List(ctx, list, client.MatchingFields{IndexNode: node}, client.MatchingLabels{v1alpha1.LabelComponent: component}); err != nil {
		return nil, err
	}
	var out []corev1.Pod
	for i := range list.Items {
		if p := &list.Items[i]; p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
			out = append(out, *p)
		}
	}
	return out, nil
}

// Of lists the Replacements of an instance.
func (r Requests) Of(ctx context.Context, pod *corev1.Pod) ([]v1alpha1.Replacement, error) {
	list := &v1alpha1.ReplacementList{}
	err := r.Client.List(ctx, list, client.InNamespace(pod.Namespace), client.MatchingFields{IndexInstance: pod.Name})
	return list.Items, err
}

// Finished reports whether nothing more will happen to a Replacement.
func Finished(rp *v1alpha1.Replacement) bool { return rp.Status.Outcome != "" }

// Waiting reports whether a Replacement has not begun.
func Waiting(rp *v1alpha1.Replacement) bool {
	return !Finished(rp) && rp.Status.AdmittedAt == nil
}

// Make asks for the replacement of an instance unless one has begun, for whatever reason, or waits for this one. One
// that failed is asked for again after RetryAfter. It reports whether it asked, and returns the one to look at.
func (r Requests) Make(ctx context.Context, a Ask, now time.Time) (rp *v1alpha1.Replacement, asked bool, err error) {
	have, err := r.Of(ctx, a.Pod)
	if err != nil {
		return nil, false, err
	}
	name := Name(a.Pod.Name, a.Reason)
	for i := range have {
		h := &have[i]
		switch {
		case h.DeletionTimestamp != nil:
		case !Finished(h) && (h.Name == name || !Waiting(h)):
			return h, false, nil
		case h.Name == name && h.Status.FinishedAt != nil && now.Sub(h.Status.FinishedAt.Time) < RetryAfter:
			return h, false, nil
		case h.Name == name:
			// It comes back under the same name at the next look.
			return h, false, r.remove(ctx, h)
		}
	}
	shard := &v1alpha1.Shard{}
	if err := r.Client.Get(ctx, client.ObjectKey{Namespace: a.Pod.Namespace, Name: a.Pod.Labels[v1alpha1.LabelShard]}, shard); err != nil {
		return nil, false, client.IgnoreNotFound(err) // nothing is replaced in a shard that is gone
	}
	if shard.DeletionTimestamp != nil || !metav1.IsControlledBy(a.Pod, shard) {
		return nil, false, nil
	}
	rp = &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: a.Pod.Namespace, Name: name,
			Labels:      map[string]string{v1alpha1.LabelDatabase: shard.Spec.Database, v1alpha1.LabelShard: shard.Name, v1alpha1.LabelInstance: a.Pod.Name},
			Annotations: map[string]string{v1alpha1.AnnotationNode: a.Pod.Spec.NodeName},
		},
		Spec: v1alpha1.ReplacementSpec{Shard: shard.Name, Instance: a.Pod.Name, Reason: a.Reason, Message: clip.Bytes(a.Message, maxMessage)},
	}
	if !a.Deadline.IsZero() {
		rp.Spec.Deadline = &metav1.Time{Time: a.Deadline}
	}
	if err := controllerutil.SetControllerReference(shard, rp, r.Client.Scheme()); err != nil {
		return nil, false, err
	}
	err = r.Client.Create(ctx, rp)
	if apierrors.IsAlreadyExists(err) {
		return rp, false, nil // the cache was behind
	}
	return rp, err == nil, err
}

// maxMessage is the API's limit of ReplacementSpec.Message.
const maxMessage = 1024

// Withdraw takes back what Make asked for, as long as it has not begun. It reports whether it did.
func (r Requests) Withdraw(ctx context.Context, pod *corev1.Pod, reason v1alpha1.Reason) (bool, error) {
	have, err := r.Of(ctx, pod)
	if err != nil {
		return false, err
	}
	for i := range have {
		h := &have[i]
		if h.Name == Name(pod.Name, reason) && h.DeletionTimestamp == nil && Waiting(h) {
			err := r.remove(ctx, h)
			return err == nil, err
		}
	}
	return false, nil
}

// remove deletes exactly what was seen: one that has begun since is another version and stays.
func (r Requests) remove(ctx context.Context, rp *v1alpha1.Replacement) error {
	err := r.Client.Delete(ctx, rp, client.Preconditions{UID: &rp.UID, ResourceVersion: &rp.ResourceVersion})
	if apierrors.IsConflict(err) {
		return nil // looked at again when the change arrives
	}
	return client.IgnoreNotFound(err)
}
