package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/api/v1alpha1"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

// entry is in flight since a minute.
func entry(shard, instance, zone string, r v1alpha1.Reason) Entry {
	return Entry{
		Name: "r-" + instance, Shard: shard, Instance: instance, Node: "n-" + instance, Zone: zone,
		Reason: r, Started: ago(time.Minute),
	}
}

func request(shard, instance, zone string, r v1alpha1.Reason) Request {
	return Request{Name: "r-" + instance, Shard: shard, Instance: instance, Node: "n-" + instance, Zone: zone, Reason: r, Healthy: 3, Wanted: 3}
}

func condemned(n int, started time.Time) []Entry {
	var out []Entry
	for i := range n {
		e := entry(fmt.Sprintf("sick-%d", i), fmt.Sprintf("sick-%d-x", i), "a", v1alpha1.ReasonCondemned)
		e.Started, e.Finished = started, started.Add(time.Minute)
		out = append(out, e)
	}
	return out
}

func TestRules(t *testing.T) {
	const (
		expired  = v1alpha1.ReasonExpired
		draining = v1alpha1.ReasonDraining
		sick     = v1alpha1.ReasonCondemned
		asked    = v1alpha1.ReasonRequested
	)
	degraded := request("s", "s-1", "a", expired)
	degraded.Healthy = 2
	degradedDead := degraded
	degradedDead.Dead = true
	degradedDrain := degraded
	degradedDrain.Reason = draining
	noRoom := entry("other", "other-1", "a", expired)
	noRoom.NoCapacity, noRoom.Finished, noRoom.Started = ago(2*time.Minute), ago(2*time.Minute), ago(15*time.Minute)
	roomAgain := entry("third", "third-1", "a", expired)
	roomAgain.GotMachine, roomAgain.Started, roomAgain.Finished = ago(time.Minute), ago(90*time.Second), ago(time.Second)
	probing := entry("third", "third-1", "a", expired)
	longAgo := noRoom
	longAgo.NoCapacity, longAgo.Started = ago(11*time.Minute), ago(30*time.Minute)
	waiting := entry("s", "s-2", "b", expired)
	waiting.Started = time.Time{}
	done := entry("s", "s-2", "b", expired)
	done.Finished = ago(time.Second)
	waitingSick := condemned(6, time.Time{})
	for i := range waitingSick {
		waitingSick[i].Finished = time.Time{}
	}
	waitingLong, letIn, dropped := condemned(6, time.Time{}), condemned(6, ago(time.Minute)), condemned(6, time.Time{})
	for i := range waitingLong {
		waitingLong[i].Created, waitingLong[i].Finished = ago(61*time.Minute), time.Time{}
		letIn[i].Created = ago(61 * time.Minute)
		dropped[i].Created, dropped[i].Finished = ago(59*time.Minute), ago(58*time.Minute)
	}
	oneNode := condemned(50, ago(time.Minute))
	for i := range oneNode {
		oneNode[i].Node = "the-node"
	}

	for name, tc := range map[string]struct {
		entries []Entry
		limits  Limits
		fleet   int
		request Request
		why     Why
	}{
		"an empty ledger allows":                   {request: request("s", "s-1", "a", expired)},
		"another shard does not matter":            {entries: []Entry{entry("o", "o-1", "b", expired)}, fleet: 100, request: request("s", "s-1", "a", expired)},
		"one per shard":                            {entries: []Entry{entry("s", "s-2", "a", expired)}, fleet: 100, request: request("s", "s-1", "a", draining), why: ShardBusy},
		"one zone per shard":                       {entries: []Entry{entry("s", "s-2", "b", expired)}, fleet: 100, request: request("s", "s-1", "a", draining), why: ZoneBusy},
		"the same instance twice":                  {entries: []Entry{{Name: "x", Shard: "s", Instance: "s-1", Reason: expired, Started: ago(1)}}, fleet: 100, request: request("s", "s-1", "a", sick), why: InstanceBusy},
		"its own entry is no obstacle":             {entries: []Entry{entry("s", "s-1", "a", expired)}, fleet: 100, request: request("s", "s-1", "a", expired)},
		"what waits is no obstacle":                {entries: []Entry{waiting}, request: request("s", "s-1", "a", expired)},
		"what is finished is no obstacle":          {entries: []Entry{done}, request: request("s", "s-1", "a", expired)},
		"a repair passes a planned one":            {entries: []Entry{entry("s", "s-2", "b", expired)}, request: request("s", "s-1", "a", sick)},
		"a repair passes a drain":                  {entries: []Entry{entry("s", "s-2", "b", draining)}, request: request("s", "s-1", "a", sick)},
		"a repair waits for a repair":              {entries: []Entry{entry("s", "s-2", "b", sick)}, request: request("s", "s-1", "a", sick), why: ShardBusy},
		"a planned one waits for a repair":         {entries: []Entry{entry("s", "s-2", "a", sick)}, request: request("s", "s-1", "a", expired), why: ShardBusy},
		"a drain waits for a repair":               {entries: []Entry{entry("s", "s-2", "a", sick)}, request: request("s", "s-1", "a", draining), why: ShardBusy},
		"frozen: planned":                          {limits: Limits{Freeze: FreezePlanned}, request: request("s", "s-1", "a", expired), why: Frozen},
		"frozen: drills":                           {limits: Limits{Freeze: FreezePlanned}, request: request("s", "s-1", "a", v1alpha1.ReasonDrill), why: Frozen},
		"frozen: rollouts":                         {limits: Limits{Freeze: FreezePlanned}, request: request("s", "s-1", "a", v1alpha1.ReasonOutdated), why: Frozen},
		"frozen: not drains":                       {limits: Limits{Freeze: FreezePlanned}, request: request("s", "s-1", "a", draining)},
		"frozen: not repairs":                      {limits: Limits{Freeze: FreezePlanned}, request: request("s", "s-1", "a", sick)},
		"frozen: everything":                       {limits: Limits{Freeze: FreezeAll}, request: request("s", "s-1", "a", sick), why: Frozen},
		"degraded: planned waits":                  {request: degraded, why: ShardDegraded},
		"degraded: the missing copy itself may go": {request: degradedDead},
		"degraded: drains surge first":             {request: degradedDrain},
		"no capacity: planned waits":               {entries: []Entry{noRoom}, request: request("s", "s-1", "a", expired), why: NoCapacity},
		"no capacity: drains wait":                 {entries: []Entry{noRoom}, request: request("s", "s-1", "a", draining), why: NoCapacity},
		"no capacity: repairs try":                 {entries: []Entry{noRoom}, request: request("s", "s-1", "a", sick)},
		"no capacity: other zones go on":           {entries: []Entry{noRoom}, request: request("s", "s-1", "b", expired)},
		"no capacity: one that succeeded opens it": {entries: []Entry{noRoom, roomAgain}, request: request("s", "s-1", "a", expired)},
		"no capacity: after a while one may try":   {entries: []Entry{longAgo}, request: request("s", "s-1", "a", expired)},
		"no capacity: but one only":                {entries: []Entry{longAgo, probing}, fleet: 500, request: request("s", "s-1", "a", expired), why: NoCapacity},
		"a storm stops repairs":                    {entries: condemned(6, ago(time.Minute)), fleet: 30, request: request("s", "s-1", "a", sick), why: CondemnationStorm},
		"a storm stops what is planned":            {entries: condemned(6, ago(time.Minute)), fleet: 30, request: request("s", "s-1", "a", expired), why: CondemnationStorm},
		"a storm does not stop drains":             {entries: condemned(6, ago(time.Minute)), fleet: 30, request: request("s", "s-1", "a", draining)},
		"five are no storm":                        {entries: condemned(5, ago(time.Minute)), fleet: 30, request: request("s", "s-1", "a", sick)},
		"six of a large fleet are no storm":        {entries: condemned(6, ago(time.Minute)), fleet: 1000, request: request("s", "s-1", "a", sick)},
		"many on one node are no storm":            {entries: oneNode, fleet: 100, request: request("s", "s-1", "a", sick)},
		"a storm passes":                           {entries: condemned(6, ago(61*time.Minute)), fleet: 30, request: request("s", "s-1", "a", sick)},
		"verdicts that wait make a storm":          {entries: waitingSick, fleet: 30, request: request("s", "s-1", "a", sick), why: CondemnationStorm},
		"verdicts that waited for an hour do not":  {entries: waitingLong, fleet: 30, request: request("s", "s-1", "a", sick)},
		"what waited for an hour and was let in":   {entries: letIn, fleet: 30, request: request("s", "s-1", "a", sick)},
		"verdicts that were dropped count":         {entries: dropped, fleet: 30, request: request("s", "s-1", "a", sick), why: CondemnationStorm},
		"the breaker can be turned off":            {entries: condemned(6, ago(time.Minute)), limits: Limits{StormFraction: -1}, fleet: 30, request: request("s", "s-1", "a", sick)},
		"the fleet's cap for planned":              {entries: []Entry{entry("o", "o-1", "a", expired)}, fleet: 99, request: request("s", "s-1", "a", expired), why: FleetBusy},
		"is not that of drains":                    {entries: []Entry{entry("o", "o-1", "a", expired)}, fleet: 99, request: request("s", "s-1", "a", draining)},
		"a large fleet has a larger cap":           {entries: []Entry{entry("o", "o-1", "a", expired)}, fleet: 100, request: request("s", "s-1", "a", expired), why: ""},
		"the cap of drains":                        {entries: []Entry{entry("o", "o-1", "a", draining)}, limits: Limits{Urgent: 1}, request: request("s", "s-1", "a", asked), why: FleetBusy},
		"the cap of repairs":                       {entries: []Entry{entry("o", "o-1", "a", sick)}, limits: Limits{Repairs: 1}, request: request("s", "s-1", "a", sick), why: FleetBusy},
		"not faster than the plan":                 {entries: []Entry{done}, limits: Limits{PerHour: map[string]float64{"": 0.01}}, request: request("s", "s-1", "a", expired), why: TooFast},
		"the plan's pace is for expiry only":       {entries: []Entry{done}, limits: Limits{PerHour: map[string]float64{"": 0.01}}, request: request("s", "s-1", "a", asked)},
		"a node's instances go at the node's pace": {entries: []Entry{done}, limits: Limits{PerHour: map[string]float64{"": 0.01}}, request: request("s", "s-1", "a", v1alpha1.ReasonNodeExpiring)},
	} {
		t.Run(name, func(t *testing.T) {
			fleet := Fleet{Instances: max(tc.fleet, 3)}
			v := New(tc.entries, nil, fleet, tc.limits, now).Ask(tc.request)
			require.Equal(t, tc.why, v.Why, v.Message)
			require.Equal(t, tc.why == "", v.Allowed)
			require.NotEmpty(t, v.Message)
		})
	}
}

