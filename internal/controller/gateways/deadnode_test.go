package gateways

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
)

var began = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestADeadNodeIsAvoidedUntilKubernetesKnows(t *testing.T) {
	other := corev1.Taint{Key: "somebody-elses", Effect: corev1.TaintEffectNoSchedule}
	for name, tc := range map[string]struct {
		more  []corev1.Taint
		after time.Duration
		gone  bool
	}{
		"at first":                            {after: 0},
		"for a while":                         {after: avoidFor - time.Second},
		"no longer: it is ready, so it lives": {after: avoidFor, gone: true},
		"Kubernetes says so itself":           {more: []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule}}, after: time.Second, gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Taints: append([]corev1.Taint{other}, tc.more...)}}
			c := fake.NewClientBuilder().WithObjects(node).Build()
			require.NoError(t, avoid(t.Context(), c, c, "n", began))
			require.NoError(t, avoid(t.Context(), c, c, "n", began.Add(time.Minute)), "once is enough, and the first time counts")
			a := &Avoided{Client: c, Clock: testclock.NewFakePassiveClock(began.Add(tc.after))}
			res, err := a.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "n"}})
			require.NoError(t, err)
			require.NoError(t, c.Get(t.Context(), types.NamespacedName{Name: "n"}, node))
			want := append([]corev1.Taint{other}, tc.more...)
			if tc.gone {
				require.Zero(t, res.RequeueAfter)
				require.Equal(t, want, node.Spec.Taints)
				return
			}
			require.Equal(t, avoidFor-tc.after, res.RequeueAfter)
			require.Equal(t, v1alpha1.TaintDead, node.Spec.Taints[len(node.Spec.Taints)-1].Key)
		})
	}
}

func TestNodesThatAreGoneOrWereNeverTainted(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}).Build()
	require.NoError(t, avoid(t.Context(), c, c, "gone", began))
	a := &Avoided{Client: c, Clock: testclock.NewFakePassiveClock(began)}
	for _, name := range []string{"n", "gone"} {
		res, err := a.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
		require.NoError(t, err)
		require.Zero(t, res)
	}
}

// Taints are a list that several write: whoever lost the race looks again.
func TestATaintOfSomebodyElsesIsNotOverwritten(t *testing.T) {
	added := metav1.NewTime(began.Add(-time.Hour))
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: v1alpha1.TaintDead, Effect: corev1.TaintEffectNoSchedule, TimeAdded: &added}}}}
	c := fake.NewClientBuilder().WithObjects(node).WithInterceptorFuncs(interceptor.Funcs{
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, "n", nil)
		},
	}).Build()
	a := &Avoided{Client: c, Clock: testclock.NewFakePassiveClock(began)}
	res, err := a.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "n"}})
	require.NoError(t, err)
	require.Positive(t, res.RequeueAfter)
}
