package story

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Kind of a lifeline.
type Kind string

// The kinds.
const (
	Instance Kind = "instance"
	Node     Kind = "node"
)

// State is what somebody is at a moment.
type State byte

// The states.
const (
	Absent  State = iota
	Joining       // an instance that is seeded, a node that is not ready yet
	Standby       // or a node that is ready
	Primary
	Failing // not ready after it was, or on its way out
)

// Subject is one instance or node as observed.
type Subject struct {
	Kind  Kind
	Name  string
	Place string // the instance's node, the node's zone
	Born  time.Time
	State State
}

// Reparent is one that has ended.
type Reparent struct {
	Name, Kind, Reason, Outcome, From, To string
	Unavailable                           time.Duration
}

// Replacement is one under way or ended.
type Replacement struct {
	Name, Instance, Successor, Reason, Phase, Outcome, Waiting string
}

// Clients is what the load has seen so far.
type Clients struct {
	PerSecond int64
	// P50 and P99 are the latency of the last second's writes; 0 when there were none.
	P50, P99        time.Duration
	Failed, Unknown int64
	// Stall is the time since the last acknowledged write; Longest the longest so far.
	Stall, Longest time.Duration
}

// Observation is everything at one moment.
type Observation struct {
	At           time.Time
	Subjects     []Subject
	Term         int64
	Reparents    []Reparent
	Replacements []Replacement
	Clients      Clients
}

// Lifeline is one subject over time.
type Lifeline struct {
	Subject
	// Seen first, and Gone when it was there no more; Gone is zero while it is there.
	Seen, Gone time.Time
	changes    []change
}

type change struct {
	at    time.Time
	state State
}

// at is the state at a moment.
func (l *Lifeline) at(t time.Time) State {
	if t.Before(l.Seen) || !l.Gone.IsZero() && !t.Before(l.Gone) {
		return Absent
	}
	state := Absent
	for _, c := range l.changes {
		if c.at.After(t) {
			break
		}
		state = c.state
	}
	return state
}

// Age it has, or had when it went.
func (l *Lifeline) Age(now time.Time) time.Duration {
	if !l.Gone.IsZero() {
		now = l.Gone
	}
	return now.Sub(l.Born)
}

// Chronicle is what was observed so far. The zero value is empty and ready.
type Chronicle struct {
	Begun time.Time
	Last  Observation

	lines        map[string]*Lifeline
	reparents    map[string]Reparent
	replacements map[string]Replacement
}

// Add takes an observation in and returns what is new in it, a line each, for people.
func (c *Chronicle) Add(o Observation) []string {
	if c.lines == nil {
		c.Begun = o.At
		c.lines, c.reparents, c.replacements = map[string]*Lifeline{}, map[string]Reparent{}, map[string]Replacement{}
	}
	first := c.Last.At.IsZero()
	var news []string
	say := func(format string, args ...any) {
		if !first {
			news = append(news, fmt.Sprintf(format, args...))
		}
	}
	c.subjects(o, say)
	for _, r := range o.Reparents {
		if _, known := c.reparents[r.Name]; !known {
			say("%s reparent (%s): %s → %s, %s, writes unavailable for %s", r.Kind, r.Reason, or(r.From, "nobody"), or(r.To, "nobody"), r.Outcome, r.Unavailable.Round(time.Millisecond))
		}
		if !first {
			c.reparents[r.Name] = r
		}
	}
	for _, r := range o.Replacements {
		before := c.replacements[r.Name]
		switch {
		case before.Phase == r.Phase || r.Phase == "":
		case r.Outcome != "":
			say("replacement of %s (%s): %s", or(r.Instance, "nobody"), r.Reason, r.Outcome)
		default:
			say("replacement of %s (%s): %s%s", or(r.Instance, "nobody"), r.Reason, r.Phase, by(r.Successor))
		}
		c.replacements[r.Name] = r
	}
	if lost := o.Clients.Failed + o.Clients.Unknown - c.Last.Clients.Failed - c.Last.Clients.Unknown; lost > 0 {
		say("clients saw %d errors", lost)
	}
	c.Last = o
	return news
}

func by(successor string) string {
	if successor == "" {
		return ""
	}
	return ", by " + or(successor, "nobody")
}

func (c *Chronicle) subjects(o Observation, say func(string, ...any)) {
	present := map[string]bool{}
	for _, s := range o.Subjects {
		key := string(s.Kind) + "/" + s.Name
		present[key] = true
		l := c.lines[key]
		if l == nil {
			l = &Lifeline{Subject: s, Seen: o.At}
			c.lines[key] = l
			say("%s %s appears%s", s.Kind, or(s.Name, "nobody"), on(s.Place))
		}
		if l.Place == "" && s.Place != "" {
			l.Place = s.Place
		}
		l.Gone = time.Time{} // a short absence was a mistake of the observer
		if n := len(l.changes); n == 0 || l.changes[n-1].state != s.State {
			if s.State == Primary && n > 0 {
				say("%s %s is the primary, term %d", s.Kind, or(s.Name, "nobody"), o.Term)
			}
			l.changes = append(l.changes, change{o.At, s.State})
		}
		l.State = s.State
	}
	for key, l := range c.lines {
		if !present[key] && l.Gone.IsZero() {
			l.Gone = o.At
			say("%s %s is gone, %s old", l.Kind, or(l.Name, "nobody"), l.Age(o.At).Round(time.Second))
		}
	}
}

func on(place string) string {
	if place == "" {
		return ""
	}
	return " on " + place
}

// Lifelines of a kind in the order of their births.
func (c *Chronicle) Lifelines(k Kind) []*Lifeline {
	var out []*Lifeline
	for _, l := range c.lines {
		if l.Kind == k {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *Lifeline) int { return cmp.Or(a.Seen.Compare(b.Seen), cmp.Compare(a.Name, b.Name)) })
	return out
}

// Alive are the names of a kind that are there now.
func (c *Chronicle) Alive(k Kind) []string {
	var out []string
	for _, l := range c.Lifelines(k) {
		if l.Gone.IsZero() {
			out = append(out, l.Name)
		}
	}
	return out
}
