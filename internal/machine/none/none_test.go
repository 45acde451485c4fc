package none

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestNone(t *testing.T) {
	ctx := context.Background()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "1"}}
	c := fake.NewClientBuilder().WithObjects(node).Build()
	p := Provider{c}
	m, err := p.Find(ctx, node)
	require.NoError(t, err)
	require.True(t, m.Held)
	progress, err := p.Replace(ctx, m)
	require.NoError(t, err)
	require.True(t, progress.Left)
	gone, err := p.Gone(ctx, m)
	require.NoError(t, err)
	require.False(t, gone)
	m.NodeUID = "another"
	gone, err = p.Gone(ctx, m)
	require.NoError(t, err)
	require.True(t, gone, "a node of the same name is another node")
	require.NoError(t, c.Delete(ctx, node))
	gone, err = p.Gone(ctx, m)
	require.NoError(t, err)
	require.True(t, gone)
}
