// Package reparent carries out reparents in Kubernetes: it is the adapter of package reparent's ports, and what starts
// reparents.
//
//   - The record is Shard.status.record; it is read from the API server itself, never from a cache, and replaced by a
//     patch that tests what it replaces.
//   - The journal is the Reparent object named after the shard and the term. Creating it is taking the lock.
//   - The agents are called over connections that live for one reparent.
//
// Two things start a reparent. The emergency runner, on every replica of the operator, has package verdict judge each
// shard whenever something changed and ten times a second while something is suspicious; it confirms a bad verdict with
// fresh statuses and acts: the leader at once, another replica a little later. A planned reparent under way in the same
// process is taken back for it. The controller, on the elected leader, carries out the Reparents people create, closes the
// journals of coordinators that died, and removes old ones.
package reparent
