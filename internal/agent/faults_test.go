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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

func minute(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func primaryRole(st *agentpb.Status) bool {
	return st.GetRole() == agentpb.Role_PRIMARY && st.GetEstablished()
}

// tell gives the members of the shard to all agents, as a short visit of the operator does.
func (s *shardUnderTest) tell(ctx context.Context) {
	for _, n := range s.nodes {
		watch, cancel := context.WithCancel(ctx)
		_ = n.client.WatchStatus(watch, &agentpb.WatchRequest{Watcher: "operator", ShardEndpoints: s.endpoints()}, func(st *agentpb.Status) {
			if len(st.GetShardEndpoints()) == len(s.nodes) {
				cancel()
			}
		})
		cancel()
	}
}

func TestAPrimaryResumesOnlyInATermThatStands(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	s.tell(ctx)

	// Its cohort is in its term: it resumes, and establishes again.
	begun := time.Now()
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGKILL))
	a.eventually("noticed", func(st *agentpb.Status) bool { return !st.GetEstablished() })
	st := a.eventually("resumed", primaryRole)
	t.Logf("resumed after %v", time.Since(begun).Round(time.Millisecond))
	require.EqualValues(t, 1, st.GetTerm())
	require.Equal(t, []string{"b", "c"}, st.GetCohort().GetMembers())

	// One of two has promised a higher term; one acknowledgement is needed, so one that has not is enough to know that
	// nobody has the promises of both.
	_, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2, Coordinator: "test"})
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGKILL))
	a.eventually("noticed", func(st *agentpb.Status) bool { return !st.GetEstablished() })
	a.eventually("resumed with one of two", primaryRole)

	// Both have: it must wait, for ever.
	_, err = c.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2, Coordinator: "test"})
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGKILL))
	st = a.eventually("waits to be told", func(st *agentpb.Status) bool { return strings.Contains(st.GetMessage(), "term 2 has begun") })
	require.Equal(t, agentpb.Role_STOPPED, st.GetRole())
	time.Sleep(3 * time.Second)
	require.Equal(t, agentpb.Role_STOPPED, a.status().GetRole())

	// Also after its Pod's container has restarted.
	a.kill()
	a.start()
	a.eventually("still waits", func(st *agentpb.Status) bool { return strings.Contains(st.GetMessage(), "term 2 has begun") })

	// A promise of it says where its WAL ends, and that it was the primary.
	p, err := a.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2, Coordinator: "test"})
	require.NoError(t, err)
	require.True(t, p.GetWasPrimary())
	require.False(t, p.GetLowerBound())
	require.EqualValues(t, 1, p.GetFlushed().GetWalTerm())
	again, err := a.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2, Coordinator: "test"})
	require.NoError(t, err)
	require.Equal(t, p.GetFlushed().GetLsn(), again.GetFlushed().GetLsn(), "a repeated call says the same")
	_, err = a.client.Promise(ctx, &agentpb.PromiseRequest{Term: 1})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))

	// It may be elected: it has everything.
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 2, Cohort: &agentpb.Cohort{Term: 2, Primary: "a", Members: []string{"b", "c"}, Acks: 1}})
	require.NoError(t, err)
	for _, n := range []*node{b, c} {
		r, err := n.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: a.endpoint(), TimelineTerms: a.status().GetTimelineTerms()})
		require.NoError(t, err)
		require.False(t, r.GetDiverged(), r.GetWhy())
	}
	_, err = a.client.Establish(ctx, &agentpb.EstablishRequest{Term: 2, Kind: "ERS", Reason: "test"})
	require.NoError(t, err)
	st = a.status()
	require.Equal(t, map[uint32]uint64{1: 1, 2: 2}, agentapi.TimelineTermsFromPB(st.GetTimelineTerms()))
}

