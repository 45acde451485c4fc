// Package shard keeps one replication group as its Shard asks for: instances, cohort, services, certificates.
//
// A reconcile gathers what there is (Pods, claims, the record, what the agents last said) into a State, decides with
// Plan, which is pure, and carries the decisions out. Nothing a decision depends on is kept in memory only, apart from
// how long something has lasted; a restarted operator at worst waits that long again.
//
// What Plan promises, each with a test that tries to break it:
//
//   - initdb runs once. Which instance runs it is recorded before it is told to, and once clients may have been let
//     in (Bootstrap.Done) nothing is ever bootstrapped again, whatever is missing.
//   - A cohort is recorded before it is used (package cohort decides the steps).
//   - Clients are let in only when the cohort has the acknowledgements the spec asks for: the first primary is not
//     established before, and everything that lets clients in follows "established".
//   - A volume is deleted only while an established primary answers, the shard is redundant without it, and no
//     recorded cohort names its instance. Otherwise it may hold the last copy of an acknowledged commit.
//   - It never changes the primary. While a reparent is under way it leaves the instances alone.
package shard
