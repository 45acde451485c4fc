//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/verdict"
	"theseus.dev/theseus/test/faults"
)

// writers of the load: as many operations can be under way when a primary dies, and only those may fail.
const writers = 4

// Ten planned reparents in a row under write load, or as many as REPARENTS says: no client sees an error.
func TestPlannedReparents(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.startLoad()
	times := 10
	if more, err := strconv.Atoi(os.Getenv("REPARENTS")); err == nil {
		times = more
	}
	for range times {
		f.waitSettled()
		r := f.reparent(nil)
		require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, "%s: %s", r.Name, r.Status.Message)
		require.NotEqual(t, r.Status.OldPrimary, r.Status.NewPrimary)
		measured(t, "%s: %s", r.Name, phases(r))
	}
	load.stopAndVerify(noErrors)
}

// A planned reparent is refused, and nothing is touched, when its expectation or its target is wrong.
func TestReparentRefused(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.startLoad()
	primary := f.shard().Status.Primary
	for _, change := range []func(*v1alpha1.ReparentSpec){
		func(s *v1alpha1.ReparentSpec) { s.ExpectPrimary = "somebody-else" },
		func(s *v1alpha1.ReparentSpec) { s.To = "nobody" },
	} {
		r := f.reparent(change)
		require.Equal(t, v1alpha1.OutcomeRefused, r.Status.Outcome, r.Status.Message)
		require.NotEmpty(t, r.Status.Message)
	}
	require.Equal(t, primary, f.shard().Status.Primary)
	load.stopAndVerify(noErrors)
}

// A primary fails in every way we know of (package faults), under write load through the gateways: another takes over
// when it must and none does when it must not, only operations that were under way fail, nothing acknowledged is lost,
// the old one never acknowledges again, and the shard is whole in the end.
func TestPrimaryFails(t *testing.T) {
	for _, ft := range faults.All() {
		t.Run(ft.Name, func(t *testing.T) {
			f := newFixture(t, nil)
			f.waitReady()
			old := f.shard().Status.Primary
			term := f.shard().Status.Record.EstablishedTerm
			f.moveOthersOff(f.nodeOf(old))
			load := f.startLoad()
			undo, err := ft.Inject(f.ctx, f.target(), old)
			require.NoError(t, err)
			t.Cleanup(func() { // also of a test that failed: the lab is shared
				if undo != nil {
					undone, cancel := context.WithTimeout(context.Background(), time.Minute)
					defer cancel()
					require.NoError(t, undo(undone))
				}
			})
			most := int64(writers)
			switch ft.Effect {
			case faults.Recovers:
				f.psql("SELECT pg_current_xact_id()") // waits at the gateway
			case faults.Stays:
				f.never("another primary", 10*time.Second, func(s *v1alpha1.Shard) bool {
					return s.Status.Primary != old || s.Status.Record.EstablishedTerm != term
				})
				most = noErrors
			case faults.Moves:
				took := f.eventually("another primary is established", func(s *v1alpha1.Shard) bool {
					return s.Status.Primary != old && s.Status.Record.EstablishedTerm > term
				})
				r := f.firstReparent(term)
				measured(t, "fault → status names the new primary: %.1f s; %s reparent for %s: %s", took.Seconds(), r.Spec.Kind, r.Spec.Reason, phases(r))
				require.Contains(t, ft.Verdicts, verdict.Verdict(r.Spec.Reason))
				time.Sleep(3 * time.Second) // Let the writers go on before the old primary may come back.
			}
			if undo != nil {
				require.NoError(t, undo(f.ctx))
			}
			require.NoError(t, f.target().WaitWhole(f.ctx))
			if ft.Gone {
				require.NotContains(t, f.instances(), old)
			}
			load.stopAndVerify(most, ft.Refuses)
		})
	}
}

// firstReparent is the one of the lowest term above another one.
func (f *fixture) firstReparent(above int64) *v1alpha1.Reparent {
	f.t.Helper()
	items := f.reparents(above)
	require.NotEmpty(f.t, items)
	return &items[0]
}

// reparents of terms above another one, in their order.
func (f *fixture) reparents(above int64) []v1alpha1.Reparent {
	f.t.Helper()
	list := &v1alpha1.ReparentList{}
	require.NoError(f.t, kit.Client.List(f.ctx, list, client.InNamespace(f.namespace)))
	items := slices.DeleteFunc(list.Items, func(r v1alpha1.Reparent) bool { return r.Spec.Term <= above })
	slices.SortFunc(items, func(a, b v1alpha1.Reparent) int { return cmp.Compare(a.Spec.Term, b.Spec.Term) })
	return items
}

func (f *fixture) target() faults.Target {
	return faults.Target{Kit: kit, Namespace: f.namespace, Shard: f.shard().Name}
}

// never watches for a while and fails when bad says true of the shard.
func (f *fixture) never(what string, long time.Duration, bad func(*v1alpha1.Shard) bool) {
	f.t.Helper()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		s := f.shard()
		require.Falsef(f.t, bad(s), "%s: %+v", what, s.Status)
	}
}

