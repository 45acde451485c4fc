package drain

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine"
	"theseus.dev/theseus/internal/machine/karpenter"
)

// patience is how long an eviction is believed to be wanted after it was asked for last, on a node that is not
// cordoned. Who drains asks again every few seconds: kubectl after 5, cluster-autoscaler after 10, Cluster API after 20.
const patience = 90 * time.Second

// Taints of those who have decided to remove a node. DeletionCandidateOfClusterAutoscaler is not among them: it is a
// thought, and taken back more often than not.
var taints = []struct{ key, why string }{
	{karpenter.TaintDisrupted, "Karpenter removes the node"},
	{"ToBeDeletedByClusterAutoscaler", "cluster-autoscaler removes the node"},
	{"cloud.google.com/impending-node-termination", "the cloud ends the node"},
	{"aws-node-termination-handler/", "the cloud ends the node"}, // a prefix: one taint per kind of event
}

// Wanted is the answer to whether an instance has to leave its node.
type Wanted struct {
	// Why it has to, for people; empty when it has not.
	Why string
	// Deadline by which the node goes in any case; zero is none known.
	Deadline time.Time
	// Until is when the answer may change by itself; zero is never.
	Until time.Time
	// Stale is true when the Pod carries the traces of an eviction that nobody wants any more.
	Stale bool
}

// Decide says whether an instance has to leave its node because somebody is draining it. That a node is cordoned is no
// reason: it says that nothing new should come, not that what is there should go.
func Decide(node *corev1.Node, m machine.Machine, pod *corev1.Pod, now time.Time) Wanted {
	w := Wanted{Why: nodeGoes(node)}
	if m.Removing {
		w.Deadline = m.RemovalDeadline
		if w.Why == "" {
			w.Why = m.Why
		}
		if w.Why == "" {
			w.Why = "the machine is being removed"
		}
	}
	evicted, until := evictionWanted(node, pod, now)
	if w.Why == "" && evicted {
		w.Why, w.Until = "its eviction was asked for", until
	}
	_, asked := pod.Annotations[v1alpha1.AnnotationEvictionRequested]
	w.Stale = asked && !evicted
	return w
}

func nodeGoes(node *corev1.Node) string {
	if node.DeletionTimestamp != nil {
		return "the node is being deleted"
	}
	if why, ok := node.Annotations[v1alpha1.AnnotationDrain]; ok {
		return strings.TrimSuffix(fmt.Sprintf("a drain of the node was asked for: %s", why), ": ")
	}
	for _, t := range node.Spec.Taints {
		for _, known := range taints {
			if t.Key == known.key || strings.HasSuffix(known.key, "/") && strings.HasPrefix(t.Key, known.key) {
				return known.why
			}
		}
	}
	return ""
}

// evictionWanted reports whether an eviction that was asked for still is. On a node that was cordoned it is for as long
// as the cordon lasts: a drain that was interrupted has not been taken back.
func evictionWanted(node *corev1.Node, pod *corev1.Pod, now time.Time) (wanted bool, until time.Time) {
	at, err := time.Parse(time.RFC3339, pod.Annotations[v1alpha1.AnnotationEvictionRequested])
	if err != nil {
		return false, time.Time{}
	}
	if pod.Annotations[v1alpha1.AnnotationEvictionCordoned] == "true" {
		return node.Spec.Unschedulable, time.Time{}
	}
	end := at.Add(patience)
	return now.Before(end), end
}
