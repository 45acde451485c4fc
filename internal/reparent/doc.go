// Package reparent changes the primary of a shard, planned (PRS) or in an emergency (ERS). It knows neither Kubernetes nor
// PostgreSQL: it works on the ports Records, Agents and Journal, and takes time and concurrency from a Runtime, so that
// the same code runs in the operator and in the simulator.
//
// # The one path
//
// Both kinds end the same way, in a takeover (takeover.go):
//
//	Revoke     promises of the new term are collected until every recorded cohort of a lower term is revoked
//	Elect      among those whose position is proven sufficient the best placed is chosen (choose.go)
//	Record     its cohort is stored beside the older ones
//	Promote    it is promoted with that cohort's configuration already written
//	Establish  the others follow it, the journal row is acknowledged, the term is stored as established
//
// An ERS is just that. A PRS first makes sure that it will succeed, then drains the primary and stops it in order, which
// makes the primary's own promise the first one, with everything it wrote shipped to the candidate.
//
// # Ways out
//
// Until the old primary is told to stop, a PRS undoes everything: the begun term is abandoned, the primary undrained.
// After that nothing is undone, because the old primary has persisted the new term: the takeover goes on with whoever
// is electable, in the same term while nobody was told to promote, and the old primary is one of them. After a promotion
// was attempted the term is spent, for it names one primary for ever, and the next attempt opens the next term. A
// coordinator that meets a higher term than its own stops at once. One that dies leaves a journal whose last phase grows
// old; the next one opens a higher term, and the agents refuse the dead one's late orders.
//
// Every call has a deadline (Limits). Nobody is waited for who is not needed.
package reparent
