package nodepolicy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/lifetime"
	"theseus.dev/theseus/internal/machine"
)

// How long rotations that ended are kept: all for an hour, in which they count for the rate of starts and keep failed nodes
// and zones at rest; and the last keptFinished of them for keepFinished, because what they took is the measure of how early
// the next have to begin. Their messages are clipped, so that all of them together stay small beside what an object may be.
const (
	keepAll      = time.Hour
	keepFinished = 7 * 24 * time.Hour
	keptFinished = 50
	longest      = 512
)

// forgotten leaves away the rotations that need not be kept any longer.
func forgotten(rotations []v1alpha1.NodeRotation, exists func(*v1alpha1.NodeRotation) bool, now time.Time) []v1alpha1.NodeRotation {
	var ended []time.Time
	for i := range rotations {
		if !underWay(&rotations[i]) {
			ended = append(ended, rotations[i].FinishedAt.Time)
		}
	}
	after := now.Add(-keepFinished)
	if len(ended) > keptFinished {
		slices.SortFunc(ended, func(a, b time.Time) int { return b.Compare(a) })
		after = later(after, ended[keptFinished])
	}
	return slices.DeleteFunc(rotations, func(r v1alpha1.NodeRotation) bool {
		return !underWay(&r) && !r.FinishedAt.After(after) && now.Sub(r.FinishedAt.Time) > keepAll && !(toldToGo(&r) && exists(&r))
	})
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// retryAfter is how long a node is left alone after its rotation failed: a forty-eighth of the maximum age, from 10 s to
// an hour.
func retryAfter(maxAge time.Duration) time.Duration {
	return min(max(maxAge/48, 10*time.Second), time.Hour)
}

// rotations that are under way have no end.
func underWay(r *v1alpha1.NodeRotation) bool { return r.FinishedAt == nil }

// toldToGo reports whether the provider was, or may have been, told to take the machine, and nobody has taken that back.
func toldToGo(r *v1alpha1.NodeRotation) bool {
	return r.Phase == string(machine.Replacing) || r.Phase == string(machine.RotFailed) && r.FailedIn == string(machine.Replacing)
}

// rotationOf finds the rotation of exactly this node.
func rotationOf(st *v1alpha1.NodePolicyStatus, node *corev1.Node) *v1alpha1.NodeRotation {
	for i := range st.Rotations {
		if r := &st.Rotations[i]; r.Node == node.Name && r.NodeUID == string(node.UID) {
			return r
		}
	}
	return nil
}

// left reports whether a node was emptied and left to people: there is no provider that would replace it.
func left(p *v1alpha1.NodePolicy, node *corev1.Node, pods int) bool {
	return p.Spec.Machine.Provider == v1alpha1.MachineNone && pods == 0 && node.Spec.Unschedulable
}

// planned is a lifetime plan of nodes.
type planned struct {
	lifetime.Plan
	// nodes that the plan's slots index.
	nodes []*corev1.Node
	// overdue are those that are older than allowed now.
	overdue []types.UID
	// resting says of nodes, by name, why they alone are left alone for a while.
	resting map[string]string
}

// makePlan plans the nodes of a policy. A rotation for which no room was made freezes its zone for a while: the next attempt
// is a probe. One that failed otherwise says nothing about others: its node alone is left alone as long.
func makePlan(p *v1alpha1.NodePolicy, nodes []*corev1.Node, frozen map[string]string, now time.Time) (planned, error) {
	windows, err := windows(p.Spec.Windows)
	if err != nil {
		return planned{}, err
	}
	maxAge := p.Spec.MaxAge.Duration
	objs := make([]lifetime.Object, len(nodes))
	zones, resting := failed(p, nodes, now)
	out := planned{nodes: nodes, resting: resting}
	for i, n := range nodes {
		rot := rotationOf(&p.Status, n)
		objs[i] = lifetime.Object{
			ID: string(n.UID), Zone: n.Labels[corev1.LabelTopologyZone], CreatedAt: n.CreationTimestamp.Time,
			InFlight: rot != nil && underWay(rot), Frozen: resting[n.Name],
		}
		if now.Sub(n.CreationTimestamp.Time) > maxAge {
			out.overdue = append(out.overdue, n.UID)
		}
	}
	for z, why := range frozen {
		zones[z] = why
	}
	took := durations(p)
	lead := lifetime.Lead(took, 0, maxAge)
	out.Plan = lifetime.Make(objs, lifetime.Policy{
		MaxAge: maxAge, Lead: lead, Service: lifetime.Service(took, lead/4), Windows: windows, Budget: budget(p, len(nodes)),
		Freeze: p.Spec.Freeze, FrozenZones: zones,
	}, now)
	return out, nil
}

// durations of the rotations that ended well, as far as they are remembered.
func durations(p *v1alpha1.NodePolicy) []time.Duration {
	var took []time.Duration
	for i := range p.Status.Rotations {
		if r := &p.Status.Rotations[i]; !underWay(r) && r.Phase == string(machine.RotDone) {
			took = append(took, r.FinishedAt.Sub(r.StartedAt.Time))
		}
	}
	return took
}

// failed are the zones and the nodes whose last rotation failed a short while ago, and how.
func failed(p *v1alpha1.NodePolicy, mine []*corev1.Node, now time.Time) (zones, nodes map[string]string) {
	zones, nodes = map[string]string{}, map[string]string{}
	for i := range p.Status.Rotations {
		r := &p.Status.Rotations[i]
		if underWay(r) || r.FailedIn == "" || now.Sub(r.FinishedAt.Time) >= retryAfter(p.Spec.MaxAge.Duration) {
			continue
		}
		why := fmt.Sprintf("the rotation of node %s failed: %s", r.Node, r.Message)
		if r.FailedIn == string(machine.Surging) {
			zones[r.Zone] = why
		} else if slices.ContainsFunc(mine, func(n *corev1.Node) bool { return n.Name == r.Node && string(n.UID) == r.NodeUID }) {
			nodes[r.Node] = why
		}
	}
	return zones, nodes
}

// failures counts the rotations of a node that took too long, its last one included.
func failures(last *v1alpha1.NodeRotation) int32 {
	switch {
	case last == nil:
		return 0
	case last.FailedIn == "":
		return last.Failures
	default:
		return last.Failures + 1
	}
}

// budget in nodes; 0 in the spec lets none go, which the plan cannot say: it is a freeze.
func budget(p *v1alpha1.NodePolicy, nodes int) int {
	if p.Spec.Budget.Type == intstr.Int {
		return int(p.Spec.Budget.IntVal)
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(&p.Spec.Budget, nodes, true)
	if err != nil {
		return 1 // the API admits nothing that fails here
	}
	return n
}

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

func windows(in []v1alpha1.Window) ([]lifetime.Window, error) {
	var out []lifetime.Window
	for i, w := range in {
		at, err := time.Parse("15:04", w.Start)
		if err != nil {
			return nil, fmt.Errorf("spec.windows[%d].start: %w", i, err)
		}
		zone, err := time.LoadLocation(w.TimeZone)
		if err != nil {
			return nil, fmt.Errorf("spec.windows[%d].timeZone: %w", i, err)
		}
		one := lifetime.Window{Start: time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute, Length: w.Length.Duration, Location: zone}
		for _, d := range w.Days {
			one.Days = append(one.Days, time.Weekday(slices.Index(weekdays, d)))
		}
		if err := one.Validate(); err != nil {
			return nil, fmt.Errorf("spec.windows[%d]: %w", i, err)
		}
		out = append(out, one)
	}
	return out, nil
}

// requests are what the plan says is due, for the ledger.
func (pl *planned) requests(p *v1alpha1.NodePolicy, shards map[string][]string) []ledger.NodeRequest {
	var out []ledger.NodeRequest
	for _, slot := range pl.Due() {
		n := pl.nodes[slot.Index]
		out = append(out, ledger.NodeRequest{
			Node: n.Name, Policy: p.Name, Zone: n.Labels[corev1.LabelTopologyZone], Shards: shards[n.Name],
			Near: slot.Near, Deadline: slot.Deadline, Failed: int(failures(rotationOf(&p.Status, n))),
		})
	}
	return out
}

// summarize writes what a plan means into the status.
func (pl *planned) summarize(p *v1alpha1.NodePolicy, waiting []string) {
	st := &p.Status
	st.Nodes = int32(len(pl.nodes))
	st.OldestNode, st.NextNode, st.NextAt = nil, "", nil
	for _, n := range pl.nodes {
		if st.OldestNode == nil || n.CreationTimestamp.Before(st.OldestNode) {
			st.OldestNode = n.CreationTimestamp.DeepCopy()
		}
	}
	if len(pl.Slots) > 0 {
		st.NextNode = pl.nodes[pl.Slots[0].Index].Name
		st.NextAt = &metav1.Time{Time: pl.Slots[0].Start}
	}
	st.PerDay = fmt.Sprintf("%.3g", pl.BaseRate*24)
	message := pl.Message
	if len(waiting) > 0 {
		message += "; " + strings.Join(waiting, "; ")
	}
	set(p, v1alpha1.ConditionPlanHolds, pl.Holds, string(pl.Reason), message)
	frozen, reason, why := false, "NotFrozen", "nodes may begin to go"
	if p.Spec.Freeze != "" {
		frozen, reason, why = true, "Spec", p.Spec.Freeze
	}
	for _, s := range pl.Slots {
		// What only concerns one node is in the plan's message.
		if !frozen && s.Frozen != "" && s.Frozen != pl.resting[pl.nodes[s.Index].Name] {
			frozen, reason, why = true, "NoCapacity", s.Frozen
		}
	}
	set(p, v1alpha1.ConditionFrozen, frozen, reason, why)
}
