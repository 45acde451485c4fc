package cohort

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/quorum"
)

func rec(established uint64, cohorts ...quorum.Cohort) quorum.Record {
	return quorum.Record{Established: established, Cohorts: cohorts}
}

func co(revision uint64, acks int, members ...string) quorum.Cohort {
	return quorum.Cohort{Term: 3, Primary: "p", Acks: acks, Members: members, Revision: revision}
}

func using(c quorum.Cohort, since uint64, flushed map[string]uint64) *quorum.InUse {
	return &quorum.InUse{Cohort: c, Since: since, Flushed: flushed}
}

func up(name string) Standby { return Standby{Name: name, Streaming: true, Term: 3} }

func down(name string, gone time.Duration) Standby { return Standby{Name: name, GoneFor: gone} }

func retired(r quorum.Record, names ...string) quorum.Record {
	r.Retired = names
	return r
}

func TestNext(t *testing.T) {
	ab := co(0, 1, "a", "b")
	all := map[string]uint64{"a": 100, "b": 100, "c": 100}
	lagging := up("c")
	lagging.Lag = 1 << 30
	leaving := up("a")
	leaving.Leaving = true
	untold := up("c")
	untold.Term = 2
	unfit := up("a")
	unfit.Unfit = "condemned"
	for _, tt := range []struct {
		name      string
		o         Observed
		instances int
		want      Step // Why is not compared
	}{
		{"nothing recorded", Observed{}, 3, Step{}},
		{"an invalid record is not built upon", Observed{Record: rec(3, co(0, 9, "a"))}, 3, Step{}},
		{"the primary is silent", Observed{Record: rec(3, ab), Standbys: []Standby{up("a"), down("b", time.Hour)}}, 3, Step{}},
		{
			"the primary is of another term",
			Observed{Record: rec(3, ab), Use: using(quorum.Cohort{Term: 2, Primary: "p"}, 0, nil), Standbys: []Standby{up("a"), down("b", time.Hour)}},
			3,
			Step{},
		},
		{"as it should be", Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{up("a"), up("b")}}, 3, Step{}},
		{
			"one whose data is being destroyed does not join",
			Observed{Record: retired(rec(3, co(0, 1, "a")), "b"), Use: using(co(0, 1, "a"), 0, all), Standbys: []Standby{up("a"), up("b")}},
			3,
			Step{},
		},
		{
			"a member is silent, not yet for long",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{up("a"), down("b", time.Second)}},
			3,
			Step{},
		},
		{
			"a member is dead",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{up("a"), down("b", 2*time.Second)}},
			3,
			Step{Kind: Store, Record: rec(3, ab, co(1, 1, "a"))},
		},
		{
			"a member does not exist any more",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{up("a")}},
			3,
			Step{Kind: Store, Record: rec(3, ab, co(1, 1, "a"))},
		},
		{
			"a condemned member goes at once",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{unfit, up("b")}},
			3,
			Step{Kind: Store, Record: rec(3, ab, co(1, 1, "b"))},
		},
		{
			"both members are dead: below the acknowledgements nothing is done",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{down("a", time.Hour), down("b", time.Hour)}},
			3,
			Step{},
		},
		{
			"a learner replaces a dead member",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{up("a"), down("b", time.Hour), up("c")}},
			3,
			Step{Kind: Store, Record: rec(3, ab, co(1, 1, "a", "c"))},
		},
		{
			"a learner that lags waits",
			Observed{Record: rec(3, co(0, 1, "a")), Use: using(co(0, 1, "a"), 0, all), Standbys: []Standby{up("a"), lagging}},
			3,
			Step{},
		},
		{
			"a learner that was not told of the term waits",
			Observed{Record: rec(3, co(0, 1, "a")), Use: using(co(0, 1, "a"), 0, all), Standbys: []Standby{up("a"), untold}},
			3,
			Step{},
		},
		{
			"a learner that caught up is let in",
			Observed{Record: rec(3, co(0, 1, "a")), Use: using(co(0, 1, "a"), 0, all), Standbys: []Standby{up("a"), up("c")}},
			3,
			Step{Kind: Store, Record: rec(3, co(0, 1, "a"), co(1, 1, "a", "c"))},
		},
		{
			"a surge instance stays a learner",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{up("a"), up("b"), up("c")}},
			3,
			Step{},
		},
		{
			"until it is swapped in for the one that leaves",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{leaving, up("b"), up("c")}},
			3,
			Step{Kind: Store, Record: rec(3, ab, co(1, 1, "b", "c"))},
		},
		{
			"one that leaves stays while nobody takes its place",
			Observed{Record: rec(3, ab), Use: using(ab, 0, all), Standbys: []Standby{leaving, up("b"), lagging}},
			3,
			Step{},
		},
		{
			"the first learner of a new shard raises the acknowledgements",
			Observed{Record: rec(3, co(0, 0)), Use: using(co(0, 0), 0, all), Standbys: []Standby{up("a")}},
			3,
			Step{Kind: Store, Record: rec(3, co(0, 0), co(1, 1, "a"))},
		},
		{
			"of five, one by one",
			Observed{Record: rec(3, co(0, 0)), Use: using(co(0, 0), 0, all), Standbys: []Standby{up("a")}},
			5,
			Step{Kind: Store, Record: rec(3, co(0, 0), co(1, 1, "a"))},
		},
		{
			"a smaller spec takes surplus members out, and the acknowledgements down",
			Observed{Record: rec(3, co(0, 2, "a", "b", "c", "d")), Use: using(co(0, 2, "a", "b", "c", "d"), 0, all), Standbys: []Standby{up("a"), up("b"), leaving2("c"), up("d")}},
			3,
			Step{Kind: Store, Record: rec(3, co(0, 2, "a", "b", "c", "d"), co(1, 1, "a", "b"))},
		},
		{
			"recorded, not applied",
			Observed{Record: rec(3, ab, co(1, 1, "a")), Use: using(ab, 0, all), Standbys: []Standby{up("a"), down("b", time.Hour)}},
			3,
			Step{Kind: Apply, Cohort: co(1, 1, "a")},
		},
		{
			"applied, its members are behind",
			Observed{Record: rec(3, ab, co(1, 1, "a")), Use: using(co(1, 1, "a"), 101, all), Standbys: []Standby{up("a"), down("b", time.Hour)}},
			3,
			Step{},
		},
		{
			"applied and confirmed",
			Observed{Record: rec(3, ab, co(1, 1, "a")), Use: using(co(1, 1, "a"), 100, all), Standbys: []Standby{up("a"), down("b", time.Hour)}},
			3,
			Step{Kind: Store, Record: rec(3, co(1, 1, "a"))},
		},
		{
			"the next cohort died before it was confirmed",
			Observed{Record: rec(3, ab, co(1, 1, "a")), Use: using(co(1, 1, "a"), 101, all), Standbys: []Standby{down("a", time.Hour), down("b", time.Hour), up("c")}},
			3,
			Step{Kind: Store, Record: rec(3, ab, co(1, 1, "a"), co(2, 1, "c"))},
		},
		{
			"a restarted primary lost the configuration",
			Observed{Record: rec(3, co(4, 1, "a", "b")), Use: using(co(2, 1, "a"), 0, all), Standbys: []Standby{up("a"), up("b")}},
			3,
			Step{Kind: Apply, Cohort: co(4, 1, "a", "b")},
		},
		{
			"the primary is ahead of this observer's record",
			Observed{Record: rec(3, ab), Use: using(co(1, 1, "a"), 0, all), Standbys: []Standby{up("a"), down("b", time.Hour)}},
			3,
			Step{},
		},
		{
			"a reparent is under way",
			Observed{
				Record: rec(2, quorum.Cohort{Term: 2, Primary: "a", Members: []string{"p"}, Acks: 1}, ab),
				Use:    using(ab, 0, all), Standbys: []Standby{up("a"), down("b", time.Hour)},
			},
			3,
			Step{},
		},
		{
			"its coordinator died after the new primary was established",
			Observed{
				Record: rec(2, quorum.Cohort{Term: 2, Primary: "a", Members: []string{"p"}, Acks: 1}, ab),
				Use:    using(ab, 0, all), Established: true, Standbys: []Standby{up("a"), down("b", time.Hour)},
			},
			3,
			Step{Kind: Store, Record: rec(3, ab)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Next(tt.o, DefaultParams(tt.instances))
			require.NotEmpty(t, got.Why)
			got.Why = ""
			require.Equal(t, tt.want, got)
		})
	}
}

