package quorum

import (
	"fmt"
	"slices"
)

// Bootstrap is the record of a shard whose first instance is about to run initdb: alone, so nobody can acknowledge. Clients
// are let in once a learner has joined and the acknowledgements are what the spec asks for.
func Bootstrap(primary string) Record {
	return Record{Cohorts: []Cohort{{Term: 1, Primary: primary}}}
}

// BeginChange records the next cohort of the established term beside the present one. It is the first step of a change
// of members; the primary may be told to use the next cohort once the result is stored. The error says why no change
// can begin: a reparent is under way, the rule is the same, or the cohort would not be valid.
//
// A change may begin before the one under way is finished, for when the next cohort can never be confirmed because its
// members died. All of them stay in force until the newest is confirmed.
func BeginChange(r Record, members []string, acks int) (Record, error) {
	if !r.InTerm() {
		return r, fmt.Errorf("a reparent is under way")
	}
	old, _ := r.Latest()
	next := Cohort{Term: old.Term, Primary: old.Primary, Members: members, Acks: acks, Revision: old.Revision + 1}.Normalize()
	if err := next.Validate(); err != nil {
		return r, err
	}
	if err := r.namesRetired(next); err != nil {
		return r, err
	}
	if next.SameRule(old) {
		return r, fmt.Errorf("the cohort is that already: %v", old)
	}
	r = r.Clone()
	r.Cohorts = append(r.Cohorts, next)
	return r, nil
}

// InUse is what a primary says of the cohort it uses.
type InUse struct {
	Cohort Cohort
	// Since is the end of the primary's WAL (insert position, in bytes) read after every process of PostgreSQL had begun
	// to use the cohort. Commits below it may have been acknowledged under the cohort before.
	Since uint64
	// Flushed are the positions up to which standbys acknowledged to have flushed the primary's WAL, by instance.
	Flushed map[string]uint64
}

// Confirmed reports whether next has taken over: the primary uses it, and Acks of its members have flushed all that was
// written when it began to. Then every commit acknowledged before has its k witnesses among next's members too.
func Confirmed(next Cohort, use InUse) bool {
	if !use.Cohort.Equal(next) {
		return false
	}
	n := 0
	for _, m := range next.Members {
		if lsn, ok := use.Flushed[m]; ok && lsn >= use.Since {
			n++
		}
	}
	return n >= next.Acks
}

// FinishChange drops every older cohort of a change after its newest is confirmed. It fails when it is not, or when the
// record has moved on and the observation was of another change.
func FinishChange(r Record, use InUse) (Record, error) {
	next, _ := r.Latest()
	if !r.InTerm() || len(r.Cohorts) < 2 {
		return r, fmt.Errorf("no change of members is under way")
	}
	if !Confirmed(next, use) {
		return r, fmt.Errorf("%v is not confirmed", next)
	}
	r = r.Clone()
	r.Cohorts = r.Cohorts[len(r.Cohorts)-1:]
	return r, nil
}

// BeginTerm records the cohort of a new term beside everything that may still be in force. It must be stored before the
// new primary is told to promote. Once it is, no cohort of a lower term can be added any more, so what must be revoked
// before the promotion is final: the result's Before(term). A term names one primary for ever.
func BeginTerm(r Record, c Cohort) (Record, error) {
	c = c.Normalize()
	if err := c.Validate(); err != nil {
		return r, err
	}
	if err := r.namesRetired(c); err != nil {
		return r, err
	}
	if c.Term <= r.Term() {
		return r, fmt.Errorf("term %d is not above recorded term %d", c.Term, r.Term())
	}
	r = r.Clone()
	r.Cohorts = append(r.Cohorts, c)
	return r, nil
}

// AbandonTerm takes a begun term back. Only the coordinator that holds the term may, and only when it never asked the
// term's primary to promote: nobody else ever will, so the cohort cannot come into force.
func AbandonTerm(r Record, term uint64) (Record, error) {
	if term == 0 || r.Term() != term || r.Established == term {
		return r, fmt.Errorf("term %d is not a begun term that is the newest of the record", term)
	}
	r = r.Clone()
	r.Cohorts = slices.DeleteFunc(r.Cohorts, func(c Cohort) bool { return c.Term == term })
	return r, nil
}

// Establish marks the term established and drops every cohort of lower terms. It may be stored once the primary of the
// term had its journal row acknowledged by its cohort: the row follows all that was ever acknowledged, so k members of
// the new cohort now have that too. Calling it again for the same term changes nothing.
func Establish(r Record, term uint64) (Record, error) {
	if term < r.Established {
		return r, fmt.Errorf("term %d is below established term %d", term, r.Established)
	}
	if !slices.ContainsFunc(r.Cohorts, func(c Cohort) bool { return c.Term == term }) {
		return r, fmt.Errorf("no cohort of term %d is recorded", term)
	}
	r = r.Clone()
	r.Established = term
	r.Cohorts = slices.DeleteFunc(r.Cohorts, func(c Cohort) bool { return c.Term < term })
	return r, nil
}

// keepRetired is how many retired instances a record remembers. They are remembered for coordinators that began before the
// instance was retired; names are not used twice, and no shard throws away this many instances during one reparent.
const keepRetired = 8

// Retire gives the data of an instance up for destruction. It must be stored before the data is destroyed, and is refused
// while a cohort names the instance. Whoever destroys and whoever names thus change the same record by compare-and-swap:
// one of them comes second and is refused. Without it an emergency could name, for the term it begins, an instance whose
// volume is being deleted in the same milliseconds. Calling it again changes nothing.
func Retire(r Record, instance string) (Record, error) {
	switch {
	case instance == "":
		return r, fmt.Errorf("no instance to retire")
	case slices.Contains(r.Names(), instance):
		return r, fmt.Errorf("a recorded cohort names %s", instance)
	case r.IsRetired(instance):
		return r, nil
	}
	r = r.Clone()
	r.Retired = append(r.Retired, instance)
	r.Retired = r.Retired[max(0, len(r.Retired)-keepRetired):]
	return r, nil
}

func (r Record) namesRetired(c Cohort) error {
	for _, name := range r.Retired {
		if name == c.Primary || c.Has(name) {
			return fmt.Errorf("%s was retired: its data may be gone", name)
		}
	}
	return nil
}

// Shrink plans the members without the ones gone. Never below Acks: of more gone members than can be spared, the first
// in order of name are taken out. The result equals the present members when none can be.
func (c Cohort) Shrink(gone []string) []string {
	spare := len(c.Members) - c.Acks
	return slices.DeleteFunc(slices.Clone(c.Members), func(m string) bool {
		if spare <= 0 || !slices.Contains(gone, m) {
			return false
		}
		spare--
		return true
	})
}

// Swap plans the members with the joiners in: in place of the ones leaving first, in the order given, then up to size
// members. Joiners must have caught up; those left over stay learners, so the cohort never grows beyond size for a
// replacement. A leaving member stays while there is nobody to take its place.
func (c Cohort) Swap(leaving, joiners []string, size int) []string {
	members := slices.Clone(c.Members)
	var out []string
	for _, m := range leaving {
		if c.Has(m) && !slices.Contains(joiners, m) && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	for _, j := range joiners {
		switch {
		case j == c.Primary || slices.Contains(members, j):
		case len(out) > 0:
			members[slices.Index(members, out[0])] = j
			out = out[1:]
		case len(members) < size:
			members = append(members, j)
		}
	}
	return slices.Sorted(slices.Values(members))
}
