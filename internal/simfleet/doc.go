// Package simfleet runs the real lifetime, ledger and replacement code for a simulated year over a fleet of ten thousand
// shards: nodes in three zones that fail, instances that fall sick, a zone that goes dark, machines that cannot be had. It is
// a discrete-event simulation: time jumps from one event to the next, and one seed always gives the same year.
//
// What is simulated, and what is real:
//
//	real       when nodes and instances go (package lifetime), who may begin (package ledger), every step of every
//	           replacement (package replacement)
//	simulated  machines, Pods, copying, the cohort keeper, reparents (they succeed), failures; where a Pod goes: any node of
//	           its zone with room, drawn at random, if possible none in the last eighth of its life
//
// The invariants are checked at every single step, not at the end: what is stopped is never the primary, never named by the
// record, never a copy the shard needs; nothing is older than its maximum age unless the plan said so before.
package simfleet
