package lifetime

import (
	"fmt"
	"math"
	"time"
)

// forecaster looks ahead. Rates are in objects per nanosecond: base of open time, natural of any time.
type forecaster struct {
	policy        Policy
	items, flying []item
	queue         []time.Duration
	base, natural float64
}

// judge says whether the plan will hold, from the worst reason to the mildest.
func (p Policy) judge(plan *Plan, f forecaster, now time.Time) {
	total := len(f.items) + len(f.flying)
	plan.Holds, plan.Reason = true, Holds
	plan.Message = fmt.Sprintf("%d objects, %s per day, none will reach its maximum age", total, perDay(f.natural))
	fail := func(reason Reason, late int, format string, args ...any) {
		plan.Holds, plan.Reason, plan.Late = false, reason, late
		plan.Message = fmt.Sprintf(format, args...)
	}

	missed, frozen, why := 0, 0, ""
	first := time.Duration(math.MaxInt64)
	look := func(items []item, begun bool) {
		for _, it := range items {
			if it.deadline < 0 {
				missed++
			}
			// What has begun in a zone without machines waits like the rest.
			stuck := it.frozen != "" && (begun && p.Freeze == "" || !begun && it.start <= p.Tick)
			if stuck {
				frozen, why = frozen+1, it.frozen
			}
			if stuck || it.deadline < 0 || !begun && it.hardStart < 0 {
				first = min(first, it.deadline)
			}
		}
	}
	look(f.items, false)
	look(f.flying, true)
	late, firstLate := f.forecast(f.queue, f.base*p.CatchUp, p.Budget)
	if late > 0 {
		first = min(first, firstLate+p.Lead)
	}
	if first != math.MaxInt64 {
		plan.FirstLate = now.Add(first)
	}
	switch {
	case missed > 0:
		fail(DeadlineMissed, missed, "%d of %d objects are older than allowed, the oldest by %s", missed, total, round(-first))
		if frozen > 0 {
			plan.Message += "; frozen: " + why
		}
	case p.Lead > p.MaxAge/2:
		fail(LeadTooLong, total, "a replacement may take %s: more than half of the maximum age of %s", round(p.Lead), p.MaxAge)
	case frozen > 0:
		fail(Frozen, frozen, "%d of %d objects wait in a freeze (%s); the first reaches its maximum age in %s", frozen, total, why, round(first))
	case late > 0:
		reason, hint := f.blame()
		fail(reason, late, "%d of %d objects will be late, the first in %s: %s", late, total, round(first), hint)
	}
}

// forecast counts the objects that begin after their hard start when everything goes as fast as is allowed: first
// deadline first, which is late only where every order is. It returns the first missed hard start, too.
func (f forecaster) forecast(queue []time.Duration, limit float64, budget int) (late int, first time.Duration) {
	p := f.policy
	for k, hard := range queue {
		begin := time.Duration(float64(k) / limit)
		if budget > 0 {
			begin = max(begin, time.Duration((k+len(f.flying))/budget)*p.Service)
		}
		if begin > hard {
			if late == 0 {
				first = hard
			}
			late++
		}
	}
	return late, first
}

// blame finds the restriction without which the plan would hold; the windows first, because always is their default.
func (f forecaster) blame() (Reason, string) {
	p := f.policy
	if len(p.Windows) > 0 {
		plain := make([]item, 0, len(f.items))
		for _, it := range f.items {
			it.hardStart = it.hard
			plain = append(plain, it)
		}
		if late, _ := f.forecast(deadlines(plain), f.natural*p.CatchUp, p.Budget); late == 0 {
			return WindowsTooShort, "the windows are open for too short; longer ones or more of them are needed"
		}
	}
	if p.Budget > 0 {
		if late, _ := f.forecast(f.queue, f.base*p.CatchUp, 0); late == 0 {
			return BudgetTooSmall, fmt.Sprintf("%d at a time and %s each are %s per day, ages ask for %s",
				p.Budget, round(p.Service), perDay(float64(p.Budget)/float64(p.Service)), perDay(f.natural))
		}
	}
	return TooManyAtOnce, fmt.Sprintf("more are due at once than the catch-up limit of %s per day can replace", perDay(f.natural*p.CatchUp))
}

// perDay writes a rate given in objects per nanosecond.
func perDay(rate float64) string {
	if v := rate * float64(24*time.Hour); v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", rate*float64(24*time.Hour))
}

func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Hour || d < -10*time.Hour:
		return d.Round(time.Hour)
	case d > 10*time.Minute || d < -10*time.Minute:
		return d.Round(time.Minute)
	default:
		return d.Round(time.Second)
	}
}
