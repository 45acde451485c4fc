package quorum

import (
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func cohort(term uint64, primary string, acks int, members ...string) Cohort {
	return Cohort{Term: term, Primary: primary, Acks: acks, Members: members}
}

func promisesOf(term uint64, names ...string) []Promise {
	var out []Promise
	for _, n := range names {
		out = append(out, Promise{Instance: n, Term: term})
	}
	return out
}

func TestDefaultAcks(t *testing.T) {
	for instances, want := range map[int]int{-1: 0, 0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3} {
		require.Equal(t, want, DefaultAcks(instances), "%d instances", instances)
	}
}

func TestRevoked(t *testing.T) {
	three := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 1, "a", "b")}}
	five := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 2, "a", "b", "c", "d")}}
	changing := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 1, "a", "b"), {Term: 5, Revision: 1, Primary: "p", Acks: 1, Members: []string{"b", "c"}}}}
	begun := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 1, "a", "b"), cohort(6, "a", 1, "b", "c")}}
	alone := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 0)}}
	for _, tt := range []struct {
		name     string
		record   Record
		promises []Promise
		ok       bool
	}{
		{"one of two members may be the only witness", three, promisesOf(6, "a"), false},
		{"both members", three, promisesOf(6, "a", "b"), true},
		{"the primary alone", three, promisesOf(6, "p"), true},
		{"learners do not count", three, promisesOf(6, "a", "x", "y"), false},
		{"a promise of the same term says nothing", three, promisesOf(5, "a", "b"), false},
		{"two of four with two acknowledgements", five, promisesOf(6, "a", "b"), false},
		{"three of four", five, promisesOf(6, "a", "b", "d"), true},
		{"during a change both must be revoked", changing, promisesOf(6, "a", "b"), false},
		{"and then are", changing, promisesOf(6, "a", "b", "c"), true},
		{"or the primary of both", changing, promisesOf(6, "p"), true},
		{"a begun term does not replace its predecessor", begun, promisesOf(7, "b", "c"), false},
		{"the old primary does not revoke the begun term", begun, promisesOf(7, "p"), false},
		{"but with the begun one's", begun, promisesOf(7, "p", "a"), true},
		{"members of both", begun, promisesOf(7, "a", "b"), true},
		{"a promise of the begun term does not end it", begun, promisesOf(6, "a", "b"), false},
		{"alone, nobody else can end it", alone, promisesOf(6, "a", "b"), false},
		{"alone, itself", alone, promisesOf(6, "p"), true},
		{"an empty record is revoked", Record{}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Revoked(tt.record, tt.promises)
			if tt.ok {
				require.NoError(t, err)
				return
			}
			var not *NotRevokedError
			require.True(t, errors.As(err, &not), "%v", err)
			require.NotEmpty(t, not.Error())
		})
	}
	require.NoError(t, Revocable(three, []string{"a", "b"}))
	require.Error(t, Revocable(three, []string{"a"}))
}

func TestElect(t *testing.T) {
	r := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 1, "a", "b")}}
	at := func(name string, term, lsn uint64) Promise {
		return Promise{Instance: name, Term: 6, Position: Position{WALTerm: term, LSN: lsn}}
	}
	names := func(ps []Promise) (out []string) {
		for _, p := range ps {
			out = append(out, p.Instance)
		}
		return out
	}
	got, err := Elect(r, []Promise{at("a", 4, 900), at("b", 5, 100)})
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, names(got), "the term decides before the LSN")

	got, err = Elect(r, []Promise{at("a", 5, 100), at("b", 5, 100), at("x", 5, 90)})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, names(got))

	got, err = Elect(r, []Promise{at("a", 5, 100), at("b", 5, 100), at("x", 5, 120)})
	require.NoError(t, err)
	require.Equal(t, []string{"x"}, names(got), "an outsider that is ahead may be elected")

	_, err = Elect(r, []Promise{at("a", 5, 100), at("x", 5, 120)})
	require.Error(t, err, "but does not revoke")
	_, err = Elect(r, nil)
	require.Error(t, err)
	_, err = Elect(r, []Promise{at("a", 5, 100), {Instance: "b", Term: 7}})
	require.Error(t, err, "promises of two terms")
}

