package shard

import (
	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/quorum"
)

// RecordOf reads the safety record of a shard.
func RecordOf(shard *v1alpha1.Shard) quorum.Record {
	r := quorum.Record{Established: uint64(shard.Status.Record.EstablishedTerm)}
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
	status.Record = v1alpha1.CohortRecord{EstablishedTerm: int64(r.Established)}
	for _, c := range r.Cohorts {
		status.Record.Cohorts = append(status.Record.Cohorts, v1alpha1.CohortStatus{
			Term: int64(c.Term), Primary: c.Primary, Members: c.Members, Acks: int32(c.Acks), Revision: int64(c.Revision),
		})
	}
	status.Term = int64(r.Term())
	status.Primary = r.Primary()
}
