package lifetime

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/lifetime"
)

// plan is that of all instances with one maximum age.
type plan struct {
	lifetime.Plan
	maxAge    time.Duration
	instances []instance // what the slots index
}

// latestTook is how many of the latest durations the lead is measured from.
const latestTook = 500

// latest are the durations of the replacements that ended last; a cache lists them in no order.
func latest(all []lasted) []time.Duration {
	all = slices.SortedFunc(slices.Values(all), func(a, b lasted) int { return b.ended.Compare(a.ended) })
	var out []time.Duration
	for _, l := range all[:min(len(all), latestTook)] {
		out = append(out, l.took)
	}
	return out
}

// plans are made anew from what there is, the shortest maximum age first.
func (w *world) plans() []plan {
	took := latest(w.took)
	var out []plan
	for age, instances := range w.instances {
		slices.SortFunc(instances, func(a, b instance) int { return cmp.Compare(a.id, b.id) })
		objs := make([]lifetime.Object, len(instances))
		for i, in := range instances {
			objs[i] = lifetime.Object{
				ID: in.id, Group: in.shard.Namespace + "/" + in.shard.Name, Zone: in.zone, CreatedAt: in.born, InFlight: in.begun,
			}
		}
		lead := lifetime.Lead(took, age/100, age)
		policy := lifetime.Policy{
			MaxAge: age, Lead: lead, Service: lifetime.Service(took, lead/4), Freeze: w.freeze, FrozenZones: w.zones, Tick: longest,
		}
		out = append(out, plan{Plan: lifetime.Make(objs, policy, w.now), maxAge: age, instances: instances})
	}
	slices.SortFunc(out, func(a, b plan) int { return cmp.Compare(a.maxAge, b.maxAge) })
	return out
}

// next is when the plan should be looked at again: when the first that has not been asked for is due, and often enough to see
// what is new.
func (p *plan) next(now time.Time) time.Duration {
	next := min(max(p.maxAge/30, shortest), longest)
	for _, s := range p.Slots {
		if !s.Due && s.Frozen == "" {
			return min(next, max(s.Start.Sub(now), shortest))
		}
	}
	return next
}

// tell says of every shard whether its plan holds and whether it is frozen.
func (p *plan) tell(w *world, into map[types.NamespacedName][]metav1.Condition) {
	type judged struct{ overdue, frozen, why string }
	of := map[types.NamespacedName]*judged{}
	at := func(in instance) *judged {
		key := client.ObjectKeyFromObject(in.shard)
		if of[key] == nil {
			of[key] = &judged{}
		}
		return of[key]
	}
	for _, in := range p.instances {
		j := at(in)
		if late := w.now.Sub(in.born) - p.maxAge; late > 0 {
			j.overdue = fmt.Sprintf("%s is older than the maximum age of %s", in.name, p.maxAge)
		}
	}
	for _, s := range p.Slots {
		if s.Frozen != "" {
			in := p.instances[s.Index]
			at(in).frozen = in.name
			at(in).why = s.Frozen
		}
	}
	for key, j := range of {
		holds := condition(v1alpha1.ConditionPlanHolds, true, string(p.Reason), fmt.Sprintf("no instance gets older than %s", p.maxAge))
		switch {
		case j.overdue != "":
			holds = condition(v1alpha1.ConditionPlanHolds, false, string(lifetime.DeadlineMissed), j.overdue)
		case p.Reason == lifetime.DeadlineMissed:
			holds.Reason = string(lifetime.Holds) // it is another shard's
		case !p.Holds:
			holds = condition(v1alpha1.ConditionPlanHolds, false, string(p.Reason), p.Message)
		}
		frozen := condition(v1alpha1.ConditionFrozen, false, "Going", "instances go when they are due")
		if j.frozen != "" {
			frozen = condition(v1alpha1.ConditionFrozen, true, "Frozen", fmt.Sprintf("%s should be replaced for its age and is not: %s", j.frozen, j.why))
		}
		into[key] = []metav1.Condition{holds, frozen}
	}
}

func condition(kind string, status bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message}
	if status {
		c.Status = metav1.ConditionTrue
	}
	return c
}
