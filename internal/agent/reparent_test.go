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

// TestReparents plays a coordinator: an emergency one, the old primary's return, and a planned one back to it. It prints
// how long each step took, and asserts only that nothing is lost.
func TestReparents(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a := s.nodes["a"]
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
	ctx := minute(t)
	rows := s.insert(ctx, a, 0, 100)
	killed.Store(true)
	begun := time.Now()
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGKILL))
	select {
	case at := <-exited:
		t.Logf("exit noticed after %v", at.Sub(begun).Round(time.Microsecond))
	case <-time.After(10 * time.Second):
		t.Fatal("exit not noticed")
	}
	winner, other := s.emergency(ctx, 2, s.nodes["b"], s.nodes["c"], "a")
	t.Logf("kill to established: %v", time.Since(begun).Round(time.Microsecond))
	rows = s.insert(ctx, winner, rows, 10)

	require.Equal(t, agentpb.Role_STOPPED, a.status().GetRole(), "the old primary waits")
	step := time.Now()
	r, err := a.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: winner.endpoint(), TimelineTerms: winner.status().GetTimelineTerms(), RewindTimeoutMs: 20000})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	a.streaming(winner.name)
	t.Logf("old primary rejoined: %v", time.Since(step).Round(time.Microsecond))
	winner.eventually("two standbys", func(st *agentpb.Status) bool { return len(st.GetPeers()) == 2 })

	s.planned(ctx, 3, winner, a, other)
	s.insert(ctx, a, rows, 10)
	winner.streaming("a")
	s.logSteps()
}

// insert adds n rows as the application and checks that all before are there; it returns how many there are now.
func (s *shardUnderTest) insert(ctx context.Context, n *node, have, more int) int {
	t := s.t
	conn, err := s.app(ctx, n)
	require.NoError(t, err)
	defer func() { _ = conn.Close(ctx) }()
	if have == 0 {
		_, err = conn.Exec(ctx, "CREATE TABLE t (id int primary key)")
		require.NoError(t, err)
	}
	var found int
	require.NoError(t, conn.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&found))
	require.Equal(t, have, found, "rows lost or invented")
	for i := range more {
		_, err = conn.Exec(ctx, "INSERT INTO t VALUES ($1)", have+i)
		require.NoError(t, err)
	}
	return have + more
}

// emergency collects both promises, promotes the one further on, and establishes it.
func (s *shardUnderTest) emergency(ctx context.Context, term uint64, b, c *node, old string) (winner, other *node) {
	t, step := s.t, time.Now()
	var replies [2]*agentpb.PromiseReply
	var all sync.WaitGroup
	for i, n := range []*node{b, c} {
		all.Go(func() {
			r, err := n.client.Promise(ctx, &agentpb.PromiseRequest{Term: term, Coordinator: "test"})
			if err != nil {
				t.Error(err)
			}
			replies[i] = r
		})
	}
	all.Wait()
	t.Logf("promises: %v (%v, %v)", time.Since(step).Round(time.Microsecond), replies[0].GetFlushed(), replies[1].GetFlushed())
	winner, other = b, c
	if replies[1].GetFlushed().GetLsn() > replies[0].GetFlushed().GetLsn() {
		winner, other = c, b
	}
	s.takeOver(ctx, "ERS", &agentpb.Cohort{Term: term, Primary: winner.name, Members: []string{old, other.name}, Acks: 1}, other)
	return winner, other
}

// takeOver is what both kinds have in common: promote, have one follow, establish.
func (s *shardUnderTest) takeOver(ctx context.Context, kind string, cohort *agentpb.Cohort, follower *node) {
	t, step, primary := s.t, time.Now(), s.nodes[cohort.GetPrimary()]
	promoted, err := primary.client.Promote(ctx, &agentpb.PromoteRequest{Term: cohort.GetTerm(), Coordinator: "test", Cohort: cohort})
	require.NoError(t, err)
	t.Logf("promote: %v", time.Since(step).Round(time.Microsecond))
	var follows sync.WaitGroup
	follows.Go(func() {
		at := time.Now()
		r, err := follower.client.Follow(ctx, &agentpb.FollowRequest{Term: cohort.GetTerm(), Primary: primary.endpoint(), TimelineTerms: promoted.GetStatus().GetTimelineTerms()})
		if err != nil || r.GetDiverged() {
			t.Error(err, r)
		}
		t.Logf("follow: %v", time.Since(at).Round(time.Microsecond))
	})
	_, err = primary.client.Establish(ctx, &agentpb.EstablishRequest{Term: cohort.GetTerm(), Kind: kind, Reason: "test"})
	require.NoError(t, err)
	t.Logf("promote and establish: %v", time.Since(step).Round(time.Microsecond))
	follows.Wait()
}

// planned moves the primary from old to next.
func (s *shardUnderTest) planned(ctx context.Context, term uint64, old, next, other *node) {
	t := s.t
	_, err := old.client.Checkpoint(ctx, &agentpb.CheckpointRequest{Term: term - 1})
	require.NoError(t, err)
	begun := time.Now()
	_, err = old.client.Drain(ctx, &agentpb.DrainRequest{Term: term - 1, TimeoutMs: 3000})
	require.NoError(t, err)
	t.Logf("drain: %v", time.Since(begun).Round(time.Microsecond))
	step := time.Now()
	var p *agentpb.PromiseReply
	promised := make(chan error, 1)
	go func() {
		var err error
		p, err = next.client.Promise(ctx, &agentpb.PromiseRequest{Term: term, AfterReceiverMs: 3000})
		t.Logf("promise: %v", time.Since(step).Round(time.Microsecond))
		promised <- err
	}()
	d, err := old.client.Demote(ctx, &agentpb.DemoteRequest{Term: term, TimeoutMs: 3000, Candidate: next.name})
	require.NoError(t, err)
	t.Logf("demote: %v", time.Since(step).Round(time.Microsecond))
	require.True(t, d.GetCleanShutdown())
	require.NoError(t, <-promised)
	require.Equal(t, postgres.LSN(d.GetFlushed().GetLsn()).String(), postgres.LSN(p.GetFlushed().GetLsn()).String(), "the candidate has the shutdown checkpoint")
	require.Equal(t, d.GetFlushed().GetWalTerm(), p.GetFlushed().GetWalTerm())
	s.takeOver(ctx, "PRS", &agentpb.Cohort{Term: term, Primary: next.name, Members: []string{old.name, other.name}, Acks: 1}, other)
	t.Logf("the whole pause: %v", time.Since(begun).Round(time.Microsecond))
	r, err := old.client.Follow(ctx, &agentpb.FollowRequest{Term: term, Primary: next.endpoint(), TimelineTerms: next.status().GetTimelineTerms()})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), "a clean old primary needs no rewind: %s", r.GetWhy())
}

// logSteps prints what the agents say about their own steps.
func (s *shardUnderTest) logSteps() {
	for _, n := range s.nodes {
		for line := range strings.Lines(n.out.String()) {
			for _, what := range []string{"steps of", `"promised"`, `"primary stopped"`, `"established"`} {
				if strings.Contains(line, what) {
					_, said, _ := strings.Cut(line, `"msg":`)
					s.t.Logf("%s: %s", n.name, strings.TrimSpace(said))
				}
			}
		}
	}
}
