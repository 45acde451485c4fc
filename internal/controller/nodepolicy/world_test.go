package nodepolicy

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/machine"
)

var t0 = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// town is a cluster whose machines come from a provider that the test plays, like everything else in it.
type town struct {
	t      *testing.T
	c      client.Client
	clock  *clocktesting.FakeClock
	r      *Reconciler
	policy string
	step   time.Duration // of the clock, at least

	made   int
	held   map[string]bool
	surged map[string]bool
	// noRoom keeps Surge from ever being done; calls that return this error fail.
	noRoom  bool
	failing error
	// stuck machines are told to go and stay.
	stuck bool
	calls []string
	// unfound are the errors of finding machines, by node; finds counts how often one was looked for.
	unfound  map[string]error
	finds    int
	replaced []string
}

type indexer struct{ b *fake.ClientBuilder }

func (i indexer) IndexField(_ context.Context, o client.Object, field string, f client.IndexerFunc) error {
	i.b.WithIndex(o, field, f)
	return nil
}

func newTown(t *testing.T, change func(*v1alpha1.NodePolicy)) *town {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(s))
	require.NoError(t, v1alpha1.AddToScheme(s))
	b := fake.NewClientBuilder().WithScheme(s).WithStatusSubresource(&v1alpha1.NodePolicy{}, &v1alpha1.Replacement{}).
		WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} })
	require.NoError(t, request.Index(context.Background(), indexer{b}))
	tn := &town{t: t, c: b.Build(), clock: clocktesting.NewFakeClock(t0), policy: "p", step: 5 * time.Second, held: map[string]bool{}, surged: map[string]bool{}}
	tn.r = &Reconciler{
		Client: tn.c, Live: tn.c, Clock: tn.clock, Recorder: events.NewFakeRecorder(10000),
		Providers: func(*v1alpha1.NodePolicy) (machine.Provider, error) { return tn, nil },
	}
	p := &v1alpha1.NodePolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.NodePolicySpec{
		MaxAge: metav1.Duration{Duration: 10 * time.Hour}, Budget: intstr.FromInt32(1), DrainTimeout: metav1.Duration{Duration: time.Hour},
		Machine: v1alpha1.MachineSpec{Provider: v1alpha1.MachineKarpenter},
	}}
	if change != nil {
		change(p)
	}
	require.NoError(t, tn.c.Create(t.Context(), p))
	return tn
}

func (tn *town) node(zone string) string {
	tn.t.Helper()
	tn.made++
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("n%d", tn.made), UID: types.UID(fmt.Sprintf("uid%d", tn.made)), CreationTimestamp: metav1.NewTime(tn.clock.Now()),
		Labels: map[string]string{corev1.LabelTopologyZone: zone},
	}}
	require.NoError(tn.t, tn.c.Create(tn.t.Context(), n))
	return n.Name
}

// shard makes one with an instance on each of the nodes.
func (tn *town) shard(name string, nodes ...string) {
	tn.t.Helper()
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}, Spec: v1alpha1.ShardSpec{Database: "db"}}
	sh.Spec.Template.Instances = int32(len(nodes))
	require.NoError(tn.t, tn.c.Create(tn.t.Context(), sh))
	for _, n := range nodes {
		tn.instance(name, n)
	}
}

func (tn *town) instance(shard, node string) {
	tn.t.Helper()
	tn.made++
	require.NoError(tn.t, tn.c.Create(tn.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: fmt.Sprintf("%s-i%d", shard, tn.made),
			Labels:          map[string]string{v1alpha1.LabelShard: shard, v1alpha1.LabelComponent: v1alpha1.ComponentInstance},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Shard", Name: shard, UID: types.UID(shard), Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: node},
	}))
}

func (tn *town) get() *v1alpha1.NodePolicy {
	tn.t.Helper()
	p := &v1alpha1.NodePolicy{}
	require.NoError(tn.t, tn.c.Get(tn.t.Context(), client.ObjectKey{Name: tn.policy}, p))
	return p
}

func (tn *town) change(f func(*v1alpha1.NodePolicy)) {
	tn.t.Helper()
	p := tn.get()
	f(p)
	require.NoError(tn.t, tn.c.Update(tn.t.Context(), p))
}

