package reparent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

var shardKey = types.NamespacedName{Namespace: "ns", Name: "db-0"}

// object is the Shard of these tests, established in term 4 under a.
func object() *v1alpha1.Shard {
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: shardKey.Namespace, Name: shardKey.Name, UID: "shard"}, Spec: v1alpha1.ShardSpec{Database: "db"}}
	shard.SetRecord(&sh.Status, quorum.Record{Established: 4, Cohorts: []quorum.Cohort{{Term: 4, Primary: "a", Members: []string{"b", "c"}, Acks: 1, Revision: 1}}})
	return sh
}

func server(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) client.Client {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, corev1.AddToScheme(s))
	require.NoError(t, v1alpha1.AddToScheme(s))
	return fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithInterceptorFuncs(funcs).
		WithStatusSubresource(&v1alpha1.Reparent{}, &v1alpha1.Shard{}).
		WithIndex(&v1alpha1.Reparent{}, shard.IndexReparentShard, func(o client.Object) []string { return []string{o.(*v1alpha1.Reparent).Spec.Shard} }).
		WithIndex(&v1alpha1.Replacement{}, shard.IndexReplacementShard, func(o client.Object) []string { return []string{o.(*v1alpha1.Replacement).Spec.Shard} }).
		Build()
}

func newJournal(c client.Client) *journal {
	return &journal{client: c, live: c, clock: testclock.NewFakeClock(now), log: logr.Discard(), shard: object(), entries: map[uint64]*entry{}}
}

func opening(coordinator string) reparent.Opening {
	return reparent.Opening{Term: 5, Kind: reparent.Planned, Reason: "Requested", Coordinator: coordinator, OldPrimary: "a"}
}

// request is a Reparent as a person makes it.
func request(edit func(*v1alpha1.Reparent)) *v1alpha1.Reparent {
	rp := &v1alpha1.Reparent{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: names.Reparent("db-0", 5), CreationTimestamp: metav1.NewTime(now)},
		Spec:       v1alpha1.ReparentSpec{Shard: "db-0", Term: 5, Kind: v1alpha1.ReparentKind(reparent.Planned)},
	}
	if edit != nil {
		edit(rp)
	}
	return rp
}

func read(t *testing.T, c client.Client) *v1alpha1.Reparent {
	t.Helper()
	rp := &v1alpha1.Reparent{}
	require.NoError(t, c.Get(t.Context(), types.NamespacedName{Namespace: "ns", Name: names.Reparent("db-0", 5)}, rp))
	return rp
}

// A term names one primary for ever, so it is opened once: not by another coordinator, and not twice by the same.
func TestATermIsOpenedOnce(t *testing.T) {
	c := server(t, interceptor.Funcs{})
	first := newJournal(c)
	require.NoError(t, first.Open(t.Context(), opening("one")))
	require.ErrorIs(t, newJournal(c).Open(t.Context(), opening("two")), reparent.ErrTermTaken)
	require.ErrorIs(t, first.Open(t.Context(), opening("one")), reparent.ErrTermTaken)
	rp := read(t, c)
	require.Equal(t, "one", rp.Annotations[v1alpha1.AnnotationCoordinator])
	require.Equal(t, "a", rp.Spec.ExpectPrimary)
	require.Equal(t, "db-0", rp.OwnerReferences[0].Name)
}

func TestARequestIsAdoptedByOneOfMany(t *testing.T) {
	c := server(t, interceptor.Funcs{}, request(nil))
	errs := make([]error, 8)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = newJournal(c).Open(t.Context(), opening(strings.Repeat("x", i+1))) })
	}
	all.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		require.ErrorIs(t, err, reparent.ErrTermTaken)
	}
	require.Equal(t, 1, won)
}