func TestAnIsolatedPrimaryFencesItself(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a := s.nodes["a"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	s.tell(ctx)
	pids := map[*node][]int{}
	for _, n := range []*node{s.nodes["b"], s.nodes["c"]} {
		pids[n] = append(descendants(n.cmd.Process.Pid), n.cmd.Process.Pid)
	}
	signal := func(sig syscall.Signal) {
		for _, list := range pids {
			for _, pid := range list {
				_ = syscall.Kill(pid, sig)
			}
		}
	}
	// With its standbys only: nobody needs the operator.
	time.Sleep(3 * time.Second)
	require.True(t, primaryRole(a.status()), "a primary that can commit is not isolated")

	begun := time.Now()
	signal(syscall.SIGSTOP)
	st := a.eventually("fenced", func(st *agentpb.Status) bool { return st.GetFenced() != "" })
	t.Logf("fenced after %v: %s", time.Since(begun).Round(time.Millisecond), st.GetFenced())
	require.Equal(t, agentpb.Role_STOPPED, st.GetRole())
	time.Sleep(1500 * time.Millisecond)
	require.Equal(t, agentpb.Role_STOPPED, a.status().GetRole(), "it does not come back while nobody is heard")
	begun = time.Now()
	signal(syscall.SIGCONT)
	a.eventually("resumed", primaryRole)
	t.Logf("resumed after %v", time.Since(begun).Round(time.Millisecond))
	require.Empty(t, a.status().GetFenced())
}

func TestTheOperatorsWatchIsASignOfLife(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	s.watchAll(func(*agentpb.Status) {})
	time.Sleep(time.Second)
	b.kill()
	time.Sleep(5 * time.Second)
	st := a.status()
	require.True(t, primaryRole(st), "it cannot commit, but it is not alone: %v", st)
	require.NotZero(t, st.GetCommitProbe().GetPendingSinceUnixMs(), "and it shows")
	require.Zero(t, st.GetWriteProbe().GetFailures())
	require.Less(t, st.GetAtUnixMs()-st.GetWriteProbe().GetLastSuccessUnixMs(), int64(2000))
	b.start()
	b.streaming("a")
	a.eventually("can commit", func(st *agentpb.Status) bool {
		return st.GetCommitProbe().GetLastSuccessUnixMs() > st.GetAtUnixMs()-1500
	})
}

func TestAStandbyRestartsByItself(t *testing.T) {
	s := newShard(t, "a", "b")
	b := s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	s.tell(ctx) // a may fence itself while b is down, and asks it afterwards
	begun := time.Now()
	require.NoError(t, syscall.Kill(b.postmaster(), syscall.SIGKILL))
	b.eventually("noticed", func(st *agentpb.Status) bool { return st.GetRole() == agentpb.Role_STOPPED })
	b.streaming("a")
	t.Logf("postmaster killed, streaming again after %v", time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	b.kill()
	b.start()
	b.streaming("a")
	t.Logf("container killed, streaming again after %v", time.Since(begun).Round(time.Millisecond))

	// After a promise it must not go back, whatever dies.
	p, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	b.kill()
	b.start()
	st := b.eventually("up", func(st *agentpb.Status) bool { return st.GetRole() == agentpb.Role_STANDBY })
	require.EqualValues(t, 2, st.GetTerm())
	require.False(t, st.GetReceiver().GetStreaming())
	time.Sleep(time.Second)
	require.False(t, b.status().GetReceiver().GetStreaming())
	again, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	require.Equal(t, p.GetFlushed().GetLsn(), again.GetFlushed().GetLsn())
	_, err = b.client.Follow(ctx, &agentpb.FollowRequest{Term: 1, Primary: s.nodes["a"].endpoint()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "the old term is over")
}

func TestAStoppedPostmaster(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	s.tell(ctx)
	begun := time.Now()
	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGSTOP))
	a.eventually("the connect probe says so", func(st *agentpb.Status) bool {
		p := st.GetConnectProbe()
		return p.GetFailures() > 0 || p.GetPendingSinceUnixMs() != 0 && st.GetAtUnixMs()-p.GetPendingSinceUnixMs() >= 1000
	})
	t.Logf("a stopped postmaster shows after %v", time.Since(begun).Round(time.Millisecond))
	r, err := b.client.Testify(ctx, &agentpb.TestifyRequest{Primary: "a"})
	require.NoError(t, err)
	require.True(t, r.GetAgentReachable())
	require.False(t, r.GetPostgresReachable(), "the kernel's accept is not an answer")
	begun = time.Now()
	p, err := a.client.Demote(ctx, &agentpb.DemoteRequest{Term: 2, TimeoutMs: 300})
	require.NoError(t, err)
	t.Logf("demoted after %v, clean %v", time.Since(begun).Round(time.Millisecond), p.GetCleanShutdown())
	require.True(t, p.GetWasPrimary())
	require.Equal(t, agentpb.Role_STOPPED, a.status().GetRole())

	// A stopped postmaster of a standby does not keep it from promising.
	require.NoError(t, syscall.Kill(b.postmaster(), syscall.SIGSTOP))
	begun = time.Now()
	q, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	t.Logf("promised after %v", time.Since(begun).Round(time.Millisecond))
	require.EqualValues(t, 1, q.GetFlushed().GetWalTerm())
	require.NoError(t, syscall.Kill(b.postmaster(), syscall.SIGCONT))
}

func TestSigtermIsABoundedFastStop(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "BEGIN; CREATE TABLE x (i int)")
	require.NoError(t, err)
	pids := descendants(a.cmd.Process.Pid)
	require.NotEmpty(t, pids)
	begun := time.Now()
	require.NoError(t, a.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, a.cmd.Wait())
	t.Logf("stopped after %v", time.Since(begun).Round(time.Millisecond))
	for _, pid := range pids {
		require.Error(t, syscall.Kill(pid, 0), "process %d is left", pid)
	}
	a.cmd = nil
	a.start()
	a.eventually("back", func(st *agentpb.Status) bool { return st.GetMessage() != "" || st.GetRole() == agentpb.Role_PRIMARY })
	_ = b
}

