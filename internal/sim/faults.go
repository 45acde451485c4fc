package sim

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// FaultKind is what goes wrong.
type FaultKind string

// The faults. Target 4 to 7 is the primary, 0 to 3 are the others in order of age; Other is a second one or an operator; For
// is how long.
const (
	KillPostgres  FaultKind = "kill-postgres" // the postmaster
	KillPod       FaultKind = "kill-pod"      // agent and PostgreSQL; restarts
	PowerCut      FaultKind = "power-cut"     // un-synced writes are lost; comes back
	DestroyNode   FaultKind = "destroy-node"  // with its volume, if others have everything that was acknowledged
	FreezeNode    FaultKind = "freeze-node"   // every process
	StopPostgres  FaultKind = "stop-postgres" // SIGSTOP of all of PostgreSQL
	HangAgent     FaultKind = "hang-agent"    // the agent only
	StallDisk     FaultKind = "stall-disk"    // fsync hangs
	SlowDisk      FaultKind = "slow-disk"
	CutNode       FaultKind = "cut-node"      // from everybody
	CutStandbys   FaultKind = "cut-standbys"  // from all other instances
	CutOperators  FaultKind = "cut-operators" // from the operators
	CutOneWay     FaultKind = "cut-one-way"   // from one other instance, one way
	LossyNetwork  FaultKind = "lossy-network" // everywhere
	SlowNetwork   FaultKind = "slow-network"  // everywhere
	KillOperator  FaultKind = "kill-operator"
	PauseOperator FaultKind = "pause-operator" // and let it go on with what it believed
	KillAll       FaultKind = "kill-operators" // all at once
	TwoLeaders    FaultKind = "two-leaders"
	NoAPI         FaultKind = "no-api"
	ClockRate     FaultKind = "clock-rate" // of an operator and an instance
	ClockJump     FaultKind = "clock-jump"
	Switchover    FaultKind = "switchover" // somebody asks for a planned reparent
	Emergency     FaultKind = "emergency"  // somebody asks for an emergency reparent of a healthy shard
	Leave         FaultKind = "leave"      // the instance is to be replaced
)

var kinds = []struct {
	kind   FaultKind
	weight int
}{
	{KillPostgres, 10},
	{KillPod, 8},
	{PowerCut, 8},
	{DestroyNode, 4},
	{FreezeNode, 8},
	{StopPostgres, 4},
	{HangAgent, 4},
	{StallDisk, 5},
	{SlowDisk, 2},
	{CutNode, 8},
	{CutStandbys, 6},
	{CutOperators, 4},
	{CutOneWay, 6},
	{LossyNetwork, 3},
	{SlowNetwork, 2},
	{KillOperator, 8},
	{PauseOperator, 8},
	{KillAll, 2},
	{TwoLeaders, 4},
	{NoAPI, 3},
	{ClockRate, 2},
	{ClockJump, 2},
	{Switchover, 12},
	{Emergency, 4},
	{Leave, 5},
}

// Fault is one thing that goes wrong at one time.
type Fault struct {
	At     time.Duration
	Kind   FaultKind
	Target int
	Other  int
	For    time.Duration
}

func (f Fault) String() string {
	return fmt.Sprintf("%v %s target=%d other=%d for=%v", f.At.Round(time.Millisecond), f.Kind, f.Target, f.Other, f.For.Round(time.Millisecond))
}