func TestElectable(t *testing.T) {
	r := Record{Established: 5, Cohorts: []Cohort{cohort(5, "p", 1, "a", "b")}}
	at := func(name string, lsn uint64) Promise {
		return Promise{Instance: name, Term: 6, Position: Position{WALTerm: 5, LSN: lsn}}
	}
	names := func(ps []Promise) (out []string) {
		for _, p := range ps {
			out = append(out, p.Instance)
		}
		return out
	}
	require.Equal(t, []string{"p", "b"}, names(Electable(r, []Promise{at("a", 90), at("b", 100), at("p", 150)})), "a is behind b")
	require.Equal(t, []string{"p", "a", "b"}, names(Electable(r, []Promise{at("a", 100), at("b", 100), at("p", 150)})))
	require.Equal(t, []string{"p"}, names(Electable(r, []Promise{at("a", 100), at("p", 150)})), "b may be ahead of a")
	require.Equal(t, []string{"a", "p"}, names(Electable(r, []Promise{at("a", 150), at("p", 150)})), "a planned one: all was shipped")
	require.Empty(t, Electable(r, []Promise{at("a", 150)}))
	require.Empty(t, Electable(r, nil))
}

func TestCanEstablish(t *testing.T) {
	c := cohort(5, "p", 2, "a", "b", "c")
	require.NoError(t, CanEstablish(c, []string{"a", "c"}))
	require.Error(t, CanEstablish(c, []string{"a", "x", "y"}))
	require.NoError(t, CanEstablish(cohort(1, "p", 0), nil))
}

func TestChangeOfMembers(t *testing.T) {
	r := Record{Established: 3, Cohorts: []Cohort{cohort(3, "p", 1, "a", "b")}}
	r2, err := BeginChange(r, []string{"c", "a"}, 1)
	require.NoError(t, err)
	require.NoError(t, r2.Validate())
	require.Equal(t, []string{"a", "c"}, r2.Cohorts[1].Members)
	require.Equal(t, uint64(1), r2.Cohorts[1].Revision)
	require.Len(t, r.Cohorts, 1, "the input is untouched")
	chain, err := BeginChange(r2, []string{"a"}, 1)
	require.NoError(t, err, "when the next cohort can never be confirmed")
	require.NoError(t, chain.Validate())
	chain, err = FinishChange(chain, InUse{Cohort: chain.Cohorts[2], Since: 5, Flushed: map[string]uint64{"a": 5}})
	require.NoError(t, err)
	require.Len(t, chain.Cohorts, 1, "the newest confirmed drops all older ones")
	_, err = BeginChange(r, []string{"b", "a"}, 1)
	require.Error(t, err, "nothing to change")
	_, err = BeginChange(r, []string{"a"}, 2)
	require.Error(t, err, "below the acknowledgements")
	_, err = BeginChange(r, []string{"p"}, 1)
	require.Error(t, err, "its own member")

	next := r2.Cohorts[1]
	use := InUse{Cohort: next, Since: 100, Flushed: map[string]uint64{"a": 99, "b": 150}}
	_, err = FinishChange(r2, use)
	require.Error(t, err, "b is no member of next: its witness does not count")
	use.Flushed["c"] = 100
	_, err = FinishChange(r2, InUse{Cohort: r.Cohorts[0], Since: 0, Flushed: use.Flushed})
	require.Error(t, err, "the primary uses the old one")
	r3, err := FinishChange(r2, use)
	require.NoError(t, err)
	require.Equal(t, []Cohort{next}, r3.Cohorts)
	_, err = FinishChange(r3, use)
	require.Error(t, err, "done already")
	_, err = FinishChange(Record{Established: 3, Cohorts: []Cohort{r.Cohorts[0], cohort(4, "a", 1, "b")}}, use)
	require.Error(t, err, "a reparent is not a change of members")
}