func TestCommandsThatMakeNoSense(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	ctx := minute(t)
	require.Equal(t, agentpb.Role_EMPTY, a.status().GetRole())
	_, err := a.client.Bootstrap(ctx, &agentpb.BootstrapRequest{Term: 1, Cohort: &agentpb.Cohort{Term: 1, Primary: "b"}})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = a.client.Promote(ctx, &agentpb.PromoteRequest{Term: 1, Cohort: &agentpb.Cohort{Term: 1, Primary: "a"}})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "it is empty")
	_, err = b.client.Follow(ctx, &agentpb.FollowRequest{Term: 1, Primary: a.endpoint()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "it is empty")
	s.bootstrap("a", "b")
	_, err = a.client.Bootstrap(ctx, &agentpb.BootstrapRequest{Term: 1, Cohort: &agentpb.Cohort{Term: 1, Primary: "a"}})
	require.NoError(t, err, "a repeated one is done")
	_, err = a.client.Bootstrap(ctx, &agentpb.BootstrapRequest{Term: 2, Cohort: &agentpb.Cohort{Term: 2, Primary: "a"}})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "never over data")
	_, err = a.client.Seed(ctx, &agentpb.SeedRequest{Term: 1, Source: b.endpoint(), Primary: b.endpoint(), Discard: true})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "a primary does not throw itself away")
	_, err = b.client.Seed(ctx, &agentpb.SeedRequest{Term: 1, Source: a.endpoint(), Primary: a.endpoint()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "discard has to be asked for")
	_, err = b.client.Seed(ctx, &agentpb.SeedRequest{Term: 1, Source: a.endpoint(), Primary: a.endpoint(), Discard: true})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "a standby that is well is not thrown away, whoever thought so")
	_, err = b.client.Configure(ctx, &agentpb.ConfigureRequest{Term: 1, Cohort: &agentpb.Cohort{Term: 1, Primary: "b"}})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "it does not lead")
	_, err = b.client.Establish(ctx, &agentpb.EstablishRequest{Term: 1})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	_, err = a.client.Follow(ctx, &agentpb.FollowRequest{Term: 1, Primary: b.endpoint()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "in its own term a primary follows nobody")

	d, err := b.client.Dump(ctx, &agentpb.DumpRequest{MaxBytes: 100_000})
	require.NoError(t, err)
	for _, name := range []string{"status.json", "state.json", "controldata.txt", "postgres.log", "agent.log"} {
		require.NotEmpty(t, d.GetFiles()[name], name)
	}
	require.NotContains(t, string(d.GetFiles()["postgres.log"]), "secret")
}

func TestAReseedFromAStandbyReplacesDivergedData(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	// Term 2 fails: b is promoted and writes, and is never established.
	_, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	_, err = b.client.Promote(ctx, &agentpb.PromoteRequest{Term: 2, Cohort: &agentpb.Cohort{Term: 2, Primary: "b"}})
	require.NoError(t, err)
	conn, err := b.socket(ctx)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE lost (i int)")
	require.NoError(t, err)
	// Term 3: c is promoted, and picks the same timeline number.
	pc, err := c.client.Promise(ctx, &agentpb.PromiseRequest{Term: 3})
	require.NoError(t, err)
	pb, err := b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 3})
	require.NoError(t, err)
	require.EqualValues(t, 1, pc.GetFlushed().GetWalTerm())
	require.EqualValues(t, 2, pb.GetFlushed().GetWalTerm())
	require.True(t, pb.GetWasPrimary())
	_, err = c.client.Promote(ctx, &agentpb.PromoteRequest{Term: 3, Cohort: &agentpb.Cohort{Term: 3, Primary: "c", Members: []string{"a"}, Acks: 1}})
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{1: 1, 2: 3}, agentapi.TimelineTermsFromPB(c.status().GetTimelineTerms()))
	// b has timeline 2 of term 2: PostgreSQL would happily stream into it.
	r, err := b.client.Follow(ctx, &agentpb.FollowRequest{Term: 3, Primary: c.endpoint(), TimelineTerms: c.status().GetTimelineTerms(), RewindTimeoutMs: 10000})
	require.NoError(t, err)
	require.True(t, r.GetDiverged())
	require.Contains(t, r.GetWhy(), "timeline 2 began in term 2 here and in term 3")
	st := b.status()
	require.True(t, st.GetDiverged())
	require.Equal(t, agentpb.Role_STOPPED, st.GetRole())
	// a, the old primary, obeys.
	r, err = a.client.Follow(ctx, &agentpb.FollowRequest{Term: 3, Primary: c.endpoint(), TimelineTerms: c.status().GetTimelineTerms(), RewindTimeoutMs: 20000})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	_, err = c.client.Establish(ctx, &agentpb.EstablishRequest{Term: 3, Kind: "ERS", Reason: "test"})
	require.NoError(t, err)
	a.streaming("c")
	_, err = b.client.Seed(ctx, &agentpb.SeedRequest{Term: 3, Source: a.endpoint(), Primary: c.endpoint(), TimelineTerms: c.status().GetTimelineTerms(), Discard: true})
	require.NoError(t, err)
	st = b.streaming("c")
	require.False(t, st.GetDiverged())
}

