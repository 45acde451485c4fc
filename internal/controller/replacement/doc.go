// Package replacement carries out replacements in Kubernetes: it is the hands of package replacement, which decides.
//
// A reconcile gathers what there is about one Replacement (its Shard, Pods, claims, Reparents, what the agents last said),
// asks the ledger when the replacement waits to begin, has the pure package decide, stores the decision, and only then
// carries it out. Nothing is remembered between two reconciles but evidence that is being taken.
//
//   - Stop, DeleteVolume and RetireSurge are decided again on reads from the API server itself before they are carried out.
//   - The ledger is derived from all Replacements, NodePolicies and Shards. What it allows is decided again under a lock,
//     on a fresh list, and stored before the lock is let go: two replacements cannot both take the last place.
//   - The cohort is written by the shard controller alone. It reads from the stored phase who leaves.
//
// Deleting a Replacement takes it back: its finalizer stays until what was begun is undone, or done.
package replacement
