package reparent

import (
	"slices"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// Kind is planned or emergency.
type Kind string

// The kinds.
const (
	Planned   Kind = "Planned"
	Emergency Kind = "Emergency"
)

// Instance is what is known of an instance besides what its agent says.
type Instance struct {
	Name string
	Zone string
	// Reachable: its agent was heard recently. It is asked first and waited for; others are asked and not waited for.
	Reachable bool
	// Term is the highest its agent was heard to have accepted.
	Term uint64
	// Unfit says why it must not become the primary: condemned, its Pod is being deleted, wrong version. Empty when fit.
	Unfit string
	// Diverged: it could not follow the primary it was last told to. Its promise counts all the same, it may be elected, and it
	// may be able to follow another one.
	Diverged bool
	// Leaving: it is to be replaced soon. It is chosen when nobody else is left.
	Leaving bool
	// Current: it runs the release the shard should run.
	Current bool
	// Full: its volume is.
	Full bool
	// TimeLeft is how long it has to live before it expires; none when its node goes soon.
	TimeLeft time.Duration
	// ReplayLag is how many bytes it has flushed and not replayed: a promotion must replay them first.
	ReplayLag uint64
}

// Request is what to do.
type Request struct {
	Kind Kind
	// Term is set when the journal was made with the request; 0 takes the next free term.
	Term uint64
	// Spent is the highest term of which a journal is known, see SpentTerm. One that has no outcome is overtaken: see package
	// verdict for when to.
	Spent uint64
	// To is the instance to promote; "" takes the best placed.
	To string
	// AwayFrom must not be the primary afterwards; when it is not now, nothing is done. In an emergency it is the last choice.
	AwayFrom string
	// ExpectPrimary refuses the reparent when the record names another primary.
	ExpectPrimary string
	// Since is when the old primary was last known to serve, in an emergency: the outage is measured from there. Zero is not known:
	// then it is measured from the opening of the term.
	Since time.Time
	// CatchUp lets an emergency promote an instance that was asked for, or that stays while the one with the highest log
	// leaves, after it has caught up from that one. Off by default: it takes an agent that accepts a Promote after a Follow
	// of the same term, and costs the time of one more hop.
	CatchUp bool
	// NoCheckpoint leaves out the checkpoint before a planned reparent: one that cannot be written ends the primary, as a
	// full volume does (PostgreSQL panics), and with it every transaction that is open. Off by default: what is not written
	// before the primary is told to stop is written while clients wait.
	NoCheckpoint bool
	// Reason in a word.
	Reason string
	// Coordinator names this process in the journal.
	Coordinator string
	// Instances of the shard, all of them.
	Instances []Instance
	// Size is the most members the new cohort may have: the spec's instances less one. Acks are taken from the record.
	Size int
	// Limits; zero fields take the defaults.
	Limits Limits
}

// maxSkip is how many terms a request may leave out. Whatever is opened is spent, and terms end somewhere: one typing error
// must not use up all there are, or nobody could ever fail over again.
const maxSkip = 1000

// SpentTerm is the highest term that is not free any more, of the highest one that was opened, or heard of, and those that
// are only asked for: a request that waits or was refused has opened nothing, but the name of its journal is taken. One
// that is out of reach (see maxSkip) is passed over: it will never be opened, and its name is not needed before terms have
// come near it. What was opened counts at any distance, so whoever has seen less than others never takes for out of
// reach what those have reached; it could open a lower term at most, which agents and record refuse.
func SpentTerm(opened uint64, requested []uint64) uint64 {
	for _, t := range slices.Sorted(slices.Values(requested)) {
		if !inReach(t, opened+1) {
			break
		}
		opened = max(opened, t)
	}
	return opened
}

// inReach reports whether a term may be asked for when next is the lowest that is free.
func inReach(term, next uint64) bool { return term <= next || term-next <= maxSkip }

// Outcome of a reparent.
type Outcome string

// The outcomes.
const (
	Succeeded Outcome = "Succeeded"
	// Refused: nothing was touched.
	Refused Outcome = "Refused"
	// Undone: it failed and the old primary serves again, in its old term or, when it had been stopped already, in the new.
	Undone Outcome = "Undone"
	// Failed: it failed and there may be no primary; the next verdict goes on.
	Failed Outcome = "Failed"
	// Overtaken: another coordinator holds this or a higher term.
	Overtaken Outcome = "Overtaken"
)

// Candidate is one instance as it was judged.
type Candidate struct {
	Instance string
	Position quorum.Position
	// Refused says why it was not chosen; empty on the chosen one.
	Refused string
}

// Result is how it ended.
type Result struct {
	Outcome    Outcome
	Term       uint64 // the last one opened; 0 when none was
	OldPrimary string
	NewPrimary string // "" unless Succeeded
	// Why the new primary was chosen.
	Why        string
	Candidates []Candidate
	// Message says why it was refused, undone or failed, or, when it succeeded, that another one than was asked for is the primary.
	Message string
	// WriteUnavailable is the time from the first step that kept clients from writing, in an emergency from Request.Since, to
	// the establishment. 0 when nobody was kept, and when it is not over.
	WriteUnavailable time.Duration
}

// Limits bound every step. A zero field takes its default.
type Limits struct {
	// Store of the record and opening of the journal, each. Default 2 s: an API server that needs longer is down.
	Store time.Duration
	// Status of one instance. Default 1 s.
	Status time.Duration
	// Checkpoint before anything is disturbed. Default 30 s.
	Checkpoint time.Duration
	// CatchUp of a candidate, before anything is disturbed, or from the winner in an emergency, where a tenth of it is
	// allowed. Default 10 s.
	CatchUp time.Duration
	// Drain: how long open transactions may take to finish, with clients paused. Default 3 s.
	Drain time.Duration
	// Patience is how long transactions that are open already may take to finish before anybody is disturbed; those that do not
	// are not drained for. Default as Drain; negative is none.
	Patience time.Duration
	// Demote: how long a stop in order may take; then it is an immediate one. Default 3 s.
	Demote time.Duration
	// Promise of one instance. Default 1 s: an fsync and the end of a process.
	Promise time.Duration
	// Grace is how long a reachable instance that is not needed is waited for, so that it is in the new cohort and may be
	// the better candidate. Default 50 ms.
	Grace time.Duration
	// Promote, without the time to replay what is flushed, which is added at ReplayRate. Default 5 s.
	Promote time.Duration
	// Establish: until the journal row is acknowledged. Default 3 s.
	Establish time.Duration
	// Follow of the others after the new primary is established, all of them. Default 500 ms; the shard controller
	// repoints who is left.
	Follow time.Duration
	// MaxLag is how far behind in WAL or replay a candidate of a planned reparent may be, and a learner to be taken into
	// the new cohort. Default 16 MiB.
	MaxLag uint64
	// ReplayRate in bytes per second, at the least. Default 20 MiB/s.
	ReplayRate uint64
	// Attempts are how many terms are opened before giving up. Default 3.
	Attempts int
	// Poll is the interval at which statuses are asked for when waiting for a position. Default 20 ms.
	Poll time.Duration
}

// WithDefaults fills zero fields.
func (l Limits) WithDefaults() Limits {
	or := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	or(&l.Store, 2*time.Second)
	or(&l.Status, time.Second)
	or(&l.Checkpoint, 30*time.Second)
	or(&l.CatchUp, 10*time.Second)
	or(&l.Drain, 3*time.Second)
	or(&l.Patience, l.Drain)
	or(&l.Demote, 3*time.Second)
	or(&l.Promise, time.Second)
	or(&l.Grace, 50*time.Millisecond)
	or(&l.Promote, 5*time.Second)
	or(&l.Establish, 3*time.Second)
	or(&l.Follow, 500*time.Millisecond)
	or(&l.Poll, 20*time.Millisecond)
	if l.MaxLag == 0 {
		l.MaxLag = 16 << 20
	}
	if l.ReplayRate == 0 {
		l.ReplayRate = 20 << 20
	}
	if l.Attempts == 0 {
		l.Attempts = 3
	}
	return l
}

// Phase is the longest a phase may take before its coordinator must have gone on to another: what tells a coordinator at
// work from a dead one. The replay of a promotion is not in it.
func (l Limits) Phase(name PhaseName) time.Duration {
	l = l.WithDefaults()
	switch name {
	case PhasePrepare:
		return max(l.Patience, 0) + l.Store + l.Checkpoint + l.CatchUp
	case PhaseDrain:
		return l.Drain + 2*l.Store
	case PhaseDemote:
		return l.Demote + l.Promise
	case PhaseCatchUp:
		return l.CatchUp / 10
	case PhasePromote:
		return l.Promote
	case PhaseEstablish:
		return l.Establish + l.Follow + l.Store
	case PhaseRevoke:
		return l.Promise
	default:
		return 2 * l.Store
	}
}