func TestRefusalsThatTimeEndsSayWhen(t *testing.T) {
	noRoom := entry("other", "other-1", "a", v1alpha1.ReasonExpired)
	noRoom.NoCapacity, noRoom.Finished = ago(2*time.Minute), ago(2*time.Minute)
	noRoom.Started = ago(10 * time.Minute)
	for name, a := range map[string]*Account{
		"capacity": New([]Entry{noRoom}, nil, Fleet{Instances: 300}, Limits{}, now),
		"storm":    New(condemned(6, ago(time.Minute)), nil, Fleet{Instances: 30}, Limits{}, now),
		"pace":     New(condemned(0, now), []NodeEntry{}, Fleet{Instances: 300}, Limits{PerHour: map[string]float64{"": 1}}, now),
	} {
		if name == "pace" {
			e := entry("other", "other-1", "b", v1alpha1.ReasonExpired)
			e.Finished = now
			a.add(e)
		}
		v := a.Ask(request("s", "s-1", "a", v1alpha1.ReasonExpired))
		require.False(t, v.Allowed, name)
		require.True(t, v.Retry.After(now), name)
		// And at that time the refusal is over.
		var entries []Entry
		switch name {
		case "capacity":
			entries = []Entry{noRoom}
		case "storm":
			entries = condemned(6, ago(time.Minute))
		case "pace":
			e := entry("other", "other-1", "b", v1alpha1.ReasonExpired)
			e.Finished = now
			entries = []Entry{e}
		}
		then := New(entries, nil, a.fleet, a.limits, v.Retry)
		require.True(t, then.Ask(request("s", "s-1", "a", v1alpha1.ReasonExpired)).Allowed, name)
	}
}