func TestWhatIsNotARequestIsNotAdopted(t *testing.T) {
	for name, edit := range map[string]func(*v1alpha1.Reparent){
		"an emergency":     func(rp *v1alpha1.Reparent) { rp.Spec.Kind = v1alpha1.ReparentKind(reparent.Emergency) },
		"another shard's":  func(rp *v1alpha1.Reparent) { rp.Spec.Shard = "db-1" },
		"one under way":    func(rp *v1alpha1.Reparent) { rp.Status.Coordinator = "somebody" },
		"one that ended":   func(rp *v1alpha1.Reparent) { rp.Status.Outcome = v1alpha1.OutcomeSucceeded },
		"a coordinator's":  func(rp *v1alpha1.Reparent) { rp.Annotations = map[string]string{v1alpha1.AnnotationCoordinator: "x"} },
		"its own, earlier": func(rp *v1alpha1.Reparent) { rp.Annotations = map[string]string{v1alpha1.AnnotationCoordinator: "one"} },
	} {
		t.Run(name, func(t *testing.T) {
			c := server(t, interceptor.Funcs{}, request(edit))
			require.ErrorIs(t, newJournal(c).Open(t.Context(), opening("one")), reparent.ErrTermTaken)
		})
	}
}

// The journal is for people: an API server that refuses it for a while holds no reparent up, and the end is written all
// the same.
func TestTheEndIsWrittenWhenTheServerIsBack(t *testing.T) {
	var mu sync.Mutex
	down := 3
	c := server(t, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
		mu.Lock()
		defer mu.Unlock()
		if down > 0 {
			down--
			return errors.New("no route to host")
		}
		return c.SubResource(sub).Patch(ctx, o, p, opts...)
	}})
	j := newJournal(c)
	require.NoError(t, j.Open(t.Context(), opening("one")))
	j.Phase(reparent.Phase{Term: 5, Name: reparent.PhaseRevoke, Started: now, Finished: now.Add(time.Second)})
	j.Phase(reparent.Phase{Term: 6, Name: reparent.PhaseRevoke, Started: now}) // of a term that is not open: nowhere to write it
	require.NoError(t, j.Close(t.Context(), reparent.Result{Term: 5, Outcome: reparent.Succeeded, NewPrimary: "b"}))
	rp := read(t, c)
	require.Equal(t, v1alpha1.OutcomeSucceeded, rp.Status.Outcome)
	require.Equal(t, "b", rp.Status.NewPrimary)
	require.Len(t, rp.Status.Phases, 1)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	mu.Lock()
	down = 1000
	mu.Unlock()
	require.Error(t, j.Close(ctx, reparent.Result{Term: 5, Outcome: reparent.Failed}), "bounded by its context")
	require.NoError(t, j.Close(t.Context(), reparent.Result{Term: 9}), "never opened")
}

func TestTheOutcomeSaysWhichGenerationItIsOf(t *testing.T) {
	c := server(t, interceptor.Funcs{}, request(func(rp *v1alpha1.Reparent) { rp.Generation = 3 }))
	j := newJournal(c)
	require.NoError(t, j.Open(t.Context(), opening("one")))
	require.NoError(t, j.Close(t.Context(), reparent.Result{Term: 5, Outcome: reparent.Succeeded}))
	require.EqualValues(t, 3, read(t, c).Status.Conditions[0].ObservedGeneration)
}

// Phases end faster than the API server should be asked to write them down; none is left out, and the end waits for nothing.
func TestPhasesAreWrittenApart(t *testing.T) {
	var writes atomic.Int32
	c := server(t, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
		defer writes.Add(1)
		return c.SubResource(sub).Patch(ctx, o, p, opts...)
	}})
	j, fake := newJournal(c), testclock.NewFakeClock(now)
	j.clock = fake
	require.NoError(t, j.Open(t.Context(), opening("one")))
	written := func(n int32) {
		require.Eventually(t, func() bool { return writes.Load() == n && fake.HasWaiters() }, time.Minute, time.Millisecond)
	}
	written(1) // that it was opened
	phases := []reparent.PhaseName{reparent.PhasePrepare, reparent.PhaseDrain, reparent.PhaseDemote, reparent.PhasePromote}
	for _, name := range phases {
		j.Phase(reparent.Phase{Term: 5, Name: name, Started: now})
	}
	written(1)
	fake.Step(writeApart)
	written(2)
	require.Len(t, read(t, c).Status.Phases, len(phases))
	require.NoError(t, j.Close(t.Context(), reparent.Result{Term: 5, Outcome: reparent.Succeeded}))
	require.Equal(t, v1alpha1.OutcomeSucceeded, read(t, c).Status.Outcome)
}

