package reparent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/quorum"
)

func newRealRuntime() Runtime { return ClockRuntime{clock.RealClock{}} }

// bubble runs a test with virtual time.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestPlannedReparent(t *testing.T) {
	bubble(t, "the best placed takes over, the old primary is in its cohort", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		in := f.instances()
		in[1].TimeLeft = 27 * 24 * time.Hour // b
		start := time.Now()
		res := f.run(Request{Kind: Planned, Instances: in, Reason: "Requested"})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, []string{"b"}, f.serving())
		require.Equal(t, uint64(6), res.Term)
		require.True(t, f.record.Settled())
		require.Equal(t, quorum.Cohort{Term: 6, Primary: "b", Members: []string{"a", "p"}, Acks: 1}, f.record.Cohorts[0])
		require.Less(t, res.WriteUnavailable, 20*time.Millisecond)
		require.Less(t, time.Since(start), 100*time.Millisecond+headStart)
		require.Equal(t, []Result{res}, f.closed)
		for _, p := range f.phases {
			require.Equal(t, uint64(6), p.Term)
		}
		var candidates []string
		for _, c := range res.Candidates {
			candidates = append(candidates, c.Instance+":"+c.Refused)
		}
		require.Contains(t, candidates, "b:")
	})
	bubble(t, "one with a full volume is the last choice, but one", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		in := f.instances()
		in[0].Full = true // a
		require.Equal(t, "b", f.run(Request{Kind: Planned, Instances: in}).NewPrimary)
		in = f.instances()
		for i := range in {
			in[i].Full = true
		}
		require.Equal(t, Succeeded, f.run(Request{Kind: Planned, Instances: in}).Outcome)
	})
	bubble(t, "without a checkpoint, which a full volume would not take", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.faults["Checkpoint p"] = refuses
		res := f.run(Request{Kind: Planned, Reason: "DiskFull", NoCheckpoint: true})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.NotContains(t, f.calls, "Checkpoint p")
		require.Contains(t, f.phases[1].Message, "no checkpoint")
	})
	bubble(t, "ten in a row", func(t *testing.T) {
		f := newFake(t, "p", "a", "b", "c", "d")
		for range 10 {
			res := f.run(Request{Kind: Planned})
			require.Equal(t, Succeeded, res.Outcome, res.Message)
			require.Equal(t, []string{res.NewPrimary}, f.serving())
			require.Len(t, f.record.Cohorts[0].Members, 4)
			require.Equal(t, 2, f.record.Cohorts[0].Acks)
		}
	})
	bubble(t, "everybody is got ready while the old primary stops, and only the candidate waited for", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.faults["PromiseAfter b"], f.sticky = hangs, true
		start := time.Now()
		res := f.run(Request{Kind: Planned, To: "a"})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Contains(t, f.calls, "PromiseAfter b")
		require.NotContains(t, f.calls, "Promise b", "its promise is not needed")
		require.Less(t, time.Since(start), time.Second)
	})
	bubble(t, "two instances", func(t *testing.T) {
		f := newFake(t, "p", "a")
		require.Equal(t, Succeeded, f.run(Request{Kind: Planned}).Outcome)
		require.Equal(t, []string{"a"}, f.serving())
	})
	bubble(t, "the candidate is killed midway, another takes over and clients never lose the primary", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		go func() {
			for {
				f.mu.Lock()
				if f.inst["p"].drained {
					f.inst["a"].dead = true
					f.mu.Unlock()
					return
				}
				f.mu.Unlock()
				time.Sleep(100 * time.Microsecond)
			}
		}()
		res := f.run(Request{Kind: Planned})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, []string{"b"}, f.serving())
		require.Equal(t, uint64(6), res.Term, "the term named nobody who was told")
		require.NotContains(t, f.calls, "Promote a")
	})
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		req  Request
		prep func(f *fakeShard)
		want string
	}{
		{"wrong primary", Request{Kind: Planned, ExpectPrimary: "a"}, nil, "expected was a"},
		{"wrong primary in an emergency", Request{Kind: Emergency, ExpectPrimary: "a"}, nil, "expected was a"},
		{"unknown target", Request{Kind: Planned, To: "x"}, nil, "no instance x"},
		{"to and away from the same", Request{Kind: Planned, To: "a", AwayFrom: "a"}, nil, "to and away"},
		{"the target lags", Request{Kind: Planned, To: "a"}, func(f *fakeShard) { f.inst["p"].Position.LSN = 1 << 30 }, "behind"},
		{"the target lags in replay", Request{Kind: Planned, To: "a"}, func(f *fakeShard) {
			for _, i := range f.inst {
				i.Position.LSN = 1 << 30
			}
		}, "behind in replay"},
		{"the target is dead", Request{Kind: Planned, To: "a"}, func(f *fakeShard) { f.inst["a"].dead = true }, "does not answer"},
		{"the target streams from nobody", Request{Kind: Planned, To: "a"}, func(f *fakeShard) { f.inst["a"].Source = "" }, "does not stream"},
		{"the primary is dead", Request{Kind: Planned}, func(f *fakeShard) { f.inst["p"].dead = true }, "good health"},
		{"the primary is not established", Request{Kind: Planned}, func(f *fakeShard) { f.inst["p"].Established = false }, "good health"},
		{"never bootstrapped", Request{Kind: Planned}, func(f *fakeShard) { f.record.Established = 0 }, "no primary yet"},
		{"invalid record", Request{Kind: Planned}, func(f *fakeShard) { f.record.Cohorts[0].Acks = 9 }, "not valid"},
		{"a spent term", Request{Kind: Planned, Term: 5}, nil, "spent"},
		{"a term out of reach", Request{Kind: Planned, Term: 1e12}, nil, "out of reach: the next one is 6"},
		{"an emergency's out of reach", Request{Kind: Emergency, Term: 6 + maxSkip + 1}, nil, "out of reach"},
		{"an emergency with too few", Request{Kind: Emergency}, func(f *fakeShard) { f.inst["p"].dead, f.inst["a"].dead = true, true }, "too few"},
		{"the checkpoint hangs", Request{Kind: Planned}, func(f *fakeShard) { f.faults["Checkpoint p"] = hangs }, "checkpoint"},
		{"the API is down", Request{Kind: Emergency}, func(f *fakeShard) { f.faults["Load"] = hangs }, "cannot be read"},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			f := newFake(t, "p", "a", "b")
			if tt.prep != nil {
				tt.prep(f)
			}
			before := f.record.Clone()
			res := f.run(tt.req)
			require.Equal(t, Refused, res.Outcome)
			require.Contains(t, res.Message, tt.want)
			require.Equal(t, before, f.record)
			for _, c := range f.calls {
				require.False(t, strings.HasPrefix(c, "Promise") || strings.HasPrefix(c, "Drain") || strings.HasPrefix(c, "Demote"), "%s was called", c)
			}
		})
	}
	bubble(t, "all candidates are unfit", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		in := f.instances()
		in[0].Unfit, in[1].Unfit = "condemned", "condemned"
		require.Equal(t, Refused, f.run(Request{Kind: Planned, Instances: in}).Outcome)
	})
	bubble(t, "away from one that is not the primary", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		res := f.run(Request{Kind: Planned, AwayFrom: "a", Term: 6})
		require.Equal(t, Succeeded, res.Outcome)
		require.Equal(t, "p", res.NewPrimary)
		require.Len(t, f.closed, 1, "the request's own journal is closed")
	})
	bubble(t, "to the primary", func(t *testing.T) {
		res := newFake(t, "p", "a", "b").run(Request{Kind: Planned, To: "p"})
		require.Equal(t, Succeeded, res.Outcome)
		require.NotEmpty(t, res.Message)
	})
	bubble(t, "the term is taken", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.opened[6] = "another"
		require.Equal(t, Overtaken, f.run(Request{Kind: Planned}).Outcome)
		require.Equal(t, []string{"p"}, f.serving())
	})
}

