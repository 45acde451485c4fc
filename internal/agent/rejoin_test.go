//go:build integration

package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// A fast stop waits for every connected standby; a frozen one must not hold it up.
func TestADemotionDoesNotWaitForAFrozenStandby(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	frozen := append(descendants(c.cmd.Process.Pid), c.cmd.Process.Pid)
	for _, pid := range frozen {
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	defer func() {
		for _, pid := range frozen {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}()
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
	require.NoError(t, err)
	_, err = a.client.Checkpoint(ctx, &agentpb.CheckpointRequest{Term: 1})
	require.NoError(t, err)
	begun := time.Now()
	d, err := a.client.Demote(ctx, &agentpb.DemoteRequest{Term: 2, TimeoutMs: 4000, Candidate: "b"})
	require.NoError(t, err)
	t.Logf("demoted after %v", time.Since(begun).Round(time.Millisecond))
	require.True(t, d.GetCleanShutdown())
	p, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	require.Equal(t, d.GetFlushed().GetLsn(), p.GetFlushed().GetLsn())
	// Undone: the old primary takes over again, in the same new term and by the same path.
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 2, Cohort: &agentpb.Cohort{Term: 2, Primary: "a", Members: []string{"b", "c"}, Acks: 1}})
	require.NoError(t, err)
	_, err = b.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: a.endpoint(), TimelineTerms: a.status().GetTimelineTerms()})
	require.NoError(t, err)
	_, err = a.client.Establish(ctx, &agentpb.EstablishRequest{Term: 2, Kind: "PRS", Reason: "undone"})
	require.NoError(t, err)
}

// A primary's recovery may take longer than its start is waited for: it is the primary all the same when it has recovered.
func TestAPrimaryThatTakesLongToRecover(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	s.tell(ctx)
	rows := s.insert(ctx, a, 0, 10)
	a.kill()
	a.conf.StartTimeout = 20 * time.Millisecond // PostgreSQL needs more to start at all
	a.start()
	a.eventually("established again", func(st *agentpb.Status) bool {
		return st.GetRole() == agentpb.Role_PRIMARY && st.GetEstablished()
	})
	require.Contains(t, a.out.String(), "does not take sessions")
	b.streaming("a")
	s.insert(ctx, a, rows, 10)
}

// While it recovers it is a primary to everybody who tells it to be something else.
func TestARecoveringPrimaryObeys(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a := s.nodes["a"]
	s.bootstrap("a", "b", "c")
	s.watchAll(func(*agentpb.Status) {})
	ctx := minute(t)
	rows := s.insert(ctx, a, 0, 10)
	a.kill()
	b, other := s.emergency(ctx, 2, s.nodes["b"], s.nodes["c"], "a")
	a.remember(func(st *State) { st.Primary.Cohort.Acks = 0 }) // or it would ask, and not even start
	a.conf.StartTimeout = 20 * time.Millisecond
	a.start()
	require.Eventually(t, func() bool { return strings.Contains(a.out.String(), "does not take sessions") }, 10*time.Second, time.Millisecond)
	r, err := a.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: b.endpoint(), TimelineTerms: b.status().GetTimelineTerms(), RewindTimeoutMs: 20000})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	a.streaming(b.name)
	other.streaming(b.name)
	s.insert(ctx, b, rows, 10)
}

// A standby that cannot stream because its data does not fit must say so by itself: its primary may not have answered when
// it was told to follow.
func TestAStandbyThatDoesNotFitSaysSo(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	_, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE beyond (i int)") // c has it, b does not
	require.NoError(t, err)
	unknown := b.endpoint()
	unknown.PostgresPort = 9
	_, err = c.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: unknown})
	require.NoError(t, err, "a primary that does not answer yet is no reason to give up")
	require.False(t, c.status().GetDiverged())
	_, err = b.client.Promote(ctx, &agentpb.PromoteRequest{Term: 2, Cohort: &agentpb.Cohort{Term: 2, Primary: "b"}})
	require.NoError(t, err)
	c.kill()
	c.remember(func(st *State) { st.Follow.PostgresPort = testPostgresPort })
	c.start()
	st := c.eventually("says that it has diverged", func(st *agentpb.Status) bool { return st.GetDiverged() })
	require.Contains(t, st.GetMessage(), "not in the history")
	r, err := c.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: b.endpoint(), TimelineTerms: b.status().GetTimelineTerms()})
	require.NoError(t, err)
	require.True(t, r.GetDiverged())
	r, err = c.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: b.endpoint(), TimelineTerms: b.status().GetTimelineTerms(), RewindTimeoutMs: 20000})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), "nobody had tried to rewind it: %s", r.GetWhy())
	c.streaming("b")
}

