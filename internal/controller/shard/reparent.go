package shard

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/reparent"
)

// SpentTerm is the highest term of a shard that is not free any more; known is the highest that is known otherwise. The Reparents
// are the shard's.
func SpentTerm(known uint64, reparents []v1alpha1.Reparent) uint64 {
	var requested []uint64
	for i := range reparents {
		if term := uint64(reparents[i].Spec.Term); reparents[i].Opened() {
			known = max(known, term)
		} else {
			requested = append(requested, term)
		}
	}
	return reparent.SpentTerm(known, requested)
}

// AskReparent asks for a reparent of the shard in its next term, which is filled in; replacement names the Replacement it
// is for, if any. It reports whether it did: not when the shard has another primary than is expected, and not when a
// reparent is under way. Two requests for one term are one: the name is the lock.
func AskReparent(ctx context.Context, c client.Client, live client.Reader, key types.NamespacedName, spec v1alpha1.ReparentSpec, replacement string) (bool, error) {
	shard := &v1alpha1.Shard{}
	if err := live.Get(ctx, key, shard); err != nil {
		return false, err
	}
	if spec.ExpectPrimary != "" && RecordOf(shard).Primary() != spec.ExpectPrimary {
		return false, nil
	}
	list := &v1alpha1.ReparentList{}
	if err := c.List(ctx, list, client.InNamespace(key.Namespace), client.MatchingFields{IndexReparentShard: key.Name}); err != nil {
		return false, err
	}
	for i := range list.Items {
		if one := &list.Items[i]; one.Status.Outcome == "" && one.Spec.Term > shard.Status.Record.EstablishedTerm {
			return false, nil
		}
	}
	spec.Shard, spec.Term = key.Name, int64(SpentTerm(uint64(shard.Status.Term), list.Items))+1
	one := &v1alpha1.Reparent{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: names.Reparent(key.Name, uint64(spec.Term)),
			Labels: map[string]string{v1alpha1.LabelDatabase: shard.Spec.Database, v1alpha1.LabelShard: shard.Name},
		},
		Spec: spec,
	}
	if replacement != "" {
		one.Labels[v1alpha1.LabelReplacement] = replacement
	}
	if err := controllerutil.SetControllerReference(shard, one, c.Scheme()); err != nil {
		return false, err
	}
	err := c.Create(ctx, one)
	if apierrors.IsAlreadyExists(err) {
		return false, nil // the cache does not show it yet
	}
	return err == nil, err
}