func TestEmergencyReparent(t *testing.T) {
	bubble(t, "dead primary", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		f.inst["b"].Position.LSN = 1100
		res := f.run(Request{Kind: Emergency, ExpectPrimary: "p"})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, []string{"b"}, f.serving(), "b has more")
		require.Equal(t, []string{"a"}, f.record.Cohorts[0].Members)
		require.Less(t, res.WriteUnavailable, 30*time.Millisecond, "nobody waits for the dead")
	})
	bubble(t, "to one that has less, or does not answer: another one is promoted, and it says so", func(t *testing.T) {
		for reason, names := range map[string][]string{"may not have everything that was acknowledged": {"p", "a", "b"}, "did not promise": {"p", "a", "b", "c", "d"}} {
			f := newFake(t, names...)
			f.inst["p"].dead = true
			if f.inst["b"].Position.LSN += 100; len(names) > 3 {
				f.faults["Promise a"], f.sticky = refuses, true
			}
			res := f.run(Request{Kind: Emergency, To: "a"})
			require.Equal(t, Succeeded, res.Outcome, res.Message)
			require.NotEqual(t, "a", res.NewPrimary)
			require.Contains(t, res.Message, "a was asked for and could not be taken ("+reason+"); "+res.NewPrimary+" is the primary")
		}
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		res := f.run(Request{Kind: Emergency, To: "b"})
		require.Equal(t, "b", res.NewPrimary)
		require.Empty(t, res.Message)
	})
	bubble(t, "the outage has lasted since the primary was last heard", func(t *testing.T) {
		for _, ago := range []time.Duration{0, 2 * time.Second, -time.Hour} {
			f := newFake(t, "p", "a", "b")
			f.inst["p"].dead = true
			since := time.Now().Add(-ago)
			if ago == 0 {
				since = time.Time{}
			}
			res := f.run(Request{Kind: Emergency, Since: since})
			require.Equal(t, Succeeded, res.Outcome, res.Message)
			require.GreaterOrEqual(t, res.WriteUnavailable, max(ago, 0))
			require.Less(t, res.WriteUnavailable, max(ago, 0)+30*time.Millisecond)
		}
	})
	bubble(t, "the term decides before the LSN", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		f.inst["a"].Position = quorum.Position{WALTerm: 4, LSN: 9999}
		res := f.run(Request{Kind: Emergency})
		require.NotEqual(t, "a", res.NewPrimary)
		require.NotContains(t, f.calls, "Promote a")
	})
	bubble(t, "the old primary answers before a standby does: no commit is made to wait for it alone", func(t *testing.T) {
		for answer, members := range map[fault][]string{slow: {"b", "p"}, hangs: {"p"}} {
			f := newFake(t, "p", "a", "b")
			f.inst["p"].Role, f.inst["p"].Established = RoleStopped, false // on a full volume
			f.faults["Promise b"] = answer
			f.faults["Status b"] = answer
			res := f.run(Request{Kind: Emergency, AwayFrom: "p"})
			require.Equal(t, Succeeded, res.Outcome, res.Message)
			require.Equal(t, []string{"a"}, f.serving())
			require.Equal(t, members, f.record.Cohorts[0].Members)
			require.Less(t, res.WriteUnavailable, time.Second+100*time.Millisecond)
		}
	})
	bubble(t, "postmaster killed, its agent answers with a tail nobody acknowledged", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].Role, f.inst["p"].Established, f.inst["p"].Position.LSN = RoleStopped, false, 1500
		res := f.run(Request{Kind: Emergency})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.NotEqual(t, "p", res.NewPrimary)
		require.NotContains(t, f.record.Cohorts[0].Members, "p", "it must rewind first")
	})
	bubble(t, "nobody but the old primary is proven to have everything", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].Role, f.inst["p"].Established, f.inst["p"].Position.LSN = RoleStopped, false, 1500
		f.inst["b"].dead = true
		res := f.run(Request{Kind: Emergency})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, []string{"p"}, f.serving())
		require.Equal(t, []string{"a"}, f.record.Cohorts[0].Members)
	})
	bubble(t, "alone", func(t *testing.T) {
		f := newFake(t, "p")
		f.inst["p"].Role = RoleStopped
		require.Equal(t, Succeeded, f.run(Request{Kind: Emergency}).Outcome)
		require.Equal(t, []string{"p"}, f.serving())
	})
	bubble(t, "a sick standby is not waited for", func(t *testing.T) {
		f := newFake(t, "p", "a", "b", "c", "d")
		f.inst["p"].dead = true
		f.faults["Promise d"] = hangs
		res := f.run(Request{Kind: Emergency})
		require.Equal(t, Succeeded, res.Outcome)
		require.Less(t, res.WriteUnavailable, 100*time.Millisecond)
		require.NotContains(t, f.record.Cohorts[0].Members, "d")
	})
	bubble(t, "the chosen one dies: another in the next term", func(t *testing.T) {
		f := newFake(t, "p", "a", "b", "c", "d")
		f.inst["p"].dead = true
		f.faults["Promote a"] = loses
		res := f.run(Request{Kind: Emergency, To: "a"})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, uint64(7), res.Term)
		require.Len(t, f.serving(), 1)
		require.NotEqual(t, "a", res.NewPrimary)
		require.True(t, f.record.Settled())
		require.Len(t, f.closed, 2, "both journals are closed")
	})
	bubble(t, "the winner is leaving: a better one catches up from it", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		f.inst["a"].Position.LSN = 1200
		in := f.instances()
		in[0].Leaving = true
		res := f.run(Request{Kind: Emergency, Instances: in, CatchUp: true})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, "b", res.NewPrimary)
		require.GreaterOrEqual(t, f.inst[res.NewPrimary].Position.LSN, uint64(1200))
	})
	bubble(t, "it cannot: the winner is promoted", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		f.inst["a"].Position.LSN = 1200
		in := f.instances()
		in[0].Leaving = true
		f.faults["Follow b"] = refuses
		res := f.run(Request{Kind: Emergency, Instances: in, CatchUp: true})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, "a", res.NewPrimary)
	})
	bubble(t, "overtaken by a higher term", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		in := f.instances()
		f.inst["b"].Term = 9
		require.Equal(t, Overtaken, f.run(Request{Kind: Emergency, Instances: in}).Outcome)
		require.Empty(t, f.serving())
	})
	bubble(t, "overtaken while it waited for a promotion: it does not go on", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		f.faults["Promote a"] = hangs
		f.faults["Promote b"] = hangs
		go func() {
			time.Sleep(time.Second) // another one has established term 8 meanwhile
			f.mu.Lock()
			defer f.mu.Unlock()
			f.record, _ = quorum.BeginTerm(f.record, quorum.Cohort{Term: 8, Primary: "b", Members: []string{"a"}, Acks: 1})
			f.record, _ = quorum.Establish(f.record, 8)
			f.version++
		}()
		res := f.run(Request{Kind: Emergency})
		require.Equal(t, Overtaken, res.Outcome)
		require.Equal(t, uint64(6), res.Term, "no further term was opened")
	})
	bubble(t, "a begun term must be revoked too", func(t *testing.T) {
		f := newFake(t, "p", "a", "b", "c", "d")
		f.record.Cohorts = append(f.record.Cohorts, quorum.Cohort{Term: 6, Primary: "d", Members: []string{"c"}, Acks: 1})
		for _, i := range f.inst {
			i.Term = 6
		}
		f.inst["p"].dead, f.inst["d"].dead = true, true
		res := f.run(Request{Kind: Emergency})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, uint64(7), res.Term)
		f = newFake(t, "p", "a", "b", "c", "d")
		f.record.Cohorts = append(f.record.Cohorts, quorum.Cohort{Term: 6, Primary: "d", Members: []string{"c"}, Acks: 1})
		f.inst["c"].dead, f.inst["d"].dead = true, true
		require.Equal(t, Refused, f.run(Request{Kind: Emergency}).Outcome, "d and c may have commits of term 6")
	})
	bubble(t, "the keeper changes the cohort in between", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.inst["p"].dead = true
		go func() {
			time.Sleep(2500 * time.Microsecond) // after the load
			f.mu.Lock()
			defer f.mu.Unlock()
			f.record, _ = quorum.BeginChange(f.record, []string{"a"}, 1)
			f.version++
		}()
		res := f.run(Request{Kind: Emergency})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.True(t, f.record.Settled())
	})
}