// A write that failed is repeated at the usual pace, without waiting for another phase: others judge by what is written whether
// the coordinator is at work.
func TestAWriteThatFailedIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var writes atomic.Int32
		var failing atomic.Pointer[error]
		fail := func(err error) { failing.Store(&err) }
		unreachable := errors.New("no route to host")
		fail(unreachable)
		c := server(t, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			writes.Add(1)
			if err := *failing.Load(); err != nil {
				return err
			}
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		}})
		j := newJournal(c)
		j.clock = clock.RealClock{}
		require.NoError(t, j.Open(t.Context(), opening("one")))
		time.Sleep(writeApart * 3 / 2)
		require.EqualValues(t, 2, writes.Load())
		require.Empty(t, read(t, c).Status.Coordinator)
		fail(nil)
		time.Sleep(time.Minute)
		require.EqualValues(t, 3, writes.Load(), "what is written is not written again")
		require.Equal(t, "one", read(t, c).Status.Coordinator)

		// The end, too, when the coordinator does not wait for it any longer.
		fail(unreachable)
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		require.Error(t, j.Close(ctx, reparent.Result{Term: 5, Outcome: reparent.Succeeded}))
		fail(nil)
		time.Sleep(2 * writeApart)
		require.Equal(t, v1alpha1.OutcomeSucceeded, read(t, c).Status.Outcome)

		// Nobody is asked for ever.
		before := writes.Load()
		fail(apierrors.NewNotFound(schema.GroupResource{Resource: "reparents"}, "db-0-5"))
		j.Phase(reparent.Phase{Term: 5, Name: reparent.PhaseRevoke, Started: now})
		time.Sleep(time.Minute)
		require.Equal(t, before+1, writes.Load(), "it was deleted")
		fail(unreachable)
		j.Phase(reparent.Phase{Term: 5, Name: reparent.PhasePromote, Started: now})
		time.Sleep(time.Hour)
		require.EqualValues(t, writeTries, writes.Load()-before)
	})
}

// Store is compare-and-set: what the caller decided on must be what is there.
func TestARecordIsOnlyReplacedByWhoHasSeenIt(t *testing.T) {
	refusals := 0
	invalid := apierrors.NewInvalid(schema.GroupKind{Kind: "Shard"}, "db-0", nil)
	c := server(t, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
		err := c.SubResource(sub).Patch(ctx, o, p, opts...)
		if err != nil { // the real server says so of a test that fails
			refusals++
			return invalid
		}
		return nil
	}}, object())
	r := &records{live: c, write: c, key: shardKey, clock: testclock.NewFakeClock(now)}
	record, at, err := r.Load(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(4), record.Established)

	next := record
	next.Cohorts = append(next.Cohorts[:1:1], quorum.Cohort{Term: 5, Primary: "b", Members: []string{"a", "c"}, Acks: 1, Revision: 1})
	second, err := r.Store(t.Context(), at, next)
	require.NoError(t, err)
	_, err = r.Store(t.Context(), at, next)
	require.ErrorIs(t, err, reparent.ErrConflict)
	require.Equal(t, 1, refusals)

	next.Established = 5
	next.Cohorts = next.Cohorts[1:]
	_, err = r.Store(t.Context(), second, next)
	require.NoError(t, err)
	sh := &v1alpha1.Shard{}
	require.NoError(t, c.Get(t.Context(), shardKey, sh))
	require.Equal(t, next, shard.RecordOf(sh))
	require.Equal(t, int64(5), sh.Status.Term)
	require.Equal(t, "b", sh.Status.Primary)
	require.Equal(t, now.Unix(), sh.Status.LastReparent.Unix())
}

