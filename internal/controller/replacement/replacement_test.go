package replacement

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/replacement"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// desk is a Reconciler over a fake API server, without agents: what needs a shard that lives is tested against the real
// API server with played agents.
type desk struct {
	*Reconciler
	t     *testing.T
	clock *clocktesting.FakeClock
	funcs interceptor.Funcs
	// lists counts how often all Replacements were read.
	lists int
}

func newDesk(t *testing.T, objects ...client.Object) *desk {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(s))
	require.NoError(t, clientgoscheme.AddToScheme(s))
	d := &desk{t: t, clock: clocktesting.NewFakeClock(now)}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.Replacement{}, &v1alpha1.Shard{}).
		WithIndex(&v1alpha1.Replacement{}, shard.IndexReplacementShard, func(o client.Object) []string {
			return []string{o.(*v1alpha1.Replacement).Spec.Shard}
		}).
		WithIndex(&v1alpha1.Reparent{}, shard.IndexReparentShard, func(o client.Object) []string {
			return []string{o.(*v1alpha1.Reparent).Spec.Shard}
		}).
		WithInterceptorFuncs(interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				all := client.ListOptions{}
				all.ApplyOptions(opts)
				if _, ok := list.(*v1alpha1.ReplacementList); ok && all.FieldSelector == nil {
					d.lists++
				}
				return c.List(ctx, list, opts...)
			},
			SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				if d.funcs.SubResourcePatch != nil {
					return d.funcs.SubResourcePatch(ctx, c, sub, o, p, opts...)
				}
				return c.SubResource(sub).Patch(ctx, o, p, opts...)
			},
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if d.funcs.Create != nil {
					return d.funcs.Create(ctx, c, o, opts...)
				}
				return c.Create(ctx, o, opts...)
			},
		}).Build()
	watching := observer.New(observer.Options{Clock: d.clock})
	d.Reconciler = &Reconciler{
		Client: c, Live: c, Observer: watching, Recorder: events.NewFakeRecorder(1000), Clock: d.clock,
		Params: shard.DefaultParams(), Evidence: NoEvidence{}, Keep: 20, KeepFor: 7 * 24 * time.Hour,
	}
	d.viewer = shard.Viewer{Nodes: c, Observer: watching, Clock: d.clock, Params: d.Params}
	d.evidence.start(context.Background(), func(types.NamespacedName) {})
	return d
}

func (d *desk) reconcile(name string) (reconcile.Result, error) {
	d.t.Helper()
	return d.Reconcile(context.Background(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: name}})
}

func (d *desk) get(name string) *v1alpha1.Replacement {
	d.t.Helper()
	rp := &v1alpha1.Replacement{}
	require.NoError(d.t, d.Client.Get(context.Background(), client.ObjectKey{Namespace: "ns", Name: name}, rp))
	return rp
}

// settle reconciles until nothing is stored any more.
func (d *desk) settle(name string) *v1alpha1.Replacement {
	d.t.Helper()
	for range 10 {
		before := d.get(name).ResourceVersion
		_, err := d.reconcile(name)
		require.NoError(d.t, err)
		if d.get(name).ResourceVersion == before {
			break
		}
	}
	return d.get(name)
}

// aShard has a, b and c, of which nothing is heard.
func aShard(edit ...func(*v1alpha1.Shard)) *v1alpha1.Shard {
	sh := &v1alpha1.Shard{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0", UID: "s"},
		Spec: v1alpha1.ShardSpec{Database: "db", Template: v1alpha1.DatabaseSpec{
			Instances: 3, Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
			Lifetime: v1alpha1.LifetimeSpec{MaxAge: metav1.Duration{Duration: 696 * time.Hour}},
		}},
		Status: v1alpha1.ShardStatus{
			Bootstrap: &v1alpha1.BootstrapStatus{Instance: "a", Done: true}, Term: 2, Primary: "a",
			Record: v1alpha1.CohortRecord{EstablishedTerm: 2, Cohorts: []v1alpha1.CohortStatus{{Term: 2, Primary: "a", Members: []string{"b", "c"}, Acks: 1}}},
		},
	}
	for _, name := range []string{"a", "b", "c"} {
		sh.Status.Instances = append(sh.Status.Instances, v1alpha1.InstanceStatus{Name: name, Ready: true, Node: "n-" + name, Zone: "z-" + name})
	}
	for _, e := range edit {
		e(sh)
	}
	return sh
}

func wanted(name, instance string, reason v1alpha1.Reason, edit ...func(*v1alpha1.Replacement)) *v1alpha1.Replacement {
	rp := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now)},
		Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: instance, Reason: reason},
	}
	for _, e := range edit {
		e(rp)
	}
	return rp
}

