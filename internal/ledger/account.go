package ledger

import (
	"fmt"
	"math"
	"slices"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

// Account is the ledger at one moment. It is made from objects, used for one round of decisions and thrown away.
type Account struct {
	now    time.Time
	fleet  Fleet
	limits Limits

	instances map[string]string // shard/instance → name of the entry
	shards    map[string][]Entry
	inFlight  [classes]int
	starts    map[string][]time.Time // starts for age within the rate window: "" or NodePolicy
	verdicts  []verdict              // every condemnation known
	storms    []span                 // those of them that are too many; nil before anybody asked
	condemned map[string]struct{}    // nodes (or instances without one) with a condemnation that counts
	lastCond  time.Time              // the latest of them
	zones     map[string]zone

	policies   map[string]int                 // nodes in flight
	shardZones map[string]map[string]struct{} // shard → zones of nodes in flight that carry it
	nodes      map[string]struct{}
}

// zone is what recent surges in a zone tell about its capacity.
type zone struct {
	failed, got, lastStart time.Time
}

// New makes the account of a fleet from every entry in flight or waiting and those finished within the windows of the
// limits (older ones do no harm).
func New(entries []Entry, nodes []NodeEntry, fleet Fleet, limits Limits, now time.Time) *Account {
	if fleet.Nodes == 0 {
		fleet.Nodes = fleet.Instances
	}
	a := &Account{
		now: now, fleet: fleet, limits: limits.withDefaults(fleet),
		instances: map[string]string{}, shards: map[string][]Entry{},
		starts: map[string][]time.Time{}, condemned: map[string]struct{}{}, zones: map[string]zone{},
		policies: map[string]int{}, shardZones: map[string]map[string]struct{}{}, nodes: map[string]struct{}{},
	}
	for _, e := range entries {
		a.add(e)
	}
	for _, n := range nodes {
		a.addNode(n)
	}
	return a
}

func (a *Account) add(e Entry) {
	z := a.zones[e.Zone]
	z.failed, z.got = later(z.failed, e.NoCapacity), later(z.got, e.GotMachine)
	z.lastStart = later(z.lastStart, e.Started)
	a.zones[e.Zone] = z
	if e.Reason == v1alpha1.ReasonCondemned {
		a.condemn(e)
	}
	if e.Started.IsZero() {
		return
	}
	if e.Reason == v1alpha1.ReasonExpired && a.now.Sub(e.Started) < a.limits.RateWindow {
		a.starts[""] = append(a.starts[""], e.Started)
	}
	if !e.InFlight() {
		return
	}
	a.instances[e.Shard+"/"+e.Instance] = e.Name
	a.shards[e.Shard] = append(a.shards[e.Shard], e)
	a.inFlight[classOf(e.Reason)]++
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Grant decides on all requests, the most urgent first, as if each that is allowed had begun before the next is asked.
// Verdicts are in the order of the requests. Only the operator that is the leader may act on them: two that grant at
// once would each stay within the limits, and together not.
func (a *Account) Grant(requests []Request) []Verdict {
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return Compare(requests[i], requests[j]) })
	verdicts := make([]Verdict, len(requests))
	for _, i := range order {
		r := requests[i]
		verdicts[i] = a.Ask(r)
		if verdicts[i].Allowed {
			a.add(Entry{
				Name: r.Name, Shard: r.Shard, Instance: r.Instance, Node: r.Node, Zone: r.Zone,
				Reason: r.Reason, Created: r.Created, Started: a.now,
			})
		}
	}
	return verdicts
}

// Ask decides on one request without booking it.
func (a *Account) Ask(r Request) Verdict {
	for _, rule := range []func(Request, class) Verdict{
		a.instance, a.frozen, a.storm, a.shard, a.degraded, a.capacity, a.rate, a.cap,
	} {
		if v := rule(r, classOf(r.Reason)); !v.Allowed {
			return v
		}
	}
	return Verdict{Allowed: true, Message: "may begin"}
}

var allowed = Verdict{Allowed: true}

func refuse(why Why, format string, args ...any) Verdict {
	return Verdict{Why: why, Message: fmt.Sprintf(format, args...)}
}

