package shard

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/quorum"
)

// RecordOf reads the safety record of a shard.
func RecordOf(shard *v1alpha1.Shard) quorum.Record {
	r := quorum.Record{Established: uint64(shard.Status.Record.EstablishedTerm), Retired: slices.Clone(shard.Status.Record.Retired)}
	for _, c := range shard.Status.Record.Cohorts {
		r.Cohorts = append(r.Cohorts, quorum.Cohort{
			Term: uint64(c.Term), Primary: c.Primary, Members: append([]string(nil), c.Members...),
			Acks: int(c.Acks), Revision: uint64(c.Revision),
		}.Normalize())
	}
	return r
}

// SetRecord writes the safety record into the status, and what follows from it: term and primary.
func SetRecord(status *v1alpha1.ShardStatus, r quorum.Record) {
	status.Record = v1alpha1.CohortRecord{EstablishedTerm: int64(r.Established), Retired: slices.Clone(r.Retired)}
	for _, c := range r.Cohorts {
		status.Record.Cohorts = append(status.Record.Cohorts, v1alpha1.CohortStatus{
			Term: int64(c.Term), Primary: c.Primary, Members: c.Members, Acks: int32(c.Acks), Revision: int64(c.Revision),
		})
	}
	status.Term = int64(r.Term())
	status.Primary = r.Primary()
}

// Retire notes in the safety record that the volume of an instance is about to be deleted; see quorum.Retire. It must have
// succeeded before the deletion. An error that is a conflict says that the record was changed since it was read here: look
// again.
func Retire(ctx context.Context, c client.Client, key client.ObjectKey, instance string) error {
	sh := &v1alpha1.Shard{}
	if err := c.Get(ctx, key, sh); err != nil {
		return err
	}
	before := RecordOf(sh)
	next, err := quorum.Retire(before, instance)
	if err != nil {
		return fmt.Errorf("volume of %s: %w", instance, err)
	}
	if before.IsRetired(instance) {
		return nil
	}
	// The version that was read is in the patch: what a cache is late with is a conflict.
	patch := client.MergeFromWithOptions(sh.DeepCopy(), client.MergeFromWithOptimisticLock{})
	sh.Status.Record.Retired = next.Retired
	return c.Status().Patch(ctx, sh, patch)
}