func TestTerms(t *testing.T) {
	r := Record{Established: 3, Cohorts: []Cohort{cohort(3, "p", 1, "a", "b")}}
	_, err := BeginTerm(r, cohort(3, "a", 1, "b"))
	require.Error(t, err)
	r2, err := BeginTerm(r, cohort(5, "a", 1, "p", "b"))
	require.NoError(t, err)
	require.NoError(t, r2.Validate())
	require.Equal(t, uint64(5), r2.Term())
	require.Equal(t, "p", r2.Primary(), "until it is established")
	require.Equal(t, r, r2.Before(5))
	_, err = BeginChange(r2, []string{"a"}, 1)
	require.Error(t, err, "the keeper waits for the reparent")
	_, err = Establish(r2, 4)
	require.Error(t, err)
	r3, err := Establish(r2, 5)
	require.NoError(t, err)
	require.True(t, r3.Settled())
	require.Equal(t, "a", r3.Primary())
	r4, err := Establish(r3, 5)
	require.NoError(t, err)
	require.Equal(t, r3, r4)
	_, err = Establish(r3, 3)
	require.Error(t, err)

	back, err := AbandonTerm(r2, 5)
	require.NoError(t, err)
	require.Equal(t, r, back)
	_, err = AbandonTerm(r3, 5)
	require.Error(t, err, "established")
	_, err = AbandonTerm(r2, 3)
	require.Error(t, err)
	require.Equal(t, []string{"a", "b", "p"}, r2.Names())
}

func TestRetire(t *testing.T) {
	r := Record{Established: 3, Cohorts: []Cohort{{Term: 3, Primary: "a", Members: []string{"b", "c"}, Acks: 1}}}
	for _, named := range []string{"a", "b", "c", ""} {
		_, err := Retire(r, named)
		require.Error(t, err, named)
	}
	after, err := Retire(r, "x")
	require.NoError(t, err)
	require.True(t, after.IsRetired("x"))
	require.False(t, r.IsRetired("x"), "the input is as it was")
	again, err := Retire(after, "x")
	require.NoError(t, err)
	require.Equal(t, after, again)

	_, err = BeginChange(after, []string{"b", "x"}, 1)
	require.ErrorContains(t, err, "x was retired")
	_, err = BeginTerm(after, Cohort{Term: 4, Primary: "x", Members: []string{"b"}, Acks: 1})
	require.ErrorContains(t, err, "x was retired")
	_, err = BeginTerm(after, Cohort{Term: 4, Primary: "b", Members: []string{"x"}, Acks: 1})
	require.ErrorContains(t, err, "x was retired")

	// It is remembered across terms, and the list does not grow for ever.
	next, err := BeginTerm(after, Cohort{Term: 4, Primary: "b", Members: []string{"a"}, Acks: 1})
	require.NoError(t, err)
	next, err = Establish(next, 4)
	require.NoError(t, err)
	require.True(t, next.IsRetired("x"))
	for i := range 2 * keepRetired {
		next, err = Retire(next, fmt.Sprintf("gone%d", i))
		require.NoError(t, err)
	}
	require.Len(t, next.Retired, keepRetired)
	require.True(t, next.IsRetired(fmt.Sprintf("gone%d", 2*keepRetired-1)))
	require.NoError(t, next.Validate())
}