func begun(rp *v1alpha1.Replacement) {
	at := metav1.NewMicroTime(now)
	rp.Status.Phase, rp.Status.PhaseStartedAt, rp.Status.AdmittedAt = "Surging", &at, &at
}

func over(phase v1alpha1.ReplacementPhase, ago time.Duration) func(*v1alpha1.Replacement) {
	return func(rp *v1alpha1.Replacement) {
		at := metav1.NewMicroTime(now.Add(-ago))
		rp.Status.Phase, rp.Status.FinishedAt, rp.Status.Outcome = phase, &at, "Succeeded"
	}
}

func TestANewOneIsAdoptedFirst(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonRequested))
	_, err := d.reconcile("r")
	require.NoError(t, err)
	rp := d.get("r")
	require.Equal(t, []string{v1alpha1.Finalizer}, rp.Finalizers)
	require.Equal(t, "db-0", rp.OwnerReferences[0].Name)
	require.Equal(t, "db", rp.Labels[v1alpha1.LabelDatabase])
	require.Empty(t, rp.Status.Phase)
}

func TestNobodyIsTouchedWhileNothingCanBeCopied(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonCondemned))
	rp := d.settle("r")
	require.EqualValues(t, "Pending", rp.Status.Phase)
	require.Contains(t, rp.Status.Waiting, "may hold the only copy")
	require.Nil(t, rp.Status.AdmittedAt)
	c := meta.FindStatusCondition(rp.Status.Conditions, ConditionComplete)
	require.Equal(t, metav1.ConditionFalse, c.Status)
	require.Equal(t, "Pending", c.Reason)
}

func TestTheLedgersRefusalIsShown(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonRequested), wanted("other", "c", v1alpha1.ReasonExpired, begun))
	for _, in := range []string{"a", "b", "c"} {
		require.NoError(t, d.Client.Create(context.Background(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: in, Labels: map[string]string{v1alpha1.LabelShard: "db-0", v1alpha1.LabelComponent: v1alpha1.ComponentInstance},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Shard", Name: "db-0", UID: "s", Controller: new(true)}},
		}}))
	}
	w := d.world("r")
	require.NoError(t, d.askLedger(context.Background(), d.Client, w, d.get("r")))
	require.False(t, w.observed.Ledger.Allowed)
	require.Equal(t, string(ledger.ShardBusy), w.why, "where no machine is known, zones are alike")
	require.Contains(t, w.observed.Ledger.Message, "c of the same shard is being replaced")
}

func (d *desk) world(name string) *world {
	d.t.Helper()
	sh := &v1alpha1.Shard{}
	require.NoError(d.t, d.Client.Get(context.Background(), client.ObjectKey{Namespace: "ns", Name: "db-0"}, sh))
	w, err := d.gather(context.Background(), d.Client, sh, d.get(name))
	require.NoError(d.t, err)
	return w
}

func TestTheMostUrgentOfThoseThatWaitGoesFirst(t *testing.T) {
	d := newDesk(t, aShard(), wanted("old", "b", v1alpha1.ReasonExpired), wanted("sick", "c", v1alpha1.ReasonCondemned))
	for name, allowed := range map[string]bool{"old": false, "sick": true} {
		w := d.world(name)
		require.NoError(t, d.askLedger(context.Background(), d.Client, w, d.get(name)))
		require.Equal(t, allowed, w.observed.Ledger.Allowed, "%s: %s", name, w.observed.Ledger.Message)
	}
}

// A fleet of a hundred nodes, on six of which something is condemned.
func TestAStormIsToldFromANodeThatIsLost(t *testing.T) {
	for name, tc := range map[string]struct {
		node  func(n int) string
		storm bool
	}{
		"six nodes": {func(n int) string { return fmt.Sprint("n-", n) }, true},
		"one node":  {func(int) string { return "n-0" }, false},
	} {
		objects := []client.Object{aShard(), wanted("r", "b", v1alpha1.ReasonCondemned)}
		for n := range 100 {
			objects = append(objects, aShard(func(sh *v1alpha1.Shard) {
				sh.Name, sh.UID = fmt.Sprint("db-", n+1), types.UID(fmt.Sprint(n))
				sh.Status.Instances = []v1alpha1.InstanceStatus{{Name: "x", Node: fmt.Sprint("n-", n)}, {Name: "y", Node: tc.node(n)}}
			}))
		}
		for n := range 6 {
			objects = append(objects, wanted(fmt.Sprint("y-", n), "y", v1alpha1.ReasonCondemned, func(rp *v1alpha1.Replacement) {
				rp.Spec.Shard = fmt.Sprint("db-", n+1)
			}))
		}
		d := newDesk(t, objects...)
		w := d.world("r")
		require.NoError(t, d.askLedger(context.Background(), d.Client, w, d.get("r")))
		require.Equal(t, tc.storm, w.observed.Ledger.Storm, "%s: %s", name, w.observed.Ledger.Message)
		require.Equal(t, !tc.storm, w.observed.Ledger.Allowed, "%s: %s", name, w.observed.Ledger.Message)

		// Frozen as well, it is a storm all the same: who is well is let off.
		d.Limits = ledger.Limits{Freeze: ledger.FreezeAll}
		w = d.world("r")
		require.NoError(t, d.askLedger(context.Background(), d.Client, w, d.get("r")))
		require.Equal(t, string(ledger.Frozen), w.why)
		require.Equal(t, tc.storm, w.observed.Ledger.Storm, name)
		// An hour later it is over, though everything waits as it did.
		d.Limits = ledger.Limits{}
		d.clock.Step(time.Hour)
		w = d.world("r")
		require.NoError(t, d.askLedger(context.Background(), d.Client, w, d.get("r")))
		require.True(t, w.observed.Ledger.Allowed, "%s: %s", name, w.observed.Ledger.Message)
		require.Equal(t, tc.storm, w.observed.Ledger.Storm, "what came of it does not change when it was condemned")
	}
}

