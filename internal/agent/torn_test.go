//go:build integration

package agent

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

// walPageSize is PostgreSQL's: what nobody waits for is flushed, and shipped, in whole pages.
const walPageSize = 8192

// A primary that dies while it writes leaves its standbys the beginning of a record. The new primary's timeline begins
// before that, where the last whole record ends; the other standby, which has the same beginning, has not diverged.
func TestAWALThatEndsWithinARecord(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	rows := s.insert(ctx, a, 0, 10)
	conn, err := a.socket(ctx)
	require.NoError(t, err)
	received := func(n *node) (lsn string, torn bool) {
		conn, err := n.socket(ctx)
		require.NoError(t, err)
		defer func() { _ = conn.Close(ctx) }()
		var replayed string
		require.NoError(t, conn.QueryRow(ctx, "SELECT pg_last_wal_receive_lsn()::text, pg_last_wal_replay_lsn()::text").Scan(&lsn, &replayed))
		at, err := postgres.ParseLSN(lsn)
		require.NoError(t, err)
		return lsn, at%walPageSize == 0 && lsn != replayed
	}
	// The agent stands still, so that its probes do not flush what the message leaves.
	require.NoError(t, syscall.Kill(a.cmd.Process.Pid, syscall.SIGSTOP))
	for try := 0; ; try++ {
		require.Less(t, try, 50, "a torn end")
		_, err = conn.Exec(ctx, "SELECT pg_logical_emit_message(false, 'test', repeat('x', 30000))")
		require.NoError(t, err)
		time.Sleep(300 * time.Millisecond) // the WAL writer's delay is 200
		x, tornB := received(b)
		y, tornC := received(c)
		if tornB && tornC && x == y {
			break
		}
	}
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGKILL))
	require.NoError(t, syscall.Kill(a.cmd.Process.Pid, syscall.SIGCONT))
	a.eventually("its PostgreSQL is down", func(st *agentpb.Status) bool { return st.GetPostgresExit() != "" })

	winner, other := s.emergency(ctx, 2, b, c, "a")
	other.streaming(winner.name)
	rows = s.insert(ctx, winner, rows, 10)
	winner.eventually("it replicates", func(st *agentpb.Status) bool { return len(st.GetPeers()) == 1 })
	reader, err := s.app(ctx, other)
	require.NoError(t, err)
	defer func() { _ = reader.Close(ctx) }()
	require.Eventually(t, func() bool {
		var n int
		return reader.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&n) == nil && n == rows
	}, 10*time.Second, 20*time.Millisecond, "what follows the torn record is replayed")
	r, err := a.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: winner.endpoint(), TimelineTerms: winner.status().GetTimelineTerms(), RewindTimeoutMs: 20000})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	a.streaming(winner.name)
}