// TestEveryCallFails lets every kind of call to everybody go wrong in every way, once and for ever, and checks that the
// shard ends with at most one primary, that the outcome says what is the case, and that it ends in time.
func TestEveryCallFails(t *testing.T) {
	methods := []string{"Load", "Store", "Open", "Close"}
	for _, m := range []string{"Status", "Promise", "PromiseAfter", "Demote", "Promote", "Establish", "Follow", "Await", "Checkpoint", "Drain", "Undrain"} {
		for _, n := range []string{"p", "a", "b"} {
			methods = append(methods, m+" "+n)
		}
	}
	for _, kind := range []Kind{Planned, Emergency} {
		for _, sticky := range []bool{false, true} {
			for _, fl := range []fault{refuses, hangs, loses, late} {
				for _, m := range methods {
					name := strings.Join([]string{string(kind), m, string(fl), map[bool]string{false: "once", true: "always"}[sticky]}, "/")
					bubble(t, name, func(t *testing.T) { failing(t, kind, m, fl, sticky) })
				}
			}
		}
	}
}

func failing(t *testing.T, kind Kind, method string, fl fault, sticky bool) {
	f := newFake(t, "p", "a", "b")
	if kind == Emergency {
		f.inst["p"].Role, f.inst["p"].Established = RoleStopped, false
	}
	f.faults[method], f.sticky = fl, sticky
	start := time.Now()
	res := f.run(Request{Kind: kind})
	require.Less(t, time.Since(start), 60*time.Second)
	time.Sleep(time.Minute) // late calls arrive
	f.mu.Lock()
	f.faults = nil
	f.mu.Unlock()
	require.NoError(t, f.record.Validate())
	serving := f.serving()
	require.LessOrEqual(t, len(serving), 1)
	switch res.Outcome {
	case Succeeded:
		require.Equal(t, []string{res.NewPrimary}, serving)
	case Refused, Undone:
		require.NotEmpty(t, res.Message)
		if kind == Planned {
			require.Equal(t, []string{"p"}, serving)
			if !strings.HasPrefix(method, "Undrain") && fl != late {
				require.False(t, f.inst["p"].drained)
			}
		}
	default:
		require.NotEmpty(t, res.Message)
	}
	if !sticky && fl != late && !slices.Contains([]string{"Load", "Open"}, method) && !strings.HasPrefix(method, "Checkpoint") && !strings.HasPrefix(method, "Status") {
		require.Contains(t, []Outcome{Succeeded, Undone}, res.Outcome, "%s: a single failure is survived", res.Message)
	}
	if len(serving) == 1 && f.record.InTerm() && f.record.Primary() == serving[0] {
		return
	}
	// Whatever it left behind, the next reparent settles it.
	var spent uint64
	for term := range f.opened {
		spent = max(spent, term)
	}
	next := f.run(Request{Kind: Emergency, Spent: spent})
	require.Equal(t, Succeeded, next.Outcome, "after %s (%s): %s", res.Outcome, res.Message, next.Message)
	require.True(t, f.record.Settled())
	require.Equal(t, []string{next.NewPrimary}, f.serving())
}