func TestNearIsAFractionOfTheMaximumAge(t *testing.T) {
	d := newDesk(t, aShard())
	f, err := d.fleet(context.Background())
	require.NoError(t, err)
	require.Equal(t, 3, f.instances)
	require.Len(t, f.nodes, 3)
	at := func(left time.Duration) ledger.Request {
		return f.request(wanted("r", "b", v1alpha1.ReasonExpired, func(rp *v1alpha1.Replacement) {
			rp.Spec.Deadline = &metav1.Time{Time: now.Add(left)}
		}), now)
	}
	require.True(t, at(28*time.Hour).Near)
	require.False(t, at(30*time.Hour).Near)
	q := at(time.Hour)
	require.Equal(t, "z-b", q.Zone)
	require.Equal(t, 3, q.Healthy)
	require.False(t, q.Dead)
	require.True(t, f.request(wanted("r", "nobody", v1alpha1.ReasonExpired), now).Dead)
}

func TestTheEndOfAShardIsTheEndOfItsReplacements(t *testing.T) {
	gone := metav1.NewTime(now)
	going := aShard(func(sh *v1alpha1.Shard) {
		sh.DeletionTimestamp, sh.Finalizers = &gone, []string{v1alpha1.Finalizer}
	})
	for name, objects := range map[string][]client.Object{
		"being deleted": {going, wanted("r", "b", v1alpha1.ReasonRequested, begun)},
		"never there":   {wanted("r", "b", v1alpha1.ReasonRequested)},
	} {
		t.Run(name, func(t *testing.T) {
			rp := newDesk(t, objects...).settle("r")
			require.EqualValues(t, "Cancelled", rp.Status.Phase)
			require.NotNil(t, rp.Status.FinishedAt)
			require.Empty(t, rp.Finalizers)
		})
	}
}

func TestAnInstanceThatNeverWasIsNoReasonToMakeOne(t *testing.T) {
	rp := newDesk(t, aShard(), wanted("r", "nobody", v1alpha1.ReasonRequested)).settle("r")
	require.EqualValues(t, "Failed", rp.Status.Phase)
	rp = newDesk(t, aShard(), wanted("r", "nobody", v1alpha1.ReasonCondemned)).settle("r")
	require.EqualValues(t, "Done", rp.Status.Phase, "whoever condemned it was behind")
	require.Empty(t, rp.Finalizers)
}

func TestReparentsOfAPredecessorAreNobodysFailures(t *testing.T) {
	reparent := func(term int64, of string, ago time.Duration, outcome string) *v1alpha1.Reparent {
		at := metav1.NewMicroTime(now.Add(-ago))
		return &v1alpha1.Reparent{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: fmt.Sprintf("db-0-%d", term), Labels: map[string]string{v1alpha1.LabelReplacement: of},
				CreationTimestamp: metav1.NewTime(now.Add(-ago)),
			},
			Spec:   v1alpha1.ReparentSpec{Shard: "db-0", Term: term},
			Status: v1alpha1.ReparentStatus{Outcome: outcome, FinishedAt: &at},
		}
	}
	d := newDesk(t, aShard(), wanted("r", "a", v1alpha1.ReasonDraining, begun),
		reparent(3, "r", 2*time.Minute, v1alpha1.OutcomeFailed), reparent(4, "r", time.Minute, v1alpha1.OutcomeFailed),
		reparent(5, "r", 0, v1alpha1.OutcomeFailed), reparent(6, "another", 0, v1alpha1.OutcomeFailed))
	w := d.world("r")
	require.Equal(t, 1, w.observed.Reparent.Failures)
	require.True(t, now.Equal(w.failed), w.failed)
}

