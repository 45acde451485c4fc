package simfleet

import (
	"time"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/lifetime"
	"theseus.dev/theseus/internal/replacement"
)

const policyName = "all"

// askAtOnce bounds what is asked of the ledger in one tick after an outage; the pace lets far fewer through.
const askAtOnce = 200

// evidenceTakes is how long evidence takes, in seconds.
const evidenceTakes = 20

// ask makes a replacement of an instance, if it has none.
func (f *fleet) ask(id int32, reason v1alpha1.Reason, deadline time.Time) *repair {
	in := &f.instances[id]
	if in.repair != nil {
		return nil
	}
	r := &repair{
		shard: in.shard, target: id, targetGen: in.gen, zone: in.zone, successor: -1, deadline: deadline,
		request: replacement.Request{Instance: in.name, Reason: reason, CreatedAt: clock(f.now)}, fresh: f.name("i"),
	}
	f.lastRepair++
	r.id = f.lastRepair
	if in.node >= 0 {
		r.node = f.nodes[in.node].name
	}
	in.repair = r
	f.byID[r.id] = r
	f.repairs = append(f.repairs, r)
	sh := &f.shards[in.shard]
	sh.repairs = append(sh.repairs, r)
	return r
}

// condemn asks for the replacement of a dead instance, unless it is somebody's surge: then that replacement sees to it.
func (f *fleet) condemn(id int32) {
	in := &f.instances[id]
	for _, r := range f.shards[in.shard].repairs {
		if r.successor == id {
			f.q.push(event{at: f.now + tickEvery, kind: evDetected, id: id, gen: in.gen})
			return
		}
	}
	r := f.ask(id, v1alpha1.ReasonCondemned, time.Time{})
	if r == nil {
		return
	}
	f.wake(r, 1)
	if len(f.repairs) < 1000 {
		f.admit(f.account(), []*repair{r})
	}
}

// account derives the ledger from what is there.
func (f *fleet) account() *ledger.Account {
	entries := make([]ledger.Entry, 0, len(f.repairs))
	for _, r := range f.repairs {
		e := ledger.Entry{
			Name: r.request.Instance, Shard: f.shards[r.shard].name, Instance: r.request.Instance, Node: r.node,
			Zone: zoneNames[r.zone], Reason: r.request.Reason, Created: r.request.CreatedAt, Started: r.status.AdmittedAt,
			NoCapacity: r.status.NoCapacityAt, GotMachine: r.status.GotMachineAt,
		}
		if r.over {
			e.Finished = r.status.FinishedAt
		}
		entries = append(entries, e)
	}
	limits := ledger.Limits{PerHour: map[string]float64{"": f.plan.Rate}}
	nodes := f.shardsAndNodes()
	if f.cfg.Mode == Nodes {
		limits.PerHour = map[string]float64{policyName: f.plan.Rate}
		limits.PerPolicy = map[string]int{policyName: max(1, nodes/20)}
	}
	return ledger.New(entries, f.rotations(), ledger.Fleet{Instances: f.cfg.Shards * zones, Nodes: nodes}, limits, clock(f.now))
}

func (f *fleet) shardsAndNodes() int { return f.cfg.Shards * zones / f.cfg.PerNode }

// rotations are the nodes on their way out, and those that began within the last hour.
func (f *fleet) rotations() []ledger.NodeEntry {
	var out []ledger.NodeEntry
	kept := f.leavingNodes[:0]
	for _, t := range f.leavingNodes {
		nd := &f.nodes[t.id]
		begun := t.begun
		e := ledger.NodeEntry{Policy: policyName, Zone: zoneNames[t.zone], Started: clock(begun)}
		if nd.gen == t.gen && nd.going && nd.alive && !nd.dead {
			e.Node = nd.name
			e.Shards = f.shardNames(nd)
		} else {
			e.Finished = clock(f.now)
			if f.now-begun > keepFinished {
				continue
			}
		}
		kept = append(kept, t)
		out = append(out, e)
	}
	f.leavingNodes = kept
	return out
}

func (f *fleet) shardNames(nd *node) []string {
	out := make([]string, 0, len(nd.on))
	for _, id := range nd.on {
		out = append(out, f.shards[f.instances[id].shard].name)
	}
	return out
}

// tick is what the lifetime and replacement controllers do every few minutes.
func (f *fleet) tick() {
	f.prune()
	a := f.account()
	if f.now >= f.planAt {
		f.makePlan(a)
		f.planAt = f.now + f.cfg.planEvery()
	}
	if f.cfg.Mode == Nodes {
		f.beginNodes(a)
		f.moveOff()
	} else {
		f.beginInstances()
	}
	var waiting []*repair
	for _, r := range f.repairs {
		if !r.over && r.status.AdmittedAt.IsZero() {
			waiting = append(waiting, r)
		}
	}
	f.admit(a, waiting)
}

// prune forgets what finished long ago.
func (f *fleet) prune() {
	kept := f.repairs[:0]
	for _, r := range f.repairs {
		if !r.over || clock(f.now).Sub(r.status.FinishedAt) < keepFinished*time.Second {
			kept = append(kept, r)
		}
	}
	clear(f.repairs[len(kept):])
	f.repairs = kept
}