func leaving2(name string) Standby {
	return Standby{Name: name, Streaming: true, Term: 3, Leaving: true}
}

// TestKeeper runs the keeper against a primary and standbys that come and go, and checks every step: what is applied is
// recorded, no acknowledgements are given up, and a quiet shard ends up as the spec wants it.
func TestKeeper(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		instances := rapid.IntRange(1, 5).Draw(t, "instances")
		p := DefaultParams(instances)
		record, _ := quorum.Establish(quorum.Bootstrap("p"), 1)
		used := record.Cohorts[0]
		lsn, since := uint64(10), uint64(0)
		names := []string{"a", "b", "c", "d", "e", "f"}
		state := map[string]*Standby{}
		flushed := map[string]uint64{}
		step := func() Step {
			var standbys []Standby
			for _, n := range names {
				if s := state[n]; s != nil {
					standbys = append(standbys, *s)
				}
			}
			return Next(Observed{Record: record, Use: using(used, since, flushed), Established: true, Standbys: standbys}, p)
		}
		act := func(s Step) {
			before, _ := record.Latest()
			switch s.Kind {
			case Store:
				require.NoError(t, s.Record.Validate())
				record = s.Record
				after, _ := record.Latest()
				require.GreaterOrEqual(t, after.Acks, min(before.Acks, p.Acks), "never relaxed")
			case Apply:
				require.Contains(t, record.Cohorts, s.Cohort, "recorded before it is used")
				used, since = s.Cohort, lsn
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			n := rapid.SampledFrom(names).Draw(t, "name")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				state[n] = &Standby{Name: n, Streaming: true, Term: 1, Leaving: rapid.Bool().Draw(t, "leaving")}
			case 1:
				state[n] = &Standby{Name: n, GoneFor: rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "gone")}
			case 2:
				delete(state, n)
			case 3:
				lsn++
				if s := state[n]; s != nil && s.Streaming {
					flushed[n] = lsn
				}
			default:
				act(step())
			}
		}
		// Quiet: everybody there streams and has all of it.
		for n := range state {
			state[n] = &Standby{Name: n, Streaming: true, Term: 1}
			flushed[n] = lsn
		}
		last := step()
		for i := 0; last.Kind != Nothing; i++ {
			require.Less(t, i, 20, "settles: %v", last)
			act(last)
			last = step()
		}
		latest, _ := record.Latest()
		if len(state) >= p.Acks && len(state) >= latest.Acks {
			require.True(t, record.Settled(), "%v: %s", record, last.Why)
			require.Len(t, latest.Members, min(len(state), instances-1))
			require.Equal(t, p.Acks, latest.Acks)
			require.True(t, used.Equal(latest))
		}
	})
}
