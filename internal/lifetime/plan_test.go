package lifetime

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const (
	day    = 24 * time.Hour
	maxAge = 29 * day
)

var t0 = at("2026-01-01T00:00:00Z")

func born(n int, when func(i int) time.Time) []Object {
	objs := make([]Object, n)
	for i := range objs {
		objs[i] = Object{ID: fmt.Sprintf("o-%d", i), CreatedAt: when(i)}
	}
	return objs
}

func together(int) time.Time { return t0 }

// fleet runs a policy over objects: what is due is replaced after took, at most plan.Rate per hour begin.
type fleet struct {
	objs    []Object
	policy  Policy
	tick    time.Duration
	took    time.Duration
	blocked func(now time.Time) bool
	// results
	starts []time.Time
	ages   []time.Duration
	oldest time.Duration
	nextID int
}

func (f *fleet) run(from time.Time, d time.Duration) {
	type flight struct {
		i    int
		done time.Time
	}
	var flying []flight
	busy := map[int]bool{}
	f.policy.Tick = f.tick
	for now := from; now.Before(from.Add(d)); now = now.Add(f.tick) {
		rest := flying[:0]
		for _, fl := range flying {
			if fl.done.After(now) {
				rest = append(rest, fl)
				continue
			}
			f.ages = append(f.ages, fl.done.Sub(f.objs[fl.i].CreatedAt))
			f.nextID++
			// The successor was made when the replacement began.
			f.objs[fl.i] = Object{ID: fmt.Sprintf("s-%d", f.nextID), Group: f.objs[fl.i].Group, CreatedAt: fl.done.Add(-f.took)}
			delete(busy, fl.i)
		}
		flying = rest
		var open []Object
		var index []int
		for i, o := range f.objs {
			f.oldest = max(f.oldest, now.Sub(o.CreatedAt))
			o.InFlight = busy[i]
			open, index = append(open, o), append(index, i)
		}
		plan := Make(open, f.policy, now)
		lastHour := 0
		for k := len(f.starts) - 1; k >= 0 && now.Sub(f.starts[k]) < time.Hour; k-- {
			lastHour++
		}
		for _, s := range plan.Due() {
			if f.blocked != nil && f.blocked(now) || lastHour >= int(plan.Rate)+1 ||
				f.policy.Budget > 0 && len(flying) >= f.policy.Budget {
				break
			}
			i := index[s.Index]
			busy[i] = true
			flying = append(flying, flight{i, now.Add(f.took)})
			f.starts = append(f.starts, now)
			lastHour++
		}
	}
}

// peakOverMean of the starts in bins, over [from, to).
func (f *fleet) peakOverMean(from, to time.Time, bin time.Duration) (float64, float64) {
	count := make([]int, int(to.Sub(from)/bin))
	for _, s := range f.starts {
		if k := int(s.Sub(from) / bin); !s.Before(from) && k < len(count) {
			count[k]++
		}
	}
	peak, sum := 0, 0
	for _, c := range count {
		peak, sum = max(peak, c), sum+c
	}
	mean := float64(sum) / float64(len(count))
	return float64(peak) / mean, mean
}

func TestOneObject(t *testing.T) {
	objs := born(1, together)
	plan := Make(objs, Policy{MaxAge: maxAge}, t0)
	require.True(t, plan.Holds, plan.Message)
	s := plan.Slots[0]
	require.Equal(t, t0.Add(maxAge), s.Deadline)
	life := s.Start.Sub(t0)
	require.LessOrEqual(t, life, time.Duration(0.95*float64(maxAge))-maxAge/48)
	require.GreaterOrEqual(t, life, time.Duration(0.90*float64(maxAge))-maxAge/48, "earlier by jitter and reserve only")
	require.False(t, s.Due)
	require.True(t, Make(objs, Policy{MaxAge: maxAge}, s.Start).Slots[0].Due)
	require.False(t, Make(objs, Policy{MaxAge: maxAge}, s.Start.Add(-2*time.Minute)).Slots[0].Due)
}

