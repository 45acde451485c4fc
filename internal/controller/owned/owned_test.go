package owned

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
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
		return Apply(t.Context(), c, ours, s, func() { s.Spec.ExternalName = port })
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
			_, err := Apply(t.Context(), c, owner("ours"), s, func() { s.Spec.ExternalName = "ours" })
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

func TestDelete(t *testing.T) {
	c, ours := fake.NewClientBuilder().Build(), owner("ours")
	deleted, err := Delete(t.Context(), c, ours, service())
	require.NoError(t, err)
	require.False(t, deleted, "there is none")
	s := service()
	_, err = Apply(t.Context(), c, ours, s, func() {})
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
