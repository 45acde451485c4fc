package lifetime

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Object is something with an age: an instance, a node, or a shard since its last reparent.
type Object struct {
	// ID is the identity the jitter hashes: the UID of a Pod or Node.
	ID string
	// Group is what must not be disturbed twice at once, for instances their shard. Empty is none.
	Group string
	// Zone of the object, for freezes that hold in one zone only.
	Zone string
	// CreatedAt is when the object's age was 0.
	CreatedAt time.Time
	// MaxAge of this object; 0 is the policy's.
	MaxAge time.Duration
	// Frozen says why this one does not start although it may be its time; empty when it may.
	Frozen string
	// InFlight is true once its replacement has begun: it is not planned any more and counts against the budget, but it
	// still grows older until it is gone, and a plan that looked away would say that all is well.
	InFlight bool
}

// Policy is what a plan has to respect. The zero value of every field but MaxAge is its default.
type Policy struct {
	// MaxAge no object may reach.
	MaxAge time.Duration
	// Lead is how long before MaxAge a replacement must have begun; see Lead. Default MaxAge/48.
	Lead time.Duration
	// Service is how long one replacement usually takes. Default Lead/4.
	Service time.Duration
	// Reserve is the share of MaxAge kept for outages of the supply. Default 0.05; negative is none.
	Reserve float64
	// Spread is the share of MaxAge over which the jitter spreads. Default 0.05; negative is none.
	Spread float64
	// Headroom over the rate that ages alone ask for, so that the plan is always feasible. Default 0.10.
	Headroom float64
	// CatchUp limits the rate after an outage, as a multiple of what ages alone ask for. Default 2.
	CatchUp float64
	// Windows in which replacements may start; empty is always.
	Windows []Window
	// Budget of objects being replaced at once; 0 is unlimited.
	Budget int
	// Freeze starts nothing at all and says why; empty is not frozen.
	Freeze string
	// FrozenZones start nothing in a zone and say why.
	FrozenZones map[string]string
	// Tick is how long it may be until the next plan is made. Default 1m, at most MaxAge/1000.
	Tick time.Duration
}

func (p Policy) withDefaults() Policy {
	share := func(v *float64, def float64) {
		if *v == 0 {
			*v = def
		}
		*v = max(*v, 0)
	}
	if p.Lead <= 0 {
		p.Lead = p.MaxAge / 48
	}
	if p.Service <= 0 {
		p.Service = p.Lead / 4
	}
	share(&p.Reserve, 0.05)
	share(&p.Spread, 0.05)
	share(&p.Headroom, 0.10)
	share(&p.CatchUp, 2)
	p.CatchUp = max(p.CatchUp, 1+p.Headroom)
	if p.Tick <= 0 {
		p.Tick = time.Minute
	}
	p.Tick = min(p.Tick, p.MaxAge/1000)
	return p
}

// Slot is one object's place in the plan.
type Slot struct {
	// Index of the object in the slice that was planned.
	Index int
	// Start is when its replacement should begin.
	Start time.Time
	// Deadline is when it reaches its maximum age.
	Deadline time.Time
	// Due is true when it should begin now.
	Due bool
	// Near is true when half of the reserve is used up.
	Near bool
	// Frozen says why it does not begin although it should; empty otherwise.
	Frozen string
}

// Reason says in a CamelCase word why a plan holds or does not.
type Reason string

// Reasons of plans, worst first.
const (
	// DeadlineMissed: something is older than its maximum age.
	DeadlineMissed Reason = "DeadlineMissed"
	// LeadTooLong: a replacement takes so long that even an object that starts half way may be late.
	LeadTooLong Reason = "LeadTooLong"
	// Frozen: something should begin and is kept from it by a freeze.
	Frozen Reason = "Frozen"
	// WindowsTooShort: with windows open all day the plan would hold.
	WindowsTooShort Reason = "WindowsTooShort"
	// BudgetTooSmall: with an unlimited budget the plan would hold.
	BudgetTooSmall Reason = "BudgetTooSmall"
	// TooManyAtOnce: even at the catch-up rate some objects will be late.
	TooManyAtOnce Reason = "TooManyAtOnce"
	// Holds: nothing will be late.
	Holds Reason = "Holds"
)

// Plan says when each object goes, and whether that will work.
type Plan struct {
	// Slots by start, the first to go first.
	Slots []Slot
	// BaseRate is what ages alone ask for, in objects per hour of open time.
	BaseRate float64
	// Rate is the most that may start, in objects per hour of open time. See the package comment.
	Rate float64
	// Holds is true when nothing is late and nothing will be. Reason and Message say why not.
	Holds   bool
	Reason  Reason
	Message string
	// Late is how many objects are or will be late; FirstLate is when the first passes its maximum age.
	Late      int
	FirstLate time.Time
}

// Due lists the slots to begin now.
func (p Plan) Due() []Slot {
	var due []Slot
	for _, s := range p.Slots {
		if s.Due {
			due = append(due, s)
		}
	}
	return due
}

// item is an object while it is planned: times are relative to now, those named open in open time.
type item struct {
	index     int
	deadline  time.Duration // reaches its maximum age
	hard      time.Duration // last start
	soft      time.Duration // planned latest start
	start     time.Duration // open time, after levelling
	hardStart time.Duration // open time
	reserve   time.Duration
	frozen    string
}

