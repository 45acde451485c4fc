// Package verdict turns an observed shard into exactly one verdict and one action. It is a pure function: what was heard
// from the agents and when, what Kubernetes says of Pods and nodes, what is recorded; no clock and no memory.
//
// # How a primary is judged
//
// A primary is judged by three kinds of witnesses: its own agent, the standbys, and the observer itself. One of them alone
// never suffices to take a primary away that may be serving:
//
//   - Its agent reports and PostgreSQL is down, stalled or stopped: the agent is on the spot and is believed.
//   - Its agent is silent: the standbys decide. While as many members as a commit needs still hear from its PostgreSQL, it
//     serves, and whatever is wrong is between the observer and it (AgentDead). When fewer do, it cannot commit; it is dead or
//     as good as dead (PrimaryDead).
//   - Its agent reports but the standbys have lost it: it cannot commit (PrimaryIsolated).
//   - Nobody is heard at all: the observer is cut off, and does nothing (Unknown).
//
// A wrong verdict costs a reparent, never a commit: safety lies in revocation (package quorum), not here. So the rules lean
// towards acting soon, and an emergency is proposed only when the recorded cohorts can be revoked and a new primary
// established with the instances that are heard; otherwise the action is an alert.
package verdict

import (
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// Verdict is what is wrong with a shard, in one word.
type Verdict string

// The verdicts. At most one is given at a time: the worst.
const (
	Healthy         Verdict = "Healthy"
	PrimaryDead     Verdict = "PrimaryDead"     // down, or silent to everybody
	PrimaryStalled  Verdict = "PrimaryStalled"  // the machine or PostgreSQL hangs: writes, fsync or new sessions do not return
	PrimaryIsolated Verdict = "PrimaryIsolated" // alive, but the standbys have lost it: cannot commit
	PrimarySick     Verdict = "PrimarySick"     // answers, but with errors, or slowly, or its Pod is being deleted
	NoPrimary       Verdict = "NoPrimary"       // nobody is an established primary of the newest term
	StandbyDead     Verdict = "StandbyDead"
	StandbyStuck    Verdict = "StandbyStuck" // alive, but does not stream, or its disk hangs
	StandbyDiverged Verdict = "StandbyDiverged"
	DiskFull        Verdict = "DiskFull"
	AgentDead       Verdict = "AgentDead" // silent to the observer while its PostgreSQL is known to work
	NodeNotReady    Verdict = "NodeNotReady"
	TwoPrimaries    Verdict = "TwoPrimaries"
	CannotCommit    Verdict = "CannotCommit" // not enough standbys, and nothing better to promote
	Unknown         Verdict = "Unknown"      // the observer hears nobody, or the shard is not bootstrapped
)

// Action is what to do about it.
type Action string

// The actions. Each is idempotent and is taken after the verdict was confirmed with fresh statuses.
const (
	None    Action = "None"
	ERS     Action = "ERS"        // emergency reparent away from the subject
	PRS     Action = "PRSThenERS" // planned reparent away from the subject; an emergency one when that fails
	Shrink  Action = "Shrink"     // take the subject out of the cohort
	Replace Action = "Replace"    // condemn the subject: evidence, a new instance, retire
	Alert   Action = "Alert"      // only people can help, or waiting
)

// Judgement is the answer.
type Judgement struct {
	Verdict Verdict
	// Subject is the instance the verdict is about; "" when it is the shard.
	Subject string
	Action  Action
	// Why explains the verdict and the action with the values they were taken from.
	Why string
}

// Role of an instance, as its agent last reported it.
type Role string

// The roles, as in the agent protocol.
const (
	RoleUnknown Role = ""
	RoleEmpty   Role = "Empty"
	RoleSeeding Role = "Seeding"
	RoleStandby Role = "Standby"
	RolePrimary Role = "Primary"
	RoleStopped Role = "Stopped"
)

// Probe is one of the agent's probes as of its last status. Durations are by the agent's clock, up to that status.
type Probe struct {
	// Pending is how long the probe under way has been; 0 when none is.
	Pending time.Duration
	// Failures in a row, and the last error.
	Failures int
	Error    string
	// SlowFor is how long every probe has taken longer than it should; 0 when the last was quick.
	SlowFor time.Duration
}

// Receiver is a standby's WAL receiver.
type Receiver struct {
	Streaming bool
	Source    string // instance it streams from
	// MessageAge is how long before the status the last message of the source came.
	MessageAge time.Duration
	// AdvanceAge is how long the received position has not moved, by the observer's clock.
	AdvanceAge time.Duration
}

// Peer is a standby as the primary sees it.
type Peer struct {
	Streaming bool
	// ReplyAge is how long before the status its last reply came.
	ReplyAge time.Duration
}

// Reach says whether somebody could reach something.
type Reach int

// Not asked, or no answer; reached; not reached.
const (
	NotAsked Reach = iota
	Reached
	NotReached
)

// Instance is one instance as observed.
type Instance struct {
	Name string

	// Age of the last status by the observer's clock; of the beginning of the watch when nothing was heard yet.
	Age time.Duration
	// Heard is true when any status was received; the fields below it come from the last one.
	Heard       bool
	Role        Role
	Term        uint64 // highest accepted
	Established bool
	Draining    bool
	Fenced      string // why the agent stopped PostgreSQL by itself
	Exited      string // how PostgreSQL ended; "" while it runs
	Diverged    bool
	Position    quorum.Position
	Receiver    Receiver
	Peers       map[string]Peer
	// WriteProbe commits a row without waiting for standbys; CommitProbe waits for them; DiskProbe writes and syncs a file;
	// ConnectProbe opens a session.
	WriteProbe, CommitProbe, DiskProbe, ConnectProbe Probe
	// DiskUsed is the used share of the data volume, 0 to 1; 0 when unknown.
	DiskUsed float64

	// Disconnected is true when the connection to the agent ended and a new one was refused.
	Disconnected bool
	// PrimaryPostgres and PrimaryAgent: could this instance's agent reach the primary's PostgreSQL and agent just now?
	PrimaryPostgres, PrimaryAgent Reach

	// PodGone is true when the Pod does not exist any more or all its containers have ended; PodGoneFor since when.
	PodGone    bool
	PodGoneFor time.Duration
	// NodeNotReadyFor is how long the node has not been Ready, or not been there; 0 when it is.
	NodeNotReadyFor time.Duration
	// Leaving: a replacement is under way.
	Leaving bool
}

// InFlight is the reparent of the highest term: one that has no outcome yet, or that failed.
type InFlight struct {
	Term  uint64
	Phase string
	// Planned: it is a planned one, which disturbs nothing before it has recorded its term.
	Planned bool
	// Failures is how many of the newest reparents in a row ended without a primary; 0 while the newest has no outcome.
	// Then PhaseAge is the time since the last of them ended.
	Failures int
	// PhaseAge is how long ago its journal was last written; PhaseLimit is how long that phase may take.
	PhaseAge, PhaseLimit time.Duration
}

// Observed is a shard as seen by one observer at one moment.
type Observed struct {
	Record quorum.Record
	// EstablishedFor is how long the observer has known the record to call its established term that.
	EstablishedFor time.Duration
	Instances      []Instance
	// Reparent under way or failed; nil when the newest one ended well.
	Reparent *InFlight
}
