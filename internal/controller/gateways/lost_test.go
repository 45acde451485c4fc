package gateways

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
)

func pod(name, component, node, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{v1alpha1.LabelComponent: component}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "health", ContainerPort: 99}}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}
}

var operators = map[string]string{"app.kubernetes.io/name": "theseus"}

func operator(name, node, ip string) *corev1.Pod {
	p := pod(name, "", node, ip)
	p.Labels = operators
	return p
}

// left runs an inquiry after instance db-0 on n1 in a cluster where the addresses that begin with a dead prefix do not
// answer, and lists the gateways that are left.
func left(t *testing.T, dead ...string) (names []string, tainted bool, dials int64) {
	t.Helper()
	c := fake.NewClientBuilder().WithObjects(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}},
		pod("db-0", v1alpha1.ComponentInstance, "n1", "10.1.0.1"),
		pod("gw-a", v1alpha1.ComponentGateway, "n1", "10.1.0.2"),
		pod("gw-b", v1alpha1.ComponentGateway, "n2", "10.2.0.2"),
		pod("other-gw", v1alpha1.ComponentGateway, "n1", "10.1.0.3"),
		pod("pending-gw", v1alpha1.ComponentGateway, "n1", ""),
		operator("op-a", "n1", "10.1.0.4"), operator("op-b", "n2", "10.2.0.4"), pod("somebody-elses", "", "n1", "10.1.0.5"),
	).Build()
	var n atomic.Int64
	l := &Lost{Client: c, Clock: clock.RealClock{}, Log: logr.Discard(), Live: c, Operators: []client.ListOption{client.MatchingLabels(operators)}, Dial: func(_ context.Context, address string) error {
		n.Add(1)
		require.True(t, strings.HasSuffix(address, ":99"))
		for _, d := range dead {
			if strings.HasPrefix(address, d) {
				return errors.New("no answer")
			}
		}
		return nil
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 5 { // the verdict is given again and again; one inquiry is enough
		l.Dead(ctx, types.NamespacedName{Namespace: "ns", Name: "db-0"})
	}
	l.Dead(ctx, types.NamespacedName{Namespace: "ns", Name: "nobody"})
	l.Wait()
	list := &corev1.PodList{}
	require.NoError(t, c.List(ctx, list))
	for i := range list.Items {
		if name := list.Items[i].Name; name != "db-0" && name != "somebody-elses" {
			names = append(names, name)
		}
	}
	require.Len(t, list.Items, len(names)+2, "neither instances nor other people's Pods")
	node := &corev1.Node{}
	require.NoError(t, c.Get(ctx, types.NamespacedName{Name: "n2"}, node))
	require.Empty(t, node.Spec.Taints)
	require.NoError(t, c.Get(ctx, types.NamespacedName{Name: "n1"}, node))
	return names, len(node.Spec.Taints) > 0, n.Load()
}

func TestGatewaysOfADeadMachine(t *testing.T) {
	names, tainted, _ := left(t, "10.1.")
	require.True(t, tainted, "or what is made instead is scheduled onto the dead node, which Kubernetes calls ready")
	require.ElementsMatch(t, []string{"gw-b", "pending-gw", "op-b"}, names, "every shard's gateway on the dead machine goes, and the operator's replica, no other")

	names, tainted, dials := left(t)
	require.False(t, tainted)
	require.Len(t, names, 6, "the instance died alone: its machine answers")
	require.EqualValues(t, 3, dials, fmt.Sprintf("one question each: %d", dials))

	names, tainted, _ = left(t, "10.1.0.2")
	require.False(t, tainted, "a gateway died, its machine lives")
	require.ElementsMatch(t, []string{"gw-b", "pending-gw", "other-gw", "op-a", "op-b"}, names)

	names, tainted, _ = left(t, "10.")
	require.False(t, tainted)
	require.Len(t, names, 6, "nobody answers: we are cut off and touch nothing")
}
