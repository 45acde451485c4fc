package quorum

import (
	"fmt"
	"slices"
	"strings"
)

// DefaultAcks is how many standbys must acknowledge a commit in a shard of that many instances: half, rounded down.
//
// With the primary that makes a majority (3→1, 5→2) or, for even numbers, one more (2→1, 4→2). A majority is the one
// choice that tolerates the loss of as many instances for commits as for reparents: commits need k of the R−1 standbys, a
// reparent without the primary needs R−1−k+1 of them, and with k = R/2 both survive ⌊(R−1)/2⌋ simultaneous losses
// (4→2 trades one of the commits' for one more of the reparents'). 1→0: a shard of one has nobody to ask.
func DefaultAcks(instances int) int { return max(instances, 0) / 2 }

// Needed is how many members must promise to revoke the cohort without its primary: |M| − k + 1. It is more than there
// are members when Acks is 0: then only the primary's own promise will do.
func (c Cohort) Needed() int { return len(c.Members) - c.Acks + 1 }

// revokedBy reports whether the named instances, all having left the cohort's term, leave it unable to acknowledge.
func (c Cohort) revokedBy(left func(string) bool) bool {
	if left(c.Primary) {
		return true
	}
	n := 0
	for _, m := range c.Members {
		if left(m) {
			n++
		}
	}
	return n >= c.Needed()
}

// NotRevokedError says which cohort can still acknowledge commits and who is missing.
type NotRevokedError struct {
	Cohort  Cohort
	Missing []string // members that have not promised
}

func (e *NotRevokedError) Error() string {
	return fmt.Sprintf("%v is not revoked: it takes its primary or %d of its members, missing are %s",
		e.Cohort, e.Cohort.Needed(), strings.Join(append([]string{e.Cohort.Primary}, e.Missing...), ", "))
}

// Revoked returns nil when the promises end every cohort of the record: none of them can acknowledge a commit any more,
// and each commit any of them did acknowledge is in the flushed WAL of one of the promisers. Otherwise the error is a
// *NotRevokedError for the oldest cohort still in force. A promise counts against cohorts of terms below its own only.
//
// Promises of instances that are neither member nor primary of a cohort do not help to revoke it: they never witnessed.
func Revoked(r Record, promises []Promise) error {
	return revoked(r, func(c Cohort) func(string) bool {
		return func(instance string) bool {
			return slices.ContainsFunc(promises, func(p Promise) bool { return p.Instance == instance && p.Term > c.Term })
		}
	})
}

// Revocable returns nil when the given instances, should all of them promise a new term, would revoke the record: the
// question to ask before disturbing anything.
func Revocable(r Record, reachable []string) error {
	return revoked(r, func(Cohort) func(string) bool {
		return func(instance string) bool { return slices.Contains(reachable, instance) }
	})
}

func revoked(r Record, left func(Cohort) func(string) bool) error {
	for _, c := range r.Cohorts {
		has := left(c)
		if c.revokedBy(has) {
			continue
		}
		e := &NotRevokedError{Cohort: c}
		for _, m := range c.Members {
			if !has(m) {
				e.Missing = append(e.Missing, m)
			}
		}
		return e
	}
	return nil
}

// Elect returns the promises with the highest position; there may be several. Each holds every commit that any cohort of
// the record acknowledged. It fails when the promises do not revoke the record, differ in term, or there are none.
//
// Proof. Take an acknowledged commit x of term t, and the cohort under which it was acknowledged. That cohort is in the
// record, or was dropped from it because a later one was confirmed or established, whose k witnesses then had flushed
// x too; so some recorded cohort has x on its primary and on k members. Revocation puts one of those among the promisers:
// call it w. Let e be the highest position, w ≤ e. If both end in the same term, they are prefixes of the one log of
// that term, so e contains w's log and x. If e ends in a later term u, then u's primary was elected by promises that
// revoked t's cohort, so by induction its log contained x when it was promoted (x was acknowledged before, since nothing is
// afterwards), and e's log begins with that log.
//
// Outsiders. The promises of learners and of instances that left the cohort cannot revoke anything, but they can be
// elected, and help: the argument asks nothing of e but its position. An outsider that is ahead of every member holds
// commits that were never acknowledged, or also lie below on a member; electing it loses nothing and saves it a rewind.
func Elect(r Record, promises []Promise) ([]Promise, error) {
	if len(promises) == 0 {
		return nil, fmt.Errorf("nobody promised")
	}
	best := []Promise{promises[0]}
	for _, p := range promises[1:] {
		if p.Term != promises[0].Term {
			return nil, fmt.Errorf("promises of two terms: %s gave %d, %s gave %d", promises[0].Instance, promises[0].Term, p.Instance, p.Term)
		}
		switch c := p.Position.Compare(best[0].Position); {
		case c > 0:
			best = []Promise{p}
		case c == 0:
			best = append(best, p)
		}
	}
	if err := Revoked(r, promises); err != nil {
		return nil, err
	}
	return best, nil
}

// Electable returns every promise whose holder may be promoted, best position first: not only the winners of Elect. A
// promiser x may be when those promisers that are not ahead of it revoke the record by themselves, because x then wins
// the election among them. So an old primary that still answers, with a tail that nobody acknowledged, need not be
// promoted: the standbys behind it are electable without it, and the tail is lost to nobody who was told it was kept.
func Electable(r Record, promises []Promise) []Promise {
	sorted := slices.Clone(promises)
	slices.SortStableFunc(sorted, func(p, q Promise) int { return q.Position.Compare(p.Position) })
	for i := range sorted {
		if i+1 < len(sorted) && sorted[i+1].Position == sorted[i].Position {
			continue
		}
		// Everybody from the first of the same position on is not ahead of sorted[i].
		first := slices.IndexFunc(sorted, func(p Promise) bool { return p.Position == sorted[i].Position })
		if _, err := Elect(r, sorted[first:]); err != nil {
			return sorted[:first]
		}
	}
	return sorted
}

// CanEstablish returns nil when enough of the cohort's members are reachable to acknowledge the first write of its primary.
// The primary itself is taken to be reachable.
func CanEstablish(c Cohort, reachable []string) error {
	n := 0
	for _, m := range c.Members {
		if slices.Contains(reachable, m) {
			n++
		}
	}
	if n < c.Acks {
		return fmt.Errorf("%v: only %d of the %d acknowledgements it needs are in reach", c, n, c.Acks)
	}
	return nil
}