func TestNothingToPlan(t *testing.T) {
	plan := Make(nil, Policy{MaxAge: maxAge}, t0)
	require.True(t, plan.Holds)
	require.Empty(t, plan.Slots)
}

func TestPlansAreStable(t *testing.T) {
	// A plan made later moves no start of an object that is not due, as long as nothing else happens.
	objs := born(300, func(i int) time.Time { return t0.Add(time.Duration(i%7) * time.Hour) })
	p := Policy{MaxAge: maxAge}
	starts := map[int]time.Time{}
	for _, s := range Make(objs, p, t0.Add(day)).Slots {
		starts[s.Index] = s.Start
	}
	for _, s := range Make(objs, p, t0.Add(day+17*time.Minute)).Slots {
		require.WithinDuration(t, starts[s.Index], s.Start, time.Second)
	}
}

func TestCreatedAtOnceIsLevelFromTheFirstGenerationOn(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	f := &fleet{objs: born(3000, together), policy: Policy{MaxAge: maxAge}, tick: time.Hour, took: 2 * time.Hour}
	f.run(t0, 120*day)
	require.Less(t, f.oldest, maxAge)
	ratio, mean := f.peakOverMean(t0.Add(5*day), t0.Add(120*day), 12*time.Hour)
	t.Logf("12 h bins: peak/mean %.3f, mean %.1f; oldest %s", ratio, mean, f.oldest)
	require.LessOrEqual(t, ratio, 1.3)
	// Not bought with needless work: the mean life of what was born later is most of the maximum age.
	hours, late := 0.0, f.ages[3000:]
	for _, a := range late {
		hours += a.Hours()
	}
	require.Greater(t, hours/float64(len(late)), 0.85*maxAge.Hours())
}

func TestSmallFleetsAreStaggered(t *testing.T) {
	objs := born(3, together)
	for i := range objs {
		objs[i].Group = "shard"
	}
	plan := Make(objs, Policy{MaxAge: maxAge}, t0)
	require.Greater(t, plan.Slots[1].Start.Sub(plan.Slots[0].Start), 7*day)
	require.Greater(t, plan.Slots[2].Start.Sub(plan.Slots[1].Start), 7*day)
}

func TestGroupsAreServedOneAfterAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		objs := born(rapid.IntRange(2, 60).Draw(t, "n"), func(int) time.Time {
			return t0.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "hours")) * time.Hour)
		})
		for i := range objs {
			objs[i].Group = fmt.Sprintf("g%d", i/3)
		}
		p := Policy{MaxAge: maxAge, Service: 3 * time.Hour}
		last := map[string]time.Time{}
		for _, s := range Make(objs, p, t0.Add(5*day)).Slots {
			g := objs[s.Index].Group
			if before, ok := last[g]; ok {
				require.GreaterOrEqual(t, s.Start.Sub(before), 3*time.Hour-time.Second)
			}
			last[g] = s.Start
		}
	})
}

// Any fleet whose plan is feasible stays younger than its maximum age when what is due is begun, however the ages are
// spread and whatever dies in between. This is the invariant the package exists for.
func TestNothingGetsTooOld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "n")
		clusters := rapid.IntRange(1, 4).Draw(t, "clusters")
		objs := born(n, func(i int) time.Time { return t0.Add(-time.Duration(i%clusters) * 4 * day) })
		age := rapid.SampledFrom([]time.Duration{maxAge, 7 * day, 10 * time.Minute}).Draw(t, "age")
		if age != maxAge {
			for i := range objs {
				objs[i].CreatedAt = t0
			}
		}
		f := &fleet{objs: objs, policy: Policy{MaxAge: age}, tick: age / 500, took: age / 100}
		f.run(t0, 3*age)
		require.Less(t, f.oldest, age)
		require.NotEmpty(t, f.starts)
	})
}