// remember changes what a dead agent will find when it starts.
func (n *node) remember(change func(*State)) {
	store, err := NewStore(n.conf.stateDir())
	require.NoError(n.t, err)
	st, err := store.Load()
	require.NoError(n.t, err)
	change(&st)
	require.NoError(n.t, store.Save(context.Background(), st))
}

func TestAnInterruptedSeeding(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	s.watchAll(func(*agentpb.Status) {}) // or a would fence itself while its only standby is away
	mark, err := os.ReadFile(filepath.Join(b.conf.DataDir, "pgdata", "theseus.seed"))
	require.NoError(t, err)

	// The agent died when the copy was complete and it had not said so.
	b.kill()
	b.remember(func(st *State) { st.Halted, st.Seed = haltedSeeding, string(mark) })
	b.start()
	b.streaming("a")

	// The agent died before the old data was gone.
	b.kill()
	b.remember(func(st *State) { st.Halted, st.Seed = haltedSeeding, "another" })
	b.start()
	st := b.status()
	require.Equal(t, agentpb.Role_EMPTY, st.GetRole())
	time.Sleep(time.Second)
	require.Equal(t, agentpb.Role_EMPTY, b.status().GetRole(), "data that was to be thrown away is not started")
	_, err = b.client.Seed(ctx, &agentpb.SeedRequest{Term: 1, Source: a.endpoint(), Primary: a.endpoint(), TimelineTerms: a.status().GetTimelineTerms()})
	require.NoError(t, err)
	b.streaming("a")
}

// A standby that was stopped with more than its new primary has cannot even start: that has to be noticed before, or it
// would be tried for ever.
func TestAStoppedStandbyThatIsAheadHasDiverged(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	s.watchAll(func(*agentpb.Status) {})
	ctx := minute(t)
	_, err := c.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE beyond (i int)") // b has it, c does not
	require.NoError(t, err)
	end := a.status().GetFlushed().GetLsn()
	b.eventually("has replayed it", func(st *agentpb.Status) bool { return st.GetReplayedLsn() >= end })
	require.NoError(t, syscall.Kill(b.cmd.Process.Pid, syscall.SIGSTOP)) // or it would start PostgreSQL again
	require.NoError(t, syscall.Kill(b.postmaster(), syscall.SIGINT))
	pid := filepath.Join(b.conf.DataDir, "pgdata", "postmaster.pid")
	require.Eventually(t, func() bool { _, err := os.Stat(pid); return os.IsNotExist(err) }, 20*time.Second, 10*time.Millisecond)
	b.kill()
	b.remember(func(st *State) { st.Halted = "test" })
	_, err = c.client.Promote(ctx, &agentpb.PromoteRequest{Term: 2, Cohort: &agentpb.Cohort{Term: 2, Primary: "c"}})
	require.NoError(t, err)
	b.start()
	order := &agentpb.FollowRequest{Term: 2, Primary: c.endpoint(), TimelineTerms: c.status().GetTimelineTerms()}
	r, err := b.client.Follow(ctx, order)
	require.NoError(t, err)
	require.True(t, r.GetDiverged())

	// Nobody has tried to rewind it: its log is whole, and may be the only copy of something.
	p, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 3})
	require.NoError(t, err)
	require.EqualValues(t, 1, p.GetFlushed().GetWalTerm())
	require.GreaterOrEqual(t, p.GetFlushed().GetLsn(), end)
	order.Term, order.RewindTimeoutMs = 3, 20000
	r, err = b.client.Follow(ctx, order)
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	b.streaming("c")
}

// A former primary that nobody tells anything becomes a standby of nobody: it may be all there is to seed others from.
func TestAFormerPrimaryThatNobodyTellsAnythingStandsDown(t *testing.T) {
	s := newShard(t, "a", "b")
	a := s.nodes["a"]
	s.bootstrap("a", "b")
	s.watchAll(func(*agentpb.Status) {})
	ctx := minute(t)
	rows := s.insert(ctx, a, 0, 10)
	p, err := a.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	require.Equal(t, agentpb.Role_STOPPED, a.status().GetRole())
	st := a.eventually("stands down", func(st *agentpb.Status) bool { return st.GetRole() == agentpb.Role_STANDBY })
	require.Empty(t, st.GetHalted())
	again, err := a.client.Promise(ctx, &agentpb.PromiseRequest{Term: 3})
	require.NoError(t, err)
	require.EqualValues(t, 1, again.GetFlushed().GetWalTerm())
	require.GreaterOrEqual(t, again.GetFlushed().GetLsn(), p.GetFlushed().GetLsn(), "nothing of what it promised is lost")
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 3, Cohort: &agentpb.Cohort{Term: 3, Primary: "a"}})
	require.NoError(t, err)
	_, err = a.client.Establish(ctx, &agentpb.EstablishRequest{Term: 3, Kind: "ERS", Reason: "test"})
	require.NoError(t, err)
	s.insert(ctx, a, rows, 1)
}
