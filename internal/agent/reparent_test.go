//go:build integration

package agent

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

func TestEmergencyReparent(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	exited := make(chan time.Time, 1)
	var killed atomic.Bool
	s.watchAll(func(st *agentpb.Status) {
		if st.GetInstance() == "a" && killed.Load() && st.GetPostgresExit() != "" {
			select {
			case exited <- time.Now():
			default:
			}
		}
	})
	s.bootstrap("a", "b", "c")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE t (id int primary key)")
	require.NoError(t, err)
	acked := 0
	for ; acked < 100; acked++ {
		_, err = conn.Exec(ctx, "INSERT INTO t VALUES ($1)", acked)
		require.NoError(t, err)
	}

	killed.Store(true)
	begun := time.Now()
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGKILL))
	select {
	case at := <-exited:
		t.Logf("exit noticed after %v", at.Sub(begun).Round(time.Microsecond))
	case <-time.After(5 * time.Second):
		t.Fatal("exit not noticed")
	}

	step := time.Now()
	var replies [2]*agentpb.PromiseReply
	var all sync.WaitGroup
	for i, n := range []*node{b, c} {
		all.Go(func() {
			r, err := n.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2, Coordinator: "test"})
			if err != nil {
				t.Error(err)
			}
			replies[i] = r
		})
	}
	all.Wait()
	t.Logf("promises: %v (%v, %v)", time.Since(step).Round(time.Microsecond), replies[0].GetFlushed(), replies[1].GetFlushed())
	winner, other := b, c
	if replies[1].GetFlushed().GetLsn() > replies[0].GetFlushed().GetLsn() {
		winner, other = c, b
	}
	step = time.Now()
	_, err = winner.client.Promote(ctx, &agentpb.PromoteRequest{Term: 2, Coordinator: "test", Cohort: &agentpb.Cohort{Term: 2, Primary: winner.name, Members: []string{"a", other.name}, Acks: 1}})
	require.NoError(t, err)
	t.Logf("promote: %v", time.Since(step).Round(time.Microsecond))
	step = time.Now()
	terms := winner.status().GetTimelineTerms()
	all.Go(func() {
		at := time.Now()
		r, err := other.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: winner.endpoint(), TimelineTerms: terms})
		if err != nil || r.GetDiverged() {
			t.Error(err, r)
		}
		t.Logf("follow: %v", time.Since(at).Round(time.Microsecond))
	})
	_, err = winner.client.Establish(ctx, &agentpb.EstablishRequest{Term: 2, Kind: "ERS", Reason: "test"})
	require.NoError(t, err)
	t.Logf("establish: %v", time.Since(step).Round(time.Microsecond))
	t.Logf("kill to established: %v", time.Since(begun).Round(time.Microsecond))
	all.Wait()

	conn, err = s.app(ctx, winner)
	require.NoError(t, err)
	var n int
	require.NoError(t, conn.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&n))
	require.Equal(t, acked, n)
	_, err = conn.Exec(ctx, "INSERT INTO t VALUES ($1)", acked)
	require.NoError(t, err)

	require.Equal(t, agentpb.Role_STOPPED, a.status().GetRole(), "the old primary waits")
	step = time.Now()
	r, err := a.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: winner.endpoint(), TimelineTerms: terms, RewindTimeoutMs: 20000})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	a.streaming(winner.name)
	t.Logf("old primary rejoined: %v", time.Since(step).Round(time.Microsecond))

	// Planned, back to a.
	require.Eventually(t, func() bool { return len(winner.status().GetPeers()) == 2 }, 5*time.Second, 10*time.Millisecond)
	_, err = winner.client.Checkpoint(ctx, &agentpb.CheckpointRequest{Term: 2})
	require.NoError(t, err)
	step = time.Now()
	_, err = winner.client.Drain(ctx, &agentpb.DrainRequest{Term: 2, TimeoutMs: 3000})
	require.NoError(t, err)
	t.Logf("drain: %v", time.Since(step).Round(time.Microsecond))
	demote := time.Now()
	d, err := winner.client.Demote(ctx, &agentpb.DemoteRequest{Term: 3, TimeoutMs: 3000})
	require.NoError(t, err)
	t.Logf("demote: %v", time.Since(demote).Round(time.Microsecond))
	require.True(t, d.GetCleanShutdown())
	p, err := a.client.Promise(ctx, &agentpb.PromiseRequest{Term: 3})
	require.NoError(t, err)
	require.Equal(t, postgres.LSN(d.GetFlushed().GetLsn()).String(), postgres.LSN(p.GetFlushed().GetLsn()).String(), "the candidate has the shutdown checkpoint")
	require.Equal(t, d.GetFlushed().GetWalTerm(), p.GetFlushed().GetWalTerm())
	promote := time.Now()
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 3, Cohort: &agentpb.Cohort{Term: 3, Primary: "a", Members: []string{"b", "c"}, Acks: 1}})
	require.NoError(t, err)
	t.Logf("promote: %v", time.Since(promote).Round(time.Microsecond))
	all.Go(func() {
		_, err := other.client.Follow(ctx, &agentpb.FollowRequest{Term: 3, Primary: a.endpoint(), TimelineTerms: a.status().GetTimelineTerms()})
		if err != nil {
			t.Error(err)
		}
	})
	_, err = a.client.Establish(ctx, &agentpb.EstablishRequest{Term: 3, Kind: "PRS", Reason: "test"})
	require.NoError(t, err)
	t.Logf("promote and establish: %v; the whole pause: %v", time.Since(promote).Round(time.Microsecond), time.Since(step).Round(time.Microsecond))
	all.Wait()
	r, err = winner.client.Follow(ctx, &agentpb.FollowRequest{Term: 3, Primary: a.endpoint(), TimelineTerms: a.status().GetTimelineTerms()})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), "a clean old primary needs no rewind: %s", r.GetWhy())
	winner.streaming("a")
	for _, n := range s.nodes {
		for line := range strings.Lines(n.out.String()) {
			for _, what := range []string{"steps of", `"promised"`, `"primary stopped"`, `"established"`} {
				if strings.Contains(line, what) {
					t.Logf("%s: %s", n.name, strings.TrimSpace(line[46:]))
				}
			}
		}
	}
}
