package drain

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/machine"
	"theseus.dev/theseus/internal/machine/clusterapi"
	"theseus.dev/theseus/internal/machine/karpenter"
)

type indexer struct{ b *fake.ClientBuilder }

func (i indexer) IndexField(_ context.Context, o client.Object, field string, f client.IndexerFunc) error {
	i.b.WithIndex(o, field, f)
	return nil
}

// forbidden is a cluster with Karpenter whose NodeClaims the operator may not read, and one instance on a node of it.
func forbidden(t *testing.T) client.Client {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(s))
	require.NoError(t, v1alpha1.AddToScheme(s))
	no := apierrors.NewForbidden(schema.GroupResource{Group: "karpenter.sh", Resource: "nodeclaims"}, "", nil)
	node := tainted(karpenter.TaintDisrupted)
	node.Name, node.Labels = "n1", map[string]string{"karpenter.sh/nodepool": "db"}
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0", UID: "u"}, Spec: v1alpha1.ShardSpec{Database: "db"}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "db-0-a", UID: "a", Labels: map[string]string{v1alpha1.LabelShard: "db-0", v1alpha1.LabelComponent: v1alpha1.ComponentInstance},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Shard", Name: "db-0", UID: "u", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "n1"},
	}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(node, sh, pod).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, ok := list.(*unstructured.UnstructuredList); ok {
				return no
			}
			return c.List(ctx, list, opts...)
		},
	})
	require.NoError(t, request.Index(t.Context(), indexer{b}))
	return b.Build()
}

// Where the operator may not read NodeClaims, Karpenter's taint says all that has to be known; and a provider that is not
// among those to ask cannot make the look at the node fail.
func TestDrainsByTaintNeedNoProvider(t *testing.T) {
	for name, tc := range map[string]struct {
		machines func(c client.Client) []machine.Provider
		fails    bool
	}{
		"asked all the same": {func(c client.Client) []machine.Provider { return []machine.Provider{karpenter.Provider{Client: c}} }, true},
		"not to be asked":    {func(client.Client) []machine.Provider { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := forbidden(t)
			r := &Reconciler{Client: c, Recorder: events.NewFakeRecorder(10), Clock: clocktesting.NewFakeClock(now), Machines: tc.machines(c)}
			res, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "n1"}})
			require.Equal(t, tc.fails, err != nil, "%v", err)
			require.Equal(t, busyInterval, res.RequeueAfter)
			list := &v1alpha1.ReplacementList{}
			require.NoError(t, c.List(t.Context(), list))
			require.Len(t, list.Items, 1)
			require.Equal(t, v1alpha1.ReasonDraining, list.Items[0].Spec.Reason)
		})
	}
}

// To watch what may not be read would never begin, and end the manager.
func TestOnlyTheObjectsOfThoseWhoAreAskedAreWatched(t *testing.T) {
	require.Empty(t, kinds(nil))
	require.Equal(t, []schema.GroupVersionKind{clusterapi.GVK}, kinds([]machine.Provider{clusterapi.Provider{}}))
	require.Equal(t, []schema.GroupVersionKind{karpenter.GVK, clusterapi.GVK}, kinds([]machine.Provider{karpenter.Provider{}, clusterapi.Provider{}}))
}
