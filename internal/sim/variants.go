package sim

// Variant leaves out one rule. The simulator must catch each: that is its own test.
type Variant struct {
	SkipRevoke      bool // a coordinator takes silence for a promise
	SkipTimelineMap bool // an agent takes the number of a timeline for its term
	RelaxBeforeKill bool // a primary stops waiting for standbys before it is stopped
	CountLearners   bool // any standby's acknowledgement counts
	SinglePhase     bool // a change of members forgets the old cohort at once
	ForgetPromise   bool // a promise is not on the disk when it is answered
	LSNOnly         bool // the log that is longer wins
	SkipJournal     bool // established before the journal row is acknowledged
	NoWitness       bool // a change of members is finished without waiting for the new ones
	AnyRevision     bool // a late order brings back an old cohort
	ApplyFirst      bool // a cohort is used before it is recorded
	KeepReceiver    bool // a promise leaves the WAL receiver running
	AdoptTimeline   bool // records of an unknown timeline are taken for the primary's timeline of that number
	KeepHearsay     bool // what an earlier primary said of timelines that never came is remembered
	RetireBlindly   bool // an instance is deleted although the record names it
	// RetireUnrecorded: an instance is deleted without the record saying so.
	RetireUnrecorded bool
}

// Variants by name, with how many seeds it takes at most to catch each.
var Variants = []struct {
	Name    string
	Variant Variant
	Budget  int
	// Plot to repeat, for rules whose breach takes a particular sequence of faults to show; "" for all kinds.
	Plot string
	// Instances of the shard; 0 varies them with the seed.
	Instances int
}{
	{"skip-revoke", Variant{SkipRevoke: true}, 100, "", 0},
	{"skip-timeline-map", Variant{SkipTimelineMap: true}, 100, "two promotions fail within milliseconds and pick the same timeline", 0},
	{"relax-before-kill", Variant{RelaxBeforeKill: true}, 200, "", 0},
	{"count-learners", Variant{CountLearners: true}, 2000, "a learner catches up that cannot be let in, hears more than the members, and is lost with the primary", 0},
	{"single-phase", Variant{SinglePhase: true}, 1500, "", 0},
	{"forget-promise", Variant{ForgetPromise: true}, 100, "both who promised forget", 0},
	{"lsn-only", Variant{LSNOnly: true}, 500, "", 0},
	{"skip-journal", Variant{SkipJournal: true}, 100, "", 0},
	{"no-witness", Variant{NoWitness: true}, 100, "a standby that lags is left alone with the primary, which is then lost", 0},
	{"apply-first", Variant{ApplyFirst: true}, 200, "", 0},
	{"keep-receiver", Variant{KeepReceiver: true}, 100, "", 0},
	{"retire-blindly", Variant{RetireBlindly: true}, 500, "", 0},
	{"any-revision", Variant{AnyRevision: true}, 300, "a member flaps while orders are late, and is lost with the primary", 0},
	{"retire-unrecorded", Variant{RetireUnrecorded: true}, 200, "the primary dies while an instance is being thrown away", 0},
	{"keep-hearsay", Variant{KeepHearsay: true}, 200, "two promotions fail within milliseconds and pick the same timeline", 0},
	{"adopt-timeline", Variant{AdoptTimeline: true}, 100, unpromised, 5},
}