// A patch that is refused although the record is as expected has another cause, and says which.
func TestARefusalForAnotherReasonIsNotAConflict(t *testing.T) {
	invalid := apierrors.NewInvalid(schema.GroupKind{Kind: "Shard"}, "db-0", nil)
	c := server(t, interceptor.Funcs{SubResourcePatch: func(context.Context, client.Client, string, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
		return invalid
	}}, object())
	r := &records{live: c, write: c, key: shardKey, clock: testclock.NewFakeClock(now)}
	record, at, err := r.Load(t.Context())
	require.NoError(t, err)
	_, err = r.Store(t.Context(), at, record)
	require.NotErrorIs(t, err, reparent.ErrConflict)
	require.ErrorIs(t, err, invalid)
}

func TestNoReparentOfAShardThatIsBeingDeleted(t *testing.T) {
	sh := object()
	sh.Finalizers = []string{"theseus.dev/test"}
	c := server(t, interceptor.Funcs{}, sh)
	require.NoError(t, c.Delete(t.Context(), sh))
	r := &records{live: c, write: c, key: shardKey}
	_, _, err := r.Load(t.Context())
	require.ErrorIs(t, err, errBeingDeleted)
}

// A journal whose coordinator is silent for longer than its phase may last is closed with what the record says came of it.
func TestAJournalWithoutACoordinatorIsClosed(t *testing.T) {
	for name, tc := range map[string]struct {
		established uint64
		outcome     string
		primary     string
	}{
		"it got through": {5, v1alpha1.OutcomeSucceeded, "b"},
		"it did not":     {4, string(reparent.Failed), ""},
	} {
		t.Run(name, func(t *testing.T) {
			sh := object()
			record := shard.RecordOf(sh)
			record.Cohorts = append(record.Cohorts, quorum.Cohort{Term: 5, Primary: "b", Members: []string{"c"}, Acks: 1, Revision: 1})
			record.Established = tc.established
			shard.SetRecord(&sh.Status, record)
			rp := request(func(rp *v1alpha1.Reparent) {
				rp.Status.Coordinator, rp.Status.Phase = "dead", string(reparent.PhasePromote)
				rp.Status.Phases = []v1alpha1.ReparentPhase{{Name: string(reparent.PhasePromote), StartedAt: metav1.NewMicroTime(now)}}
			})
			c := server(t, interceptor.Funcs{}, sh, rp)
			clk := testclock.NewFakeClock(now)
			r := &Reconciler{Runner: &Runner{Client: c, Live: c, Clock: clk, Log: logr.Discard()}}
			res, err := r.tidy(t.Context(), rp)
			require.NoError(t, err)
			require.Positive(t, res.RequeueAfter, "it may be slow")
			require.Empty(t, read(t, c).Status.Outcome)

			clk.Step(res.RequeueAfter)
			_, err = r.tidy(t.Context(), read(t, c))
			require.NoError(t, err)
			require.Equal(t, tc.outcome, read(t, c).Status.Outcome)
			require.Equal(t, tc.primary, read(t, c).Status.NewPrimary)
		})
	}
}

// A request may be older than any patience when it is begun: an operator was not there, or another reparent came first.
func TestAnOldRequestIsNotClosedWhileItIsCarriedOut(t *testing.T) {
	sh := object()
	rp := request(func(rp *v1alpha1.Reparent) {
		rp.Status.Coordinator, rp.Status.Phase = "here", string(reparent.PhaseCheck)
	})
	c := server(t, interceptor.Funcs{}, sh, rp)
	runner := &Runner{Client: c, Live: c, Clock: testclock.NewFakeClock(now.Add(time.Hour)), Log: logr.Discard()}
	r := &Reconciler{Runner: runner}
	end := make(chan struct{})
	require.True(t, runner.Go(shardKey, func() { <-end }))
	res, err := r.tidy(t.Context(), rp)
	require.NoError(t, err)
	require.Positive(t, res.RequeueAfter)
	require.Empty(t, read(t, c).Status.Outcome)

	close(end)
	runner.Wait()
	_, err = r.tidy(t.Context(), rp)
	require.NoError(t, err)
	require.Equal(t, string(reparent.Failed), read(t, c).Status.Outcome, "nobody is at work on it any more")
}

