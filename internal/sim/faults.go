package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// FaultKind is what goes wrong.
type FaultKind string

// The faults. Target 4 to 7 is the primary, 0 to 3 are the others in order of age, 8 is the instance of the event that was
// waited for; Other is a second one or an operator; For is how long.
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
	Again         FaultKind = "again"      // the same, to the primary that there is
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
	{Again, 2},
	{Leave, 5},
}

// Fault is one thing that goes wrong at one time, or from then on at an event.
type Fault struct {
	At     time.Duration
	Kind   FaultKind
	Target int
	Other  int
	For    time.Duration
	On     Trigger
}

// Trigger is the Nth event of a name, and a time After it. Jitter is how much of that time is left to the seed. The zero value
// is no event.
type Trigger struct {
	Event         string
	Nth           int
	After, Jitter time.Duration
}

// The events that faults can wait for. Each has an instance.
const (
	eventRecorded    = "recorded"    // the record was stored; the primary of its newest cohort
	eventPromoted    = "promoted"    // it leaves recovery
	eventEstablished = "established" // its journal row was acknowledged
	eventRetire      = "retire"      // it is given up, and will be destroyed within milliseconds
)

var events = []string{eventRecorded, eventPromoted, eventEstablished, eventRetire}

func (f Fault) String() string {
	s := fmt.Sprintf("%v %s target=%d other=%d for=%v", f.At.Round(time.Millisecond), f.Kind, f.Target, f.Other, f.For.Round(time.Millisecond))
	if t := f.On; t.Event != "" {
		s += fmt.Sprintf(" on=%s#%d+%v", t.Event, t.Nth, t.After.Round(time.Microsecond))
	}
	return s
}

// target finds the instance a fault means. The primary is the one of the established term.
func (w *world) target(n int, of *instance) *instance {
	primary := w.byName[w.api.record.Primary()]
	if n == 8 && of != nil && !of.lost {
		return of
	}
	if n >= 4 && primary != nil && !primary.lost {
		return primary
	}
	others := slices.DeleteFunc(slices.Clone(w.api.list), func(i *instance) bool { return i == primary })
	if len(others) == 0 {
		return w.api.list[0]
	}
	return others[n%len(others)]
}

// arm has a fault happen now, or when its event has come.
func (w *world) arm(f Fault) {
	if f.On.Event != "" {
		w.armed = append(w.armed, f)
		return
	}
	w.inject(f, nil)
}

// event is something that armed faults may wait for.
func (w *world) event(name string, i *instance) {
	still := w.armed[:0]
	for _, f := range w.armed {
		if f.On.Event == name {
			f.On.Nth--
		}
		if f.On.Event != name || f.On.Nth > 0 {
			still = append(still, f)
			continue
		}
		w.count("fault on " + name)
		w.s.after(f.On.After, nil, func() { w.inject(f, i) })
	}
	w.armed = still
}

// inject has a fault happen, at an event of the instance of.
func (w *world) inject(f Fault, of *instance) {
	if len(w.api.list) == 0 {
		return
	}
	i, o := w.target(f.Target, of), w.operators[f.Other%len(w.operators)]
	w.trace("fault: %s %s (%s) for %v", f.Kind, i.name, o.name, f.For.Round(time.Millisecond))
	w.count("fault " + string(f.Kind))
	if strings.HasPrefix(string(f.Kind), "cut-") {
		w.cut(f, i, w.target(f.Other, of))
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
	case Again:
		req := reparent.Request{Kind: reparent.Emergency, To: w.api.record.Primary()}
		w.s.after(0, o.proc, func() { o.reparent(req) })
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
func (w *world) cut(f Fault, i, other *instance) {
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
		ways = append(ways, w.link(i.machine, other.machine))
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
	w.armed = nil
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