// plots are faults that are dangerous together. Times are from the beginning of the plot; each is moved a little, and its
// duration varied.
var plots = map[string][]Fault{
	"a standby that lags is left alone with the primary, which is then lost": {
		{0, StallDisk, 0, 0, 12 * time.Second}, {300 * time.Millisecond, PowerCut, 1, 0, 14 * time.Second}, {4 * time.Second, DestroyNode, 7, 0, 0}, {5 * time.Second, PowerCut, 0, 0, 300 * time.Millisecond},
	},
	"the same, cut off one way": {
		{0, CutOneWay, 7, 0, 5 * time.Second}, {300 * time.Millisecond, PowerCut, 1, 0, 8 * time.Second}, {4 * time.Second, DestroyNode, 7, 0, 0},
	},
	"a new primary is cut off from its standbys just after its promotion, and lost": {
		{0, Switchover, 0, 0, 0}, {150 * time.Millisecond, CutStandbys, 7, 0, 3 * time.Second}, {2 * time.Second, DestroyNode, 7, 0, 0},
	},
	"the same after an emergency": {
		{0, KillPostgres, 7, 0, 0}, {100 * time.Millisecond, CutStandbys, 7, 0, 3 * time.Second}, {2 * time.Second, PowerCut, 7, 0, 3 * time.Second},
	},
	"the old primary lives on unseen while one who promised forgets in a power cut": {
		{0, HangAgent, 7, 0, 12 * time.Second}, {20 * time.Millisecond, CutOperators, 7, 0, 12 * time.Second}, {40 * time.Millisecond, CutStandbys, 7, 0, 2500 * time.Millisecond}, {2 * time.Second, PowerCut, 0, 0, 300 * time.Millisecond},
	},
	"both who promised forget": {
		{0, HangAgent, 7, 0, 12 * time.Second}, {20 * time.Millisecond, CutStandbys, 7, 0, 2500 * time.Millisecond}, {2 * time.Second, PowerCut, 0, 0, 300 * time.Millisecond}, {2 * time.Second, PowerCut, 1, 0, 300 * time.Millisecond},
	},
	"a member flaps while orders are late, and is lost with the primary": {
		{0, SlowDisk, 0, 0, 30 * time.Second},
		{0, CutNode, 1, 0, 2600 * time.Millisecond},
		{4 * time.Second, CutNode, 1, 0, 2600 * time.Millisecond},
		{8 * time.Second, CutNode, 1, 0, 2600 * time.Millisecond},
		{12 * time.Second, CutNode, 1, 0, 8 * time.Second},
		{12 * time.Second, DestroyNode, 7, 0, 0},
	},
	"members come and go, and then the primary is lost": {
		{0, KillPod, 0, 0, 4 * time.Second}, {4 * time.Second, KillPod, 1, 0, 4 * time.Second}, {8 * time.Second, PowerCut, 0, 0, 4 * time.Second}, {12 * time.Second, DestroyNode, 7, 0, 0},
	},
	"members come and go, and then the primary is frozen": {
		{0, PowerCut, 0, 0, 2 * time.Second}, {3 * time.Second, PowerCut, 1, 0, 2 * time.Second}, {6 * time.Second, PowerCut, 0, 0, 2 * time.Second}, {9 * time.Second, FreezeNode, 7, 0, 6 * time.Second},
	},
	"a learner catches up that cannot be let in, hears more than the members, and is lost with the primary": {
		{0, Leave, 0, 0, 0},
		{300 * time.Millisecond, NoAPI, 0, 0, 7 * time.Second},
		{3500 * time.Millisecond, CutOneWay, 7, 0, 6 * time.Second},
		{3500 * time.Millisecond, CutOneWay, 7, 1, 6 * time.Second},
		{5 * time.Second, PowerCut, 2, 0, 10 * time.Second},
		{5 * time.Second, DestroyNode, 7, 0, 0},
	},
	"the coordinator stops in the middle and goes on later": {
		{0, Switchover, 0, 0, 0}, {40 * time.Millisecond, PauseOperator, 0, 0, 6 * time.Second}, {3 * time.Second, KillPostgres, 7, 0, 0},
	},
	"and the primary with it": {
		{0, Switchover, 0, 1, 0}, {60 * time.Millisecond, PauseOperator, 0, 1, 4 * time.Second}, {100 * time.Millisecond, FreezeNode, 7, 0, 5 * time.Second},
	},
	"promotions fail one after the other": {
		{0, KillPostgres, 7, 0, 0}, {30 * time.Millisecond, KillPod, 0, 0, time.Second}, {1500 * time.Millisecond, KillPod, 1, 0, time.Second}, {2500 * time.Millisecond, PowerCut, 0, 0, time.Second},
	},
	"a primary is promoted again while the agent of a standby hangs": {
		{0, HangAgent, 1, 0, 5 * time.Second}, {20 * time.Millisecond, CutOperators, 1, 0, 5 * time.Second}, {200 * time.Millisecond, PowerCut, 0, 0, 9 * time.Second}, {400 * time.Millisecond, KillPostgres, 7, 0, 0}, {5 * time.Second, DestroyNode, 7, 0, 0},
	},
}

