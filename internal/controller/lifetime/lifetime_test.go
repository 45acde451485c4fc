package lifetime

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/ledger"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// town is an Expiry over a fake API server in which replacements and reparents take a while and then succeed.
type town struct {
	*Expiry
	t       *testing.T
	clock   *clocktesting.FakeClock
	takes   time.Duration
	entries []ledger.Entry
	woken   map[types.NamespacedName]int
	drawn   int
	// seen: the oldest any instance has become, and the most that began in one hour.
	oldest time.Duration
}

func newTown(t *testing.T, shards ...*v1alpha1.Shard) *town {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(s))
	tn := &town{t: t, clock: clocktesting.NewFakeClock(start), takes: 2 * time.Minute, woken: map[types.NamespacedName]int{}}
	b := fake.NewClientBuilder().WithScheme(s).
		WithIndex(&v1alpha1.Replacement{}, shard.IndexReplacementShard, func(o client.Object) []string {
			return []string{o.(*v1alpha1.Replacement).Spec.Shard}
		}).
		WithIndex(&v1alpha1.Reparent{}, shard.IndexReparentShard, func(o client.Object) []string {
			return []string{o.(*v1alpha1.Reparent).Spec.Shard}
		})
	for _, sh := range shards {
		b = b.WithObjects(sh)
	}
	c := b.Build()
	tn.Expiry = &Expiry{
		Client: c, Live: c, Recorder: events.NewFakeRecorder(10000), Clock: tn.clock,
		Account: func(context.Context) (*ledger.Account, error) {
			return ledger.New(tn.entries, nil, ledger.Fleet{Instances: 30}, ledger.Limits{}, tn.clock.Now()), nil
		},
		Changed: func(key types.NamespacedName) { tn.woken[key]++ },
	}
	return tn
}

func aShard(name string, age time.Duration, edit ...func(*v1alpha1.Shard)) *v1alpha1.Shard {
	sh := &v1alpha1.Shard{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(start)},
		Spec: v1alpha1.ShardSpec{Database: "db", Template: v1alpha1.DatabaseSpec{
			Instances: 3, Lifetime: v1alpha1.LifetimeSpec{MaxAge: metav1.Duration{Duration: age}},
		}},
		Status: v1alpha1.ShardStatus{
			Bootstrap: &v1alpha1.BootstrapStatus{Done: true}, Primary: name + "-a", Term: 1,
			Record:     v1alpha1.CohortRecord{EstablishedTerm: 1, Cohorts: []v1alpha1.CohortStatus{{Term: 1, Primary: name + "-a"}}},
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}, {Type: v1alpha1.ConditionRedundant, Status: metav1.ConditionTrue}},
		},
	}
	for n, suffix := range []string{"a", "b", "c"} {
		sh.Status.Instances = append(sh.Status.Instances, v1alpha1.InstanceStatus{
			Name: name + "-" + suffix, PodUID: name + suffix, Zone: fmt.Sprintf("z%d", n), CreatedAt: metav1.NewTime(start), Ready: true,
		})
	}
	for _, e := range edit {
		e(sh)
	}
	return sh
}

func (tn *town) shards() []v1alpha1.Shard {
	list := &v1alpha1.ShardList{}
	require.NoError(tn.t, tn.Client.List(context.Background(), list))
	return list.Items
}

func (tn *town) replacements() []v1alpha1.Replacement {
	list := &v1alpha1.ReplacementList{}
	require.NoError(tn.t, tn.Client.List(context.Background(), list))
	return list.Items
}

// play begins what was asked for and finishes what has taken long enough, one at a time in a shard.
func (tn *town) play() {
	now := tn.clock.Now()
	busy := map[string]bool{}
	all := tn.replacements()
	for i := range all {
		rp := &all[i]
		switch {
		case rp.Status.FinishedAt != nil:
		case rp.Status.AdmittedAt != nil && now.Sub(rp.Status.AdmittedAt.Time) >= tn.takes:
			at := metav1.NewMicroTime(now)
			rp.Status.Phase, rp.Status.FinishedAt, rp.Status.Outcome = "Done", &at, "Succeeded"
			require.NoError(tn.t, tn.Client.Update(context.Background(), rp))
			tn.renew(rp.Spec.Shard, rp.Spec.Instance)
		case rp.Status.AdmittedAt != nil:
			busy[rp.Spec.Shard] = true
		}
	}
	for i := range all {
		rp := &all[i]
		if rp.Status.AdmittedAt == nil && !busy[rp.Spec.Shard] {
			busy[rp.Spec.Shard] = true
			at := metav1.NewMicroTime(now)
			rp.Status.Phase, rp.Status.AdmittedAt, rp.Status.Attempt, rp.Status.Successor = "Seeding", &at, 1, "surge"
			require.NoError(tn.t, tn.Client.Update(context.Background(), rp))
		}
	}
	for _, sh := range tn.shards() {
		for _, in := range sh.Status.Instances {
			tn.oldest = max(tn.oldest, now.Sub(in.CreatedAt.Time))
		}
	}
}

