package lifetime

import "time"

// Led is a shard since its primary changed for the last time.
type Led struct {
	// ID of the shard, for the jitter: its UID.
	ID string
	// Since is when the established term began.
	Since time.Time
}

// Failovers plans the reparents of "always be failing over": every shard gets a new primary at least once in every
// period, levelled like everything else, so that thousands of shards do not fail over in the same minute. A reparent
// for any other reason counts. Windows are respected; freeze says why nothing may start.
//
// A reparent takes seconds, so the lead is an hour at most; one shard is one object, so groups are not needed.
func Failovers(shards []Led, period time.Duration, windows []Window, freeze string, now time.Time) Plan {
	objs := make([]Object, len(shards))
	for i, s := range shards {
		objs[i] = Object{ID: s.ID, CreatedAt: s.Since}
	}
	return Make(objs, Policy{
		MaxAge: period, Lead: min(time.Hour, period/24), Service: 15 * time.Second, Windows: windows, Freeze: freeze,
	}, now)
}