func TestAnOutageShorterThanTheReserveIsAbsorbedWithoutAPeak(t *testing.T) {
	f := &fleet{
		objs:   born(1500, func(i int) time.Time { return t0.Add(-time.Duration(i) * maxAge / 1500 * 9 / 10) }),
		policy: Policy{MaxAge: maxAge}, tick: time.Hour, took: time.Hour,
	}
	stop, resume := t0.Add(40*day), t0.Add(41*day)
	f.blocked = func(now time.Time) bool { return now.After(stop) && now.Before(resume) }
	f.run(t0, 70*day)
	require.Less(t, f.oldest, maxAge)
	ratio, _ := f.peakOverMean(resume, t0.Add(70*day), 12*time.Hour)
	require.LessOrEqual(t, ratio, 1.3, "no stampede after the outage")
}

func TestALongOutageIsSaidBeforeItHurtsAndCaughtUpWithin(t *testing.T) {
	f := &fleet{
		objs:   born(1500, func(i int) time.Time { return t0.Add(-time.Duration(i) * maxAge / 1500 * 9 / 10) }),
		policy: Policy{MaxAge: maxAge}, tick: time.Hour, took: time.Hour,
	}
	stop, resume := t0.Add(40*day), t0.Add(44*day)
	f.blocked = func(now time.Time) bool { return now.After(stop) && now.Before(resume) }
	f.run(t0, 42*day)
	// Two days in, still nothing is too old, and the plan of a frozen fleet says what is coming.
	frozen := f.policy
	frozen.Freeze = "no capacity"
	plan := Make(f.objs, frozen, t0.Add(41*day))
	require.False(t, plan.Holds)
	require.Equal(t, Frozen, plan.Reason)
	require.Contains(t, plan.Message, "no capacity")
	require.True(t, plan.FirstLate.After(t0.Add(41*day)), "said before it happens")

	g := &fleet{objs: f.objs, policy: f.policy, tick: time.Hour, took: time.Hour, nextID: f.nextID}
	g.blocked = f.blocked
	g.run(t0.Add(42*day), 10*day)
	ratio := 0.0
	for h := resume; h.Before(t0.Add(52 * day)); h = h.Add(6 * time.Hour) {
		_, mean := g.peakOverMean(h, h.Add(6*time.Hour), 6*time.Hour)
		ratio = max(ratio, mean/6/plan.BaseRate)
	}
	require.LessOrEqual(t, ratio, 2.2, "the catch-up limit holds (2.16 objects an hour, rounded up)")
	last := Make(g.objs, g.policy, t0.Add(52*day))
	require.True(t, last.Holds, last.Message)
}

func TestFrozenZones(t *testing.T) {
	objs := born(20, together)
	for i := range objs {
		objs[i].Zone = []string{"a", "b"}[i%2]
	}
	now := t0.Add(27*day + 12*time.Hour)
	plan := Make(objs, Policy{MaxAge: maxAge, FrozenZones: map[string]string{"a": "no machines in a"}}, now)
	for _, s := range plan.Slots {
		if objs[s.Index].Zone == "a" {
			require.False(t, s.Due)
			require.Equal(t, "no machines in a", s.Frozen)
		} else {
			require.True(t, s.Due)
			require.Empty(t, s.Frozen)
		}
	}
	require.Equal(t, Frozen, plan.Reason)
	require.Contains(t, plan.Message, "10 of 20")
	objs[0].Frozen, objs[1].Frozen = "it failed", "it failed"
	plan = Make(objs, Policy{MaxAge: maxAge, FrozenZones: map[string]string{"a": "no machines in a"}}, now)
	for _, s := range plan.Slots {
		require.Equal(t, objs[s.Index].Zone == "b" && s.Index != 1, s.Due, "%d", s.Index)
		if s.Index == 1 {
			require.Equal(t, "it failed", s.Frozen)
		}
	}
	require.Contains(t, plan.Message, "11 of 20")
}

