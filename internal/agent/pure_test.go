package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
	"theseus.dev/theseus/internal/quorum"
)

func refused(t require.TestingT, err error) {
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
}

func TestPromise(t *testing.T) {
	primary := &Primary{Cohort: quorum.Cohort{Term: 3, Primary: "a", Members: []string{"b"}, Acks: 1}}
	for _, tc := range []struct {
		name string
		from State
		term uint64
		ok   bool
	}{
		{"a fresh instance", State{}, 1, true},
		{"a higher term", State{Term: 3, Follow: &Target{Instance: "a"}}, 4, true},
		{"a lower term", State{Term: 3}, 2, false},
		{"the term it follows in", State{Term: 3, Follow: &Target{Instance: "a"}}, 3, false},
		{"the same promise again", State{Term: 3, Promised: 3}, 3, true},
		{"a promise whose term has begun: it follows", State{Term: 3, Promised: 3, Follow: &Target{Instance: "a"}}, 3, false},
		{"a promise whose term has begun: it leads", State{Term: 3, Promised: 3, Primary: primary}, 3, false},
		{"a promise whose term has begun: it is being promoted", State{Term: 3, Promised: 3, Intent: 3}, 3, false},
		{"a primary leaves", State{Term: 3, Primary: primary}, 4, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.from.clone()
			err := s.promise(tc.term)
			if !tc.ok {
				refused(t, err)
				require.Equal(t, tc.from, s)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.term, s.Term)
			require.Equal(t, tc.term, s.Promised)
			require.Nil(t, s.Follow, "it must not go back to the old primary after a restart")
			require.Nil(t, s.Primary, "nor be one")
			require.Equal(t, tc.from.Primary != nil, s.Halted != "", "an old primary waits to be told")
		})
	}
}

// What was only heard of a failed promotion elsewhere must not name the term of one's own, should it pick the same number
// and be interrupted.
func TestAnInterruptedPromotionOnANumberHeardOf(t *testing.T) {
	s := State{Term: 6, Intent: 6, Timelines: map[uint32]uint64{1: 1, 6: 4, 7: 5}}
	s.forgetHearsay(6)
	s.attribute(7)
	require.Equal(t, map[uint32]uint64{1: 1, 6: 4, 7: 6}, s.Timelines)
}

// Promoted twice in one term, because the first time was interrupted, an instance has two timelines of that term. Were the
// first not in the map, a standby with another timeline of that number would be thought to have the same.
func TestAPromotionThatIsRepeatedKeepsTheTimelineOfTheFirst(t *testing.T) {
	s := State{Term: 6, Timelines: map[uint32]uint64{1: 1, 2: 4}}
	s.promoting(6, 1)
	require.Equal(t, map[uint32]uint64{1: 1}, s.Timelines, "hearsay")
	s.promoting(6, 2)
	require.NoError(t, s.promoted(6, 3, quorum.Cohort{Term: 6}))
	require.Equal(t, map[uint32]uint64{1: 1, 2: 6, 3: 6}, s.Timelines)
}

func TestUnattributed(t *testing.T) {
	s := State{Term: 3, Timelines: map[uint32]uint64{2: 2}}
	require.False(t, s.unattributed(0), "nothing was observed")
	require.False(t, s.unattributed(1), "everybody knows who began the first")
	require.False(t, s.unattributed(2))
	require.True(t, s.unattributed(3))
	s.Intent = 3
	require.False(t, s.unattributed(3), "begun here")
}