func (tn *town) nodes() map[string]*corev1.Node {
	tn.t.Helper()
	list := &corev1.NodeList{}
	require.NoError(tn.t, tn.c.List(tn.t.Context(), list))
	out := map[string]*corev1.Node{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out
}

func (tn *town) pods(node string) []corev1.Pod {
	tn.t.Helper()
	list := &corev1.PodList{}
	require.NoError(tn.t, tn.c.List(tn.t.Context(), list, client.MatchingFields{"spec.nodeName": node}))
	return list.Items
}

func (tn *town) asked() []v1alpha1.Replacement {
	tn.t.Helper()
	list := &v1alpha1.ReplacementList{}
	require.NoError(tn.t, tn.c.List(tn.t.Context(), list))
	return list.Items
}

func (tn *town) reconcile() (time.Duration, error) {
	tn.t.Helper()
	res, err := tn.r.Reconcile(tn.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: tn.policy}})
	return res.RequeueAfter, err
}

// replace plays the replacement controller: one instance at a time finds a new place.
func (tn *town) replace() {
	tn.t.Helper()
	for _, rp := range tn.asked() {
		if request.Finished(&rp) {
			require.NoError(tn.t, tn.c.Delete(tn.t.Context(), &rp))
			continue
		}
		pod := &corev1.Pod{}
		require.NoError(tn.t, tn.c.Get(tn.t.Context(), client.ObjectKey{Namespace: "ns", Name: rp.Spec.Instance}, pod))
		here := map[string]bool{}
		for name := range tn.nodes() {
			for _, p := range tn.pods(name) {
				here[name] = here[name] || p.Labels[v1alpha1.LabelShard] == rp.Spec.Shard
			}
		}
		for name, n := range tn.nodes() {
			if n.Spec.Unschedulable || here[name] {
				continue
			}
			tn.instance(rp.Spec.Shard, name)
			require.NoError(tn.t, tn.c.Delete(tn.t.Context(), pod))
			at := metav1.NewMicroTime(tn.clock.Now())
			rp.Status.AdmittedAt, rp.Status.FinishedAt, rp.Status.Outcome, rp.Status.Zone = &at, &at, "Succeeded", n.Labels[corev1.LabelTopologyZone]
			require.NoError(tn.t, tn.c.Status().Update(tn.t.Context(), &rp))
			return
		}
	}
}

// The provider.

func (tn *town) Name() string { return "Town" }

func (tn *town) Find(_ context.Context, n *corev1.Node) (machine.Machine, error) {
	tn.finds++
	if err := tn.unfound[n.Name]; err != nil {
		return machine.Machine{}, err
	}
	return machine.Machine{ID: "m-" + n.Name, UID: "m-" + string(n.UID), Node: n.Name, NodeUID: string(n.UID), CreatedAt: n.CreationTimestamp.Time, Held: tn.held[n.Name]}, tn.failing
}

func (tn *town) note(what string, m machine.Machine) error {
	tn.calls = append(tn.calls, what+" "+m.Node)
	return tn.failing
}

func (tn *town) Hold(_ context.Context, m machine.Machine) error {
	tn.held[m.Node] = true
	return tn.note("hold", m)
}

func (tn *town) Release(_ context.Context, m machine.Machine) error {
	delete(tn.held, m.Node)
	return tn.note("release", m)
}

func (tn *town) Surge(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	if tn.noRoom {
		return machine.Progress{Message: "no machine to be had"}, tn.note("surge", m)
	}
	if !tn.surged[m.Node] {
		tn.surged[m.Node] = true
		n := &corev1.Node{}
		require.NoError(tn.t, tn.c.Get(ctx, client.ObjectKey{Name: m.Node}, n))
		tn.node(n.Labels[corev1.LabelTopologyZone])
	}
	return machine.Progress{Done: true}, tn.note("surge", m)
}

func (tn *town) Replace(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	require.Empty(tn.t, tn.pods(m.Node), "a machine is replaced under an instance")
	require.True(tn.t, tn.held[m.Node], "a machine is replaced that was not held")
	if tn.stuck {
		return machine.Progress{Done: true, Message: "any moment now"}, tn.note("replace", m)
	}
	tn.replaced = append(tn.replaced, m.Node)
	require.NoError(tn.t, client.IgnoreNotFound(tn.c.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: m.Node}})))
	return machine.Progress{Done: true, Message: "going"}, tn.note("replace", m)
}

func (tn *town) GiveBack(_ context.Context, m machine.Machine) error { return tn.note("giveback", m) }

func (tn *town) Gone(ctx context.Context, m machine.Machine) (bool, error) {
	err := tn.c.Get(ctx, client.ObjectKey{Name: m.Node}, &corev1.Node{})
	return client.IgnoreNotFound(err) == nil && err != nil, tn.failing
}
