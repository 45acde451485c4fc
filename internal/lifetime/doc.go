// Package lifetime decides when everything goes. It is pure: objects (instances, nodes, or shards due for a failover),
// a policy and the time go in, a plan comes out. Nothing is remembered between two plans, so an operator that restarts,
// or two that disagree for a moment, come to the same one.
//
// # Goal
//
//  1. Nothing outlives its maximum age.
//  2. The rate of replacement is flat: at any hour about as many go as at any other, also when the whole fleet was made
//     in the same hour or came back from an outage together.
//  3. Nothing goes much earlier than it must. Every replacement costs a copy of the data and a reparent now and then.
//  4. A plan that cannot hold says so while there is still time to do something about it.
//
// # Algorithm
//
// Every object has a last moment to start, its hard start: creation + maximum age − lead, where lead is what a
// replacement takes at its slowest. A reserve is taken off for days on which nothing can be replaced, and a jitter that
// depends only on the object's identity, which gives the soft start.
//
// The jitter alone would make a fleet that was born at once go almost at once, 29 days later. And even a perfectly
// random spread is not flat by the hour: with 43 replacements expected in an hour the busiest hour of a year would see
// more than 70. So the plan is levelled: going through the soft starts from the last to the first, each start is moved
// forward in time (earlier) until it is at least one gap before its successor, where the gap is 1/cap and
//
//	cap = (1 + headroom) · Σ 1/(shortest planned life of each object)
//
// What is due now are the starts that are not in the future.
//
// # Why it holds
//
// The cap alone never makes the plan fail. Call a plan feasible when for every k the first k starts fit at the rate
// cap before the k-th soft start. Objects only leave by being replaced, and a replaced object comes back with a soft
// start at least one shortest life away; until then at most all N objects are in front of it, and
// N ≤ cap · (shortest life) by the choice of the cap. So a feasible plan stays feasible as long as what is due is
// started; a fleet that was created at once is feasible from the beginning for the same reason.
//
// The rate never exceeds the cap while the plan is feasible, because starts are at least a gap apart; and the mean
// rate is at least N/(maximum age), because nothing gets older. With the defaults (headroom 10 %, reserve 5 %, spread
// 5 %, lead 2 %) the shortest life is 88 % of the maximum age, so peak over mean is at most 1.10/0.88 = 1.25. The fleet
// simulation, which also has failures, outages and small numbers, promises 1.3.
//
// Starts are moved as little as possible: a plan that starts anything later would exceed the cap or pass a soft start.
// A fleet made at once starts at about (1 − 1/(1+headroom)) of its life and is level from then on.
//
// # After an outage
//
// When starts were not possible for a while, many are due at once. They must not all go at once: Plan.Rate is the lowest
// constant rate that still meets every hard start (the maximum over k of k / time to the k-th hard start: no schedule
// with a lower peak exists, and first-deadline-first at this rate meets them all), at least the cap and at most the
// catch-up limit. The ledger admits no more than that. An outage shorter than the reserve is so absorbed without any peak.
package lifetime
