// Package karpenter drives machines that Karpenter makes (karpenter.sh/v1).
//
// Karpenter's own expiry (expireAfter, 720h by default) is forceful: it respects no budget and makes no replacement first. So
// Theseus owns the deadline of 696h and Karpenter's is the backstop; Machine.ExpiresAt lets the caller say so when it is
// set shorter. A NodeClaim is deleted only when no instance is left on its node. What else Karpenter wants to remove
// (drift, consolidation, interruption) shows as Removing, and the instances are moved off while it waits for their Pods.
//
// Objects are read as unstructured, so that neither Karpenter's module nor its release is tied to ours. The fields used
// have not changed since karpenter.sh/v1: spec.expireAfter, status.nodeName, conditions, the annotations below.
package karpenter

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/machine"
)

// Names that Karpenter uses.
const (
	// DoNotDisrupt on a Node keeps Karpenter from removing it of its own accord; on a Pod it holds the drain.
	DoNotDisrupt = "karpenter.sh/do-not-disrupt"
	// TaintDisrupted marks a node that Karpenter has decided to remove.
	TaintDisrupted = "karpenter.sh/disrupted"
	// terminationTime on a NodeClaim is when it goes, drained or not (RFC 3339).
	terminationTime = "karpenter.sh/nodeclaim-termination-timestamp"
	labelNodePool   = "karpenter.sh/nodepool"
	// heldBy marks a node that is held, and says whether its do-not-disrupt is ours to take back: "true", or "kept" when
	// there was one before.
	heldBy = "theseus.dev/held"
	ours   = "true"
	kept   = "kept"
)

// GVK of NodeClaims.
var GVK = schema.GroupVersionKind{Group: "karpenter.sh", Version: "v1", Kind: "NodeClaim"}

// Provider drives NodeClaims through Client, which is the cluster's own.
type Provider struct{ Client client.Client }

var _ machine.Provider = Provider{}

// Name is "Karpenter".
func (Provider) Name() string { return "Karpenter" }

// Find looks for the NodeClaim that owns the node, or names it.
func (p Provider) Find(ctx context.Context, node *corev1.Node) (machine.Machine, error) {
	claim, err := p.claim(ctx, node)
	if err != nil {
		return machine.Machine{}, err
	}
	m := machine.Machine{
		ID: claim.GetName(), UID: string(claim.GetUID()), Node: node.Name, NodeUID: string(node.UID),
		CreatedAt: claim.GetCreationTimestamp().Time, Held: node.Annotations[heldBy] != "" && node.Annotations[DoNotDisrupt] == "true",
	}
	if claim.GetDeletionTimestamp() != nil {
		m.Removing, m.Why = true, "its NodeClaim is being deleted"
	}
	for _, t := range node.Spec.Taints {
		if t.Key == TaintDisrupted {
			m.Removing, m.Why = true, "Karpenter has decided to remove it"
		}
	}
	if why := disruptionReason(claim); m.Removing && why != "" {
		m.Why += " (" + why + ")"
	}
	if at, err := time.Parse(time.RFC3339, claim.GetAnnotations()[terminationTime]); err == nil {
		m.RemovalDeadline = at
	}
	if after, ok, _ := unstructured.NestedString(claim.Object, "spec", "expireAfter"); ok {
		if d, err := time.ParseDuration(after); err == nil { // "Never" is none
			m.ExpiresAt = m.CreatedAt.Add(d)
		}
	}
	return m, nil
}

func (p Provider) claim(ctx context.Context, node *corev1.Node) (*unstructured.Unstructured, error) {
	for _, ref := range node.OwnerReferences {
		if ref.Kind != GVK.Kind || schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).Group != GVK.Group {
			continue
		}
		claim := p.empty()
		err := p.Client.Get(ctx, client.ObjectKey{Name: ref.Name}, claim)
		if apierrors.IsNotFound(err) {
			return nil, machine.ErrNotMine
		}
		return claim, err
	}
	if _, ok := node.Labels[labelNodePool]; !ok {
		return nil, machine.ErrNotMine
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(GVK.GroupVersion().WithKind("NodeClaimList"))
	if err := p.Client.List(ctx, list); err != nil {
		if meta.IsNoMatchError(err) {
			return nil, machine.ErrNotMine
		}
		return nil, err
	}
	for i := range list.Items {
		if name, _, _ := unstructured.NestedString(list.Items[i].Object, "status", "nodeName"); name == node.Name {
			return &list.Items[i], nil
		}
	}
	return nil, machine.ErrNotMine
}

