// Package replacement is the universal repair: one instance goes and a new one takes its place, whatever the reason. It is
// a pure function from what was observed to the next step; the controller stores the status it returns and then carries
// out the action, nothing more.
//
// # The way
//
//	Pending ──► Surging ──► Seeding ──► CatchingUp ──► Reparenting ──► Swapping ──► Retiring ──► Done
//	   │           └───────────┴─────┬──────┴───────────────┴──────────────┘                    Failed
//	   │                             ▼                                                          Cancelled
//	   └────────────────────► RollingBack (retire the surge), then again with another one, or the end
//
//	Pending      waits for the ledger; of a condemned instance evidence is taken from the first moment. One that was
//	             condemned in a storm and is well again is let off
//	Surging      the successor's Pod and volume are made; it waits for a machine
//	Seeding      it copies the data
//	CatchingUp   it streams and replays what was written meanwhile
//	Reparenting  only while the instance that goes is the primary: planned, or emergency when it is sick
//	Swapping     the cohort keeper swaps the successor in for it
//	Retiring     its Pod, then its volume are deleted
//
// Where the way goes on after CatchingUp is decided from the world, not from the phase: whatever the shard controller or an
// emergency changed in the meantime, the next step is the right one for what is there. An instance that became the
// primary while it was being retired is reparented away from; one that is named by a recorded cohort is swapped out.
//
// A successor always has a volume of its own. Handing the old one over would be quicker, but a volume serves one instance at
// a time: from the end of the one to the moment the other has caught up the shard would have a copy less than its spec asks
// for, which is what this package exists to avoid.
//
// # What it never does
//
//  1. Stop an instance that is the primary or named by any recorded cohort.
//  2. Stop a living instance unless as many healthy copies as the spec asks for remain without it. Waiting for that is
//     bounded: at the deadline the replacement fails and leaves both, a spare, which the next replacement makes use of.
//     A condemned instance is no healthy copy: it goes as soon as the shard acknowledges writes without it.
//  3. Delete a volume while the shard cannot acknowledge writes without it: it might be the last copy of something that was
//     acknowledged.
//  4. Replace the last copy when it cannot be copied: that fails, loudly, and touches nothing.
//  5. Let the instance that goes hold up its own replacement: its health only ever removes obstacles. The wait for its
//     evidence is bounded, its Pod is deleted by force, and an emergency reparent does not ask it.
//
// # Why an operator may die at any time
//
// A decision depends on the stored status and on the world. The status is stored (compare-and-swap) before the action is
// taken, names are drawn into the status before anything is made under them, and every action is one that may be
// repeated. So a crash between the two, or after them, only means that the same decision is taken again. The tests replay
// every prefix.
//
// Decisions to stop or delete must be made from fresh reads, not from a cache: the controller reads the shard and the
// instances again from the API server before it carries out Stop, DeleteVolume or RetireSurge.
package replacement