func TestUrgencyIsAnOrder(t *testing.T) {
	in := []Request{
		{Name: "outdated", Reason: v1alpha1.ReasonOutdated},
		{Name: "expired-later", Reason: v1alpha1.ReasonExpired, Deadline: now.Add(2 * time.Hour)},
		{Name: "expired-sooner", Reason: v1alpha1.ReasonExpired, Deadline: now.Add(time.Hour)},
		{Name: "expired-undated", Reason: v1alpha1.ReasonExpired},
		{Name: "drill", Reason: v1alpha1.ReasonDrill},
		{Name: "node", Reason: v1alpha1.ReasonNodeExpiring},
		{Name: "requested", Reason: v1alpha1.ReasonRequested},
		{Name: "expired-near", Reason: v1alpha1.ReasonExpired, Near: true},
		{Name: "node-near", Reason: v1alpha1.ReasonNodeExpiring, Near: true},
		{Name: "draining", Reason: v1alpha1.ReasonDraining},
		{Name: "condemned", Reason: v1alpha1.ReasonCondemned},
	}
	want := []string{
		"condemned", "draining", "node-near", "expired-near", "requested", "node",
		"expired-sooner", "expired-later", "expired-undated", "drill", "outdated",
	}
	for range 20 {
		rand.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		slices.SortFunc(in, Compare)
		var got []string
		for _, r := range in {
			got = append(got, r.Name)
		}
		require.Equal(t, want, got)
	}
}