func TestCancelled(t *testing.T) {
	bubble(t, "before the old primary is told to stop everything is undone", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.faults["Drain p"] = loses
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		in := f.instances()
		res := Coordinator{f, f, f, newRealRuntime()}.Run(ctx, Request{Kind: Planned, Instances: in, Size: 2})
		require.Equal(t, Undone, res.Outcome)
		require.False(t, f.inst["p"].drained)
		require.Equal(t, []string{"p"}, f.serving())
		require.True(t, f.record.Settled())
	})
	for _, method := range []string{"Status a", "Await p", "Checkpoint p", "Drain p"} {
		bubble(t, "an emergency does not wait for a frozen primary: "+method, func(t *testing.T) {
			f := newFake(t, "p", "a", "b")
			f.faults[method], f.faults["Undrain p"], f.sticky = hangs, hangs, true
			ctx, cancel := context.WithCancelCause(context.Background())
			time.AfterFunc(500*time.Millisecond, func() { cancel(errors.New("an emergency")) })
			start := time.Now()
			res := Coordinator{f, f, f, newRealRuntime()}.Run(ctx, Request{Kind: Planned, To: "a", Instances: f.instances(), Size: 2})
			require.Contains(t, []Outcome{Refused, Undone}, res.Outcome)
			require.Less(t, time.Since(start), 750*time.Millisecond)
			if method != "Status a" {
				require.Contains(t, res.Message, "an emergency", "it says why")
			}
			require.Equal(t, []string{"p"}, f.serving())
			require.True(t, f.record.Settled())
		})
	}
	bubble(t, "afterwards it goes on", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			for len(f.serving()) > 0 {
				time.Sleep(100 * time.Microsecond)
			}
			cancel()
		}()
		res := Coordinator{f, f, f, newRealRuntime()}.Run(ctx, Request{Kind: Planned, Instances: f.instances(), Size: 2})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
	})
}

