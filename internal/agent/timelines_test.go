//go:build integration

package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// A standby whose upstream was promoted again, and whom nobody told, finds out in which term by itself: or it could not
// promise what it holds.
func TestATimelineNobodyToldOf(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	s.watchAll(func(*agentpb.Status) {}) // or a would fence itself
	_, err := a.client.Demote(ctx, &agentpb.DemoteRequest{Term: 5, TimeoutMs: 4000, Candidate: "b"})
	require.NoError(t, err)
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 5, Cohort: &agentpb.Cohort{Term: 5, Primary: "a", Members: []string{"b", "c"}, Acks: 1}})
	require.NoError(t, err)
	tli := a.status().GetFlushed().GetTimeline()
	require.Greater(t, tli, uint32(1))
	b.eventually("knows the term of the timeline it streams", func(st *agentpb.Status) bool {
		for _, known := range st.GetTimelineTerms() {
			if known.GetTimeline() == tli {
				return known.GetTerm() == 5
			}
		}
		return false
	})
	a.kill()
	p, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 6})
	require.NoError(t, err)
	require.Equal(t, uint64(5), p.GetFlushed().GetWalTerm())
}