func TestPromotable(t *testing.T) {
	for _, tc := range []struct {
		name string
		from State
		ok   bool
	}{
		{"after a promise", State{Term: 4, Promised: 4}, true},
		{"without one (a planned reparent's candidate)", State{Term: 3, Follow: &Target{Instance: "a"}}, true},
		{"again", State{Term: 4, Primary: &Primary{}}, true},
		{"a stopped old primary", State{Term: 4, Promised: 4, Halted: "was promoted in an earlier term"}, true},
		{"in a term that is over", State{Term: 5}, false},
		{"in a term in which it follows", State{Term: 4, Follow: &Target{Instance: "a"}}, false},
		{"while it leads an earlier one", State{Term: 3, Primary: &Primary{}}, false},
		{"diverged", State{Term: 4, Diverged: "x"}, false},
		{"half rewound", State{Term: 4, Rewinding: true}, false},
		{"half bootstrapped", State{Term: 4, Bootstrapping: true}, false},
		{"half seeded", State{Term: 4, Halted: haltedSeeding}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.from.clone()
			if err := s.promotable(4); tc.ok {
				require.NoError(t, err)
			} else {
				refused(t, err)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	to := &Target{Term: 4, Instance: "p"}
	theirs := map[uint32]uint64{1: 1, 2: 4}

	s := State{Term: 3, Timelines: map[uint32]uint64{1: 1}, Fenced: "x"}
	stale, err := s.follow(to, theirs, 1)
	require.NoError(t, err)
	require.Empty(t, stale)
	require.Equal(t, State{Term: 4, Follow: to, Timelines: theirs}, s)

	// Timeline 2 was heard of in a failed term 3; there is no record of it here.
	s = State{Term: 3, Timelines: map[uint32]uint64{1: 1, 2: 3}}
	stale, err = s.follow(to, theirs, 1)
	require.NoError(t, err)
	require.Equal(t, []uint32{2}, stale)
	require.Empty(t, s.Diverged)
	require.EqualValues(t, 4, s.Timelines[2])

	// There are records of it, or that is not known.
	for _, own := range []uint32{2, 3, 0} {
		s = State{Term: 3, Timelines: map[uint32]uint64{1: 1, 2: 3}}
		stale, err = s.follow(to, theirs, own)
		require.NoError(t, err)
		require.Empty(t, stale)
		require.NotEmpty(t, s.Diverged, "PostgreSQL would have followed")
		require.Equal(t, to, s.Follow, "remembered for after the seeding")
	}

	for _, from := range []State{
		{Term: 5}, {Term: 4, Primary: &Primary{}}, {Term: 4, Intent: 4}, {Term: 1, Bootstrapping: true},
	} {
		s = from.clone()
		_, err = s.follow(to, theirs, 1)
		refused(t, err)
		require.Equal(t, from, s)
	}

	// A primary that was overtaken obeys.
	s = State{Term: 3, Primary: &Primary{}, Timelines: map[uint32]uint64{1: 1}}
	_, err = s.follow(to, theirs, 1)
	require.NoError(t, err)
	require.Nil(t, s.Primary)
}

func TestVouches(t *testing.T) {
	terms := agentapi.TimelineTermsToPB(map[uint32]uint64{1: 1, 2: 4})
	before := &agentpb.Status{Instance: "s", PostgresStartedUnixMs: 7}
	after := &agentpb.Status{Instance: "s", PostgresStartedUnixMs: 7, TimelineTerms: terms}
	require.NoError(t, vouches(before, after, 2))
	require.NoError(t, vouches(before, before, 1), "initdb's timeline needs nobody's word")
	require.ErrorContains(t, vouches(before, after, 3), "does not know in which term timeline 3 began")
	require.ErrorContains(t, vouches(before, &agentpb.Status{PostgresStartedUnixMs: 8, TimelineTerms: terms}, 2), "started anew")
	require.ErrorContains(t, vouches(&agentpb.Status{}, &agentpb.Status{TimelineTerms: terms}, 2), "started anew")
}

// An order to discard may be older than what is here by now, in the same term: only what the instance itself knows to be of no
// use is thrown away.
func TestReplaceable(t *testing.T) {
	follow := &Target{Term: 5, Instance: "b"}
	for _, tc := range []struct {
		name        string
		state       State
		initialised bool
		discard     bool
		ok          bool
	}{
		{"a fresh volume", State{}, false, false, true},
		{"a copy that was interrupted", State{Term: 5, Follow: follow, Halted: haltedSeeding}, true, false, true},
		{"a bootstrap that was interrupted", State{Term: 1, Bootstrapping: true}, true, false, true},
		{"diverged, and nobody asked to discard", State{Term: 5, Diverged: "another way"}, true, false, false},
		{"diverged", State{Term: 5, Diverged: "another way"}, true, true, true},
		{"diverged, a rewind might do", State{Term: 5, Diverged: "another way", Rewindable: true}, true, true, true},
		{"half rewound", State{Term: 5, Rewinding: true}, true, true, true},
		{"a standby, seeded since the order was given", State{Term: 5, Follow: follow}, true, true, false},
		{"one that has promised", State{Term: 5, Promised: 5}, true, true, false},
		{"an old primary that is halted", State{Term: 5, Halted: "was promoted in an earlier term"}, true, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.state.replaceable(tc.initialised, tc.discard)
			if tc.ok {
				require.NoError(t, err)
				return
			}
			refused(t, err)
		})
	}
}

func TestCopied(t *testing.T) {
	to := &Target{Term: 5, Instance: "p"}
	for name, tc := range map[string]struct {
		told, source map[uint32]uint64
		end          uint32
		want         map[uint32]uint64
		follows      bool
	}{
		"as told":                         {map[uint32]uint64{1: 1, 2: 4}, map[uint32]uint64{1: 1, 2: 4}, 2, map[uint32]uint64{1: 1, 2: 4}, true},
		"nothing told":                    {nil, map[uint32]uint64{1: 1, 2: 4}, 2, map[uint32]uint64{1: 1, 2: 4}, true},
		"a timeline begun during it":      {map[uint32]uint64{1: 1}, map[uint32]uint64{1: 1, 2: 5}, 2, map[uint32]uint64{1: 1, 2: 5}, true},
		"another promotion's timeline":    {map[uint32]uint64{1: 1, 2: 4}, map[uint32]uint64{1: 1, 2: 5}, 2, map[uint32]uint64{1: 1, 2: 5}, false},
		"of one that is not in the copy":  {map[uint32]uint64{1: 1, 2: 4}, map[uint32]uint64{1: 1, 2: 5}, 1, map[uint32]uint64{1: 1, 2: 4}, true},
		"the source does not know of one": {map[uint32]uint64{1: 1, 2: 4}, map[uint32]uint64{1: 1}, 1, map[uint32]uint64{1: 1, 2: 4}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := State{Term: 5, Follow: to, Timelines: tc.told}
			s.copied(tc.source, tc.end)
			require.Equal(t, tc.want, s.Timelines)
			require.Equal(t, tc.follows, s.Follow != nil)
		})
	}
}

// A standby seeded while the shard was being bootstrapped may never have been told. Its promise forgets whom it followed,
// and it must still be able to say where its WAL ends; nor may a later term be taken for that of initdb's timeline.
func TestWALTermOfTheFirstTimeline(t *testing.T) {
	s := State{Term: 1, Follow: &Target{Term: 1}}
	require.NoError(t, s.promise(2))
	for _, s := range []State{s, {Term: 5, Follow: &Target{Term: 5}}, {Term: 5, Intent: 5}} {
		term, err := s.walTerm(1)
		require.NoError(t, err)
		require.EqualValues(t, 1, term)
	}
}

func TestWALTerm(t *testing.T) {
	s := State{Timelines: map[uint32]uint64{1: 1, 2: 4}}
	term, err := s.walTerm(2)
	require.NoError(t, err)
	require.EqualValues(t, 4, term)
	_, err = s.walTerm(3)
	require.Error(t, err, "never guessed")
	s.Follow = &Target{Term: 6}
	term, err = s.walTerm(3)
	require.NoError(t, err)
	require.EqualValues(t, 6, term, "begun by whom it follows")
	s.Follow, s.Intent = nil, 7
	term, err = s.walTerm(3)
	require.NoError(t, err)
	require.EqualValues(t, 7, term, "begun by its own interrupted promotion")

	s.attribute(3)
	require.EqualValues(t, 7, s.Timelines[3])
	require.Zero(t, s.Intent)
	s.Intent = 8
	s.attribute(2)
	require.EqualValues(t, 4, s.Timelines[2], "a promotion that never began a timeline takes none over")
	s = State{Intent: 3}
	s.attribute(0)
	require.Empty(t, s.Timelines)
	s = State{Intent: 3}
	s.attribute(1)
	require.Empty(t, s.Timelines, "initdb's timeline is of term 1, whoever is promoted and dies before he has begun another")
}

// Whatever is asked in whatever order, the term never falls, and a promise is never broken by a lower term.
func TestTermsNeverFall(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		promised := uint64(0)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			before, term := s.clone(), rapid.Uint64Range(1, 8).Draw(t, "term")
			var err error
			switch rapid.IntRange(0, 3).Draw(t, "command") {
			case 0:
				if err = s.promise(term); err == nil {
					promised = term
				}
			case 1:
				s.attribute(0) // endIntent goes before
				before = s.clone()
				_, err = s.follow(&Target{Term: term, Instance: "p"}, map[uint32]uint64{1: 1}, 1)
			case 2:
				if err = s.promotable(term); err == nil {
					s.promoting(term, 1)
				}
			case 3:
				_ = s.promoted(s.Intent, 2, quorum.Cohort{Term: s.Intent})
			}
			if err != nil {
				require.Equal(t, before, s, "a refusal changes nothing")
			}
			require.GreaterOrEqual(t, s.Term, before.Term)
			require.GreaterOrEqual(t, s.Term, promised)
			if s.Primary != nil {
				require.Nil(t, s.Follow)
			}
			if s.Follow != nil {
				require.GreaterOrEqual(t, s.Follow.Term, promised, "it follows nobody of a term it has promised to leave")
			}
		}
	})
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	store, err := NewStore(dir)
	require.NoError(t, err)
	st, err := store.Load()
	require.NoError(t, err)
	require.Equal(t, State{}, st)
	want := State{
		Term: 7, Promised: 7, Timelines: map[uint32]uint64{1: 1, 9: 7}, Follow: &Target{Term: 7, Instance: "a", Host: "10.0.0.1", PostgresPort: 1, AgentPort: 2},
		Primary: &Primary{Cohort: quorum.Cohort{Term: 7, Primary: "a", Members: []string{"b"}, Acks: 1}},
	}
	require.NoError(t, store.Save(context.Background(), want))
	st, err = store.Load()
	require.NoError(t, err)
	require.Equal(t, want, st)

	// A torn write leaves the old file.
	require.NoError(t, os.WriteFile(store.path()+".new", []byte(`{"te`), 0o600))
	st, err = store.Load()
	require.NoError(t, err)
	require.Equal(t, want, st)

	// Nonsense is never a fresh start.
	require.NoError(t, os.WriteFile(store.path(), []byte("{"), 0o600))
	_, err = store.Load()
	require.Error(t, err)
}

