package replacement

import "time"

// Timeouts are the deadlines of the steps. The zero value of every field is its default.
type Timeouts struct {
	// Pending is how long to wait for the ledger before giving up; whoever wants the replacement asks again with fresh
	// eyes. Default 24h.
	Pending time.Duration
	// Surge is from the wish for a successor to its agent's first word, a new machine included. Default 15m.
	Surge time.Duration
	// Seed is how long copying may take; SeedFor says it for a size. Default 1h.
	Seed time.Duration
	// CatchUp default 30m.
	CatchUp time.Duration
	// Reparent is for all tries together. Default 5m.
	Reparent time.Duration
	// Swap default 2m: a change of the cohort takes milliseconds and the keeper seconds.
	Swap time.Duration
	// Retire is from the decision to stop it until Pod and volume are gone. Default 10m.
	Retire time.Duration
	// Redundancy is how long to wait for another repair of the shard before retiring. Default 1h.
	Redundancy time.Duration
	// RollBack default 10m.
	RollBack time.Duration
	// Evidence is how long retiring waits for it. Default 60s.
	Evidence time.Duration
	// Attempts with different successors. Default 3; for a dead instance 6.
	Attempts int
	// Backoff before the second attempt; doubles. Default 30s.
	Backoff time.Duration
	// Reparents that may be asked for. Default 3.
	Reparents int
}

// SeedFor is the deadline for copying so many bytes: at 10 MB/s, a tenth of what the slowest sensible volume does, plus
// ten minutes; at least half an hour.
func SeedFor(bytes uint64) time.Duration {
	return max(30*time.Minute, 10*time.Minute+time.Duration(bytes/10_000_000)*time.Second)
}

func (t Timeouts) withDefaults() Timeouts {
	duration := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	duration(&t.Pending, 24*time.Hour)
	duration(&t.Surge, 15*time.Minute)
	duration(&t.Seed, time.Hour)
	duration(&t.CatchUp, 30*time.Minute)
	duration(&t.Reparent, 5*time.Minute)
	duration(&t.Swap, 2*time.Minute)
	duration(&t.Retire, 10*time.Minute)
	duration(&t.Redundancy, time.Hour)
	duration(&t.RollBack, 10*time.Minute)
	duration(&t.Evidence, time.Minute)
	duration(&t.Backoff, 30*time.Second)
	if t.Attempts <= 0 {
		t.Attempts = 3
	}
	if t.Reparents <= 0 {
		t.Reparents = 3
	}
	return t
}

// of is the deadline of a phase.
func (t Timeouts) of(p Phase) time.Duration {
	switch p {
	case Pending:
		return t.Pending
	case Surging:
		return t.Surge
	case Seeding:
		return t.Seed
	case CatchingUp:
		return t.CatchUp
	case Reparenting:
		return t.Reparent
	case Swapping:
		return t.Swap
	case Retiring:
		return t.Retire
	default:
		return t.RollBack
	}
}