// renew puts a new instance in an old one's place.
func (tn *town) renew(shardName, instance string) {
	for _, sh := range tn.shards() {
		for i := range sh.Status.Instances {
			if in := &sh.Status.Instances[i]; sh.Name == shardName && in.Name == instance {
				tn.drawn++
				in.Name, in.PodUID, in.CreatedAt = fmt.Sprintf("%s-%d", shardName, tn.drawn), fmt.Sprint(tn.drawn), metav1.NewTime(tn.clock.Now())
				require.NoError(tn.t, tn.Client.Update(context.Background(), &sh))
			}
		}
	}
}

func (tn *town) run(d time.Duration) {
	tn.t.Helper()
	for end := tn.clock.Now().Add(d); tn.clock.Now().Before(end); {
		next, err := tn.look(context.Background())
		require.NoError(tn.t, err)
		require.GreaterOrEqual(tn.t, next, shortest)
		require.LessOrEqual(tn.t, next, longest)
		tn.play()
		tn.clock.Step(30 * time.Second)
	}
}

func (tn *town) condition(shardName, kind string) metav1.Condition {
	tn.t.Helper()
	for _, c := range tn.Conditions(types.NamespacedName{Namespace: "ns", Name: shardName}) {
		if c.Type == kind {
			return c
		}
	}
	tn.t.Fatalf("%s says nothing about %s", shardName, kind)
	return metav1.Condition{}
}

func TestNothingGetsTooOldAndNothingGoesMuchTooEarly(t *testing.T) {
	tn := newTown(t, aShard("one", 4*time.Hour), aShard("two", 4*time.Hour), aShard("three", 2*time.Hour))
	tn.run(12 * time.Hour)
	require.LessOrEqual(t, tn.oldest, 4*time.Hour)
	for _, name := range []string{"one", "two", "three"} {
		require.Equal(t, metav1.ConditionTrue, tn.condition(name, v1alpha1.ConditionPlanHolds).Status)
		require.Equal(t, metav1.ConditionFalse, tn.condition(name, v1alpha1.ConditionFrozen).Status)
	}
	// Six live at most 4 hours and three 2: in 12 hours 36 at least; and a third more is too eager.
	require.Greater(t, tn.drawn, 30)
	require.Less(t, tn.drawn, 60)
	require.Positive(t, tn.PerHour()[""])
	for _, rp := range tn.replacements() {
		require.Equal(t, v1alpha1.ReasonExpired, rp.Spec.Reason)
		require.NotNil(t, rp.Spec.Deadline)
	}
}

func TestAFreezeKeepsEverythingAndSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		set func(*town)
		why string
	}{
		"the switch": {func(tn *town) { tn.Freeze = "an inventory" }, "an inventory"},
		"a storm": {func(tn *town) {
			for n := range 12 {
				tn.entries = append(tn.entries, ledger.Entry{Shard: "x", Instance: fmt.Sprint(n), Node: fmt.Sprint(n), Reason: v1alpha1.ReasonCondemned})
			}
		}, "were condemned"},
		"a zone without machines": {func(tn *town) {
			for _, z := range []string{"z0", "z1", "z2"} {
				tn.entries = append(tn.entries, ledger.Entry{Shard: "x", Instance: z, Zone: z, Started: start, NoCapacity: start.Add(time.Hour)})
			}
		}, "no capacity"},
	} {
		t.Run(name, func(t *testing.T) {
			tn := newTown(t, aShard("one", 2*time.Hour))
			c.set(tn)
			tn.run(2*time.Hour - 5*time.Minute)
			require.Empty(t, tn.replacements())
			frozen := tn.condition("one", v1alpha1.ConditionFrozen)
			require.Equal(t, metav1.ConditionTrue, frozen.Status)
			require.Contains(t, frozen.Message, c.why)
			holds := tn.condition("one", v1alpha1.ConditionPlanHolds)
			require.Equal(t, "Frozen", holds.Reason, "before it is too late")
			require.Equal(t, metav1.ConditionFalse, holds.Status)
			require.NotZero(t, tn.woken[types.NamespacedName{Namespace: "ns", Name: "one"}])

			before := testutil.ToFloat64(missedTotal.WithLabelValues("ns", "one"))
			tn.run(20 * time.Minute)
			require.Equal(t, "DeadlineMissed", tn.condition("one", v1alpha1.ConditionPlanHolds).Reason)
			require.InDelta(t, before+3, testutil.ToFloat64(missedTotal.WithLabelValues("ns", "one")), 0, "each is counted once")
		})
	}
}

func TestADegradedFleetFreezes(t *testing.T) {
	degraded := func(sh *v1alpha1.Shard) { sh.Status.Conditions[1].Status = metav1.ConditionFalse }
	var shards []*v1alpha1.Shard
	for n := range 10 {
		sh := aShard(fmt.Sprintf("s%d", n), 2*time.Hour)
		if n < 3 {
			degraded(sh)
		}
		shards = append(shards, sh)
	}
	tn := newTown(t, shards...)
	w, err := tn.gather(context.Background())
	require.NoError(t, err)
	require.Equal(t, "3 of 10 shards are degraded", w.freeze)
	w, err = newTown(t, shards[1:]...).gather(context.Background())
	require.NoError(t, err)
	require.Empty(t, w.freeze, "two may be bad luck")
}

