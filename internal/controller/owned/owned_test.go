package owned

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

func owner(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid of " + name)}}
}

func service() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-rw"}}
}

func TestApply(t *testing.T) {
	c, ours := fake.NewClientBuilder().Build(), owner("ours")
	apply := func(port string) (controllerutil.OperationResult, error) {
		s := service()
		return Apply(t.Context(), c, c, ours, s, func() { s.Spec.ExternalName = port })
	}
	result, err := apply("a")
	require.NoError(t, err)
	require.Equal(t, controllerutil.OperationResultCreated, result)
	result, err = apply("a")
	require.NoError(t, err)
	require.Equal(t, controllerutil.OperationResultNone, result, "nothing is written when nothing changes")
	result, err = apply("b")
	require.NoError(t, err)
	require.Equal(t, controllerutil.OperationResultUpdated, result)
	s := service()
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(s), s))
	require.Equal(t, "b", s.Spec.ExternalName)
	require.True(t, metav1.IsControlledBy(s, ours))
}

func TestWhatSomebodyElseMadeIsLeftAlone(t *testing.T) {
	for name, references := range map[string][]metav1.OwnerReference{
		"a person":           nil,
		"another controller": {{APIVersion: "v1", Kind: "ConfigMap", Name: "other", UID: "other", Controller: ptr.To(true)}},
	} {
		t.Run(name, func(t *testing.T) {
			theirs := service()
			theirs.OwnerReferences, theirs.Spec.ExternalName = references, "theirs"
			c := fake.NewClientBuilder().WithObjects(theirs).Build()
			s := service()
			_, err := Apply(t.Context(), c, c, owner("ours"), s, func() { s.Spec.ExternalName = "ours" })
			var taken *TakenError
			require.ErrorAs(t, err, &taken)
			require.ErrorContains(t, err, "Service db-rw exists and was not made by Theseus")
			deleted, err := Delete(t.Context(), c, owner("ours"), service())
			require.NoError(t, err)
			require.False(t, deleted)
			require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(s), s))
			require.Equal(t, "theirs", s.Spec.ExternalName)
		})
	}
}

// labelled is a client as the operator's: it sees what has the label only.
func labelled(c client.Client) client.Client {
	return interceptor.NewClient(c.(client.WithWatch), interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			there := &corev1.Service{}
			if err := c.Get(ctx, key, there); err == nil && there.Labels["ours"] == "" {
				return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
			}
			return c.Get(ctx, key, o, opts...)
		},
	})
}

func TestANameIsTakenByWhatTheCacheDoesNotShow(t *testing.T) {
	live := fake.NewClientBuilder().WithObjects(service()).Build()
	s := service()
	_, err := Apply(t.Context(), labelled(live), live, owner("ours"), s, func() { SetLabels(s, map[string]string{"ours": "1"}) })
	var taken *TakenError
	require.ErrorAs(t, err, &taken)
	require.Equal(t, TakenError{Kind: "Service", Name: "db-rw"}, *taken)
	require.NoError(t, live.Get(t.Context(), client.ObjectKeyFromObject(s), s))
	require.Empty(t, s.Labels)
}

func TestOurOwnThatTheCacheDoesNotShowIsALostRace(t *testing.T) {
	live := fake.NewClientBuilder().Build()
	c, ours := labelled(live), owner("ours")
	apply := func() error {
		s := service()
		_, err := Apply(t.Context(), c, live, ours, s, func() { SetLabels(s, map[string]string{"ours": "1"}) })
		return err
	}
	require.NoError(t, apply())
	s := service()
	require.NoError(t, live.Get(t.Context(), client.ObjectKeyFromObject(s), s))
	s.Labels = map[string]string{"theirs": "kept"}
	require.NoError(t, live.Update(t.Context(), s))
	require.True(t, apierrors.IsAlreadyExists(apply()))
	require.NoError(t, apply(), "its label is back, so it is seen")
	require.NoError(t, live.Get(t.Context(), client.ObjectKeyFromObject(s), s))
	require.Equal(t, map[string]string{"ours": "1", "theirs": "kept"}, s.Labels)
}

func TestDelete(t *testing.T) {
	c, ours := fake.NewClientBuilder().Build(), owner("ours")
	deleted, err := Delete(t.Context(), c, ours, service())
	require.NoError(t, err)
	require.False(t, deleted, "there is none")
	s := service()
	_, err = Apply(t.Context(), c, c, ours, s, func() {})
	require.NoError(t, err)
	deleted, err = Delete(t.Context(), c, ours, service())
	require.NoError(t, err)
	require.True(t, deleted)
	require.True(t, apierrors.IsNotFound(c.Get(t.Context(), client.ObjectKeyFromObject(s), s)))
}

func TestSetLabels(t *testing.T) {
	s := service()
	SetLabels(s, map[string]string{"a": "1"})
	s.Labels["theirs"] = "kept"
	SetLabels(s, map[string]string{"a": "2", "b": "3"})
	require.Equal(t, map[string]string{"a": "2", "b": "3", "theirs": "kept"}, s.Labels)
}
