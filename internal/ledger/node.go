package ledger

import (
	"cmp"
	"slices"

	"theseus.dev/theseus/api/v1alpha1"
)

func (a *Account) addNode(n NodeEntry) {
	if n.Started.IsZero() {
		return
	}
	z := a.zones[n.Zone]
	z.lastStart = later(z.lastStart, n.Started)
	a.zones[n.Zone] = z
	if a.now.Sub(n.Started) < a.limits.RateWindow {
		a.starts[n.Policy] = append(a.starts[n.Policy], n.Started)
	}
	if !n.Finished.IsZero() {
		return
	}
	a.nodes[n.Node] = struct{}{}
	a.policies[n.Policy]++
	for _, s := range n.Shards {
		zones := a.shardZones[s]
		if zones == nil {
			zones = map[string]struct{}{}
			a.shardZones[s] = zones
		}
		zones[n.Zone] = struct{}{}
	}
}

// GrantNodes is Grant for nodes.
func (a *Account) GrantNodes(requests []NodeRequest) []Verdict {
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return compareNodes(requests[i], requests[j]) })
	verdicts := make([]Verdict, len(requests))
	for _, i := range order {
		r := requests[i]
		verdicts[i] = a.AskNode(r)
		if verdicts[i].Allowed {
			a.addNode(NodeEntry{Node: r.Node, Policy: r.Policy, Zone: r.Zone, Shards: r.Shards, Started: a.now})
		}
	}
	return verdicts
}

func compareNodes(a, b NodeRequest) int {
	if a.Failed != b.Failed {
		return cmp.Compare(a.Failed, b.Failed)
	}
	if a.Near != b.Near {
		if a.Near {
			return -1
		}
		return 1
	}
	return cmp.Or(a.Deadline.Compare(b.Deadline), cmp.Compare(a.Node, b.Node))
}

// AskNode decides on one node without booking it.
func (a *Account) AskNode(r NodeRequest) Verdict {
	if _, ok := a.nodes[r.Node]; ok {
		return refuse(InstanceBusy, "node %s is on its way out already", r.Node)
	}
	like := Request{Zone: r.Zone, Reason: v1alpha1.ReasonNodeExpiring}
	for _, rule := range []func(Request, class) Verdict{a.frozen, a.storm, a.capacity} {
		if v := rule(like, planned); !v.Allowed {
			return v
		}
	}
	if budget, limited := a.limits.PerPolicy[r.Policy]; limited && a.policies[r.Policy] >= budget {
		return refuse(PolicyBusy, "%d nodes of NodePolicy %s are on their way out, its budget is %d", a.policies[r.Policy], r.Policy, budget)
	}
	if v := a.otherZone(r); !v.Allowed {
		return v
	}
	return a.pace(r.Policy)
}

// otherZone keeps a shard from losing instances in two zones at once, be it to nodes or to replacements in flight.
func (a *Account) otherZone(r NodeRequest) Verdict {
	for _, s := range r.Shards {
		for z := range a.shardZones[s] {
			if z != r.Zone {
				return refuse(ZoneBusy, "shard %s is leaving a node in zone %q: one zone at a time", s, z)
			}
		}
		for _, e := range a.shards[s] {
			if e.Zone != r.Zone {
				return refuse(ZoneBusy, "%s of shard %s is being replaced in zone %q: one zone at a time", e.Instance, s, e.Zone)
			}
		}
	}
	return allowed
}
