package drain

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func tainted(keys ...string) *corev1.Node {
	n := &corev1.Node{}
	for _, k := range keys {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k, Effect: corev1.TaintEffectNoSchedule})
	}
	return n
}

func evicted(ago time.Duration, cordoned string) *corev1.Pod {
	p := &corev1.Pod{}
	p.Annotations = map[string]string{v1alpha1.AnnotationEvictionRequested: now.Add(-ago).Format(time.RFC3339)}
	if cordoned != "" {
		p.Annotations[v1alpha1.AnnotationEvictionCordoned] = cordoned
	}
	return p
}

func TestDecide(t *testing.T) {
	cordoned := &corev1.Node{Spec: corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{{Key: corev1.TaintNodeUnschedulable}}}}
	deleted := &corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: now}}}
	asked := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationDrain: ""}}}
	still := &corev1.Pod{}
	for name, tc := range map[string]struct {
		node  *corev1.Node
		m     machine.Machine
		pod   *corev1.Pod
		why   string
		stale bool
	}{
		"an ordinary node":                           {node: &corev1.Node{}, pod: still},
		"a bare cordon moves nothing":                {node: cordoned, pod: still},
		"a candidate of the autoscaler is a thought": {node: tainted("DeletionCandidateOfClusterAutoscaler"), pod: still},
		"not ready is no drain":                      {node: tainted(corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable), pod: still},
		"decided by the autoscaler":                  {node: tainted("ToBeDeletedByClusterAutoscaler"), pod: still, why: "cluster-autoscaler removes the node"},
		"decided by Karpenter":                       {node: tainted("karpenter.sh/disrupted"), pod: still, why: "Karpenter removes the node"},
		"Karpenter's other taints say nothing":       {node: tainted("karpenter.sh/unregistered"), pod: still},
		"a spot instance ends":                       {node: tainted("aws-node-termination-handler/spot-itn"), pod: still, why: "the cloud ends the node"},
		"the node is being deleted":                  {node: deleted, pod: still, why: "the node is being deleted"},
		"a person asks":                              {node: asked, pod: still, why: "a drain of the node was asked for"},
		"the machine is being deleted":               {node: &corev1.Node{}, m: machine.Machine{Removing: true, Why: "its Machine is being deleted"}, pod: still, why: "its Machine is being deleted"},
		"kubectl drain": {
			node: cordoned, pod: evicted(time.Second, "true"), why: "its eviction was asked for",
		},
		"a drain that was interrupted goes on while the cordon lasts": {
			node: cordoned, pod: evicted(time.Hour, "true"), why: "its eviction was asked for",
		},
		"uncordoning takes a drain back at once": {
			node: &corev1.Node{}, pod: evicted(time.Second, "true"), stale: true,
		},
		"an eviction without a cordon": {
			node: &corev1.Node{}, pod: evicted(time.Minute, "false"), why: "its eviction was asked for",
		},
		"which nobody repeats": {
			node: &corev1.Node{}, pod: evicted(2*time.Minute, "false"), stale: true,
		},
		"and which a later cordon does not bring back": {
			node: cordoned, pod: evicted(2*time.Minute, "false"), stale: true,
		},
		"nonsense is no request": {
			node: cordoned, pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationEvictionRequested: "yes"}}}, stale: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := Decide(tc.node, tc.m, tc.pod, now)
			require.Equal(t, tc.why, w.Why)
			require.Equal(t, tc.stale, w.Stale)
			if !w.Until.IsZero() {
				require.True(t, w.Until.After(now))
			}
		})
	}
}

func TestADeadlineOfTheMachineIsHandedOn(t *testing.T) {
	m := machine.Machine{Removing: true, RemovalDeadline: now.Add(time.Hour)}
	w := Decide(tainted("karpenter.sh/disrupted"), m, &corev1.Pod{}, now)
	require.Equal(t, now.Add(time.Hour), w.Deadline)
	require.Equal(t, "Karpenter removes the node", w.Why)
}