func TestATimelineOnlyHeardOfIsForgotten(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	a, b, c := s.nodes["a"], s.nodes["b"], s.nodes["c"]
	s.bootstrap("a", "b", "c")
	ctx := minute(t)
	// Term 2 begins on b and fails before c has received any of it: c has heard of timeline 2 only.
	_, err := c.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	c.eventually("position known", func(st *agentpb.Status) bool { return st.GetFlushed().GetTimeline() == 1 })
	dead := b.endpoint()
	dead.PostgresPort = 9
	_, err = c.client.Follow(ctx, &agentpb.FollowRequest{Term: 2, Primary: dead, TimelineTerms: []*agentpb.TimelineTerm{{Timeline: 1, Term: 1}, {Timeline: 2, Term: 2}}})
	require.NoError(t, err)
	fetched := filepath.Join(c.conf.DataDir, "pgdata", "pg_wal", "00000002.history")
	require.NoError(t, os.WriteFile(fetched, []byte("1\t0/1000000\tfetched from the failed primary\n"), 0o600))
	// Term 3: b again, on a timeline of the same number.
	for _, n := range []*node{b, c} {
		_, err = n.client.Promise(ctx, &agentpb.PromiseRequest{Term: 3})
		require.NoError(t, err)
	}
	_, err = b.client.Promote(ctx, &agentpb.PromoteRequest{Term: 3, Cohort: &agentpb.Cohort{Term: 3, Primary: "b", Members: []string{"c"}, Acks: 1}})
	require.NoError(t, err)
	r, err := c.client.Follow(ctx, &agentpb.FollowRequest{Term: 3, Primary: b.endpoint(), TimelineTerms: b.status().GetTimelineTerms()})
	require.NoError(t, err)
	require.False(t, r.GetDiverged(), r.GetWhy())
	_, err = b.client.Establish(ctx, &agentpb.EstablishRequest{Term: 3, Kind: "ERS"})
	require.NoError(t, err)
	c.streaming("b")
	text, err := os.ReadFile(fetched)
	require.NoError(t, err)
	require.NotContains(t, string(text), "failed primary")
	_ = a
}

func TestRotationReachesPostgres(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	for _, n := range []*node{a, b} {
		cert, key := s.ca.issue(t, testShard, agentapi.RoleAgent)
		require.NoError(t, os.WriteFile(filepath.Join(n.conf.TLSDir, "tls.crt"), cert, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(n.conf.TLSDir, "tls.key"), key, 0o600))
	}
	for _, n := range []*node{a, b} {
		want, err := os.ReadFile(filepath.Join(n.conf.TLSDir, "tls.key"))
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			got, err := os.ReadFile(filepath.Join(n.conf.RunDir, "tls", "tls.key"))
			return err == nil && string(got) == string(want)
		}, 15*time.Second, 50*time.Millisecond)
	}
	keys, err := filepath.Glob(filepath.Join(b.conf.RunDir, "tls", "wal.*.key"))
	require.NoError(t, err)
	require.Len(t, keys, 1)
	got, err := os.ReadFile(keys[0])
	require.NoError(t, err)
	key, err := os.ReadFile(filepath.Join(b.conf.TLSDir, "tls.key"))
	require.NoError(t, err)
	require.Equal(t, string(key), string(got), "the WAL receiver's too")
	b.streaming("a")
	require.NoError(t, syscall.Kill(b.postmaster(), syscall.SIGKILL))
	b.eventually("down", func(st *agentpb.Status) bool { return st.GetRole() == agentpb.Role_STOPPED })
	b.streaming("a")
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_ = conn.Close(ctx)
	for range 2 {
		_, err = a.client.GetStatus(ctx, &agentpb.GetStatusRequest{})
		require.NoError(t, err)
	}
}