func TestAHangingWriteIsAnErrorAndLaterOnesWait(t *testing.T) {
	store, err := NewStore(t.TempDir())
	require.NoError(t, err)
	store.busy <- struct{}{} // a write that hangs
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, store.Save(ctx, State{Term: 2}), context.DeadlineExceeded)
	<-store.busy // it came to an end
	require.NoError(t, store.Save(context.Background(), State{Term: 3}))
}

func TestCloneIsDeep(t *testing.T) {
	s := State{Timelines: map[uint32]uint64{1: 1}, Follow: &Target{Instance: "a"}, Endpoints: []Target{{Instance: "x"}}, Primary: &Primary{Cohort: quorum.Cohort{Members: []string{"b"}}}}
	c := s.clone()
	require.True(t, equalState(s, c))
	c.Timelines[2] = 2
	c.Follow.Instance = "z"
	c.Endpoints[0].Instance = "z"
	c.Primary.Cohort.Members[0] = "z"
	require.Equal(t, State{Timelines: map[uint32]uint64{1: 1}, Follow: &Target{Instance: "a"}, Endpoints: []Target{{Instance: "x"}}, Primary: &Primary{Cohort: quorum.Cohort{Members: []string{"b"}}}}, s)
}

func TestCommandsOfHigherTermsGoFirst(t *testing.T) {
	var c commands
	slow, done, err := c.begin(context.Background(), 3, "Promote")
	require.NoError(t, err)
	require.False(t, c.idle())

	// The same term waits.
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, _, err = c.begin(short, 3, "Establish")
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.NoError(t, slow.Err())

	// A lower one neither waits for ever nor disturbs; a higher one takes over.
	var wg sync.WaitGroup
	wg.Go(func() {
		<-slow.Done()
		require.ErrorIs(t, context.Cause(slow), errSuperseded)
		done()
	})
	_, done4, err := c.begin(context.Background(), 4, "Promise")
	require.NoError(t, err)
	wg.Wait()
	done4()
	require.True(t, c.idle())
}

