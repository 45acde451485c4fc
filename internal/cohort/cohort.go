// Package cohort keeps the cohort of a shard in step with who is there: it takes dead members out, lets learners in once
// they have caught up, swaps substitutes in for those that leave. It is a pure function from what was observed to the next
// single step; the shard controller carries the step out and comes back.
//
// A change goes record → apply → confirm → drop (package quorum says why). Each step is derived from the stored record
// and from what the primary reports, never from memory, so a controller may die, or two may run, between any two of them:
//
//	record     old + next are stored, by compare-and-swap
//	apply      the primary is told to use next
//	confirm    the primary uses next, and enough of next's members have flushed what was written before
//	drop       only next is stored
//
// What the keeper never does: lower the acknowledgements because standbys are missing (only the spec changes them), begin
// a change that could not be confirmed at once, or touch a record in which a reparent is under way.
package cohort

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// Standby is one instance other than the primary, as the primary and its own agent last described it.
type Standby struct {
	Name string
	// Streaming is true while the primary lists it as a connected standby whose replies are recent.
	Streaming bool
	// Term is the highest its agent has accepted. One that streams without having been told of the term cannot say to
	// which term its WAL belongs, so it is not let in.
	Term uint64
	// Lag is how many bytes of WAL the primary has flushed and the standby has not acknowledged to have.
	Lag uint64
	// GoneFor is how long the primary has had no reply of it; 0 while it is streaming.
	GoneFor time.Duration
	// Leaving: there is a reason to replace it. It is not let in, and is taken out once a substitute has caught up.
	Leaving bool
	// Unfit says why it must not be a member whatever it streams: deleted, condemned, diverged, stuck. Empty when fit.
	Unfit string
}

// Observed is everything a step is decided from.
type Observed struct {
	Record quorum.Record
	// Use is what the primary of the latest cohort reports, from a status that is fresh; nil when there is none.
	Use *quorum.InUse
	// Established is true when that primary reports that the journal row of its term was acknowledged.
	Established bool
	// Standbys in order of preference: of two learners that have caught up the first is let in.
	Standbys []Standby
}

// Params are what the spec asks for, and the keeper's patience.
type Params struct {
	// Instances of the shard, the primary among them. The cohort has at most Instances-1 members.
	Instances int
	// Acks of a commit; quorum.DefaultAcks(Instances) unless the user chose.
	Acks int
	// MaxLag is how far behind a learner may be to be let in. Default 16 MiB, one WAL segment: it is then streaming from
	// memory, and the confirmation takes milliseconds.
	MaxLag uint64
	// GoneAfter is how long a member may be silent before it is taken out. Default 2 s: four heartbeats, so that a garbage
	// collection or a short network glitch does not cost two changes of the record, and yet a second failure right after
	// the first finds the cohort already without the dead one.
	GoneAfter time.Duration
}

// DefaultParams for a shard of that many instances.
func DefaultParams(instances int) Params {
	return Params{Instances: instances, Acks: quorum.DefaultAcks(instances), MaxLag: 16 << 20, GoneAfter: 2 * time.Second}
}

// Kind of a step.
type Kind int

const (
	// Nothing is to be done, or nothing can be; Why says which.
	Nothing Kind = iota
	// Store the record, by compare-and-swap against the one observed.
	Store
	// Apply: tell the primary to use the cohort. It is in the stored record.
	Apply
)

// String names the kind.
func (k Kind) String() string { return [...]string{"Nothing", "Store", "Apply"}[k] }

// Step is what to do next.
type Step struct {
	Kind   Kind
	Record quorum.Record // to store
	Cohort quorum.Cohort // to apply
	Why    string        // for people
}

// Next decides the next step.
func Next(o Observed, p Params) Step {
	latest, ok := o.Record.Latest()
	switch {
	case !ok:
		return Step{Why: "no cohort is recorded yet"}
	case o.Record.Validate() != nil:
		return Step{Why: fmt.Sprintf("the record is not valid and must not be built upon: %v", o.Record.Validate())}
	case o.Use == nil:
		return Step{Why: fmt.Sprintf("%s does not report", latest.Primary)}
	case o.Use.Cohort.Primary != latest.Primary || o.Use.Cohort.Term != latest.Term:
		return Step{Why: fmt.Sprintf("%s is at term %d, the record at %d", o.Use.Cohort.Primary, o.Use.Cohort.Term, latest.Term)}
	case o.Established && latest.Term > o.Record.Established:
		return store(quorum.Establish(o.Record, latest.Term))(fmt.Sprintf("%s reports term %d established", latest.Primary, latest.Term))
	case !o.Record.InTerm():
		return Step{Why: fmt.Sprintf("term %d is begun and not established: a reparent is under way", latest.Term)}
	case o.Use.Cohort.Revision > latest.Revision:
		return Step{Why: fmt.Sprintf("the primary uses %v, which is newer than the record: this observation is stale", o.Use.Cohort)}
	}
	return change(o, p, latest)
}