func TestValidate(t *testing.T) {
	for name, r := range map[string]Record{
		"no term":                {Cohorts: []Cohort{cohort(0, "p", 0)}},
		"no primary":             {Cohorts: []Cohort{cohort(1, "", 0)}},
		"own member":             {Cohorts: []Cohort{cohort(1, "p", 1, "p")}},
		"nameless member":        {Cohorts: []Cohort{cohort(1, "p", 1, "")}},
		"negative acks":          {Cohorts: []Cohort{cohort(1, "p", -1, "a")}},
		"too many acks":          {Cohorts: []Cohort{cohort(1, "p", 2, "a")}},
		"unsorted":               {Cohorts: []Cohort{cohort(1, "p", 1, "b", "a")}},
		"twice":                  {Cohorts: []Cohort{cohort(1, "p", 1, "a", "a")}},
		"out of order":           {Cohorts: []Cohort{cohort(2, "p", 1, "a"), cohort(1, "p", 1, "a")}},
		"same revision":          {Cohorts: []Cohort{cohort(2, "p", 1, "a"), cohort(2, "p", 1, "b")}},
		"two primaries":          {Cohorts: []Cohort{cohort(2, "p", 1, "a"), {Term: 2, Revision: 1, Primary: "q", Acks: 1, Members: []string{"a"}}}},
		"older than established": {Established: 3, Cohorts: []Cohort{cohort(2, "p", 1, "a"), cohort(3, "p", 1, "a")}},
		"established unknown":    {Established: 3, Cohorts: []Cohort{cohort(4, "p", 1, "a")}},
	} {
		require.Error(t, r.Validate(), name)
	}
	require.NoError(t, Bootstrap("p").Validate())
}

func TestPlans(t *testing.T) {
	c := cohort(5, "p", 1, "a", "b")
	require.Equal(t, []string{"b"}, c.Shrink([]string{"a"}))
	require.Equal(t, []string{"b"}, c.Shrink([]string{"a", "b"}), "never below the acknowledgements")
	require.Equal(t, []string{"a", "b"}, c.Shrink(nil))
	require.Equal(t, []string{"b", "x"}, c.Swap([]string{"a"}, []string{"x"}, 2), "swapped, not grown")
	require.Equal(t, []string{"a", "b"}, c.Swap(nil, []string{"x"}, 2), "full")
	require.Equal(t, []string{"a", "b", "x"}, c.Swap(nil, []string{"x", "p", "b"}, 4))
	require.Equal(t, []string{"a", "b"}, c.Swap([]string{"a"}, nil, 2), "a leaving one stays while nobody takes its place")
	require.Equal(t, []string{"a", "x"}, c.Swap([]string{"z", "b", "a"}, []string{"x"}, 2), "in the order given")
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c", "d", "e"}
		members := rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, "members")
		c := Cohort{Term: 1, Primary: "p", Members: members, Acks: rapid.IntRange(0, len(members)).Draw(t, "acks")}.Normalize()
		leaving := rapid.SliceOf(rapid.SampledFrom(names)).Draw(t, "leaving")
		joining := rapid.SliceOf(rapid.SampledFrom([]string{"p", "x", "y", "a"})).Draw(t, "joining")
		size := rapid.IntRange(0, 6).Draw(t, "size")
		d := c
		d.Members = c.Swap(leaving, joining, size)
		require.NoError(t, d.Validate())
		require.LessOrEqual(t, len(d.Members), max(size, len(c.Members)))
		for _, m := range c.Members {
			require.True(t, slices.Contains(leaving, m) || d.Has(m), "%s stays", m)
			require.True(t, len(joining) > 0 || d.Has(m), "%s stays without a substitute", m)
		}
	})
}

// TestAcknowledgedSurvives is the safety theorem over arbitrary flush states: whatever set revokes a cohort has a
// witness of every acknowledged commit.
func TestAcknowledgedSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 6).Draw(t, "members")
		names := []string{"a", "b", "c", "d", "e", "f"}[:n]
		c := cohort(5, "p", rapid.IntRange(0, n).Draw(t, "acks"), names...)
		flushed := map[string]uint64{"p": 100}
		for _, m := range append(slices.Clone(names), "learner") {
			flushed[m] = rapid.Uint64Range(0, 100).Draw(t, m)
		}
		lsn := rapid.Uint64Range(0, 100).Draw(t, "commit")
		witnesses := 0
		for _, m := range c.Members {
			if flushed[m] >= lsn {
				witnesses++
			}
		}
		var promises []Promise
		for name, at := range flushed {
			if rapid.Bool().Draw(t, "promise of "+name) {
				promises = append(promises, Promise{Instance: name, Term: 6, Position: Position{5, at}})
			}
		}
		rec := Record{Established: 5, Cohorts: []Cohort{c}}
		winners, err := Elect(rec, promises)
		electable := Electable(rec, promises)
		require.Equal(t, err == nil, len(electable) > 0)
		if err != nil {
			return
		}
		require.Equal(t, winners[0].Position, electable[0].Position)
		// The primary itself must have flushed what it acknowledged.
		if witnesses >= c.Acks && lsn <= flushed["p"] {
			for _, p := range electable {
				require.GreaterOrEqual(t, p.Position.LSN, lsn)
			}
		}
	})
}