func TestCommandsAreSerial(t *testing.T) {
	var c commands
	var mu sync.Mutex
	inside, most := 0, 0
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			_, done, err := c.begin(context.Background(), uint64(i%5), "x")
			if err != nil {
				return
			}
			mu.Lock()
			inside++
			most = max(most, inside)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			inside--
			mu.Unlock()
			done()
		})
	}
	wg.Wait()
	require.Equal(t, 1, most)
}

func TestFailed(t *testing.T) {
	require.NoError(t, failed(nil))
	require.Equal(t, codes.Aborted, status.Code(failed(fmt.Errorf("x: %w", errSuperseded))))
	require.Equal(t, codes.DeadlineExceeded, status.Code(failed(fmt.Errorf("x: %w", context.DeadlineExceeded))))
	require.Equal(t, codes.FailedPrecondition, status.Code(failed(refuse("no"))))
	require.Equal(t, codes.Internal, status.Code(failed(errors.New("x"))))
}

func TestQuorumHeard(t *testing.T) {
	now := time.Unix(1000, 0)
	at := func(s int64) heard { return heard{at: time.Unix(s, 0)} }
	signs := map[string]heard{"b": at(990), "c": at(998), "stranger": at(1000)}
	cohort := quorum.Cohort{Members: []string{"b", "c", "d"}}
	for acks, want := range map[int]time.Time{0: now, 1: time.Unix(998, 0), 2: time.Unix(990, 0), 3: {}} {
		cohort.Acks = acks
		require.Equal(t, want, quorumHeard(cohort, signs, now), acks)
	}
}