func TestSpentTerm(t *testing.T) {
	for name, tc := range map[string]struct {
		opened    uint64
		requested []uint64
		want      uint64
	}{
		"nothing asked for":                    {5, nil, 5},
		"asked for next":                       {5, []uint64{6}, 6},
		"asked for long ago":                   {5, []uint64{3, 4}, 5},
		"a gap":                                {5, []uint64{9}, 9},
		"the furthest in reach":                {5, []uint64{6 + maxSkip}, 6 + maxSkip},
		"out of reach":                         {5, []uint64{7 + maxSkip}, 5},
		"a typing error beside others":         {5, []uint64{1e12, 6, 7}, 7},
		"in reach by another":                  {5, []uint64{1000 + maxSkip, 1000}, 1000 + maxSkip},
		"the typing error, when it comes near": {1e12 - 1, []uint64{1e12}, 1e12},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, SpentTerm(tc.opened, tc.requested)) })
	}
}

// Whatever SpentTerm says is next may be opened, and whatever may be opened counts for those who come after.
func TestWhatMayBeOpenedIsSpentAfterwards(t *testing.T) {
	bubble(t, "the furthest", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		furthest := SpentTerm(5, nil) + 1 + maxSkip
		res := f.run(Request{Kind: Planned, Term: furthest})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, furthest, SpentTerm(5, []uint64{furthest}))
	})
}