func TestTheMostUrgentGoesFirst(t *testing.T) {
	a := New(nil, nil, Fleet{Instances: 30}, Limits{}, now)
	verdicts := a.Grant([]Request{
		request("s", "s-1", "a", v1alpha1.ReasonOutdated),
		request("s", "s-2", "b", v1alpha1.ReasonDraining),
		request("s", "s-3", "c", v1alpha1.ReasonExpired),
	})
	require.False(t, verdicts[0].Allowed)
	require.True(t, verdicts[1].Allowed)
	require.Equal(t, ZoneBusy, verdicts[2].Why)
}

func TestFrozenZones(t *testing.T) {
	e := entry("s", "s-1", "a", v1alpha1.ReasonExpired)
	e.NoCapacity = ago(time.Minute)
	a := New([]Entry{e}, nil, Fleet{Instances: 30}, Limits{}, now)
	require.Contains(t, a.FrozenZones()["a"], "no capacity")
	old := e
	old.NoCapacity = ago(3 * time.Hour)
	require.Empty(t, New([]Entry{old}, nil, Fleet{Instances: 30}, Limits{}, now).FrozenZones(), "somebody has to find out that there is room again")
	e.GotMachine = now
	require.Empty(t, New([]Entry{e}, nil, Fleet{Instances: 30}, Limits{}, now).FrozenZones())
}

