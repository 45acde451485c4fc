package quorum

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Cohort is the recorded rule of one term: a commit on Primary is acknowledged once the primary and at least Acks
// of Members have flushed it. The primary is never a member of its own cohort. With Acks 0 the primary alone
// decides (a shard of one instance).
type Cohort struct {
	Term    uint64
	Primary string
	// Members are instance names, sorted and without duplicates; see Normalize.
	Members []string
	Acks    int
	// Revision counts the changes of members within a term, from 0. Primaries refuse a lower one than they use.
	Revision uint64
}

// Position is where an instance's flushed WAL ends. WALTerm is the term of the last record flushed, not of the
// primary last connected to. Positions compare by WALTerm first, then by LSN.
type Position struct {
	WALTerm uint64
	LSN     uint64
}

// Promise is an instance's word that it acknowledges nothing of any term below Term any more, together with where
// its flushed WAL ended when it gave it. Only an instance whose data directory is whole may give one: not while it is
// being seeded or rewound, and not after its WAL was thrown away while it was named in the record.
type Promise struct {
	Instance string
	Term     uint64
	Position Position
	// WasPrimary is true when the instance was a running (or stopped) primary when it promised. It is information for
	// choosing a candidate; revocation only asks whether the instance is the primary named by the cohort.
	WasPrimary bool
}

// Record is every cohort that may still be in force, oldest first: the last established one, its successors begun but
// never established, and during a change of members the old ones and the next. Revocation must satisfy all.
type Record struct {
	Cohorts []Cohort
	// Established is the term last known to be established; 0 is none.
	Established uint64
	// Retired are the instances whose data was given up for destruction last, oldest first; see Retire. None of them may
	// be named again.
	Retired []string
}

// Compare orders positions: negative when p is behind q, 0 when equal, positive when ahead.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.WALTerm, q.WALTerm); c != 0 {
		return c
	}
	return cmp.Compare(p.LSN, q.LSN)
}

// String is the position as "term/LSN" with the LSN in PostgreSQL's notation.
func (p Position) String() string {
	return fmt.Sprintf("%d:%X/%X", p.WALTerm, p.LSN>>32, uint32(p.LSN))
}

// Normalize returns the cohort with its members sorted and without duplicates. The input is not modified.
func (c Cohort) Normalize() Cohort {
	c.Members = slices.Compact(slices.Sorted(slices.Values(c.Members)))
	return c
}

// Equal reports whether both are the same cohort of the same term and revision. Both must be normalized.
func (c Cohort) Equal(d Cohort) bool {
	return c.Revision == d.Revision && c.SameRule(d)
}

// SameRule is Equal without the revision: the same commits would be acknowledged. Both must be normalized.
func (c Cohort) SameRule(d Cohort) bool {
	return c.Term == d.Term && c.Primary == d.Primary && c.Acks == d.Acks && slices.Equal(c.Members, d.Members)
}

// Has reports whether the instance is a member.
func (c Cohort) Has(instance string) bool { return slices.Contains(c.Members, instance) }

// String is for messages to people.
func (c Cohort) String() string {
	return fmt.Sprintf("term %d.%d: %s with %d of {%s}", c.Term, c.Revision, c.Primary, c.Acks, strings.Join(c.Members, ", "))
}

// Validate checks a single cohort: normalized, a primary that is not a member, 0 ≤ Acks ≤ |Members|, a term above 0.
func (c Cohort) Validate() error {
	switch {
	case c.Term == 0:
		return fmt.Errorf("cohort without a term")
	case c.Primary == "":
		return fmt.Errorf("cohort of term %d without a primary", c.Term)
	case c.Has(c.Primary):
		return fmt.Errorf("cohort of term %d: primary %s is its own member", c.Term, c.Primary)
	case c.Has(""):
		return fmt.Errorf("cohort of term %d: a member without a name", c.Term)
	case c.Acks < 0 || c.Acks > len(c.Members):
		return fmt.Errorf("cohort of term %d: %d acknowledgements of %d members", c.Term, c.Acks, len(c.Members))
	case !slices.Equal(c.Members, c.Normalize().Members):
		return fmt.Errorf("cohort of term %d: members not sorted or not unique", c.Term)
	}
	return nil
}

// Validate checks the record: every cohort valid, ordered by (term, revision), one primary per term, and nothing older
// than the established term.
func (r Record) Validate() error {
	for i, c := range r.Cohorts {
		if err := c.Validate(); err != nil {
			return err
		}
		if c.Term < r.Established {
			return fmt.Errorf("record: cohort of term %d is older than established term %d", c.Term, r.Established)
		}
		if i == 0 {
			continue
		}
		p := r.Cohorts[i-1]
		switch {
		case p.Term > c.Term || p.Term == c.Term && p.Revision >= c.Revision:
			return fmt.Errorf("record: cohorts out of order: %v before %v", p, c)
		case p.Term == c.Term && p.Primary != c.Primary:
			return fmt.Errorf("record: two primaries in term %d: %s and %s", c.Term, p.Primary, c.Primary)
		}
	}
	if r.Established > 0 && !slices.ContainsFunc(r.Cohorts, func(c Cohort) bool { return c.Term == r.Established }) {
		return fmt.Errorf("record: no cohort of established term %d", r.Established)
	}
	return nil
}

// Clone is a deep copy.
func (r Record) Clone() Record {
	r.Cohorts, r.Retired = slices.Clone(r.Cohorts), slices.Clone(r.Retired)
	for i := range r.Cohorts {
		r.Cohorts[i].Members = slices.Clone(r.Cohorts[i].Members)
	}
	return r
}

// Latest is the newest cohort; ok is false when there is none.
func (r Record) Latest() (c Cohort, ok bool) {
	if len(r.Cohorts) == 0 {
		return Cohort{}, false
	}
	return r.Cohorts[len(r.Cohorts)-1], true
}

// Term is the highest term recorded, 0 when there is none.
func (r Record) Term() uint64 {
	c, _ := r.Latest()
	return max(c.Term, r.Established)
}

// Primary is the primary of the established term, "" when there is none.
func (r Record) Primary() string {
	for _, c := range r.Cohorts {
		if c.Term == r.Established {
			return c.Primary
		}
	}
	return ""
}

// Settled reports whether exactly one cohort is in force and it is established: no reparent and no change of members
// is under way or was left behind.
func (r Record) Settled() bool {
	return len(r.Cohorts) == 1 && r.Cohorts[0].Term == r.Established
}

// Before is the part of the record that a coordinator of the given term must see revoked: every cohort of a lower term.
func (r Record) Before(term uint64) Record {
	r = r.Clone()
	r.Cohorts = slices.DeleteFunc(r.Cohorts, func(c Cohort) bool { return c.Term >= term })
	return r
}

// InTerm reports whether the established term is the only one of the record: no reparent is under way or was left behind.
// A change of members may be.
func (r Record) InTerm() bool {
	return len(r.Cohorts) > 0 && r.Cohorts[0].Term == r.Established && r.Term() == r.Established
}

// IsRetired reports whether the data of the instance was given up for destruction.
func (r Record) IsRetired(instance string) bool { return slices.Contains(r.Retired, instance) }

// Names are all instances named by the record, as primary or as member, sorted. Their data must not be thrown away.
func (r Record) Names() []string {
	var names []string
	for _, c := range r.Cohorts {
		names = append(append(names, c.Primary), c.Members...)
	}
	return slices.Compact(slices.Sorted(slices.Values(names)))
}
