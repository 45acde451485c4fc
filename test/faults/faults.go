// Package faults breaks the primary of a shard in every way we know of, in a lab. End-to-end tests and the robustness
// test draw on the same faults, so that what one finds the other can repeat.
//
// A fault is a function of names alone: it looks up where things run when it is injected. Injecting returns what undoes
// it; undoing is safe to do twice, and when what was broken does not exist any more.
package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/verdict"
)

// Target is the shard to break.
type Target struct {
	Kit       *labkit.Kit
	Namespace string
	Shard     string
}

// Undo takes a fault back as far as a person would; the shard's own part is its own.
type Undo func(context.Context) error

// Effect is what a fault of a primary must lead to.
type Effect string

// The effects.
const (
	// Moves: another instance becomes the primary.
	Moves Effect = "moves"
	// Recovers: another instance becomes the primary, or the same one goes on in its term with its cohort's consent, because
	// nobody was there in time to say otherwise.
	Recovers Effect = "recovers"
	// Stays: the primary stays, and clients see no error.
	Stays Effect = "stays"
)

// Fault is a way for a primary to fail.
type Fault struct {
	Name, About string
	// Effect on who is the primary, if the fault lasts.
	Effect Effect
	// Verdicts that the reparent may be for, if it moves the primary. Which of two comes first may be a matter of moments.
	Verdicts []verdict.Verdict
	// Gone: the instance cannot come back, its successor has another name.
	Gone bool
	// Refuses is the SQLSTATE of errors that clients may see for as long as the primary has not moved; "" for none. What was
	// under way when it happened may fail in any case.
	Refuses string
	// Lasts is how long it may last at most without becoming another fault; 0 for as long as one likes.
	Lasts time.Duration
	// Inject breaks the instance. A nil Undo means that there is nothing to take back.
	Inject func(ctx context.Context, t Target, primary string) (Undo, error)
}

// All faults of a primary.
func All() []Fault {
	return append(append(processFaults(), machineFaults()...), partitionFaults()...)
}

// Named is the fault with that name.
func Named(name string) (Fault, error) {
	for _, f := range append(All(), Extra()...) {
		if f.Name == name {
			return f, nil
		}
	}
	return Fault{}, fmt.Errorf("there is no fault %q", name)
}

// Pod reads an instance's Pod.
func (t Target) Pod(ctx context.Context, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	err := t.Kit.Client.Get(ctx, client.ObjectKey{Namespace: t.Namespace, Name: name}, pod)
	return pod, err
}

// Node is the node an instance runs on.
func (t Target) Node(ctx context.Context, instance string) (string, error) {
	pod, err := t.Pod(ctx, instance)
	if err == nil && pod.Spec.NodeName == "" {
		err = fmt.Errorf("instance %s is on no node yet", instance)
	}
	return pod.Spec.NodeName, err
}

// Primary names the instance that the Shard's status calls primary.
func (t Target) Primary(ctx context.Context) (string, error) {
	shard := &v1alpha1.Shard{}
	if err := t.Kit.Client.Get(ctx, client.ObjectKey{Namespace: t.Namespace, Name: t.Shard}, shard); err != nil {
		return "", err
	}
	if shard.Status.Primary == "" {
		return "", errors.New("the shard has no primary")
	}
	return shard.Status.Primary, nil
}

// others are the Pods of the shard's other instances that have an address.
func (t Target) others(ctx context.Context, instance string) ([]corev1.Pod, error) {
	return t.pods(ctx, t.Namespace, client.MatchingLabels{
		v1alpha1.LabelShard: t.Shard, v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
	}, instance)
}

// operators are the operator's Pods that have an address.
func (t Target) operators(ctx context.Context) ([]corev1.Pod, error) {
	return t.pods(ctx, labkit.OperatorNamespace, client.MatchingLabels{"app.kubernetes.io/name": "theseus"}, "")
}

func (t Target) pods(ctx context.Context, namespace string, labels client.MatchingLabels, except string) ([]corev1.Pod, error) {
	list := &corev1.PodList{}
	if err := t.Kit.Client.List(ctx, list, client.InNamespace(namespace), labels); err != nil {
		return nil, err
	}
	var out []corev1.Pod
	for i := range list.Items {
		p := &list.Items[i]
		if p.Name != except && p.Status.PodIP != "" && p.DeletionTimestamp == nil {
			out = append(out, *p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no Pod in %s has %v", namespace, labels)
	}
	return out, nil
}

// deletePod deletes a Pod without grace; one that is gone is no error.
func (t Target) deletePod(ctx context.Context, namespace, name string) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	return client.IgnoreNotFound(t.Kit.Client.Delete(ctx, pod, client.GracePeriodSeconds(0)))
}

// leader is the operator's Pod that holds the Lease, "" while it was given back and not taken yet. A replica signs with its
// Pod's name and a random part.
func (t Target) leader(ctx context.Context) (string, error) {
	lease := &coordinationv1.Lease{}
	if err := t.Kit.Client.Get(ctx, client.ObjectKey{Namespace: labkit.OperatorNamespace, Name: "theseus-operator"}, lease); err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == nil {
		return "", errors.New("the operator has no leader")
	}
	name, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return name, nil
}

// KillLeader deletes the operator's leader with no grace. It reports false when nobody leads, or whoever did is gone already.
func (t Target) KillLeader(ctx context.Context) (bool, error) {
	leader, err := t.leader(ctx)
	if err != nil || leader == "" {
		return false, err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: labkit.OperatorNamespace, Name: leader}}
	err = t.Kit.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	return err == nil, client.IgnoreNotFound(err)
}

// inPod runs a shell script in an instance's container, as PostgreSQL's user.
func (t Target) inPod(ctx context.Context, instance, script string) error {
	_, err := t.Kit.Kubectl(ctx, "-n", t.Namespace, "exec", instance, "-c", "postgres", "--", "bash", "-c", script)
	return err
}

// onNode runs a shell script on a node, as root, with arguments.
func (t Target) onNode(ctx context.Context, node, script string, args ...string) error {
	_, err := t.Kit.Lab(ctx, append([]string{"node", "exec", node, "--", "bash", "-c", script, "fault"}, args...)...)
	return err
}

// exists says whether a Pod with that identity is still there; undoing something inside one that is not makes no sense.
func (t Target) exists(ctx context.Context, was *corev1.Pod) bool {
	now, err := t.Pod(ctx, was.Name)
	if apierrors.IsNotFound(err) {
		return false
	}
	return err != nil || now.UID == was.UID
}