// While k members say yes, at most |M|−k can have promised: too few to leave the term.
func TestATermThatStandsCannotHaveBeenLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "members")
		acks := rapid.IntRange(1, n).Draw(t, "acks")
		term := uint64(5)
		promised := 0
		var replies []*agentpb.TestifyReply
		for range n {
			accepted := rapid.Uint64Range(3, 7).Draw(t, "term")
			if accepted > term {
				promised++
			}
			if rapid.Bool().Draw(t, "answers") {
				replies = append(replies, &agentpb.TestifyReply{Term: accepted})
			}
		}
		yes, higher := countTestimony(replies, term)
		left := n-promised < acks
		require.False(t, yes >= acks && left, "resumed in a term that was left")
		require.True(t, higher == 0 || higher > term)
	})
}

func TestIncompatible(t *testing.T) {
	history := postgres.History{Timeline: 3, Ancestors: []postgres.Switch{{Timeline: 1, End: 100}, {Timeline: 2, End: 200}}}
	primary := postgres.Identity{System: 7, Position: postgres.Position{LSN: 300, Timeline: 3}}
	for _, tc := range []struct {
		system uint64
		mine   postgres.Position
		ok     bool
	}{
		{7, postgres.Position{LSN: 100, Timeline: 1}, true},
		{0, postgres.Position{LSN: 100, Timeline: 1}, true},
		{8, postgres.Position{LSN: 100, Timeline: 1}, false},
		{7, postgres.Position{LSN: 101, Timeline: 1}, false},
		{7, postgres.Position{LSN: 201, Timeline: 2}, false},
		{7, postgres.Position{LSN: 250, Timeline: 3}, true},
		{7, postgres.Position{LSN: 150, Timeline: 4}, false},
	} {
		require.Equal(t, tc.ok, incompatible(tc.system, tc.mine, primary, history) == "", tc)
	}
}

func TestHubGivesTheLatest(t *testing.T) {
	var h hub
	slow := &watcher{updates: make(chan *agentpb.Status, 1)}
	h.subscribe(slow)
	for i := range 100 {
		h.publish(func() *agentpb.Status { return &agentpb.Status{Term: uint64(i)} })
	}
	got := <-slow.updates
	require.EqualValues(t, 99, got.GetTerm())
	require.EqualValues(t, 100, got.GetSequence())
	late := &watcher{updates: make(chan *agentpb.Status, 1)}
	h.subscribe(late)
	require.EqualValues(t, 99, (<-late.updates).GetTerm(), "one to begin with")
	h.unsubscribe(slow)
	h.publish(func() *agentpb.Status { return &agentpb.Status{} })
	require.Empty(t, slow.updates)
}

func TestGatewaysThatSayWhenTheyHavePaused(t *testing.T) {
	var h hub
	require.False(t, h.allAcknowledge(), "without gateways nobody can say anything")
	g1 := &watcher{updates: make(chan *agentpb.Status, 1), gateway: true, name: "g1", acknowledges: true}
	g2 := &watcher{updates: make(chan *agentpb.Status, 1), gateway: true, name: "g2", acknowledges: true}
	h.subscribe(g1)
	h.subscribe(g2)
	require.True(t, h.allAcknowledge())
	require.Equal(t, 2, h.pending(3))
	h.acknowledge("g1", 3, true)
	h.acknowledge("g2", 2, true)
	require.Equal(t, 1, h.pending(3), "a word of an earlier term does not count")
	h.acknowledge("g2", 3, true)
	require.Zero(t, h.pending(3))
	require.False(t, h.passing(3))
	h.acknowledge("g1", 3, false)
	require.Equal(t, 1, h.pending(3))
	require.True(t, h.passing(3), "clients are let through")
	require.False(t, h.passing(4))
	h.forgetPauses()
	require.False(t, h.passing(3), "that was in an earlier drain")
	h.acknowledge("g1", 3, false)
	h.acknowledge("g1", 3, true)
	require.False(t, h.passing(3))
	h.forgetPauses()
	require.Equal(t, 2, h.pending(3), "a second drain in the same term asks again")
	h.subscribe(&watcher{updates: make(chan *agentpb.Status, 1), gateway: true, name: "old"})
	require.False(t, h.allAcknowledge())
}

