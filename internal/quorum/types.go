// Package quorum holds the rules of acknowledgement: what a cohort is, when a term has been left for good, who may
// be elected. Everything here is pure: values in, values out, no clock, no I/O.
package quorum

// Cohort is the recorded rule of one term: a commit on Primary is acknowledged once the primary and at least Acks
// of Members have flushed it. The primary is never a member of its own cohort. With Acks 0 the primary alone
// decides (a shard of one instance).
type Cohort struct {
	Term    uint64
	Primary string
	// Members are instance names, sorted and without duplicates; see Normalize.
	Members []string
	Acks    int
}

// Position is where an instance's flushed WAL ends. WALTerm is the term of the last record flushed, not of the
// primary last connected to. Positions compare by WALTerm first, then by LSN.
type Position struct {
	WALTerm uint64
	LSN     uint64
}

// Promise is an instance's word that it acknowledges nothing of any term below Term any more, together with where
// its flushed WAL ended when it gave it.
type Promise struct {
	Instance string
	Term     uint64
	Position Position
	// WasPrimary is true when the instance was the running (or stopped) primary of the term being left and can
	// acknowledge nothing more itself: this alone revokes every cohort whose Primary it is.
	WasPrimary bool
}

// Record is every cohort that may still be in force, oldest first: the last established one, its successors begun but
// never established, and during a change of members both the old and the next. Revocation must satisfy all.
type Record struct {
	Cohorts []Cohort
	// Established is the term last known to be established; 0 is none.
	Established uint64
}
