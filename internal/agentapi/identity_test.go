package agentapi

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/quorum"
)

func TestNames(t *testing.T) {
	s := Shard{Namespace: "prod", Name: "orders-3"}
	require.Equal(t, "theseus://prod/orders-3/agent", URI(s, RoleAgent).String())
	require.Regexp(t, `^agent\.[0-9a-f]{12}$`, CommonName(RoleAgent, s))
	require.Equal(t, CommonName(RoleAgent, s)+".theseus.internal", ServerName(s))
	require.NotEqual(t, ServerName(s), ServerName(Shard{Namespace: "prod", Name: "orders-4"}))
	require.NotEqual(t, Shard{"a", "b"}.hash(), Shard{"ab", ""}.hash())
}

func TestURIRoundTrip(t *testing.T) {
	name := rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		shard := Shard{Namespace: name.Draw(t, "namespace"), Name: name.Draw(t, "name")}
		role := Role(rapid.SampledFrom([]string{"agent", "gateway", "operator"}).Draw(t, "role"))
		parsed, err := url.Parse(URI(shard, role).String())
		require.NoError(t, err)
		gotShard, gotRole, err := ParseURI(parsed)
		require.NoError(t, err)
		require.Equal(t, shard, gotShard)
		require.Equal(t, role, gotRole)
		again, err := ParseShard(shard.String())
		require.NoError(t, err)
		require.Equal(t, shard, again)
		require.LessOrEqual(t, len(CommonName(role, shard)), 64)
	})
}

func TestURIsThatAreNot(t *testing.T) {
	for _, s := range []string{"https://ns/db/agent", "theseus://ns/agent", "theseus:///db/agent", "theseus://ns/db/agent/x", "theseus://ns//agent"} {
		u, err := url.Parse(s)
		require.NoError(t, err)
		_, _, err = ParseURI(u)
		require.Error(t, err, s)
	}
	for _, s := range []string{"", "db", "ns/", "/db", "ns/db/x"} {
		_, err := ParseShard(s)
		require.Error(t, err, s)
	}
}

func TestConversions(t *testing.T) {
	c := &quorum.Cohort{Term: 3, Primary: "a", Members: []string{"b", "c"}, Acks: 1}
	require.Equal(t, c, CohortFromPB(CohortToPB(c)))
	require.Nil(t, CohortToPB(nil))
	require.Nil(t, CohortFromPB(nil))
	require.Equal(t, []string{"b", "c"}, CohortFromPB(&agentpb.Cohort{Members: []string{"c", "b", "c"}}).Members)
	m := map[uint32]uint64{1: 1, 3: 9}
	require.Equal(t, m, TimelineTermsFromPB(TimelineTermsToPB(m)))
	require.Equal(t, quorum.Promise{Instance: "b", Term: 4, Position: quorum.Position{WALTerm: 3, LSN: 7}, WasPrimary: true},
		PromiseFromPB("b", &agentpb.PromiseReply{Term: 4, WasPrimary: true, Flushed: &agentpb.Position{WalTerm: 3, Lsn: 7, Timeline: 2}}))
}
