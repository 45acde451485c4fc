package request_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// fixture is an instance db-0-a of shard db-0 on node n.
func fixture(t *testing.T, more ...client.Object) (request.Requests, *corev1.Pod) {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(s))
	require.NoError(t, v1alpha1.AddToScheme(s))
	shard := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0", UID: "shard"}, Spec: v1alpha1.ShardSpec{Database: "db"}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "db-0-a",
			Labels:          map[string]string{v1alpha1.LabelShard: "db-0", v1alpha1.LabelComponent: v1alpha1.ComponentInstance},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Shard", Name: "db-0", UID: "shard", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "n"},
	}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(shard, pod).WithObjects(more...).WithStatusSubresource(&v1alpha1.Replacement{})
	require.NoError(t, request.Index(context.Background(), indexer{b}))
	return request.Requests{Client: b.Build()}, pod
}

type indexer struct{ b *fake.ClientBuilder }

func (i indexer) IndexField(_ context.Context, o client.Object, field string, f client.IndexerFunc) error {
	i.b.WithIndex(o, field, f)
	return nil
}

func replacement(name string, reason v1alpha1.Reason, change func(*v1alpha1.ReplacementStatus)) *v1alpha1.Replacement {
	rp := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u"},
		Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: "db-0-a", Reason: reason},
	}
	if change != nil {
		change(&rp.Status)
	}
	return rp
}

func at(t time.Time) *metav1.MicroTime { return &metav1.MicroTime{Time: t} }

func drain(pod *corev1.Pod) request.Ask {
	return request.Ask{Pod: pod, Reason: v1alpha1.ReasonDraining, Message: "why"}
}

func TestAskingTwiceAsksOnce(t *testing.T) {
	ctx := t.Context()
	r, pod := fixture(t)
	rp, asked, err := r.Make(ctx, drain(pod), now)
	require.NoError(t, err)
	require.True(t, asked)
	require.Equal(t, "db-0-a-draining", rp.Name)
	require.Equal(t, "n", rp.Annotations[v1alpha1.AnnotationNode])
	require.Equal(t, "Shard", rp.OwnerReferences[0].Kind)
	_, asked, err = r.Make(ctx, drain(pod), now)
	require.NoError(t, err)
	require.False(t, asked)
}

func TestWhatIsUnderWayIsEnough(t *testing.T) {
	r, pod := fixture(t, replacement("x", v1alpha1.ReasonExpired, func(s *v1alpha1.ReplacementStatus) { s.AdmittedAt = at(now) }))
	rp, asked, err := r.Make(t.Context(), drain(pod), now)
	require.NoError(t, err)
	require.False(t, asked)
	require.Equal(t, "x", rp.Name)
}

// One that waits may wait for months: what is more urgent is asked for beside it.
func TestWhatOnlyWaitsIsNot(t *testing.T) {
	r, pod := fixture(t, replacement("x", v1alpha1.ReasonOutdated, nil))
	_, asked, err := r.Make(t.Context(), drain(pod), now)
	require.NoError(t, err)
	require.True(t, asked)
}

func TestFailuresAreRepeatedAfterAWhile(t *testing.T) {
	ctx := t.Context()
	r, pod := fixture(t, replacement("db-0-a-draining", v1alpha1.ReasonDraining, func(s *v1alpha1.ReplacementStatus) {
		s.AdmittedAt, s.FinishedAt, s.Outcome = at(now.Add(-time.Hour)), at(now), "Failed"
	}))
	_, asked, err := r.Make(ctx, drain(pod), now.Add(30*time.Second))
	require.NoError(t, err)
	require.False(t, asked, "too early")
	later := now.Add(request.RetryAfter)
	_, asked, err = r.Make(ctx, drain(pod), later)
	require.NoError(t, err)
	require.False(t, asked, "the old one goes first")
	_, asked, err = r.Make(ctx, drain(pod), later)
	require.NoError(t, err)
	require.True(t, asked)
}

func TestOnlyWhatHasNotBegunIsTakenBack(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*v1alpha1.ReplacementStatus)
		gone   bool
	}{
		"new":      {nil, true},
		"waiting":  {func(s *v1alpha1.ReplacementStatus) { s.Phase, s.WaitingFor = "Pending", "ShardBusy" }, true},
		"begun":    {func(s *v1alpha1.ReplacementStatus) { s.Phase, s.AdmittedAt = "Surging", at(now) }, false},
		"finished": {func(s *v1alpha1.ReplacementStatus) { s.Outcome = "Succeeded" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, pod := fixture(t, replacement("db-0-a-draining", v1alpha1.ReasonDraining, tc.change), replacement("other", v1alpha1.ReasonDraining, nil))
			gone, err := r.Withdraw(t.Context(), pod, v1alpha1.ReasonDraining)
			require.NoError(t, err)
			require.Equal(t, tc.gone, gone)
			err = r.Client.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "db-0-a-draining"}, &v1alpha1.Replacement{})
			require.Equal(t, tc.gone, apierrors.IsNotFound(err))
			require.NoError(t, r.Client.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "other"}, &v1alpha1.Replacement{}), "somebody else's")
		})
	}
}

func TestNothingIsAskedOfAShardThatGoes(t *testing.T) {
	r, pod := fixture(t)
	require.NoError(t, r.Client.Delete(t.Context(), &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0"}}))
	_, asked, err := r.Make(t.Context(), drain(pod), now)
	require.NoError(t, err)
	require.False(t, asked)
}
