package lifetime

import (
	"fmt"
	"slices"
	"time"
)

// Window is a stretch of the week in which replacements may start. A replacement that began in one is finished.
type Window struct {
	// Days on which the window opens; empty is every day.
	Days []time.Weekday
	// Start of the window after local midnight, in [0, 24h).
	Start time.Duration
	// Length of the window, in (0, 24h]. It may reach into the next day.
	Length time.Duration
	// Location of Start. Default UTC.
	Location *time.Location
}

// Validate says what is wrong with the window, for the person who wrote it.
func (w Window) Validate() error {
	if w.Start < 0 || w.Start >= 24*time.Hour {
		return fmt.Errorf("a window starts between 00:00 and 23:59, not %s after midnight", w.Start)
	}
	if w.Length <= 0 || w.Length > 24*time.Hour {
		return fmt.Errorf("a window is open for more than nothing and at most 24h, not %s", w.Length)
	}
	return nil
}

// span is a half-open stretch of time relative to the calendar's beginning.
type span struct{ from, to time.Duration }

// calendar measures open time: how much of the time between its beginning and another moment lies inside windows.
// Planning happens in open time, so that a closed night neither counts as capacity nor as time left.
type calendar struct {
	now    time.Time
	always bool
	spans  []span          // ascending, disjoint
	before []time.Duration // open time before spans[i]
	total  time.Duration
}

// newCalendar covers [now, now+horizon]. Without windows everything is open.
func newCalendar(windows []Window, now time.Time, horizon time.Duration) *calendar {
	c := &calendar{now: now, always: len(windows) == 0}
	if c.always {
		return c
	}
	var spans []span
	for _, w := range windows {
		spans = append(spans, w.spans(now, horizon)...)
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	for _, s := range spans {
		if n := len(c.spans); n > 0 && s.from <= c.spans[n-1].to {
			c.spans[n-1].to = max(c.spans[n-1].to, s.to)
			continue
		}
		c.spans = append(c.spans, s)
	}
	for _, s := range c.spans {
		c.before = append(c.before, c.total)
		c.total += s.to - s.from
	}
	return c
}

// spans lists the openings of one window that touch [now, now+horizon], clipped to it.
func (w Window) spans(now time.Time, horizon time.Duration) []span {
	loc := w.Location
	if loc == nil {
		loc = time.UTC
	}
	var out []span
	local := now.In(loc)
	for day := -1; ; day++ {
		midnight := time.Date(local.Year(), local.Month(), local.Day()+day, 0, 0, 0, 0, loc)
		if midnight.Sub(now) > horizon {
			return out
		}
		if len(w.Days) > 0 && !slices.Contains(w.Days, midnight.Weekday()) {
			continue
		}
		// By the wall clock: on the days when clocks change a window still opens at the hour that was written.
		opens := time.Date(midnight.Year(), midnight.Month(), midnight.Day(), 0, 0, int(w.Start/time.Second), 0, loc)
		from := max(opens.Sub(now), 0)
		to := min(opens.Add(w.Length).Sub(now), horizon)
		if from < to {
			out = append(out, span{from, to})
		}
	}
}

// isOpen reports whether the calendar's beginning lies inside a window.
func (c *calendar) isOpen() bool {
	return c.always || (len(c.spans) > 0 && c.spans[0].from == 0)
}

// open is the open time between the beginning and t. Before the beginning it is negative: so much is t late.
func (c *calendar) open(t time.Duration) time.Duration {
	if c.always || t <= 0 {
		return t
	}
	i, _ := slices.BinarySearchFunc(c.spans, t, func(s span, t time.Duration) int { return int(s.to - t) })
	if i == len(c.spans) {
		return c.total
	}
	return c.before[i] + max(t-c.spans[i].from, 0)
}

// at is the first moment before which o of open time has passed, and the inverse of open inside windows.
func (c *calendar) at(o time.Duration) time.Duration {
	if c.always || o < 0 {
		return o
	}
	for i, s := range c.spans {
		if length := s.to - s.from; o < c.before[i]+length {
			return s.from + o - c.before[i]
		}
	}
	if n := len(c.spans); n > 0 {
		return c.spans[n-1].to
	}
	return 0
}

// guaranteed is the least open time in any stretch of the given length inside the calendar: the worst stretch begins
// where a window ends.
func (c *calendar) guaranteed(length, horizon time.Duration) time.Duration {
	if c.always {
		return length
	}
	least := c.open(length)
	for _, s := range c.spans {
		if s.to+length <= horizon {
			least = min(least, c.open(s.to+length)-c.open(s.to))
		}
	}
	return least
}
