package agentapi

import (
	"maps"
	"slices"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/quorum"
)

// CohortToPB converts; nil stays nil.
func CohortToPB(c *quorum.Cohort) *agentpb.Cohort {
	if c == nil {
		return nil
	}
	return &agentpb.Cohort{Term: c.Term, Primary: c.Primary, Members: slices.Clone(c.Members), Acks: uint32(max(c.Acks, 0)), Revision: c.Revision}
}

// CohortFromPB converts; nil stays nil. Members are sorted and made unique.
func CohortFromPB(c *agentpb.Cohort) *quorum.Cohort {
	if c == nil {
		return nil
	}
	members := slices.Clone(c.Members)
	slices.Sort(members)
	return &quorum.Cohort{Term: c.Term, Primary: c.Primary, Members: slices.Compact(members), Acks: int(c.Acks), Revision: c.Revision}
}

// PositionFromPB converts. The timeline is dropped: the term decides.
func PositionFromPB(p *agentpb.Position) quorum.Position {
	return quorum.Position{WALTerm: p.GetWalTerm(), LSN: p.GetLsn()}
}

// PromiseFromPB converts the reply of a Promise or a Demote by instance.
func PromiseFromPB(instance string, r *agentpb.PromiseReply) quorum.Promise {
	return quorum.Promise{
		Instance: instance, Term: r.GetTerm(), Position: PositionFromPB(r.GetFlushed()), WasPrimary: r.GetWasPrimary(),
	}
}

// TimelineTermsToPB converts a timeline → term map, sorted by timeline.
func TimelineTermsToPB(m map[uint32]uint64) []*agentpb.TimelineTerm {
	out := make([]*agentpb.TimelineTerm, 0, len(m))
	for _, tli := range slices.Sorted(maps.Keys(m)) {
		out = append(out, &agentpb.TimelineTerm{Timeline: tli, Term: m[tli]})
	}
	return out
}

// TimelineTermsFromPB is the inverse of TimelineTermsToPB.
func TimelineTermsFromPB(tt []*agentpb.TimelineTerm) map[uint32]uint64 {
	out := make(map[uint32]uint64, len(tt))
	for _, t := range tt {
		out[t.GetTimeline()] = t.GetTerm()
	}
	return out
}