func TestNodes(t *testing.T) {
	flying := NodeEntry{Node: "n1", Policy: "p", Zone: "a", Shards: []string{"s", "t"}, Started: ago(time.Minute)}
	done := flying
	done.Finished = now
	ask := NodeRequest{Node: "n2", Policy: "p", Zone: "b", Shards: []string{"u", "t"}}
	sameZone := ask
	sameZone.Zone = "a"
	others := ask
	others.Shards = []string{"u"}
	for name, tc := range map[string]struct {
		entries []Entry
		nodes   []NodeEntry
		limits  Limits
		request NodeRequest
		why     Why
	}{
		"nothing in flight":                {request: ask},
		"a shard of both in another zone":  {nodes: []NodeEntry{flying}, request: ask, why: ZoneBusy},
		"the same zone":                    {nodes: []NodeEntry{flying}, request: sameZone},
		"no shard in common":               {nodes: []NodeEntry{flying}, request: others},
		"a finished node is no obstacle":   {nodes: []NodeEntry{done}, request: ask},
		"a replacement in another zone is": {entries: []Entry{entry("t", "t-1", "a", v1alpha1.ReasonCondemned)}, request: ask, why: ZoneBusy},
		"in the same zone it is not":       {entries: []Entry{entry("t", "t-1", "b", v1alpha1.ReasonExpired)}, request: ask},
		"the policy's budget":              {nodes: []NodeEntry{flying}, limits: Limits{PerPolicy: map[string]int{"p": 1}}, request: others, why: PolicyBusy},
		"a budget of nothing":              {limits: Limits{PerPolicy: map[string]int{"p": 0}}, request: others, why: PolicyBusy},
		"another policy's budget":          {nodes: []NodeEntry{flying}, limits: Limits{PerPolicy: map[string]int{"q": 1}}, request: others},
		"the plan's pace":                  {nodes: []NodeEntry{done}, limits: Limits{PerHour: map[string]float64{"p": 0.5}}, request: ask, why: TooFast},
		"twice":                            {nodes: []NodeEntry{flying}, request: NodeRequest{Node: "n1", Policy: "p", Zone: "a"}, why: InstanceBusy},
		"frozen":                           {limits: Limits{Freeze: FreezePlanned}, request: ask, why: Frozen},
		"a storm":                          {entries: condemned(6, ago(time.Minute)), request: ask, why: CondemnationStorm},
	} {
		t.Run(name, func(t *testing.T) {
			v := New(tc.entries, tc.nodes, Fleet{Instances: 30, Nodes: 10}, tc.limits, now).AskNode(tc.request)
			require.Equal(t, tc.why, v.Why, v.Message)
		})
	}
	verdicts := New(nil, nil, Fleet{Instances: 30}, Limits{PerPolicy: map[string]int{"p": 1}}, now).GrantNodes([]NodeRequest{
		{Node: "late", Policy: "p", Deadline: now.Add(2 * time.Hour)},
		{Node: "soon", Policy: "p", Deadline: now.Add(time.Hour)},
		{Node: "near", Policy: "p", Deadline: now.Add(3 * time.Hour), Near: true},
	})
	require.Equal(t, []bool{false, false, true}, []bool{verdicts[0].Allowed, verdicts[1].Allowed, verdicts[2].Allowed})
	verdicts = New(nil, nil, Fleet{Instances: 30}, Limits{PerPolicy: map[string]int{"p": 1}}, now).GrantNodes([]NodeRequest{
		{Node: "never empty", Policy: "p", Deadline: now, Near: true, Failed: 2},
		{Node: "failed once", Policy: "p", Deadline: now, Near: true, Failed: 1},
		{Node: "good", Policy: "p", Deadline: now.Add(time.Hour)},
	})
	require.Equal(t, []bool{false, false, true}, []bool{verdicts[0].Allowed, verdicts[1].Allowed, verdicts[2].Allowed}, "what failed goes last")
}

