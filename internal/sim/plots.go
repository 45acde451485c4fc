package sim

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// at is a fault at a time from the beginning of its plot.
func at(when time.Duration, kind FaultKind, target, other int, d time.Duration) Fault {
	return Fault{At: when, Kind: kind, Target: target, Other: other, For: d}
}

// on is f, which strikes up to jitter later than after the nth event of a name.
func on(event string, nth int, after, jitter time.Duration, f Fault) Fault {
	f.On = Trigger{Event: event, Nth: nth, After: after, Jitter: jitter}
	return f
}

// unpromised is a plot that is repeated when it is asked for and not drawn otherwise: more often than not it leaves a timeline
// that nobody alive can attribute, and a shard in which little else can be found out.
const unpromised = "a primary is promoted again unseen by a standby, heard by it alone, and destroyed"

// plots are faults that are dangerous together. Times are from the beginning of the plot; each is moved a little, and its
// duration varied. What has to hit milliseconds that no schedule knows beforehand waits for an event.
var plots = map[string][]Fault{
	"a standby that lags is left alone with the primary, which is then lost": {
		at(0, StallDisk, 0, 0, 12*time.Second), at(300*time.Millisecond, PowerCut, 1, 0, 14*time.Second), at(4*time.Second, DestroyNode, 7, 0, 0), at(5*time.Second, PowerCut, 0, 0, 300*time.Millisecond),
	},
	"the same, cut off one way": {
		at(0, CutOneWay, 7, 0, 5*time.Second), at(300*time.Millisecond, PowerCut, 1, 0, 8*time.Second), at(4*time.Second, DestroyNode, 7, 0, 0),
	},
	"a new primary is cut off from its standbys just after its promotion, and lost": {
		at(0, Switchover, 0, 0, 0), at(150*time.Millisecond, CutStandbys, 7, 0, 3*time.Second), at(2*time.Second, DestroyNode, 7, 0, 0),
	},
	"the same after an emergency": {
		at(0, KillPostgres, 7, 0, 0), at(100*time.Millisecond, CutStandbys, 7, 0, 3*time.Second), at(2*time.Second, PowerCut, 7, 0, 3*time.Second),
	},
	"the old primary lives on unseen while one who promised forgets in a power cut": {
		at(0, HangAgent, 7, 0, 12*time.Second), at(20*time.Millisecond, CutOperators, 7, 0, 12*time.Second), at(40*time.Millisecond, CutStandbys, 7, 0, 2500*time.Millisecond), at(2*time.Second, PowerCut, 0, 0, 300*time.Millisecond),
	},
	"both who promised forget": {
		at(0, HangAgent, 7, 0, 12*time.Second), at(20*time.Millisecond, CutStandbys, 7, 0, 2500*time.Millisecond), at(2*time.Second, PowerCut, 0, 0, 300*time.Millisecond), at(2*time.Second, PowerCut, 1, 0, 300*time.Millisecond),
	},
	"a member flaps while orders are late, and is lost with the primary": {
		at(0, SlowDisk, 0, 0, 30*time.Second),
		at(0, CutNode, 1, 0, 2600*time.Millisecond),
		at(4*time.Second, CutNode, 1, 0, 2600*time.Millisecond),
		at(8*time.Second, CutNode, 1, 0, 2600*time.Millisecond),
		at(12*time.Second, CutNode, 1, 0, 8*time.Second),
		at(12*time.Second, DestroyNode, 7, 0, 0),
	},
	"members come and go, and then the primary is lost": {
		at(0, KillPod, 0, 0, 4*time.Second), at(4*time.Second, KillPod, 1, 0, 4*time.Second), at(8*time.Second, PowerCut, 0, 0, 4*time.Second), at(12*time.Second, DestroyNode, 7, 0, 0),
	},
	"members come and go, and then the primary is frozen": {
		at(0, PowerCut, 0, 0, 2*time.Second), at(3*time.Second, PowerCut, 1, 0, 2*time.Second), at(6*time.Second, PowerCut, 0, 0, 2*time.Second), at(9*time.Second, FreezeNode, 7, 0, 6*time.Second),
	},
	"a learner catches up that cannot be let in, hears more than the members, and is lost with the primary": {
		at(0, Leave, 0, 0, 0),
		at(300*time.Millisecond, NoAPI, 0, 0, 7*time.Second),
		at(3500*time.Millisecond, CutOneWay, 7, 0, 6*time.Second),
		at(3500*time.Millisecond, CutOneWay, 7, 1, 6*time.Second),
		at(5*time.Second, PowerCut, 2, 0, 10*time.Second),
		at(5*time.Second, DestroyNode, 7, 0, 0),
	},
	"the coordinator stops in the middle and goes on later": {
		at(0, Switchover, 0, 0, 0), at(40*time.Millisecond, PauseOperator, 0, 0, 6*time.Second), at(3*time.Second, KillPostgres, 7, 0, 0),
	},
	"and the primary with it": {
		at(0, Switchover, 0, 1, 0), at(60*time.Millisecond, PauseOperator, 0, 1, 4*time.Second), at(100*time.Millisecond, FreezeNode, 7, 0, 5*time.Second),
	},
	"promotions fail one after the other": {
		at(0, KillPostgres, 7, 0, 0), at(30*time.Millisecond, KillPod, 0, 0, time.Second), at(1500*time.Millisecond, KillPod, 1, 0, time.Second), at(2500*time.Millisecond, PowerCut, 0, 0, time.Second),
	},
	"a primary is promoted again while the agent of a standby hangs": {
		at(0, HangAgent, 1, 0, 5*time.Second), at(20*time.Millisecond, CutOperators, 1, 0, 5*time.Second), at(200*time.Millisecond, PowerCut, 0, 0, 9*time.Second), at(400*time.Millisecond, KillPostgres, 7, 0, 0), at(5*time.Second, DestroyNode, 7, 0, 0),
	},
	"the primary dies while an instance is being thrown away": {
		at(0, Leave, 0, 0, 0), on(eventRetire, 1, 0, 60*time.Millisecond, at(0, KillPostgres, 7, 0, 0)),
	},
	"two promotions fail within milliseconds and pick the same timeline": {
		at(0, KillPostgres, 7, 0, 0),
		on(eventPromoted, 1, 50*time.Millisecond, 100*time.Millisecond, at(0, CutStandbys, 8, 0, 3*time.Second)),
		on(eventPromoted, 1, 50*time.Millisecond, 100*time.Millisecond, at(0, PowerCut, 8, 0, 4*time.Second)),
		on(eventPromoted, 2, 0, 2*time.Millisecond, at(0, KillPod, 8, 0, 0)),
	},
	unpromised: {
		at(0, HangAgent, 0, 0, 5*time.Second), at(0, CutOperators, 0, 0, 5*time.Second), at(20*time.Millisecond, Again, 0, 0, 0),
		on(eventPromoted, 1, 0, 0, at(0, CutOneWay, 8, 1, 3*time.Second)),
		on(eventPromoted, 1, 0, 0, at(0, CutOneWay, 8, 2, 3*time.Second)),
		on(eventPromoted, 1, 0, 0, at(0, CutOneWay, 8, 3, 3*time.Second)),
		on(eventPromoted, 1, 300*time.Millisecond, 0, at(0, DestroyNode, 8, 0, 0)),
	},
}

// Plots are the names of all of them, in order.
func Plots() []string { return slices.Sorted(maps.Keys(plots)) }

// draw makes a schedule: plots, and bursts of faults close together, since it is the second one in the middle of the
// first's repair that breaks things. The primary is a favourite target.
//
// With a plot, that one is repeated and nothing else happens.
func draw(seed uint64, trouble time.Duration, plot string) []Fault {
	names := slices.DeleteFunc(Plots(), func(name string) bool { return name == unpromised })
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
				if t := &f.On; t.Jitter > 0 {
					t.After, t.Jitter = t.After+upTo(t.Jitter), 0
				}
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
			if r.IntN(6) == 0 {
				f.On = Trigger{Event: events[r.IntN(len(events))], Nth: 1 + r.IntN(2), After: upTo(200 * time.Millisecond)}
				f.Target += r.IntN(2) * (8 - f.Target)
			}
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