func change(o Observed, p Params, latest quorum.Cohort) Step {
	under := len(o.Record.Cohorts) > 1
	if under && quorum.Confirmed(latest, *o.Use) {
		return store(quorum.FinishChange(o.Record, *o.Use))(fmt.Sprintf("%s uses it and its members have all that was acknowledged before", latest.Primary))
	}
	o.Standbys = slices.Clone(o.Standbys)
	for i := range o.Standbys {
		if s := &o.Standbys[i]; s.Unfit == "" && o.Record.IsRetired(s.Name) {
			s.Unfit = "its data is being destroyed"
		}
	}
	members, acks, why := plan(o.Standbys, p, latest)
	next := latest
	next.Members, next.Acks = members, acks
	// A change under way is overtaken only when it cannot be confirmed any more.
	if !next.SameRule(latest) && confirmable(next, o.Standbys) && !(under && confirmable(latest, o.Standbys)) {
		return store(quorum.BeginChange(o.Record, members, acks))(why)
	}
	if !o.Use.Cohort.Equal(latest) {
		return Step{Kind: Apply, Cohort: latest, Why: fmt.Sprintf("%s still uses %v", latest.Primary, o.Use.Cohort)}
	}
	if under {
		return Step{Why: fmt.Sprintf("waiting for %d of {%v} to flush what was written before", latest.Acks, latest.Members)}
	}
	if !next.SameRule(latest) {
		return Step{Why: fmt.Sprintf("too few standbys stream for a change: %s", why)}
	}
	return Step{Why: "the cohort is as it should be"}
}

// plan is the cohort to aim for: dead members out or replaced, leaving ones replaced, learners in up to the size of the
// spec, surplus members out, acknowledgements as the spec says once there are members enough.
func plan(standbys []Standby, p Params, c quorum.Cohort) (members []string, acks int, why string) {
	var gone, leaving, joiners []string
	known := map[string]bool{}
	for _, s := range standbys {
		known[s.Name] = true
		switch {
		case s.Unfit != "" || !s.Streaming && s.GoneFor >= p.GoneAfter:
			gone = append(gone, s.Name)
		case s.Leaving:
			leaving = append(leaving, s.Name)
		case s.Streaming && s.Term == c.Term && s.Lag <= p.MaxLag:
			joiners = append(joiners, s.Name)
		}
	}
	for _, m := range c.Members {
		if !known[m] {
			gone = append(gone, m)
		}
	}
	size := max(p.Instances-1, 0)
	d := c
	d.Members = c.Swap(append(slices.Clone(gone), leaving...), joiners, size)
	if surplus := len(d.Members) - size; surplus > 0 {
		d.Members = d.Shrink(first(surplus, append(slices.Clone(leaving), backwards(joiners)...), d.Members))
	}
	d.Members = d.Shrink(gone)
	d.Acks = min(max(c.Acks, min(p.Acks, len(d.Members))), max(p.Acks, 0))
	return d.Members, d.Acks, describe(c, d, standbys)
}

// first returns up to n of the names that are members, in order.
func first(n int, names, members []string) []string {
	names = slices.DeleteFunc(names, func(s string) bool { return !slices.Contains(members, s) })
	return names[:min(n, len(names))]
}

func backwards(names []string) []string {
	names = slices.Clone(names)
	slices.Reverse(names)
	return names
}

// confirmable reports whether enough members stream now to confirm the cohort.
func confirmable(c quorum.Cohort, standbys []Standby) bool {
	n := 0
	for _, s := range standbys {
		if s.Streaming && c.Has(s.Name) {
			n++
		}
	}
	return n >= c.Acks
}

func describe(from, to quorum.Cohort, standbys []Standby) string {
	var parts []string
	for _, m := range from.Members {
		if to.Has(m) {
			continue
		}
		why := "is not needed"
		i := slices.IndexFunc(standbys, func(s Standby) bool { return s.Name == m })
		switch {
		case i < 0:
			why = "does not exist any more"
		case standbys[i].Unfit != "":
			why = standbys[i].Unfit
		case !standbys[i].Streaming:
			why = fmt.Sprintf("silent for %v", standbys[i].GoneFor.Round(time.Millisecond))
		case standbys[i].Leaving:
			why = "leaving"
		}
		parts = append(parts, fmt.Sprintf("%s out (%s)", m, why))
	}
	for _, m := range to.Members {
		if !from.Has(m) {
			parts = append(parts, m+" in")
		}
	}
	if from.Acks != to.Acks {
		parts = append(parts, fmt.Sprintf("%d → %d acknowledgements", from.Acks, to.Acks))
	}
	slices.SortStableFunc(parts, cmp.Compare)
	return fmt.Sprint(parts)
}

func store(r quorum.Record, err error) func(why string) Step {
	return func(why string) Step {
		if err != nil {
			return Step{Why: err.Error()}
		}
		return Step{Kind: Store, Record: r, Why: why}
	}
}
