package nodepolicy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// agingShare of the maximum age is how long before it goes a node is called aging: an instance that came to it now would
// soon have to be copied once more.
const agingShare = 8

// aging are the nodes that go soon, or are on their way out, by name.
func (pl *planned) aging(p *v1alpha1.NodePolicy, now time.Time) map[string]bool {
	out := map[string]bool{}
	for _, s := range pl.Slots {
		if s.Start.Sub(now) < p.Spec.MaxAge.Duration/agingShare {
			out[pl.nodes[s.Index].Name] = true
		}
	}
	for _, n := range pl.nodes {
		if rot := rotationOf(&p.Status, n); rot != nil && underWay(rot) {
			out[n.Name] = true
		}
	}
	return out
}

// mark labels the nodes that are aging, and no others. It leaves alone those that are another policy's; those that are
// nobody's, or several policies', have no plan, so no label says that they go.
func (r *Reconciler) mark(ctx context.Context, w *world, aging map[string]bool) error {
	var errs error
	for name, node := range w.nodes {
		_, has := node.Labels[v1alpha1.LabelAging]
		if w.elsewhere[name] || has == aging[name] {
			continue
		}
		patch := client.MergeFrom(node.DeepCopy())
		if has {
			delete(node.Labels, v1alpha1.LabelAging)
		} else {
			if node.Labels == nil {
				node.Labels = map[string]string{}
			}
			node.Labels[v1alpha1.LabelAging] = "true"
		}
		if err := r.Client.Patch(ctx, node, patch); client.IgnoreNotFound(err) != nil {
			errs = errors.Join(errs, fmt.Errorf("labelling node %s: %w", name, err))
		}
	}
	return errs
}