// waitSettled waits until the shard has its full cohort and no change is under way.
func (f *fixture) waitSettled() {
	f.t.Helper()
	f.eventually("the cohort is complete", func(s *v1alpha1.Shard) bool {
		return settled(s, int(s.Spec.Template.Instances)-1) && s.Status.Record.EstablishedTerm == current(s).Term
	})
}

// reparent asks for a planned reparent and waits for its outcome.
func (f *fixture) reparent(change func(*v1alpha1.ReparentSpec)) *v1alpha1.Reparent {
	f.t.Helper()
	return f.ended(f.ask(change))
}

// ask asks for a planned reparent. A term that somebody else took is tried again.
func (f *fixture) ask(change func(*v1alpha1.ReparentSpec)) *v1alpha1.Reparent {
	f.t.Helper()
	for {
		s := f.shard()
		term := f.nextTerm(s)
		spec := v1alpha1.ReparentSpec{Shard: s.Name, Term: term, Kind: v1alpha1.ReparentPlanned, Reason: "Requested"}
		if change != nil {
			change(&spec)
		}
		r := &v1alpha1.Reparent{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: fmt.Sprintf("%s-%d", s.Name, term)}, Spec: spec}
		err := kit.Client.Create(f.ctx, r)
		if apierrors.IsAlreadyExists(err) {
			continue
		}
		require.NoError(f.t, err)
		return r
	}
}

// ended waits for the outcome of a reparent.
func (f *fixture) ended(r *v1alpha1.Reparent) *v1alpha1.Reparent {
	f.t.Helper()
	f.eventually("the reparent has an outcome", func(*v1alpha1.Shard) bool {
		r = f.reload(r)
		return r.Status.Outcome != ""
	})
	return r
}

func (f *fixture) reload(r *v1alpha1.Reparent) *v1alpha1.Reparent {
	f.t.Helper()
	now := &v1alpha1.Reparent{}
	require.NoError(f.t, kit.Client.Get(f.ctx, client.ObjectKeyFromObject(r), now))
	return now
}

// nextTerm is above every term that was ever asked for: a refused reparent used up its own.
func (f *fixture) nextTerm(s *v1alpha1.Shard) int64 {
	f.t.Helper()
	list := &v1alpha1.ReparentList{}
	require.NoError(f.t, kit.Client.List(f.ctx, list, client.InNamespace(f.namespace)))
	term := s.Status.Term
	for i := range list.Items {
		term = max(term, list.Items[i].Spec.Term)
	}
	return term + 1
}

func phases(r *v1alpha1.Reparent) string {
	var b strings.Builder
	for _, p := range r.Status.Phases {
		if p.FinishedAt != nil {
			fmt.Fprintf(&b, "%s %d ms, ", p.Name, p.FinishedAt.Sub(p.StartedAt.Time).Milliseconds())
		}
	}
	if r.Status.WriteUnavailable != nil {
		fmt.Fprintf(&b, "unavailable %d ms", r.Status.WriteUnavailable.Milliseconds())
	}
	return b.String()
}

// Two machines die one after the other, each with an instance and a replica of the operator on it. The second is noticed like
// the first, because the replica that was lost with the first has been made again by then.
func TestTwoMachinesOneAfterTheOther(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	old, term := f.shard().Status.Primary, f.shard().Status.Record.EstablishedTerm
	dead := current(f.shard()).Members[0]
	first, second := f.nodeOf(dead), f.nodeOf(old)
	f.moveOthersOff(first, second)
	f.operatorsOnto(first, second)
	load := f.startLoad()

	f.lab("node", "kill", first)
	start := time.Now()
	require.NoError(t, labkit.Poll(f.ctx, 200*time.Millisecond, func(context.Context) (bool, string, error) {
		on := f.operatorsReady(first)
		return len(on) == 2 && slices.ContainsFunc(on, func(n string) bool { return n != second }), fmt.Sprintf("operators are on %v", on), nil
	}))
	measured(t, "machine killed → two replicas of the operator elsewhere: %.1f s", time.Since(start).Seconds())
	f.eventually("its instance is replaced: with one instance left nobody could acknowledge", func(s *v1alpha1.Shard) bool {
		return settled(s, 2) && !slices.Contains(current(s).Members, dead)
	})
	f.lab("node", "freeze", second)
	t.Cleanup(func() { f.lab("node", "thaw", second) })
	took := f.eventually("another primary is established", func(s *v1alpha1.Shard) bool {
		return s.Status.Primary != old && s.Status.Record.EstablishedTerm > term
	})
	measured(t, "frozen → status names the new primary: %.1f s; %s", took.Seconds(), phases(f.firstReparent(term)))
	f.lab("node", "thaw", second)
	f.lab("node", "remove", first)
	f.lab("node", "add")
	require.NoError(t, f.target().WaitWhole(f.ctx))
	load.stopAndVerify(writers)
}