func TestReadiness(t *testing.T) {
	ok := func() *agentpb.Status {
		return &agentpb.Status{Role: agentpb.Role_PRIMARY, Established: true, AtUnixMs: 10_000, ConnectProbe: &agentpb.Probe{LastSuccessUnixMs: 9_900}}
	}
	require.Empty(t, notReady(ok()))
	for name, spoil := range map[string]func(*agentpb.Status){
		"empty":           func(s *agentpb.Status) { s.Role = agentpb.Role_EMPTY },
		"stopped":         func(s *agentpb.Status) { s.Role = agentpb.Role_STOPPED },
		"not established": func(s *agentpb.Status) { s.Established = false },
		"not streaming":   func(s *agentpb.Status) { s.Role = agentpb.Role_STANDBY },
		"no sessions":     func(s *agentpb.Status) { s.ConnectProbe.Failures = 1 },
		"hanging":         func(s *agentpb.Status) { s.ConnectProbe.PendingSinceUnixMs = 8_000 },
	} {
		st := ok()
		spoil(st)
		require.NotEmpty(t, notReady(st), name)
	}
	st := ok()
	st.Role, st.Receiver = agentpb.Role_STANDBY, &agentpb.Receiver{Streaming: true}
	st.ConnectProbe.PendingSinceUnixMs = 9_900
	require.Empty(t, notReady(st))
}

func TestProbeRecord(t *testing.T) {
	var p probe
	now := time.Unix(100, 0)
	p.begin(now)
	require.EqualValues(t, now.UnixMilli(), p.status().GetPendingSinceUnixMs())
	require.False(t, p.end(now.Add(3*time.Millisecond), nil))
	require.EqualValues(t, 3000, p.status().GetLatencyUs())
	require.Zero(t, p.status().GetPendingSinceUnixMs())
	p.begin(now)
	require.True(t, p.end(now, errors.New("x")), "the first failure is news")
	p.begin(now)
	require.False(t, p.end(now, errors.New("y")), "the second is not")
	require.EqualValues(t, 2, p.status().GetFailures())
	require.NotZero(t, p.status().GetLastSuccessUnixMs())
	p.begin(now)
	require.True(t, p.end(now, nil), "recovery is")
	require.Empty(t, p.status().GetError())
	p.reset()
	require.Zero(t, p.status().GetLastSuccessUnixMs())
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Unix(0, 0)
	var waits []time.Duration
	for range 10 {
		b.failed(now)
		waits = append(waits, b.next.Sub(now))
	}
	require.Equal(t, 200*time.Millisecond, waits[0])
	require.Equal(t, 400*time.Millisecond, waits[1])
	require.Equal(t, 10*time.Second, waits[9])
}

func TestConfig(t *testing.T) {
	var c Config
	c.Defaults()
	require.Error(t, c.Validate())
	c.Shard.Namespace, c.Shard.Name, c.Instance, c.DataDir, c.RunDir, c.TLSDir, c.Bin = "n", "s", "i", "/d", "/r", "/t", "/b"
	require.ErrorContains(t, c.Validate(), "POD_IP", "nobody can be told to connect to every address")
	c.Advertise = "fd00::1"
	require.NoError(t, c.Validate())
	a := &Agent{conf: c}
	require.Equal(t, "*", a.serverConfig().Listen, "of both families: a cluster may have IPv6 only")
	c.Listen = "127.0.0.1"
	c.Defaults()
	a = &Agent{conf: c}
	require.Equal(t, c.Listen, a.serverConfig().Listen)
	c.FenceAfter = time.Second
	require.Error(t, c.Validate(), "one lost heartbeat must not fence")
}
