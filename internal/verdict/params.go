package verdict

import "time"

// Params are the patience of the verdicts. The targets they are made for: a killed postmaster is replaced within 400 to
// 800 ms, a dead or unreachable machine within 3 s, a stalled one within 4 s; an emergency reparent itself takes about 0.4 s.
type Params struct {
	// SilentAfter is the age of a status from which its agent counts as silent. Default 1.5 s: three heartbeats of 500 ms,
	// so that two lost or late ones on a busy machine are forgiven.
	SilentAfter time.Duration
	// LostAfter is the age of the last message from the primary at which a standby's receiver counts as lost even though
	// it is connected (a frozen or unplugged machine resets no connection). Default 1.5 s: the primary's write probe makes
	// WAL at every heartbeat, so a healthy stream is never quiet for longer than one.
	LostAfter time.Duration
	// IsolatedAfter is how long a primary's commit must have hung, and its members been out of reach, for it to count as
	// cut off from them. Default 1.5 s.
	IsolatedAfter time.Duration
	// StallAfter is how long a probe of a living agent may hang. Default 2 s: longer than a bad checkpoint's fsync, and in
	// time for 4 s together with the probe's interval and the reparent.
	StallAfter time.Duration
	// WriteAfter is how long a write to its own volume may take before a hanging commit is no word of a primary's standbys any
	// more. Default 250 ms: a write takes milliseconds, on a bad day tens.
	WriteAfter time.Duration
	// SickAfter is the number of failed probes in a row that make a primary sick. Default 3.
	SickAfter int
	// SlowAfter is how long a primary may be slow. Default 30 s. Slow counts as failed, but a vacuum is not a failure.
	SlowAfter time.Duration
	// StuckAfter is how long a standby may be connected to nothing, and how long a primary with a silent agent may send no
	// WAL while its PostgreSQL cannot be reached. Default 10 s.
	StuckAfter time.Duration
	// ReplaceAfter is how long a dead, stuck or silent standby may take to come back. Default 30 s: a container restart with
	// crash recovery is shorter, a seed is longer.
	ReplaceAfter time.Duration
	// NodeAfter is how long the node of a working instance may be not ready. Default 60 s: kubelets restart.
	NodeAfter time.Duration
	// MaxUsed is the used share of a volume from which it counts as full. Default 0.97.
	MaxUsed float64
	// Room is how much less of its volume another instance must use for a full one to be full by itself. Default 0.05: copies
	// differ by some WAL.
	Room float64
	// RetryAfter is how long to wait after a failed reparent before the next; it doubles with each in a row, up to 16
	// times. Default 500 ms: what was missing may have come back at once, but a shard that cannot be helped must not be
	// flooded with terms.
	RetryAfter time.Duration
	// Settle is how long after a term was recorded as established a status that knows nothing of it may still arrive. Default
	// 500 ms: one heartbeat, so that the next status is a later one.
	Settle time.Duration
	// Overdue is how long a reparent may be behind the limit of its phase before its coordinator counts as dead and is
	// overtaken. Default 500 ms.
	Overdue time.Duration
}

// DefaultParams are the defaults.
func DefaultParams() Params {
	return Params{
		SilentAfter: 1500 * time.Millisecond, LostAfter: 1500 * time.Millisecond, IsolatedAfter: 1500 * time.Millisecond,
		StallAfter: 2 * time.Second, WriteAfter: 250 * time.Millisecond, SickAfter: 3, SlowAfter: 30 * time.Second, StuckAfter: 10 * time.Second,
		ReplaceAfter: 30 * time.Second, NodeAfter: time.Minute, MaxUsed: 0.97, Room: 0.05, Settle: 500 * time.Millisecond, Overdue: 500 * time.Millisecond, RetryAfter: 500 * time.Millisecond,
	}
}

// Full says that a volume of which this share is used counts as full.
func (p Params) Full(used float64) bool { return used >= p.MaxUsed }

// FenceAfter is the default time after which a primary that has heard neither from the operator nor from enough standbys
// stops itself: four signs of life in a row were missed. Commits do not depend on it. An operator that hears nothing of the
// primary may act half a second earlier (SilentAfter), so for about that long the stale one may answer reads beside its
// successor; a shorter time would end primaries of busy machines for nothing.
const FenceAfter = 2 * time.Second