func TestWhatIsNotReadyToBeJudgedIsLeftAlone(t *testing.T) {
	gone := metav1.NewTime(start)
	tn := newTown(t,
		aShard("young", time.Hour, func(sh *v1alpha1.Shard) { sh.Status.Bootstrap.Done = false }),
		aShard("going", time.Hour, func(sh *v1alpha1.Shard) {
			sh.DeletionTimestamp, sh.Finalizers = &gone, []string{v1alpha1.Finalizer}
		}),
	)
	tn.clock.Step(2 * time.Hour)
	_, err := tn.look(context.Background())
	require.NoError(t, err)
	require.Empty(t, tn.replacements())
}

func TestAnInstanceOnItsWayOutIsNotAskedAgain(t *testing.T) {
	at := metav1.NewMicroTime(start)
	tn := newTown(t, aShard("one", time.Hour))
	require.NoError(t, tn.Client.Create(context.Background(), &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "drain"},
		Spec:       v1alpha1.ReplacementSpec{Shard: "one", Instance: "one-a", Reason: v1alpha1.ReasonDraining},
		Status:     v1alpha1.ReplacementStatus{Phase: "Seeding", AdmittedAt: &at, Successor: "one-b"},
	}))
	tn.clock.Step(59 * time.Minute)
	_, err := tn.look(context.Background())
	require.NoError(t, err)
	var asked []string
	for _, rp := range tn.replacements() {
		if rp.Spec.Reason == v1alpha1.ReasonExpired {
			asked = append(asked, rp.Spec.Instance)
		}
	}
	require.Equal(t, []string{"one-c"}, asked, "neither the one that goes nor its surge")
}

func TestTheLeadIsThatOfTheLatestReplacementsHoweverTheyAreListed(t *testing.T) {
	w := &world{now: start, instances: map[time.Duration][]instance{}}
	done := func(n int, ended time.Time, took time.Duration) v1alpha1.Replacement {
		began, at := metav1.NewMicroTime(ended.Add(-took)), metav1.NewMicroTime(ended)
		return v1alpha1.Replacement{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint(n)},
			Status:     v1alpha1.ReplacementStatus{Phase: "Done", AdmittedAt: &began, FinishedAt: &at, Attempt: 1},
		}
	}
	var items []v1alpha1.Replacement
	for n := range latestTook {
		items = append(items, done(n, start.Add(-time.Duration(n)*time.Minute), time.Minute)) // lately
	}
	for n := range latestTook {
		items = append(items, done(latestTook+n, start.Add(-48*time.Hour), time.Hour)) // when the disks were slow
	}
	for range 2 {
		w.took = nil
		w.underWay(items)
		took := latest(w.took)
		require.Len(t, took, latestTook)
		require.Equal(t, time.Minute, slices.Max(took))
		slices.Reverse(items)
	}
}

func TestShardsFailOverRegularly(t *testing.T) {
	weekly := func(sh *v1alpha1.Shard) {
		sh.Spec.Template.Lifetime.AlwaysFailover = &metav1.Duration{Duration: 168 * time.Hour}
		sh.Status.LastReparent = &metav1.Time{Time: start}
	}
	for name, c := range map[string]struct {
		edit func(*v1alpha1.Shard)
		due  bool
	}{
		"due":             {func(*v1alpha1.Shard) {}, true},
		"led since today": {func(sh *v1alpha1.Shard) { sh.Status.LastReparent.Time = start.Add(160 * time.Hour) }, false},
		"nobody asked":    {func(sh *v1alpha1.Shard) { sh.Spec.Template.Lifetime.AlwaysFailover = nil }, false},
		"alone":           {func(sh *v1alpha1.Shard) { sh.Spec.Template.Instances = 1 }, false},
		"in bad health":   {func(sh *v1alpha1.Shard) { sh.Status.Conditions[0].Status = metav1.ConditionFalse }, false},
	} {
		t.Run(name, func(t *testing.T) {
			tn := newTown(t, aShard("one", 696*time.Hour, weekly, c.edit))
			tn.clock.Step(166 * time.Hour)
			for range 3 {
				_, err := tn.look(context.Background())
				require.NoError(t, err)
			}
			list := &v1alpha1.ReparentList{}
			require.NoError(t, tn.Client.List(context.Background(), list))
			if !c.due {
				require.Empty(t, list.Items)
				return
			}
			require.Len(t, list.Items, 1, "asked once")
			require.Equal(t, v1alpha1.ReparentPlanned, list.Items[0].Spec.Kind)
			require.Equal(t, "one-a", list.Items[0].Spec.AwayFrom)
			require.EqualValues(t, 2, list.Items[0].Spec.Term)
		})
	}
}
