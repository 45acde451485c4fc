package reparent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// Version identifies a stored record for compare-and-swap. It is opaque. It is a version of the record and not of the object
// that holds it: an adapter whose object changes for other reasons tries again by itself as long as the record has not.
type Version string

// ErrConflict is what Records.Store returns when the record is not at the expected version any more.
var ErrConflict = errors.New("the record was changed by somebody else")

// ErrTermTaken is what Journal.Open returns when another coordinator holds that term.
var ErrTermTaken = errors.New("another coordinator has opened this term")

// ErrDiverged is what Agents.Follow returns when the instance's log is not a beginning of its new primary's.
var ErrDiverged = errors.New("its log has gone another way")

// OvertakenError is what Agents return when an agent has accepted a higher term than the call's.
type OvertakenError struct {
	Instance string
	Term     uint64 // the agent's
}

func (e *OvertakenError) Error() string {
	return fmt.Sprintf("%s has accepted term %d", e.Instance, e.Term)
}

// Records stores the safety record of the shard: Shard.status in Kubernetes. Load must be linearizable with Store (a
// read of the API server without a resourceVersion, not a cache).
type Records interface {
	Load(ctx context.Context) (quorum.Record, Version, error)
	// Store replaces the record if it is at the version, else returns ErrConflict. After any other error it is unknown
	// whether it was stored.
	Store(ctx context.Context, at Version, r quorum.Record) (Version, error)
}

// Role of an instance as far as reparenting cares.
type Role string

// The roles.
const (
	RoleOther   Role = ""
	RoleStandby Role = "Standby"
	RolePrimary Role = "Primary"
	RoleStopped Role = "Stopped"
)

// Status is a fresh answer of an agent.
type Status struct {
	Role        Role
	Term        uint64 // highest accepted
	Established bool
	Diverged    bool
	Position    quorum.Position // flushed
	Replayed    uint64          // LSN
	// Source is the instance it streams from, "" when it does not stream.
	Source string
}

// Timeline says in which term a timeline began.
type Timeline struct {
	ID   uint32
	Term uint64
	// History is what Promote answers of the timeline it has begun, for those who follow; the coordinator only passes it on.
	History string
}

// Agents are the instances' agents. Calls are by instance name; the adapter knows addresses. A call carries the term it
// acts for; an agent that has accepted a higher one answers with *OvertakenError. Any other error leaves unknown
// whether the call was carried out, now or later.
type Agents interface {
	Status(ctx context.Context, instance string) (Status, error)
	// Promise persists the term, stops the WAL receiver or the primary, and answers the flushed position. It is refused
	// once the instance follows or was promoted in the same term. An answer without a position (the data directory is
	// not whole), or with one that is only a lower bound, proves nothing: adapters return an error for it. An instance
	// that merely could not follow its last primary (diverged) has a position and must answer it: that primary may never
	// have been established, and the instance may hold the only copy. Promising makes it a standby like any other.
	//
	// With after the instance first lets its WAL receiver end by itself, for so long at most: it is the candidate, and its
	// primary is being stopped in order at the same time.
	Promise(ctx context.Context, instance string, term uint64, after time.Duration) (quorum.Promise, error)
	// Demote is Promise for a primary that is to stop in order: all WAL is shipped to the candidate first, and to the other
	// standbys as far as that costs no time. After timeout it is stopped at once. The position is that of the shutdown
	// record when it stopped in order.
	Demote(ctx context.Context, instance string, term uint64, candidate string, timeout time.Duration) (quorum.Promise, error)
	// Promote writes the cohort's configuration and leaves recovery. It answers the timelines of the new primary.
	Promote(ctx context.Context, instance string, c quorum.Cohort) ([]Timeline, error)
	// Establish writes the journal row and answers once the cohort has acknowledged it.
	Establish(ctx context.Context, instance string, term uint64, kind Kind, reason string) error
	// Follow makes the instance a standby of primary in the term. It never rewinds, since nobody knows yet whether its
	// log will be needed: a diverged instance answers ErrDiverged and waits for the shard controller. timelines are the source's, as far as they are known.
	Follow(ctx context.Context, instance string, term uint64, primary string, timelines []Timeline) error
	Checkpoint(ctx context.Context, instance string, term uint64) error
	// Await waits up to timeout for the transactions that are open when it is asked, while clients go on. It answers how many of
	// them are left, and when it was asked, by the primary's clock.
	Await(ctx context.Context, instance string, term uint64, timeout time.Duration) (open int, asked time.Time, err error)
	// Drain asks clients to pause and waits up to timeout for open transactions; it answers how many were left. Those that were
	// begun before overdue, which Await has answered, are not waited for; zero for none. An agent takes it back by itself when
	// no Demote follows within a few seconds, for coordinators may die.
	Drain(ctx context.Context, instance string, term uint64, timeout time.Duration, overdue time.Time) (open int, err error)
	Undrain(ctx context.Context, instance string, term uint64) error
}

// Journal is where a reparent leaves its traces, and the lock: one journal per term, made once.
type Journal interface {
	// Open makes the journal of a term, or adopts it when it was made as the request for this very reparent. It
	// returns ErrTermTaken when it is somebody else's.
	Open(ctx context.Context, o Opening) error
	// Phase notes the begin of a phase, and its end when Finished is set. It must not block: it is called in the middle
	// of an outage. Implementations queue.
	Phase(p Phase)
	// Close notes the outcome and waits until everything is written.
	Close(ctx context.Context, r Result) error
}

// Opening is what is known when a term is opened.
type Opening struct {
	Term        uint64
	Kind        Kind
	Reason      string
	Coordinator string
	OldPrimary  string
}

// Phase is one step of a reparent.
type Phase struct {
	Term     uint64
	Name     PhaseName
	Started  time.Time
	Finished time.Time // zero while it runs
	// Message for people: what was decided and why, or why it failed.
	Message string
}

// PhaseName names a phase.
type PhaseName string

// The phases in their usual order.
const (
	PhaseCheck     PhaseName = "Check"
	PhasePrepare   PhaseName = "Prepare"
	PhaseDrain     PhaseName = "Drain"
	PhaseDemote    PhaseName = "Demote"
	PhaseRevoke    PhaseName = "Revoke"
	PhaseCatchUp   PhaseName = "CatchUp"
	PhaseRecord    PhaseName = "Record"
	PhasePromote   PhaseName = "Promote"
	PhaseEstablish PhaseName = "Establish"
	PhaseUndo      PhaseName = "Undo"
)
