package replacement

import (
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

// Phase of a replacement; see the package comment.
type Phase string

// The phases, in the order of the usual way.
const (
	Pending     Phase = "Pending"
	Surging     Phase = "Surging"
	Seeding     Phase = "Seeding"
	CatchingUp  Phase = "CatchingUp"
	Reparenting Phase = "Reparenting"
	Swapping    Phase = "Swapping"
	Retiring    Phase = "Retiring"
	RollingBack Phase = "RollingBack"
	Done        Phase = "Done"
	Failed      Phase = "Failed"
	Cancelled   Phase = "Cancelled"
)

// Finished reports whether nothing more will happen.
func (p Phase) Finished() bool { return p == Done || p == Failed || p == Cancelled }

// Failure is why an attempt or a replacement failed, in a word.
type Failure string

// The failures.
const (
	NotAdmitted       Failure = "NotAdmitted"       // the ledger refused for longer than it makes sense to wait
	NoCapacity        Failure = "NoCapacity"        // no machine for the successor
	SurgeTimeout      Failure = "SurgeTimeout"      // it had a machine and did not start
	SeedTimeout       Failure = "SeedTimeout"       // it did not get the data in time
	CatchUpTimeout    Failure = "CatchUpTimeout"    // it did not catch up in time
	SuccessorLost     Failure = "SuccessorLost"     // it died or was deleted
	ReparentFailed    Failure = "ReparentFailed"    // the instance is still the primary
	SwapTimeout       Failure = "SwapTimeout"       // the cohort still names it
	RedundancyMissing Failure = "RedundancyMissing" // without it the shard would have too few copies
	TargetWontGo      Failure = "TargetWontGo"      // its Pod could not be deleted in time
	SurgeWontGo       Failure = "SurgeWontGo"       // the successor could not be taken away in time
	LastCopy          Failure = "LastCopy"          // there is nothing to copy from
)

// Request is what is asked for; it does not change but for Cancel.
type Request struct {
	// Instance that goes, and why.
	Instance string
	Reason   v1alpha1.Reason
	// CreatedAt is when it was asked for.
	CreatedAt time.Time
	// Cancel is true once nobody wants it any more. It is obeyed until the instance begins to stop.
	Cancel bool
}

// Status is what is stored between two decisions.
type Status struct {
	Phase Phase
	// PhaseStartedAt is when the phase began, AdmittedAt when the ledger let it begin.
	PhaseStartedAt, AdmittedAt time.Time
	// Attempt counts successors, from 1.
	Attempt int
	// Successor is the name drawn for this attempt; SuccessorSeen is true once it was there.
	Successor     string
	SuccessorSeen bool
	// RetryAt is when the next attempt may begin.
	RetryAt time.Time
	// EvidenceAt is when taking evidence began; EvidenceDone when it ended or nothing more can be had.
	EvidenceAt   time.Time
	EvidenceDone bool
	// ReparentFailures that earlier attempts have seen already.
	ReparentFailures int
	// Undo is how the replacement ends when it is rolled back: Failed or Cancelled; empty while it goes forward.
	Undo Phase
	// StopBegun is true once the instance was told to stop: from then on there is only forward.
	StopBegun bool
	// VolumeKept says why its volume was left behind; empty when it was not.
	VolumeKept string
	// LastFailure is why the last attempt failed; NoCapacityAt and GotMachineAt feed the ledger.
	LastFailure                Failure
	NoCapacityAt, GotMachineAt time.Time
	// Outcome and Message, once finished.
	Outcome string
	Message string
	// FinishedAt is when it finished.
	FinishedAt time.Time
}

// Leaving names whom the cohort should go on without: the instance that goes, or a surge that is rolled back; empty while
// nobody leaves yet.
func (s Status) Leaving(target string) string {
	switch {
	case s.Phase.Finished():
		return ""
	case s.Phase == RollingBack:
		return s.Successor
	case s.StopBegun || s.Phase == Reparenting || s.Phase == Swapping || s.Phase == Retiring:
		return target
	}
	return ""
}

// Instance is one instance as observed.
type Instance struct {
	Name string
	// Pod and VolumeExists say whether they are there at all; Terminating that the Pod is being deleted.
	PodExists, VolumeExists, Terminating bool
	// Running is true when the Pod has a machine and its agent has been heard.
	Running bool
	// Unschedulable is true while no machine has room for it.
	Unschedulable bool
	// Seeded is true when its data directory is whole: it streams, or has streamed.
	Seeded bool
	// Healthy is true when it is a full copy: the primary, or a standby that streams and has caught up.
	Healthy bool
	// Dead is true when it is no copy that counts: crashed, unreachable, stuck, diverged, or on a dead node.
	Dead bool
	// Suspect is true while something speaks against it although it may be a full copy: its node is not ready, its agent is
	// not heard, its disk is full or hangs.
	Suspect bool
	// InRecord is true while any recorded cohort names it, as its primary or as a member.
	InRecord bool
	// Leaving is true when another replacement is taking it away.
	Leaving bool
	// Failed is why it cannot become what it should, for good; empty otherwise.
	Failed string
}

// Reparent is the state of reparents of the shard.
type Reparent struct {
	// InFlight is true while one has no outcome.
	InFlight bool
	// Failures is how many that were made for this replacement were refused, undone or failed.
	Failures int
}

// Ledger is the ledger's answer to this replacement.
type Ledger struct {
	Allowed bool
	// Storm is true when the request is one of more condemnations than can be true.
	Storm   bool
	Message string
	Retry   time.Time
}

// Observed is everything a decision is made from.
type Observed struct {
	Now     time.Time
	Request Request
	Status  Status
	// Wanted instances of the shard; Primary as established, "" when there is none.
	Wanted  int
	Primary string
	// Writable is true while an established primary can acknowledge writes.
	Writable bool
	// Source is true when another instance runs whose data can be copied although it is no healthy copy: a member of the
	// cohort that outlived its primary.
	Source    bool
	Instances []Instance
	Reparent  Reparent
	Ledger    Ledger
	// FreshName is a name nobody has; it is used when a successor needs one.
	FreshName string
}

// Kind of an action.
type Kind string

// The actions. Each may be repeated.
const (
	Wait         Kind = "Wait"
	Surge        Kind = "Surge"        // make the successor's volume and Pod, if they are not there
	Planned      Kind = "Planned"      // planned reparent away from the instance, preferably to the successor
	Emergency    Kind = "Emergency"    // emergency reparent away from it
	Swap         Kind = "Swap"         // have the cohort keeper take it out (it sees that it is leaving)
	Stop         Kind = "Stop"         // delete its Pod
	DeleteVolume Kind = "DeleteVolume" // delete its volume and replication slots
	RetireSurge  Kind = "RetireSurge"  // delete the successor's Pod and its volume
	Finish       Kind = "Finish"       // nothing more to do
)

// Action is what to do now.
type Action struct {
	Kind Kind
	// Instance it is done to.
	Instance string
	// To is whom a reparent should prefer; empty leaves the choice.
	To string
	// Force deletes without waiting for a clean stop: the instance is dead, or had its time.
	Force bool
}

// Decision is the answer: store Status, then carry out Action, then look again at Recheck at the latest.
type Decision struct {
	Status  Status
	Action  Action
	Waiting string
	Recheck time.Time
	// Evidence is true while evidence of the instance that goes should be under way: begin to take it unless it was, and
	// set Status.EvidenceDone when it ends. Nothing waits for it but the end of the instance, and that not for long.
	Evidence bool
	// Leaving names the instance that the cohort keeper should take out: the one that goes, or a surge that is rolled
	// back. Empty while nobody leaves yet.
	Leaving string
}