func (a *Account) instance(r Request, _ class) Verdict {
	if by, ok := a.instances[r.Shard+"/"+r.Instance]; ok && by != r.Name {
		return refuse(InstanceBusy, "%s is being replaced already, by %s", r.Instance, by)
	}
	return allowed
}

func (a *Account) frozen(_ Request, c class) Verdict {
	why := a.limits.FreezeWhy
	if why == "" {
		why = "no reason given"
	}
	switch {
	case a.limits.Freeze == FreezeAll:
		return refuse(Frozen, "everything is frozen: %s", why)
	case a.limits.Freeze == FreezePlanned && c == planned:
		return refuse(Frozen, "planned replacements are frozen: %s", why)
	}
	return allowed
}

func (a *Account) shard(r Request, c class) Verdict {
	for _, e := range a.shards[r.Shard] {
		if e.Name == r.Name || c == repair && classOf(e.Reason) != repair {
			continue
		}
		if e.Zone != r.Zone && c != repair {
			return refuse(ZoneBusy, "%s of the same shard is being replaced in zone %q: one zone at a time", e.Instance, e.Zone)
		}
		return refuse(ShardBusy, "%s of the same shard is being replaced (%s): one at a time", e.Instance, e.Reason)
	}
	return allowed
}

func (a *Account) degraded(r Request, c class) Verdict {
	if c == planned && !r.Dead && r.Healthy < r.Wanted {
		return refuse(ShardDegraded, "the shard has %d of %d healthy copies: it is repaired first", r.Healthy, r.Wanted)
	}
	return allowed
}

func (a *Account) capacity(r Request, c class) Verdict {
	z := a.zones[r.Zone]
	if c == repair || !z.failed.After(z.got) {
		return allowed
	}
	// The probe is whatever was begun last in this zone; it had its turn when it failed or when its interval is over.
	probe := later(z.lastStart, z.failed).Add(a.limits.CapacityRetry)
	if a.now.Before(probe) {
		v := refuse(NoCapacity, "zone %q had no room for a surge at %s; the next attempt is at %s",
			r.Zone, z.failed.UTC().Format("15:04:05"), probe.UTC().Format("15:04:05"))
		v.Retry = probe
		return v
	}
	return allowed
}

// FrozenZones are the zones in which surges have failed for want of capacity lately, with a sentence each: what the lifetime
// planner needs to say that its plan does not hold. It asks for nothing there, so a freeze that never ended would let
// nobody find out that there is room again.
func (a *Account) FrozenZones() map[string]string {
	out := map[string]string{}
	for name, z := range a.zones {
		if z.failed.After(z.got) && a.now.Before(z.failed.Add(a.limits.ZoneFreeze)) {
			out[name] = fmt.Sprintf("no capacity in zone %q since %s", name, z.failed.UTC().Format(time.DateTime))
		}
	}
	return out
}

func (a *Account) rate(r Request, _ class) Verdict {
	if r.Reason != v1alpha1.ReasonExpired {
		return allowed
	}
	return a.pace("")
}

func (a *Account) pace(policy string) Verdict {
	perHour, limited := a.limits.PerHour[policy]
	if !limited {
		return allowed
	}
	limit := max(1, int(math.Ceil(perHour*a.limits.RateWindow.Hours())))
	starts := a.starts[policy]
	if len(starts) < limit {
		return allowed
	}
	v := refuse(TooFast, "%d began within %s, the plan allows %d", len(starts), a.limits.RateWindow, limit)
	v.Retry = slices.MinFunc(starts, time.Time.Compare).Add(a.limits.RateWindow)
	return v
}

func (a *Account) cap(_ Request, c class) Verdict {
	limit := [classes]int{repair: a.limits.Repairs, urgent: a.limits.Urgent, planned: a.limits.Planned}[c]
	if a.inFlight[c] < limit {
		return allowed
	}
	name := [classes]string{repair: "repairs", urgent: "drains and requests", planned: "planned replacements"}[c]
	return refuse(FleetBusy, "%d %s are in flight, the limit for the fleet is %d", a.inFlight[c], name, limit)
}