func TestARequestForAShardThatIsNotThereIsRefused(t *testing.T) {
	rp := request(nil)
	c := server(t, interceptor.Funcs{}, rp)
	r := &Reconciler{Runner: &Runner{Client: c, Live: c, Clock: testclock.NewFakeClock(now), Log: logr.Discard()}}
	_, err := r.start(t.Context(), rp)
	require.NoError(t, err)
	got := read(t, c)
	require.Equal(t, string(reparent.Refused), got.Status.Outcome)
	require.Contains(t, got.Status.Message, "there is no Shard db-0")
}

// One typing error must not take the terms away that failing over needs: it is refused, and counts for nothing afterwards.
func TestATypingErrorSpendsNothing(t *testing.T) {
	mistyped := func(outcome string) *v1alpha1.Reparent {
		return request(func(rp *v1alpha1.Reparent) {
			rp.Name, rp.Spec.Term, rp.Status.Outcome = names.Reparent("db-0", 1e12), 1e12, outcome
		})
	}
	refusedBefore := func(term int64) *v1alpha1.Reparent {
		return request(func(rp *v1alpha1.Reparent) {
			rp.Name, rp.Spec.Term, rp.Status.Outcome = names.Reparent("db-0", uint64(term)), term, v1alpha1.OutcomeRefused
		})
	}
	opened := func(term int64) *v1alpha1.Reparent {
		rp := refusedBefore(term)
		rp.Status = v1alpha1.ReparentStatus{Coordinator: "somebody", Outcome: v1alpha1.OutcomeFailed}
		return rp
	}
	for name, tc := range map[string]struct {
		others    []client.Object
		instances []reparent.Instance
		own       uint64
		want      uint64
	}{
		"nothing":                       {want: 4},
		"a typing error that waits":     {others: []client.Object{mistyped("")}, want: 4},
		"one that was refused":          {others: []client.Object{mistyped(v1alpha1.OutcomeRefused)}, want: 4},
		"a name that is taken":          {others: []client.Object{mistyped(v1alpha1.OutcomeRefused), refusedBefore(5)}, want: 5},
		"not its own":                   {others: []client.Object{refusedBefore(5)}, own: 5, want: 4},
		"what agents have accepted":     {others: []client.Object{refusedBefore(5)}, instances: []reparent.Instance{{Name: "b", Term: 8}}, want: 8},
		"a name above what agents have": {others: []client.Object{refusedBefore(1500)}, instances: []reparent.Instance{{Name: "b", Term: 800}}, want: 1500},
		"what was opened, however high": {others: []client.Object{opened(5000)}, want: 5000},
	} {
		t.Run(name, func(t *testing.T) {
			sh := object()
			sh.Status.Term = 4
			c := server(t, interceptor.Funcs{}, append(tc.others, sh)...)
			r := &Runner{Client: c, Live: c, Clock: testclock.NewFakeClock(now), Log: logr.Discard()}
			spent, err := r.spent(t.Context(), sh, tc.own, tc.instances)
			require.NoError(t, err)
			require.Equal(t, tc.want, spent)
			if tc.own != 0 || len(tc.instances) > 0 {
				return
			}
			// The next free name is found, by whoever asks and by whoever acts.
			asked, err := shard.AskReparent(t.Context(), c, c, shardKey, v1alpha1.ReparentSpec{Kind: v1alpha1.ReparentPlanned}, "")
			require.NoError(t, err)
			waits := len(tc.others) > 0 && tc.others[0].(*v1alpha1.Reparent).Status.Outcome == ""
			require.Equal(t, !waits, asked)
			o := opening("one")
			o.Term = spent + 1
			require.NoError(t, newJournal(c).Open(t.Context(), o), "what was asked for, or nobody's")
		})
	}
}