func TestABudgetThatCannotHoldIsSaidFromTheFirstDay(t *testing.T) {
	objs := born(100, together)
	p := Policy{MaxAge: maxAge, Budget: 1, Service: 12 * time.Hour}
	plan := Make(objs, p, t0)
	require.False(t, plan.Holds)
	require.Equal(t, BudgetTooSmall, plan.Reason, plan.Message)
	require.InDelta(t, 100-57, plan.Late, 3)
	require.True(t, plan.FirstLate.After(t0.Add(27*day)), "four weeks before it happens")
	p.Budget = 2
	require.True(t, Make(objs, p, t0).Holds, Make(objs, p, t0).Message)
}

func TestWindowsTooShortIsSaid(t *testing.T) {
	objs := born(100, together)
	p := Policy{MaxAge: maxAge, Budget: 1, Service: 2 * time.Hour, Windows: []Window{{Days: []time.Weekday{time.Sunday}, Length: 4 * time.Hour}}}
	plan := Make(objs, p, t0)
	require.False(t, plan.Holds)
	require.Equal(t, WindowsTooShort, plan.Reason, plan.Message)
}

func TestWindowsAreHonouredAndTheAgeHolds(t *testing.T) {
	for name, w := range map[string][]Window{
		"every night":  {{Start: 22 * time.Hour, Length: 5 * time.Hour}},
		"weekends":     {{Days: []time.Weekday{time.Saturday, time.Sunday}, Length: 24 * time.Hour}},
		"once a week":  {{Days: []time.Weekday{time.Wednesday}, Start: 3 * time.Hour, Length: 3 * time.Hour}},
		"two together": {{Start: time.Hour, Length: time.Hour}, {Days: []time.Weekday{time.Monday}, Start: 12 * time.Hour, Length: 2 * time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fleet{objs: born(200, together), policy: Policy{MaxAge: maxAge, Windows: w}, tick: 30 * time.Minute, took: time.Hour}
			f.run(t0, 90*day)
			require.Less(t, f.oldest, maxAge)
			for _, s := range f.starts {
				require.True(t, newCalendar(w, s, day).isOpen(), s)
			}
			perWeek, _ := f.peakOverMean(t0.Add(28*day), t0.Add(84*day), 7*day)
			require.LessOrEqual(t, perWeek, 1.4)
		})
	}
}

func TestLeadTooLong(t *testing.T) {
	plan := Make(born(3, together), Policy{MaxAge: time.Hour, Lead: 40 * time.Minute}, t0)
	require.Equal(t, LeadTooLong, plan.Reason)
}

func TestDeadlineMissedIsTheWorst(t *testing.T) {
	plan := Make(born(3, together), Policy{MaxAge: maxAge, Freeze: "asked to"}, t0.Add(30*day))
	require.Equal(t, DeadlineMissed, plan.Reason)
	require.Equal(t, 3, plan.Late)
	require.Contains(t, plan.Message, "24h")
	require.Contains(t, plan.Message, "asked to")
	require.Empty(t, plan.Due())
}

func TestMixedMaximumAges(t *testing.T) {
	objs := born(60, together)
	for i := range objs {
		if i%2 == 0 {
			objs[i].MaxAge = 5 * day
		}
	}
	plan := Make(objs, Policy{MaxAge: maxAge}, t0)
	require.True(t, plan.Holds, plan.Message)
	for _, s := range plan.Slots {
		require.Less(t, s.Start, s.Deadline)
		if s.Index%2 == 0 {
			require.Equal(t, t0.Add(5*day), s.Deadline)
		}
	}
}