// Make plans. Objects whose replacement is under way must be among objs, too, and have no slots.
func Make(objs []Object, policy Policy, now time.Time) Plan {
	p := policy.withDefaults()
	horizon := 2*p.MaxAge + 8*24*time.Hour
	for _, o := range objs {
		horizon = max(horizon, 2*o.MaxAge+8*24*time.Hour)
	}
	cal := newCalendar(p.Windows, now, horizon)
	items, base, natural := prepare(objs, p, now, cal, horizon)
	items, flying := apart(items, objs)
	level(items, objs, p, base)

	plan := Plan{Slots: make([]Slot, len(items)), BaseRate: base * float64(time.Hour)}
	queue := deadlines(items)
	plan.Rate = p.rate(queue, base) * float64(time.Hour)
	slices.SortFunc(items, func(a, b item) int {
		return cmpThen(a.start, b.start, a.index, b.index)
	})
	isOpen := cal.isOpen()
	for i, it := range items {
		should := isOpen && it.start <= p.Tick
		plan.Slots[i] = Slot{
			Index: it.index, Start: now.Add(cal.at(it.start)), Deadline: now.Add(it.deadline),
			Due: should && it.frozen == "", Near: min(it.hard, it.hardStart) <= it.reserve/2,
		}
		if should {
			plan.Slots[i].Frozen = it.frozen
		}
	}
	p.judge(&plan, forecaster{policy: p, items: items, flying: flying, queue: queue, base: base, natural: natural}, now)
	return plan
}

// prepare computes the starts of every object and sorts by soft start. The rate that ages alone ask for comes back in
// objects per nanosecond, of open time (base) and of any time (natural).
func prepare(objs []Object, p Policy, now time.Time, cal *calendar, horizon time.Duration) (items []item, base, natural float64) {
	items = make([]item, len(objs))
	var lastAge, shortest, shortestOpen time.Duration
	for i, o := range objs {
		age := o.MaxAge
		if age == 0 {
			age = p.MaxAge
		}
		lead := min(p.Lead, age/2)
		reserve := time.Duration(p.Reserve * float64(age))
		spread := time.Duration(p.Spread * float64(age))
		it := item{index: i, deadline: o.CreatedAt.Add(age).Sub(now), frozen: p.frozen(o)}
		it.hard = it.deadline - lead
		it.reserve = reserve
		it.soft = it.hard - reserve - time.Duration(Fraction("lifetime", o.ID)*float64(spread))
		it.start, it.hardStart = cal.open(it.soft), cal.open(it.hard)
		items[i] = it
		if age != lastAge {
			lastAge, shortest = age, max(age-lead-reserve-spread, age/10)
			shortestOpen = max(cal.guaranteed(shortest, horizon), time.Second)
		}
		base += 1 / float64(shortestOpen)
		natural += 1 / float64(shortest)
	}
	slices.SortFunc(items, func(a, b item) int { return cmpThen(a.soft, b.soft, a.index, b.index) })
	return items, base, natural
}

// apart separates what is in flight; both parts stay in order.
func apart(items []item, objs []Object) (waiting, flying []item) {
	for _, it := range items {
		if objs[it.index].InFlight {
			flying = append(flying, it)
		}
	}
	if len(flying) == 0 {
		return items, nil
	}
	waiting = slices.DeleteFunc(items, func(it item) bool { return objs[it.index].InFlight })
	return waiting, flying
}

func (p Policy) frozen(o Object) string {
	if p.Freeze != "" {
		return p.Freeze
	}
	return cmp.Or(p.FrozenZones[o.Zone], o.Frozen)
}

// level moves starts forward in time until they are a gap apart, and a service time apart within a group. What a group
// asks for is not handed on to the predecessors: it concerns few, and handing it on would move the whole fleet.
func level(items []item, objs []Object, p Policy, base float64) {
	if len(items) == 0 {
		return
	}
	gap := time.Duration(1 / (base * (1 + p.Headroom)))
	groups := map[string]time.Duration{}
	next := time.Duration(math.MaxInt64)
	for i := len(items) - 1; i >= 0; i-- {
		it := &items[i]
		it.start = min(it.start, next)
		next = it.start - gap
		if g := objs[it.index].Group; g != "" {
			if after, ok := groups[g]; ok {
				it.start = min(it.start, after-p.Service)
			}
			groups[g] = it.start
		}
	}
}

// deadlines are the hard starts in open time of everything that is not frozen, ascending.
func deadlines(items []item) []time.Duration {
	queue := make([]time.Duration, 0, len(items))
	for _, it := range items {
		if it.frozen == "" {
			queue = append(queue, it.hardStart)
		}
	}
	slices.Sort(queue)
	return queue
}

// rate is the lowest constant rate that meets every hard start, between the levelled rate and the catch-up limit.
func (p Policy) rate(queue []time.Duration, base float64) float64 {
	lowest, limit := base*(1+p.Headroom), base*p.CatchUp
	rate := lowest
	for k, hard := range queue {
		if hard <= 0 {
			return limit
		}
		rate = max(rate, float64(k+1)/float64(hard))
	}
	return min(rate, limit)
}

func cmpThen(a, b time.Duration, i, j int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return i - j
	}
}
