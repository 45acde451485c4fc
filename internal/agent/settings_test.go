//go:build integration

package agent

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// Parameters reach an instance when it is replaced, so those of a shard differ for a while. A standby with less than its
// primary has of some would not start, and one that runs would pause its replay for ever.
func TestSettingsOfWhichAStandbyMustNotHaveLess(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	s.watchAll(func(*agentpb.Status) {})
	ctx := minute(t)
	rows := s.insert(ctx, a, 0, 10)

	b.again(map[string]string{"max_connections": "50"})
	b.streaming("a")
	require.Equal(t, "100", b.show(ctx, "max_connections"), "as much as the primary has")

	c.again(map[string]string{"max_connections": "200", "max_locks_per_transaction": "128"})
	c.streaming("a")
	b.streaming("a")
	s.planned(ctx, 2, a, c, b)
	rows = s.insert(ctx, c, rows, 10)
	for _, n := range []*node{a, b} {
		end := c.status().GetFlushed().GetLsn()
		n.eventually("replays what the primary with more of it wrote", func(st *agentpb.Status) bool {
			return st.GetReceiver().GetStreaming() && st.GetReplayedLsn() >= end
		})
		require.Equal(t, "200", n.show(ctx, "max_connections"))
		require.Equal(t, "128", n.show(ctx, "max_locks_per_transaction"))
	}
	s.insert(ctx, c, rows, 1)
}

// again starts an instance again with other parameters.
func (n *node) again(parameters map[string]string) {
	n.kill()
	n.conf.Parameters = maps.Clone(n.conf.Parameters)
	maps.Copy(n.conf.Parameters, parameters)
	n.start()
}

// show is the value of a setting. A server that is just restarting is asked again.
func (n *node) show(ctx context.Context, name string) (value string) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		conn, err := n.socket(ctx)
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close(ctx) }()
		return conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value) == nil
	}, 20*time.Second, 50*time.Millisecond)
	return value
}