func (Provider) empty() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(GVK)
	return u
}

// Owns reports whether a node says that the NodeClaim of that name made it.
func Owns(claim string, node *corev1.Node) bool {
	for _, ref := range node.OwnerReferences {
		if ref.Kind == GVK.Kind && ref.Name == claim && schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).Group == GVK.Group {
			return true
		}
	}
	return false
}

// disruptionReason reads the condition in which Karpenter says why: its reason, or its message.
func disruptionReason(claim *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(claim.Object, "status", "conditions")
	for _, c := range conditions {
		m, ok := c.(map[string]any)
		if !ok || m["type"] != "DisruptionReason" || m["status"] != "True" {
			continue
		}
		if reason, _ := m["reason"].(string); reason != "" {
			return reason
		}
	}
	return ""
}

// Hold keeps Karpenter from removing the node of its own accord. It does not keep it from finishing what has begun: there
// the instances' Pods do, until they are moved off. What a person has annotated stays theirs.
func (p Provider) Hold(ctx context.Context, m machine.Machine) error {
	return p.annotate(ctx, m, func(a map[string]string) {
		if a[DoNotDisrupt] != "true" {
			a[DoNotDisrupt], a[heldBy] = "true", ours
		} else if a[heldBy] == "" {
			a[heldBy] = kept
		}
	})
}

// Release takes back what Hold did.
func (p Provider) Release(ctx context.Context, m machine.Machine) error {
	return p.annotate(ctx, m, func(a map[string]string) {
		if a[heldBy] == ours {
			delete(a, DoNotDisrupt)
		}
		delete(a, heldBy)
	})
}

func (p Provider) annotate(ctx context.Context, m machine.Machine, change func(map[string]string)) error {
	var node corev1.Node
	if err := p.Client.Get(ctx, client.ObjectKey{Name: m.Node}, &node); err != nil {
		return client.IgnoreNotFound(err)
	}
	if string(node.UID) != m.NodeUID {
		return nil // another node by now
	}
	before := node.DeepCopy()
	if node.Annotations == nil {
		node.Annotations = map[string]string{}
	}
	change(node.Annotations)
	return client.IgnoreNotFound(p.Client.Patch(ctx, &node, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})))
}

// Surge does nothing: Karpenter makes a machine for every Pod that finds no room.
func (Provider) Surge(context.Context, machine.Machine) (machine.Progress, error) {
	return machine.Progress{Done: true, Message: "Karpenter makes machines for Pods that wait"}, nil
}

// GiveBack does nothing.
func (Provider) GiveBack(context.Context, machine.Machine) error { return nil }

// Replace deletes the NodeClaim, never the Node: deleting the Node alone may leave the machine running.
func (p Provider) Replace(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	claim := p.empty()
	claim.SetName(m.ID)
	uid := types.UID(m.UID)
	err := p.Client.Delete(ctx, claim, client.Preconditions{UID: &uid}, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return machine.Progress{Done: true, Message: "the NodeClaim is gone"}, nil
	}
	if err != nil {
		return machine.Progress{}, err
	}
	return machine.Progress{Done: true, Message: "waiting for Karpenter to remove the machine"}, nil
}

// Gone reports whether the NodeClaim is.
func (p Provider) Gone(ctx context.Context, m machine.Machine) (bool, error) {
	claim := p.empty()
	err := p.Client.Get(ctx, client.ObjectKey{Name: m.ID}, claim)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return err == nil && string(claim.GetUID()) != m.UID, err
}