func TestLimits(t *testing.T) {
	l := Limits{}.WithDefaults()
	for _, p := range []PhaseName{PhaseCheck, PhasePrepare, PhaseDrain, PhaseDemote, PhaseRevoke, PhaseCatchUp, PhaseRecord, PhasePromote, PhaseEstablish, PhaseUndo} {
		require.Positive(t, l.Phase(p))
		require.Equal(t, l.Phase(p), Limits{}.Phase(p))
	}
	require.Equal(t, time.Hour, Limits{Drain: time.Hour}.WithDefaults().Drain)
	require.Equal(t, time.Hour, Limits{Drain: time.Hour}.WithDefaults().Patience)
}

// An instance whose volume is being deleted still answers and streams: it is not named, whoever has it on an older list.
func TestWhatIsThrownAwayIsNotNamed(t *testing.T) {
	for _, kind := range []Kind{Planned, Emergency} {
		bubble(t, string(kind), func(t *testing.T) {
			f := newFake(t, "p", "a", "b")
			instances := f.instances()
			f.inst["x"] = &fakeInstance{Status: f.inst["a"].Status}
			list := append(instances, Instance{Name: "x", Zone: "zone-x", Reachable: true, Term: 5, Current: true, TimeLeft: 28 * 24 * time.Hour})
			f.record.Retired = []string{"x"}
			f.inst["p"].dead = kind == Emergency
			f.inst["b"].dead = kind == Emergency
			res := f.run(Request{Kind: kind, Instances: list})
			require.NotContains(t, f.record.Names(), "x")
			if kind == Planned {
				require.Equal(t, Succeeded, res.Outcome, res.Message)
			} else {
				require.Equal(t, Failed, res.Outcome, "nobody but the one that goes could acknowledge: %s", res.Message)
			}
		})
	}
	bubble(t, "while the emergency is under way", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		list := append(f.instances(), Instance{Name: "x", Zone: "zone-x", Reachable: true, Term: 5, Current: true})
		f.inst["x"] = &fakeInstance{Status: f.inst["a"].Status}
		f.inst["p"].dead = true
		f.onStore = func() { // the thrower is quicker than the coordinator
			f.onStore, f.version = nil, f.version+1
			f.record, _ = quorum.Retire(f.record, "x")
		}
		res := f.run(Request{Kind: Emergency, Instances: list})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.True(t, f.record.IsRetired("x"))
		require.NotContains(t, f.record.Names(), "x")
	})
}
