package ledger

import (
	"math"
	"slices"
	"time"
)

// verdict is one condemnation: when it was given, and on which node.
type verdict struct {
	at   time.Time
	node string
}

// condemn counts a verdict from when it was given, whatever has become of it. It counts while it waits to be admitted: when
// ten thousand arrive together, the breaker must open before the first thousand are acted on. It counts after it was
// dropped: one that proved wrong speaks for a storm. And being let in, or waiting longer, does not make it another one:
// the breaker closes a window after the last verdict at the latest, and does not open again because what waited goes on.
func (a *Account) condemn(e Entry) {
	when := e.Created
	if when.IsZero() {
		when = e.Started
	}
	if when.IsZero() && e.Finished.IsZero() {
		when = a.now
	}
	if when.IsZero() {
		return
	}
	what := e.Node
	if what == "" {
		what = e.Shard + "/" + e.Instance
	}
	a.verdicts = append(a.verdicts, verdict{when, what})
	if a.now.Sub(when) >= a.limits.StormWindow {
		return
	}
	a.condemned[what] = struct{}{}
	a.lastCond = later(a.lastCond, when)
}

// storm also stops what is planned: while nobody knows what is happening, nothing that can wait should add to it.
func (a *Account) storm(_ Request, c class) Verdict {
	limit := a.stormLimit()
	if c == urgent || len(a.condemned) < limit {
		return allowed
	}
	v := refuse(CondemnationStorm, "instances on %d of %d nodes were condemned within %s, the limit is %d: a person should look before more are",
		len(a.condemned), a.fleet.Nodes, a.limits.StormWindow, limit)
	v.Retry = a.lastCond.Add(a.limits.StormWindow)
	return v
}

// Storm reports whether the storm breaker is open, and says so.
func (a *Account) Storm() (bool, string) {
	v := a.storm(Request{}, repair)
	return !v.Allowed, v.Message
}

// stormLimit is exclusive: the condemnation that reaches it is refused already. A fleet on so few nodes that all of them
// together would not reach it has no storms: there only one loss after another, over the window, could look like one.
func (a *Account) stormLimit() int {
	if a.limits.StormFraction < 0 || a.fleet.Nodes <= a.limits.StormMinimum {
		return math.MaxInt
	}
	return 1 + max(a.limits.StormMinimum, int(math.Ceil(a.limits.StormFraction*float64(a.fleet.Nodes))))
}

// span is a time from one verdict to another, both in it.
type span struct{ from, to time.Time }

// Storming reports whether a verdict that was given at a time was one of a storm, however long ago that was: whether some
// window it lies in has more of them than can be true.
func (a *Account) Storming(at time.Time) bool {
	if a.storms == nil {
		a.storms = a.findStorms()
	}
	return slices.ContainsFunc(a.storms, func(s span) bool { return !at.Before(s.from) && !at.After(s.to) })
}

// findStorms slides a window over the verdicts. Windows that touch are one storm.
func (a *Account) findStorms() []span {
	limit := a.stormLimit()
	slices.SortFunc(a.verdicts, func(a, b verdict) int { return a.at.Compare(b.at) })
	storms := []span{}
	within, first := map[string]int{}, 0
	for _, last := range a.verdicts {
		within[last.node]++
		for ; last.at.Sub(a.verdicts[first].at) >= a.limits.StormWindow; first++ {
			if n := a.verdicts[first].node; within[n] > 1 {
				within[n]--
			} else {
				delete(within, n)
			}
		}
		if len(within) < limit {
			continue
		}
		from := a.verdicts[first].at
		if n := len(storms); n > 0 && !from.After(storms[n-1].to) {
			storms[n-1].to = last.at
		} else {
			storms = append(storms, span{from, last.at})
		}
	}
	return storms
}