// However requests come, what is granted together keeps every rule, and granting is independent of the order of asking.
func TestGrantsKeepTheRules(t *testing.T) {
	reasons := []v1alpha1.Reason{
		v1alpha1.ReasonExpired, v1alpha1.ReasonNodeExpiring, v1alpha1.ReasonDraining, v1alpha1.ReasonCondemned,
		v1alpha1.ReasonOutdated, v1alpha1.ReasonDrill, v1alpha1.ReasonRequested,
	}
	rapid.Check(t, func(t *rapid.T) {
		shards := rapid.IntRange(1, 8).Draw(t, "shards")
		var requests []Request
		for s := range shards {
			for i := range 3 {
				if !rapid.Bool().Draw(t, "asks") {
					continue
				}
				r := request(fmt.Sprintf("s%d", s), fmt.Sprintf("s%d-%d", s, i), string(rune('a'+i)), rapid.SampledFrom(reasons).Draw(t, "reason"))
				r.Healthy = rapid.IntRange(2, 3).Draw(t, "healthy")
				requests = append(requests, r)
			}
		}
		limits := Limits{
			Planned: rapid.IntRange(1, 4).Draw(t, "planned"), Urgent: rapid.IntRange(1, 4).Draw(t, "urgent"),
			Repairs: rapid.IntRange(1, 4).Draw(t, "repairs"), StormMinimum: rapid.IntRange(1, 5).Draw(t, "storm"), StormFraction: 0.0001,
		}
		fleet := Fleet{Instances: shards * 3}
		verdicts := New(nil, nil, fleet, limits, now).Grant(requests)
		count := [classes]int{}
		perShard := map[string][2]int{}
		for i, v := range verdicts {
			if !v.Allowed {
				require.NotEmpty(t, v.Why)
				continue
			}
			r := requests[i]
			count[classOf(r.Reason)]++
			n := perShard[r.Shard]
			if classOf(r.Reason) == repair {
				n[0]++
			} else {
				n[1]++
			}
			perShard[r.Shard] = n
			if classOf(r.Reason) == planned {
				require.Equal(t, r.Wanted, r.Healthy)
			}
		}
		require.LessOrEqual(t, count[repair], min(limits.Repairs, limits.StormMinimum+1))
		require.LessOrEqual(t, count[urgent], limits.Urgent)
		require.LessOrEqual(t, count[planned], limits.Planned)
		for s, n := range perShard {
			require.LessOrEqual(t, n[0], 1, s)
			require.LessOrEqual(t, n[1], 1, s)
		}
		perm := rapid.Permutation(requests).Draw(t, "order")
		other := New(nil, nil, fleet, limits, now).Grant(perm)
		for i, r := range perm {
			k := slices.IndexFunc(requests, func(q Request) bool { return q.Name == r.Name })
			require.Equal(t, verdicts[k].Allowed, other[i].Allowed)
		}
	})
}

func TestAFleetOnAHandfulOfNodesHasNoStorms(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var lost []Entry
	for n := range 20 {
		at := now.Add(-time.Duration(n) * time.Minute)
		lost = append(lost, Entry{Shard: "s", Instance: fmt.Sprint(n), Node: fmt.Sprint("n", n), Reason: v1alpha1.ReasonCondemned, Started: at, Finished: at})
	}
	for nodes, storm := range map[int]bool{1: false, 4: false, 5: false, 6: true, 40: true} {
		got, why := New(lost, nil, Fleet{Instances: 3, Nodes: nodes}, Limits{}, now).Storm()
		require.Equal(t, storm, got, "%d nodes: %s", nodes, why)
	}
}