func (f *fleet) makePlan(a *ledger.Account) {
	f.objects, f.planned = f.objects[:0], f.planned[:0]
	policy := lifetime.Policy{
		MaxAge: f.cfg.MaxAge, Lead: 13 * time.Hour, Service: time.Hour, Tick: tickEvery * time.Second, FrozenZones: a.FrozenZones(),
	}
	if storm, why := a.Storm(); storm {
		policy.Freeze = why
	}
	if f.cfg.Mode == Nodes {
		policy.Budget = max(1, f.shardsAndNodes()/20)
		for n := range f.nodes {
			if nd := &f.nodes[n]; nd.alive && nd.up && !nd.dead && nd.used > 0 {
				f.objects = append(f.objects, lifetime.Object{
					ID: nd.name, Zone: zoneNames[nd.zone], CreatedAt: clock(nd.born), InFlight: nd.going,
				})
				f.planned = append(f.planned, thing{int32(n), nd.gen})
			}
		}
	} else {
		for i := range f.instances {
			if in := &f.instances[i]; in.pod && !in.dead && in.healthy {
				f.objects = append(f.objects, lifetime.Object{
					ID: in.name, Group: f.shards[in.shard].name, Zone: zoneNames[in.zone], CreatedAt: clock(in.born),
					InFlight: f.underWay(in),
				})
				f.planned = append(f.planned, thing{int32(i), in.gen})
			}
		}
	}
	f.plan = lifetime.Make(f.objects, policy, clock(f.now))
	f.report.planned(f)
}

// underWay is true once the ledger let its replacement begin; one that only waits is still planned for.
func (f *fleet) underWay(in *instance) bool {
	return in.repair != nil && !in.repair.status.AdmittedAt.IsZero()
}

// due calls begin for everything whose start has come.
func (f *fleet) due(begin func(t thing, s lifetime.Slot)) {
	now := clock(f.now)
	for _, s := range f.plan.Slots {
		if s.Start.After(now) {
			return
		}
		if s.Frozen == "" {
			begin(f.planned[s.Index], s)
		}
	}
}

func (f *fleet) beginNodes(a *ledger.Account) {
	var requests []ledger.NodeRequest
	var things []thing
	f.due(func(t thing, s lifetime.Slot) {
		nd := &f.nodes[t.id]
		if nd.gen != t.gen || !nd.alive || nd.dead || nd.going || nd.dark || len(requests) == askAtOnce {
			return
		}
		requests = append(requests, ledger.NodeRequest{
			Node: nd.name, Policy: policyName, Zone: zoneNames[nd.zone], Shards: f.shardNames(nd), Near: s.Near, Deadline: s.Deadline,
		})
		things = append(things, t)
	})
	for i, v := range a.GrantNodes(requests) {
		f.report.verdict(v)
		if v.Allowed {
			nd := &f.nodes[things[i].id]
			nd.going, nd.since = true, f.now
			f.leavingNodes = append(f.leavingNodes, rotation{thing: things[i], zone: nd.zone, begun: f.now})
			f.report.start(f.now)
		}
	}
}

// moveOff asks for the replacement of every instance on a node that is on its way out, again if one failed, and gives
// nodes back that could not be emptied in time.
func (f *fleet) moveOff() {
	for _, t := range f.leavingNodes {
		nd := &f.nodes[t.id]
		if nd.gen != t.gen || !nd.going || !nd.alive || nd.dead {
			continue
		}
		if f.now-nd.since > giveBackAfter && nd.used > 0 && !f.moving(nd) {
			nd.going = false
			f.report.GivenBack++
			if int(nd.used) < f.cfg.PerNode {
				f.open[nd.zone] = append(f.open[nd.zone], t.id)
			}
			continue
		}
		for _, id := range nd.on {
			if in := &f.instances[id]; in.pod && !in.terminating && in.repair == nil && !f.isSurge(id) {
				f.ask(id, v1alpha1.ReasonNodeExpiring, clock(nd.born).Add(f.cfg.MaxAge))
			}
		}
	}
}

// moving is true while anything that is in flight concerns the node.
func (f *fleet) moving(nd *node) bool {
	for _, id := range nd.on {
		if r := f.instances[id].repair; r != nil && !r.status.AdmittedAt.IsZero() {
			return true
		}
	}
	return false
}

func (f *fleet) isSurge(id int32) bool {
	for _, r := range f.shards[f.instances[id].shard].repairs {
		if r.successor == id {
			return true
		}
	}
	return false
}

func (f *fleet) beginInstances() {
	f.due(func(t thing, s lifetime.Slot) {
		if in := &f.instances[t.id]; in.gen == t.gen && in.pod && !in.dead && in.repair == nil && !in.terminating {
			f.ask(t.id, v1alpha1.ReasonExpired, s.Deadline)
		}
	})
}

// admit asks the ledger for replacements that wait, and lets those that may begin.
func (f *fleet) admit(a *ledger.Account, waiting []*repair) {
	requests := make([]ledger.Request, len(waiting))
	for i, r := range waiting {
		in := &f.instances[r.target]
		requests[i] = ledger.Request{
			Name: r.request.Instance, Shard: f.shards[r.shard].name, Instance: r.request.Instance, Node: r.node,
			Zone: zoneNames[r.zone], Reason: r.request.Reason, Created: r.request.CreatedAt, Deadline: r.deadline,
			Healthy: f.healthy(r.shard), Wanted: zones, Dead: in.gen != r.targetGen || in.dead,
		}
		if !r.deadline.IsZero() {
			requests[i].Near = r.deadline.Sub(clock(f.now)) < 30*time.Hour
		}
	}
	for i, v := range a.Grant(requests) {
		r := waiting[i]
		f.report.verdict(v)
		r.verdict, r.storm = v, a.Storming(r.request.CreatedAt)
		if v.Allowed {
			f.step(r)
		}
	}
}

// wake makes a replacement look again within so many seconds.
func (f *fleet) wake(r *repair, in int64) {
	at := f.now + in
	if r.over || r.wakeAt != 0 && r.wakeAt <= at {
		return
	}
	r.wakeAt = at
	r.gen++
	f.q.push(event{at: at, kind: evStep, id: r.id, gen: r.gen})
}