type rapidChooser struct{ t *rapid.T }

func (c rapidChooser) Intn(n int) int { return rapid.IntRange(0, n-1).Draw(c.t, "") }

// TestModel drives a shard through random orders of writes, flushes, changes of members and reparents, with late and
// repeated messages and coordinators that die.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(rapidChooser{t}, realRules(), rapid.IntRange(2, 5).Draw(t, "instances"))
		require.NoError(t, m.run(60))
	})
	for seed := range int64(1000) {
		m := newModel(rand.New(rand.NewSource(seed)), realRules(), 2+int(seed%4))
		require.NoError(t, m.run(100), "seed %d", seed)
	}
}

// TestModelCatchesBrokenRules tests the test: each rule left out loses a commit somewhere within the budget.
func TestModelCatchesBrokenRules(t *testing.T) {
	broken := map[string]func(*rules){
		"revoke one member too few": func(r *rules) {
			r.elect = func(rec Record, ps []Promise) ([]Promise, error) {
				rec = rec.Clone()
				for i := range rec.Cohorts {
					rec.Cohorts[i].Acks = min(rec.Cohorts[i].Acks+1, len(rec.Cohorts[i].Members)+1)
				}
				return Elect(rec, ps)
			}
		},
		"no revocation": func(r *rules) {
			r.elect = func(_ Record, ps []Promise) ([]Promise, error) { return Elect(Record{}, ps) }
		},
		"learners count as members": func(r *rules) {
			r.elect = func(rec Record, ps []Promise) ([]Promise, error) {
				winners, err := Elect(Record{}, ps)
				for _, c := range rec.Cohorts {
					if len(ps) < c.Needed() {
						return nil, errors.New("too few")
					}
				}
				return winners, err
			}
		},
		"elect by LSN only": func(r *rules) {
			r.elect = func(rec Record, ps []Promise) ([]Promise, error) {
				flat := slices.Clone(ps)
				for i := range flat {
					flat[i].Position.WALTerm = 0
				}
				return Elect(rec, flat)
			}
		},
		"single-phase change": func(r *rules) {
			r.beginChange = func(rec Record, members []string, acks int) (Record, error) {
				next, err := BeginChange(rec, members, acks)
				if err == nil {
					next.Cohorts = next.Cohorts[1:]
				}
				return next, err
			}
		},
		"drop the old cohort without waiting for witnesses": func(r *rules) {
			r.finishChange = func(rec Record, use InUse) (Record, error) {
				use.Since = 0
				use.Flushed = map[string]uint64{}
				for _, m := range use.Cohort.Members {
					use.Flushed[m] = 0
				}
				return FinishChange(rec, use)
			}
		},
		"late orders bring back an old cohort": func(r *rules) {
			r.accepts = func(Cohort, Cohort) bool { return true }
		},
		"a begun term replaces its predecessor": func(r *rules) {
			r.beginTerm = func(rec Record, c Cohort) (Record, error) {
				next, err := BeginTerm(rec, c)
				if err == nil {
					next.Cohorts, next.Established = next.Cohorts[len(next.Cohorts)-1:], 0
				}
				return next, err
			}
		},
	}
	for name, breakIt := range broken {
		t.Run(name, func(t *testing.T) {
			r := realRules()
			breakIt(&r)
			for seed := range int64(20000) {
				if err := newModel(rand.New(rand.NewSource(seed)), r, 2+int(seed%4)).run(100); err != nil {
					t.Logf("caught with seed %d: %v", seed, err)
					return
				}
			}
			t.Fatal("not caught")
		})
	}
}
