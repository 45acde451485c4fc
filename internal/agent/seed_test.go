//go:build integration

package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// What the operator tells when a copy begins may be of another promotion than the WAL that is copied: then the copy says what
// its source says, and streams from nobody before its timelines have been compared.
func TestACopyIsWhatItsSourceSays(t *testing.T) {
	s := newShard(t, "a", "b", "c", "d")
	a, c, d := s.nodes["a"], s.nodes["c"], s.nodes["d"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	s.watchAll(func(*agentpb.Status) {}) // or a would fence itself
	_, err := a.client.Demote(ctx, &agentpb.DemoteRequest{Term: 5, TimeoutMs: 4000, Candidate: "b"})
	require.NoError(t, err)
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 5, Cohort: &agentpb.Cohort{Term: 5, Primary: "a", Members: []string{"b", "c"}, Acks: 1}})
	require.NoError(t, err)
	_, err = a.client.Establish(ctx, &agentpb.EstablishRequest{Term: 5, Kind: "PRS", Reason: "test"})
	require.NoError(t, err)
	c.eventually("streams the new timeline", func(st *agentpb.Status) bool {
		return agentapi.TimelineTermsFromPB(st.GetTimelineTerms())[2] == 5
	})
	other := agentapi.TimelineTermsToPB(map[uint32]uint64{1: 1, 2: 4, 3: 4})
	_, err = d.client.Seed(ctx, &agentpb.SeedRequest{Term: 5, Source: c.endpoint(), Primary: a.endpoint(), TimelineTerms: other})
	require.NoError(t, err)
	st := d.eventually("is a standby", func(st *agentpb.Status) bool { return st.GetRole() == agentpb.Role_STANDBY })
	require.EqualValues(t, 5, agentapi.TimelineTermsFromPB(st.GetTimelineTerms())[2])
	require.Empty(t, st.GetReceiver().GetSource())

	r, err := d.client.Follow(ctx, &agentpb.FollowRequest{Term: 5, Primary: a.endpoint(), TimelineTerms: a.status().GetTimelineTerms()})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	d.streaming("a")
}