// draw makes a schedule: plots, and bursts of faults close together, since it is the second one in the middle of the
// first's repair that breaks things. The primary is a favourite target.
//
// With a plot, that one is repeated and nothing else happens.
func draw(seed uint64, trouble time.Duration, plot string) []Fault {
	names := slices.Sorted(maps.Keys(plots))
	r := rand.New(rand.NewPCG(seed, 0xfa17))
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	upTo := func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
	var out []Fault
	for at := time.Second; at < trouble; at += upTo(8 * time.Second) {
		if plot != "" || r.IntN(2) == 0 {
			name := plot
			if plot == "" {
				name = names[r.IntN(len(names))]
			}
			for _, f := range plots[name] {
				f.At = at + f.At*8/10 + upTo(f.At*4/10+30*time.Millisecond)
				f.For = f.For*7/10 + upTo(f.For*6/10+time.Millisecond)
				out = append(out, f)
			}
			if plot != "" {
				at += 20 * time.Second
			}
			continue
		}
		for range 1 + r.IntN(4) {
			n := r.IntN(total)
			f := Fault{At: at, Target: r.IntN(8), Other: r.IntN(8), For: upTo(8 * time.Second)}
			for _, k := range kinds {
				if n -= k.weight; n < 0 {
					f.Kind = k.kind
					break
				}
			}
			out = append(out, f)
			at += upTo(700 * time.Millisecond)
		}
	}
	slices.SortStableFunc(out, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return out
}

// target finds the instance a fault means. The primary is the one of the established term.
func (w *world) target(n int) *instance {
	primary := w.byName[w.api.record.Primary()]
	if n >= 4 && primary != nil && !primary.lost {
		return primary
	}
	others := slices.DeleteFunc(slices.Clone(w.api.list), func(i *instance) bool { return i == primary })
	if len(others) == 0 {
		return w.api.list[0]
	}
	return others[n%len(others)]
}

func (w *world) inject(f Fault) {
	if len(w.api.list) == 0 {
		return
	}
	i, o := w.target(f.Target), w.operators[f.Other%len(w.operators)]
	w.trace("fault: %s %s (%s) for %v", f.Kind, i.name, o.name, f.For.Round(time.Millisecond))
	w.count("fault " + string(f.Kind))
	if strings.HasPrefix(string(f.Kind), "cut-") {
		w.cut(f, i)
		return
	}
	later := func(fn func()) { w.s.after(f.For, nil, fn) }
	switch f.Kind {
	case KillPostgres:
		if i.pg.mode != pgDown {
			i.pg.crash(false)
			i.agent.exited, i.agent.established = "signal 9", 0
			i.agent.changed()
		}
	case KillPod:
		w.killProcess(i, false, time.Second+f.For/4)
	case PowerCut:
		w.killProcess(i, true, time.Second+f.For)
	case DestroyNode:
		w.destroyIfSafe(i)
	case FreezeNode:
		w.s.freeze(i.agent.proc)
		w.freezePostgres(i)
		later(func() { w.s.thaw(i.agent.proc); w.s.thaw(i.pg.proc) })
	case StopPostgres:
		w.freezePostgres(i)
		later(func() { w.s.thaw(i.pg.proc) })
	case HangAgent:
		w.s.freeze(i.agent.proc)
		later(func() { w.s.thaw(i.agent.proc) })
	case StallDisk:
		w.stall(i)
		later(func() { w.unstall(i) })
	case SlowDisk:
		i.slow = 20 * time.Millisecond
		later(func() { i.slow = 0 })
	case LossyNetwork, SlowNetwork:
		w.network(f)
	default:
		w.injectControl(f, i, o, later)
	}
}

func (w *world) injectControl(f Fault, i *instance, o *operator, later func(func())) {
	switch f.Kind {
	case KillOperator:
		w.killOperator(o, f.For/2)
	case KillAll:
		for _, o := range w.operators {
			w.killOperator(o, f.For/2)
		}
	case PauseOperator:
		w.s.freeze(o.proc)
		later(func() { w.s.thaw(o.proc) })
	case TwoLeaders:
		for _, o := range w.operators {
			o.leader = true
		}
		later(func() {
			for n, o := range w.operators {
				o.leader = n == f.Target%len(w.operators)
			}
		})
	case NoAPI:
		w.s.freeze(w.api.proc)
		later(func() { w.s.thaw(w.api.proc) })
	case ClockRate:
		w.setRate(o.proc, 0.7+float64(f.Target)/10)
		w.setRate(i.agent.proc, 0.7+float64(f.Other)/10)
		later(func() { w.setRate(o.proc, 1); w.setRate(i.agent.proc, 1) })
	case ClockJump:
		o.proc.offset += f.For
		i.agent.proc.offset += f.For
	case Switchover:
		w.s.after(0, o.proc, func() { o.reparent(reparent.Request{Kind: reparent.Planned}) })
	case Emergency:
		w.s.after(0, o.proc, func() { o.reparent(reparent.Request{Kind: reparent.Emergency}) })
	case Leave:
		i.leaving = true
		w.api.changed()
	}
}

// setRate changes how fast a clock goes, without a jump.
func (w *world) setRate(p *proc, rate float64) {
	now := w.s.clock(p)
	p.rate = rate
	p.offset += now - w.s.clock(p)
}

func (w *world) freezePostgres(i *instance) {
	if !i.pg.proc.frozen {
		w.s.freeze(i.pg.proc)
		i.pgFrozenAt = w.s.now
	}
}

func (w *world) stall(i *instance) {
	if !i.stalled {
		i.stalled, i.stalledAt = true, w.s.now
	}
}

func (w *world) unstall(i *instance) {
	i.stalled = false
	waiters := i.waiters
	i.waiters = nil
	for _, fn := range waiters {
		fn()
	}
}

func (w *world) killOperator(o *operator, restart time.Duration) {
	w.s.kill(o.proc)
	w.s.after(restart, nil, func() {
		w.s.kill(o.proc)
		o.boot()
	})
}

// destroyIfSafe takes a machine with its volume, unless that could destroy the last copy of something acknowledged: what
// the protocol promises is to survive the loss of those whose absence still lets the record be revoked.
func (w *world) destroyIfSafe(i *instance) {
	var left []string
	for _, o := range w.api.list {
		if o != i && o.whole() {
			left = append(left, o.name)
		}
	}
	latest, _ := w.api.record.Latest()
	if quorum.Revocable(w.api.record, left) == nil && len(left) > latest.Acks {
		i.deleted = true
		w.destroy(i)
	}
}

func (w *world) network(f Fault) {
	for n := range w.links {
		l := &w.links[n]
		if f.Kind == LossyNetwork {
			l.loss = 0.2
		} else {
			l.delay = 30 * time.Millisecond
		}
	}
	w.s.after(f.For, nil, func() {
		for n := range w.links {
			w.links[n].loss, w.links[n].delay = 0, 0
		}
	})
}

// cut takes ways between machines away, and gives them back.
func (w *world) cut(f Fault, i *instance) {
	var ways []*link
	both := func(a, b *machine) { ways = append(ways, w.link(a, b), w.link(b, a)) }
	switch f.Kind {
	case CutNode:
		for _, m := range w.machines {
			if m != i.machine {
				both(m, i.machine)
			}
		}
	case CutStandbys:
		for _, o := range w.api.list {
			if o != i {
				both(o.machine, i.machine)
			}
		}
	case CutOperators:
		for _, o := range w.operators {
			both(o.machine, i.machine)
		}
	case CutOneWay:
		ways = append(ways, w.link(i.machine, w.target(f.Other).machine))
	}
	for _, l := range ways {
		l.cut = true
	}
	w.s.after(f.For, nil, func() {
		for _, l := range ways {
			l.cut = false
		}
	})
}

// heal ends all faults.
func (w *world) heal() {
	w.trace("faults are over")
	for n := range w.links {
		w.links[n] = link{}
	}
	if w.api.proc.frozen {
		w.s.thaw(w.api.proc)
	}
	for n, o := range w.operators {
		w.setRate(o.proc, 1)
		o.leader = n == 0
		if o.proc.frozen {
			w.s.thaw(o.proc)
		}
	}
	for _, i := range slices.Clone(w.api.list) {
		w.setRate(i.agent.proc, 1)
		w.unstall(i)
		i.slow = 0
		for _, p := range []*proc{i.agent.proc, i.pg.proc} {
			if p.frozen {
				w.s.thaw(p)
			}
		}
		w.restart(i)
	}
}
