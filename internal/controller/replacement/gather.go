package replacement

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/replacement"
)

// world is everything known about one replacement.
type world struct {
	shard *v1alpha1.Shard
	// status of the object, with what has become known of evidence since.
	status   *v1alpha1.ReplacementStatus
	observed replacement.Observed
	timeouts replacement.Timeouts
	// nodes and zones by instance.
	nodes, zones map[string]string
	// reparents of the shard; failed is when the last one of this replacement did.
	reparents []v1alpha1.Reparent
	failed    time.Time
	// why the ledger refuses, in a word.
	why string
}

// gather reads everything about the replacement with read: a cache, or the API server itself.
func (r *Reconciler) gather(ctx context.Context, read client.Reader, sh *v1alpha1.Shard, rp *v1alpha1.Replacement) (*world, error) {
	view, err := r.viewer.Look(ctx, read, sh)
	if err != nil {
		return nil, err
	}
	status := rp.Status.DeepCopy()
	if done, location := r.evidence.ended(rp); done {
		status.EvidenceDone, status.Evidence = true, location
	}
	w := &world{shard: sh, status: status, nodes: view.Nodes, zones: view.Zones, timeouts: r.Timeouts}
	if w.timeouts.Seed == 0 {
		w.timeouts.Seed = replacement.SeedFor(view.Copied)
	}
	w.observed = replacement.Observed{
		Now: r.Clock.Now(), Status: replacement.FromObject(*status),
		Request: replacement.Request{
			Instance: rp.Spec.Instance, Reason: rp.Spec.Reason, CreatedAt: rp.CreationTimestamp.Time,
			Cancel: !rp.DeletionTimestamp.IsZero(),
		},
		Wanted: view.Wanted, Primary: view.Primary, Writable: view.Writable, Instances: view.Instances,
		Source: view.Source(rp.Spec.Instance),
	}
	if err := r.gatherOthers(ctx, w, rp); err != nil {
		return nil, err
	}
	w.observed.FreshName, err = r.freshName(w, sh)
	return w, err
}

// gatherOthers adds what other replacements and the shard's reparents are about.
func (r *Reconciler) gatherOthers(ctx context.Context, w *world, rp *v1alpha1.Replacement) error {
	key := client.ObjectKeyFromObject(w.shard)
	replacements, reparents := &v1alpha1.ReplacementList{}, &v1alpha1.ReparentList{}
	if err := r.Client.List(ctx, replacements, client.InNamespace(key.Namespace), client.MatchingFields{shard.IndexReplacementShard: key.Name}); err != nil {
		return err
	}
	if err := r.Client.List(ctx, reparents, client.InNamespace(key.Namespace), client.MatchingFields{shard.IndexReparentShard: key.Name}); err != nil {
		return err
	}
	for _, other := range shard.UnderWay(replacements.Items) {
		if other.Name == rp.Name || !other.Admitted {
			continue
		}
		for i := range w.observed.Instances {
			if in := &w.observed.Instances[i]; in.Name == other.Instance || in.Name == other.Leaving {
				in.Leaving = true
			}
		}
	}
	w.reparents = reparents.Items
	for i := range w.reparents {
		one := &w.reparents[i]
		switch {
		case one.Status.Outcome == "":
			if one.Spec.Term > w.shard.Status.Record.EstablishedTerm {
				w.observed.Reparent.InFlight = true
			}
		case one.CreationTimestamp.Before(&rp.CreationTimestamp):
			// A drain that is repeated asks under the same name again: what its predecessor tried is no failure of this one.
		case one.Labels[v1alpha1.LabelReplacement] == rp.Name && one.Status.Outcome != v1alpha1.OutcomeSucceeded && one.Status.Outcome != v1alpha1.OutcomeOvertaken:
			w.observed.Reparent.Failures++
			if at := one.Status.FinishedAt; at != nil && at.After(w.failed) {
				w.failed = at.Time
			}
		}
	}
	return nil
}

// freshName draws one that nobody has.
func (r *Reconciler) freshName(w *world, sh *v1alpha1.Shard) (string, error) {
	for range 100 {
		name := names.Instance(sh.Name, r.Draw)
		if name != w.observed.Status.Successor && w.instance(name) == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("no free name found in %s", sh.Name)
}

func (w *world) instance(name string) *replacement.Instance {
	i := slices.IndexFunc(w.observed.Instances, func(in replacement.Instance) bool { return in.Name == name })
	if i < 0 {
		return nil
	}
	return &w.observed.Instances[i]
}

// never ends a replacement of an instance of which there was nothing left to replace when it was first looked at. Whether
// the shard has too few instances then is the shard controller's business.
func (w *world) never() (replacement.Decision, bool) {
	name, o := w.observed.Request.Instance, w.observed
	if o.Status.Phase != "" || w.instance(name) != nil || slices.Contains(shard.RecordOf(w.shard).Names(), name) {
		return replacement.Decision{}, false
	}
	s := o.Status
	s.Phase, s.PhaseStartedAt, s.FinishedAt = replacement.Failed, o.Now, o.Now
	s.Outcome, s.Message = "Failed", fmt.Sprintf("%s has no instance %s", w.shard.Name, name)
	if o.Request.Reason == v1alpha1.ReasonCondemned {
		s.Phase, s.Outcome, s.Message = replacement.Done, "Succeeded", name+" is gone already"
	}
	return replacement.Decision{Status: s, Action: replacement.Action{Kind: replacement.Finish}}, true
}