// An outage that grows for three hours, node by node: the breaker opens once, holds until only as many verdicts as are
// no storm are left of the last hour, and then closes for good, although all that waited begins at that time.
func TestTheBreakerHoldsWhileAnOutageGrowsAndThenClosesForGood(t *testing.T) {
	const grows, lasts = 3 * time.Hour, 8 * time.Hour
	begin := now
	var entries []Entry
	var changes []time.Duration
	open := false
	for at := time.Duration(0); at < lasts; at += time.Minute {
		clock := begin.Add(at)
		if at <= grows && at%(5*time.Minute) == 0 {
			n := len(entries)
			entries = append(entries, Entry{
				Name: fmt.Sprint("r-", n), Shard: fmt.Sprint("s-", n), Instance: "i", Node: fmt.Sprint("n-", n), Zone: "a",
				Reason: v1alpha1.ReasonCondemned, Created: clock,
			})
		}
		a := New(entries, nil, Fleet{Instances: 100}, Limits{Repairs: 7}, clock)
		if storm, _ := a.Storm(); storm != open {
			open = storm
			changes = append(changes, at)
		}
		var waiting []int
		var requests []Request
		for i := range entries {
			e := &entries[i]
			if e.InFlight() && clock.Sub(e.Started) >= 20*time.Minute {
				e.Finished = clock
			}
			if e.Started.IsZero() {
				waiting = append(waiting, i)
				requests = append(requests, Request{Name: e.Name, Shard: e.Shard, Instance: e.Instance, Node: e.Node, Zone: e.Zone, Reason: e.Reason, Created: e.Created})
			}
		}
		for i, v := range a.Grant(requests) {
			if v.Allowed {
				entries[waiting[i]].Started = clock
			}
		}
	}
	require.Equal(t, []time.Duration{25 * time.Minute, grows + 35*time.Minute}, changes, "it opens with the sixth and closes with five left in the window")
	for _, e := range entries {
		require.False(t, e.Started.IsZero(), "%s was never let in", e.Name)
	}
}

func TestWhatWasCondemnedInAStormIsToldFromWhatWasNot(t *testing.T) {
	at := func(d time.Duration, n int) []Entry {
		var out []Entry
		for i := range n {
			out = append(out, Entry{
				Shard: "s", Instance: fmt.Sprint(d, i), Node: fmt.Sprint(d, i), Reason: v1alpha1.ReasonCondemned,
				Created: ago(d), Finished: now, // dropped
			})
		}
		return out
	}
	single := at(10*time.Hour, 1)
	slow := slices.Concat(at(20*time.Hour, 3), at(19*time.Hour, 3), at(18*time.Hour, 3)) // never six within one hour
	storm := slices.Concat(at(5*time.Hour, 4), at(5*time.Hour-50*time.Minute, 4), at(5*time.Hour-100*time.Minute, 4))
	oneNode := at(15*time.Hour, 20)
	for i := range oneNode {
		oneNode[i].Node = "n"
	}
	a := New(slices.Concat(single, slow, storm, oneNode), nil, Fleet{Instances: 30}, Limits{}, now)
	open, _ := a.Storm()
	require.False(t, open, "it is hours ago")
	for d, want := range map[time.Duration]bool{
		10 * time.Hour: false, 15 * time.Hour: false,
		20 * time.Hour: false, 19 * time.Hour: false, 18 * time.Hour: false,
		5 * time.Hour: true, 5*time.Hour - 50*time.Minute: true, 5*time.Hour - 100*time.Minute: true,
		5*time.Hour + time.Second: false, 5*time.Hour - 101*time.Minute: false,
	} {
		require.Equal(t, want, a.Storming(ago(d)), "%s ago", d)
	}
	require.False(t, New(storm, nil, Fleet{Instances: 30}, Limits{StormFraction: -1}, now).Storming(ago(5*time.Hour)), "the breaker is off")
}

func TestShares(t *testing.T) {
	for n := range 40_000 {
		l := Limits{}.withDefaults(Fleet{Instances: n})
		require.Equal(t, [3]int{max(1, n/50), max(3, n/10), max(3, n/10)}, [3]int{l.Planned, l.Urgent, l.Repairs}, n)
	}
	l := Limits{PlannedShare: 0.07, UrgentShare: 0.29, RepairsShare: 1}.withDefaults(Fleet{Instances: 100})
	require.Equal(t, [3]int{7, 29, 100}, [3]int{l.Planned, l.Urgent, l.Repairs})
	l = Limits{PlannedShare: 0.5, Planned: 2}.withDefaults(Fleet{Instances: 100})
	require.Equal(t, 2, l.Planned, "a number goes before a share")
}