func TestADecisionOnAStaleStatusIsNotStored(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonCondemned))
	_, err := d.reconcile("r")
	require.NoError(t, err)
	stale := d.get("r")
	fresh := d.get("r")
	fresh.Status.Message = "somebody else was here"
	require.NoError(t, d.Client.Status().Update(context.Background(), fresh))
	err = d.store(context.Background(), nil, stale, replacement.Decision{Status: replacement.Status{Phase: replacement.Failed}})
	require.Error(t, err)
	require.Equal(t, "somebody else was here", d.get("r").Status.Message)
}

func TestWhatWasNotStoredIsNotDone(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonExpired, begun, func(rp *v1alpha1.Replacement) {
		rp.Status.Successor, rp.Status.Attempt = "d", 1
	}))
	_, err := d.reconcile("r") // it is adopted
	require.NoError(t, err)
	d.funcs.SubResourcePatch = func(context.Context, client.Client, string, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
		return errors.New("etcd is full")
	}
	_, err = d.reconcile("r")
	require.ErrorContains(t, err, "etcd is full")
	err = d.Client.Get(context.Background(), client.ObjectKey{Namespace: "ns", Name: "d"}, &corev1.Pod{})
	require.NoError(t, client.IgnoreNotFound(err))
	require.Error(t, err, "no Pod is made on a decision that is not stored")
	d.funcs.SubResourcePatch = nil
	d.settle("r")
	require.NoError(t, d.Client.Get(context.Background(), client.ObjectKey{Namespace: "ns", Name: "d"}, &corev1.Pod{}))
	claim := &corev1.PersistentVolumeClaim{}
	require.NoError(t, d.Client.Get(context.Background(), client.ObjectKey{Namespace: "ns", Name: "d"}, claim))
	require.Equal(t, "r", claim.Labels[v1alpha1.LabelReplacement])
}

func TestASurgeThatIsRefusedIsTold(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonRequested, begun))
	d.funcs.Create = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if _, ok := o.(*corev1.Pod); ok {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, o.GetName(), errors.New("exceeded quota"))
		}
		return c.Create(ctx, o, opts...)
	}
	require.Error(t, d.surge(t.Context(), d.world("r"), d.get("r"), replacement.Action{Kind: replacement.Surge, Instance: "d"}))
	require.Contains(t, <-d.Recorder.(*events.FakeRecorder).Events, `Warning InstanceRefused The API server refuses d, to replace b (Requested): pods "d" is forbidden: exceeded quota`)
}

func TestOldOnesAreRemoved(t *testing.T) {
	var objects []client.Object
	for n := range 30 {
		objects = append(objects, wanted(fmt.Sprintf("r%02d", n), "x", v1alpha1.ReasonExpired, over("Done", time.Duration(n)*time.Minute)))
	}
	objects = append(objects, aShard(), wanted("ancient", "x", v1alpha1.ReasonExpired, over("Failed", 8*24*time.Hour)), wanted("running", "b", v1alpha1.ReasonExpired, begun))
	d := newDesk(t, objects...)
	_, err := d.reconcile("r05")
	require.NoError(t, err)
	list := &v1alpha1.ReplacementList{}
	require.NoError(t, d.Client.List(context.Background(), list))
	names := map[string]bool{}
	for _, rp := range list.Items {
		names[rp.Name] = true
	}
	require.Len(t, names, 21)
	require.True(t, names["running"] && names["r00"] && names["r19"])
	require.False(t, names["r20"] || names["ancient"])
}

func TestEvidenceIsTakenOnceAndNotedEvenAfterTheEnd(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonCondemned))
	slow := make(chan struct{})
	calls := make(chan evidence.Subject, 10)
	d.Evidence = collect(func(ctx context.Context, s evidence.Subject) (string, error) {
		calls <- s
		<-slow
		return "file:///case", errors.New("not whole")
	})
	rp := d.get("r")
	at := metav1.NewMicroTime(now)
	rp.Status.EvidenceAt = &at
	for range 3 {
		d.evidence.begin(rp, subject(rp, aShard()), d.Evidence)
	}
	s := <-calls
	require.Equal(t, "b", s.Instance)
	require.Equal(t, now, s.DecidedAt)
	over("Done", 0)(rp)
	require.NoError(t, d.Client.Status().Update(context.Background(), rp))
	d.settle("r")
	require.Empty(t, d.get("r").Status.Evidence)
	close(slow)
	require.Eventually(t, func() bool { done, _ := d.evidence.ended(rp); return done }, 5*time.Second, time.Millisecond)
	require.Equal(t, "file:///case", d.settle("r").Status.Evidence)
	require.Empty(t, calls, "once is enough")
}

type collect func(ctx context.Context, s evidence.Subject) (string, error)

func (c collect) Collect(ctx context.Context, s evidence.Subject) (string, error) { return c(ctx, s) }
