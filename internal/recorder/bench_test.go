package recorder

import (
	"testing"
	"time"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// What a heartbeat costs: of 1,000 instances there are 2,000 a second.
func BenchmarkHeartbeat(b *testing.B) {
	t := &tape{}
	status := func(n uint64) *agentpb.Status {
		return &agentpb.Status{
			Instance: "db-0-k4x2p", PodUid: "1", BootId: "b", Sequence: n, AtUnixMs: int64(n) * 500, Role: agentpb.Role_PRIMARY, Term: 3, Established: true,
			Flushed: &agentpb.Position{WalTerm: 3, Lsn: n, Timeline: 2}, TimelineTerms: []*agentpb.TimelineTerm{{Timeline: 1, Term: 1}, {Timeline: 2, Term: 3}},
			Cohort:     &agentpb.Cohort{Term: 3, Primary: "db-0-k4x2p", Members: []string{"db-0-aaaaa", "db-0-bbbbb"}, Acks: 1},
			Peers:      []*agentpb.ReplicationPeer{{Instance: "db-0-aaaaa", State: "streaming", SentLsn: n}, {Instance: "db-0-bbbbb", State: "streaming", SentLsn: n}},
			WriteProbe: &agentpb.Probe{LatencyUs: 900}, DiskProbe: &agentpb.Probe{LatencyUs: 900}, ConnectProbe: &agentpb.Probe{LatencyUs: 900}, CommitProbe: &agentpb.Probe{LatencyUs: 900},
		}
	}
	statuses := []*agentpb.Status{status(1), status(2)}
	now := time.Unix(0, 0)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		now = now.Add(500 * time.Millisecond)
		t.status(statuses[n%2], now, 256<<10)
	}
}
