// Package quorum holds the rules of acknowledgement: what a cohort is, when a term has been left for good, and who may
// be elected after it. Everything here is pure: values in, values out, no clock, no I/O.
//
// # The rules
//
// Under cohort (T, p, M, k) a commit is acknowledged once p and k members of M have flushed it. Call the set of members
// that flushed it its witnesses; there are at least k.
//
// Revocation. A set R of instances that promised a term above T revokes the cohort when |M \ R| < k, because then fewer
// than k members are left to witness anything new; or when p itself promised, because p is the only one who can
// acknowledge. Both ways the acknowledged commits are in reach: k witnesses cannot all hide among fewer than k members,
// so one of them is in R; and p has flushed everything it acknowledged.
//
// Election. Every promise carries the position (WAL term, LSN) where the instance's flushed WAL ended. The log of one term
// is written by one primary, so it is one line: of two positions in the same term, the further one contains the nearer.
// A log that reaches into term t was begun by a primary that was elected for t, hence contained, when it was promoted,
// every commit acknowledged in any lower term; and nothing can be acknowledged there afterwards, since t's election had
// revoked them. By induction the highest position of a revoking R contains every acknowledged commit. So does any other
// position at least as high, whoever holds it: see Elect.
//
// What a new primary inherits is another matter (Raft, section 5.4.2): records of an earlier term that k members of the new
// cohort have flushed can still lose against a longer term elsewhere. They are safe once a record of the new term follows
// them on k members. The row of the reparent journal is that record, which is why nobody is served before it is
// acknowledged, not even with reads.
//
// More than one cohort may be in force: terms that were begun and never seen to be established, and the two halves of a
// change of members. The record lists all of them, each is written before it is used, and revocation satisfies every one.
//
// # Changing members
//
// A change records old and next, has the primary use next, and drops old only when next is confirmed: the primary uses
// it and k of its members have flushed everything the primary had written when it began to (Confirmed). The last part is
// not a formality. With M = {a, b}, k = 1, a commit may have b as its only witness. Shrinking to {a} and dropping {a, b} at
// once would leave a record that a alone can satisfy, and a need not have that commit.
//
// Revisions order the cohorts of one term. A primary refuses a revision lower than the one it uses; otherwise an order to
// use an old cohort, late on the network, could bring back a cohort that is no longer in the record.
package quorum
