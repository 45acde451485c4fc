// Package ledger is the one account of disruptions: expiry, drains, repairs, rollouts and drills ask it before they begin
// anything. It is derived from the objects in flight each time it is asked and remembers nothing, so a restarted operator
// has the same account, and what a person deletes or creates with kubectl counts like everything else.
//
// # Rules
//
// Each rule refuses with a CamelCase reason and a sentence. "Planned" reasons are Expired, NodeExpiring, Outdated and
// Drill: they can wait. Draining and Requested come from somebody who waits for the result. Condemned is a repair.
//
//	rule                                     Condemned  Draining  Requested  planned
//	InstanceBusy    the instance goes already     ✓         ✓         ✓         ✓
//	ShardBusy       one in flight per shard       *         ✓         ✓         ✓
//	ZoneBusy        one zone at a time per shard            ✓         ✓         ✓
//	Frozen          the freeze switch            all       all       all        ✓
//	CondemnationStorm  too many condemned         ✓                             ✓
//	ShardDegraded   a copy is missing already                                   ✓
//	NoCapacity      surges fail in that zone                ✓         ✓         ✓
//	TooFast         starts per hour                                          Expired
//	FleetBusy       fleet-wide cap                own       own       own      own
//
// A node that begins to go for its age is asked for once (NodeRequest): Frozen, CondemnationStorm, NoCapacity, TooFast,
// PolicyBusy (the budget of its NodePolicy) and ZoneBusy (no shard on it may have another of its instances going in
// another zone). The replacements of its instances are then ordinary requests with the reason NodeExpiring. Of several nodes
// those that failed least go first, then those near their maximum age, then the oldest.
//
// (*) A repair waits for another repair of its shard, but not for a planned replacement: a healthy instance that cannot be
// seeded must not keep a dead one from being replaced, and replacing what is dead lowers nothing. It also does not wait
// for capacity: it may be what finds the first machine that is to be had again.
//
// A drain is not held up by a degraded shard, because a replacement surges first and never retires a copy the shard
// needs (package replacement): it can only help.
//
// # Storms
//
// When more than a fraction of the fleet's nodes had instances condemned within a window, the judgement is likelier to be wrong than the
// fleet, and replacing everything at once would finish what the fault began: condemnation stops (and with it everything
// planned) until the window has passed or a person says otherwise (the operator's --storm-fraction; the chart's limits). A verdict
// counts for one window from when it was given: while it waits, after it was let in, and after it was dropped. So the breaker
// holds as long as an outage grows, and closes for good a window after the last verdict at the latest: what is still dead by
// then goes at the pace of the cap for repairs. What has come back is let off, before and after: a verdict that was given in a
// storm is dropped when the instance is well and nothing has begun (package replacement). A minimum keeps small fleets from
// calling two a storm, and a fleet on no more nodes than the minimum has none at all.
//
// # Capacity
//
// The last surge in a zone failed for want of capacity: then one attempt per retry interval goes through, as a probe,
// and everything else waits. The first that gets a machine opens the zone again.
package ledger