// Rate is the lowest rate that can meet every hard start: one percent less misses one, for any set of deadlines.
func TestRateIsTheLowestThatHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 50).Draw(t, "n")
		queue := make([]time.Duration, n)
		at := time.Duration(0)
		for i := range queue {
			at += time.Duration(rapid.IntRange(1, 600).Draw(t, "gap")) * time.Minute
			queue[i] = at
		}
		p := Policy{MaxAge: maxAge, CatchUp: 1e12}.withDefaults()
		rate := p.rate(queue, 1e-20)
		meets := func(rate float64) bool {
			for k, hard := range queue {
				if float64(k+1)/rate > float64(hard)*(1+1e-9) {
					return false
				}
			}
			return true
		}
		require.True(t, meets(rate))
		require.False(t, meets(rate*0.99))
	})
}

func TestLead(t *testing.T) {
	require.Equal(t, maxAge/48, Lead(nil, 0, maxAge))
	require.Equal(t, time.Minute, Lead([]time.Duration{time.Second}, 0, maxAge))
	require.Equal(t, 2*time.Hour+time.Minute, Lead([]time.Duration{time.Minute, time.Hour}, time.Minute, maxAge))
	require.Equal(t, maxAge/2, Lead([]time.Duration{20 * day}, 0, maxAge), "never more than half")
	require.Equal(t, 30*time.Second, Lead(nil, time.Hour, time.Minute))
	require.Equal(t, time.Hour, Service(nil, time.Hour))
	require.Equal(t, 2*time.Second, Service([]time.Duration{3 * time.Second, time.Second, 2 * time.Second}, time.Hour))
}

func TestFailoversHappenEveryWeekAndNotTogether(t *testing.T) {
	shards := make([]Led, 700)
	for i := range shards {
		shards[i] = Led{ID: fmt.Sprintf("shard-%d", i), Since: t0}
	}
	period := 7 * day
	perHour := map[time.Time]int{}
	for now := t0; now.Before(t0.Add(28 * day)); now = now.Add(10 * time.Minute) {
		plan := Failovers(shards, period, nil, "", now)
		for _, s := range plan.Due() {
			require.Less(t, now.Sub(shards[s.Index].Since), period)
			shards[s.Index].Since = now
			perHour[now.Truncate(time.Hour)]++
		}
	}
	for h, n := range perHour {
		require.LessOrEqual(t, n, 7, "about 700/168 = 4.2 in the hour of %s", h)
	}
	require.Empty(t, Failovers(shards, period, nil, "frozen", t0.Add(60*day)).Due())
}

func BenchmarkMake30000(b *testing.B) {
	objs := born(30_000, func(i int) time.Time { return t0.Add(time.Duration(i) * maxAge / 30_000) })
	for b.Loop() {
		Make(objs, Policy{MaxAge: maxAge}, t0.Add(maxAge))
	}
}

func TestWhatIsInFlightIsWatchedAndNotPlanned(t *testing.T) {
	objs := born(3, together)
	objs[0].InFlight, objs[0].Zone = true, "a"
	plan := Make(objs, Policy{MaxAge: maxAge}, t0.Add(27*day))
	require.Len(t, plan.Slots, 2)
	for _, s := range plan.Slots {
		require.NotZero(t, s.Index)
	}
	require.Contains(t, plan.Message, "3 objects")
	stuck := Make(objs, Policy{MaxAge: maxAge, FrozenZones: map[string]string{"a": "no machines"}}, t0.Add(20*day))
	require.Equal(t, Frozen, stuck.Reason, "it began and cannot go on")
	late := Make(objs[:1], Policy{MaxAge: maxAge}, t0.Add(30*day))
	require.Equal(t, DeadlineMissed, late.Reason)
	require.Equal(t, 1, late.Late)
	// And it takes its place in the budget.
	require.True(t, Make(born(50, together), Policy{MaxAge: maxAge, Budget: 1, Service: 13 * time.Hour}, t0).Holds)
	many := born(51, together)
	for i := range many[:10] {
		many[i].InFlight = true
	}
	require.Equal(t, 41, len(Make(many, Policy{MaxAge: maxAge, Budget: 1, Service: 13 * time.Hour}, t0).Slots))
}
