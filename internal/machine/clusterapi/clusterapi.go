// Package clusterapi drives machines of Cluster API (cluster.x-k8s.io/v1beta2).
//
// Cluster API does not surge for one machine: a Machine that is being deleted still counts as a replica, so its successor is
// made only when it is gone. Surge therefore raises the replicas of the MachineDeployment (or of a MachineSet that stands
// alone) by one and notes on the same object, in the same update, for which machine: so it happens once, however
// often it is asked for. Replace marks the machine for deletion first and takes the replica back, the same way.
//
// A machine is held by the hooks Cluster API has for it: while their annotations are there, a Machine that is being
// deleted is not drained (pre-drain) and not removed (pre-terminate). They have no timeout of their own; rotations do.
//
// Machines of a control plane, and machines nobody would make again, are not ours: Find says ErrNotMine.
package clusterapi

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/machine"
)

// Names that Cluster API uses.
const (
	// PreDrainHook and PreTerminateHook hold a Machine that is being deleted.
	PreDrainHook     = "pre-drain.delete.hook.machine.cluster.x-k8s.io/theseus"
	PreTerminateHook = "pre-terminate.delete.hook.machine.cluster.x-k8s.io/theseus"
	// DeleteMachine makes a Machine the first to go when replicas are lowered.
	DeleteMachine = "cluster.x-k8s.io/delete-machine"

	deploymentName = "cluster.x-k8s.io/deployment-name"
	setName        = "cluster.x-k8s.io/set-name"

	nodeMachine   = "cluster.x-k8s.io/machine"
	nodeNamespace = "cluster.x-k8s.io/cluster-namespace"
	group         = "cluster.x-k8s.io"
	hookOwner     = "theseus.dev"
	// surgePrefix and a hash of the machine's UID note a surge on the object whose replicas were raised.
	surgePrefix = "theseus.dev/surge-"
)

func gvk(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: group, Version: "v1beta2", Kind: kind}
}

// GVK of Machines.
var GVK = gvk("Machine")

// Owns reports whether a node says that it runs on the Machine of that name.
func Owns(machine client.ObjectKey, node *corev1.Node) bool {
	return machine.Name != "" && node.Annotations[nodeMachine] == machine.Name && node.Annotations[nodeNamespace] == machine.Namespace
}

// Provider drives Machines through Client, which is that of the management cluster.
type Provider struct{ Client client.Client }

var _ machine.Provider = Provider{}

// Name is "ClusterAPI".
func (Provider) Name() string { return "ClusterAPI" }

// Find follows the node's annotations to its Machine.
func (p Provider) Find(ctx context.Context, node *corev1.Node) (machine.Machine, error) {
	key := client.ObjectKey{Namespace: node.Annotations[nodeNamespace], Name: node.Annotations[nodeMachine]}
	if key.Name == "" {
		return machine.Machine{}, machine.ErrNotMine
	}
	obj, err := p.get(ctx, "Machine", key)
	if apierrors.IsNotFound(err) {
		return machine.Machine{}, machine.ErrNotMine
	}
	if err != nil {
		return machine.Machine{}, err
	}
	if ref, _, _ := unstructured.NestedString(obj.Object, "status", "nodeRef", "name"); ref != "" && ref != node.Name {
		return machine.Machine{}, machine.ErrNotMine
	}
	if _, err := p.owner(ctx, obj); err != nil {
		return machine.Machine{}, err
	}
	a := obj.GetAnnotations()
	m := machine.Machine{
		ID: key.String(), UID: string(obj.GetUID()), Node: node.Name, NodeUID: string(node.UID), CreatedAt: obj.GetCreationTimestamp().Time,
		Held: a[PreDrainHook] == hookOwner && a[PreTerminateHook] == hookOwner,
	}
	if obj.GetDeletionTimestamp() != nil {
		m.Removing, m.Why, m.RemovalDeadline = true, "its Machine is being deleted", drainDeadline(obj)
	}
	return m, nil
}

// drainDeadline is when Cluster API stops waiting for the drain; zero when it never does, or has not begun.
func drainDeadline(obj *unstructured.Unstructured) time.Time {
	limit, _, _ := unstructured.NestedInt64(obj.Object, "spec", "deletion", "nodeDrainTimeoutSeconds")
	began, _, _ := unstructured.NestedString(obj.Object, "status", "deletion", "nodeDrainStartTime")
	at, err := time.Parse(time.RFC3339, began)
	if limit <= 0 || err != nil {
		return time.Time{}
	}
	return at.Add(time.Duration(limit) * time.Second)
}

func (p Provider) get(ctx context.Context, kind string, key client.ObjectKey) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk(kind))
	return u, p.Client.Get(ctx, key, u)
}

// owner is the object whose replicas make machines like this one: its MachineDeployment, or its MachineSet.
func (p Provider) owner(ctx context.Context, obj *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	for range 2 {
		ref := metav1.GetControllerOf(obj)
		if ref == nil || ref.Kind != "MachineSet" && ref.Kind != "MachineDeployment" {
			break
		}
		above, err := p.get(ctx, ref.Kind, client.ObjectKey{Namespace: obj.GetNamespace(), Name: ref.Name})
		if apierrors.IsNotFound(err) {
			break
		}
		if err != nil {
			return nil, err
		}
		obj = above
	}
	if obj.GetKind() == "Machine" {
		return nil, fmt.Errorf("%w: Machine %s belongs to no MachineSet that would make another one", machine.ErrNotMine, obj.GetName())
	}
	return obj, nil
}

// machine reads the Machine again; nil when it is gone or another one by now.
func (p Provider) machine(ctx context.Context, m machine.Machine) (*unstructured.Unstructured, error) {
	key, err := parse(m.ID)
	if err != nil {
		return nil, err
	}
	obj, err := p.get(ctx, "Machine", key)
	if apierrors.IsNotFound(err) || err == nil && string(obj.GetUID()) != m.UID {
		return nil, nil
	}
	return obj, err
}

func parse(id string) (client.ObjectKey, error) {
	for i := range len(id) {
		if id[i] == '/' {
			return client.ObjectKey{Namespace: id[:i], Name: id[i+1:]}, nil
		}
	}
	return client.ObjectKey{}, fmt.Errorf("%q names no Machine: it has no namespace", id)
}

// Hold sets both hooks.
func (p Provider) Hold(ctx context.Context, m machine.Machine) error {
	return p.annotate(ctx, m, func(a map[string]string) {
		a[PreDrainHook], a[PreTerminateHook] = hookOwner, hookOwner
	})
}

// Release removes both hooks.
func (p Provider) Release(ctx context.Context, m machine.Machine) error {
	return p.annotate(ctx, m, func(a map[string]string) {
		delete(a, PreDrainHook)
		delete(a, PreTerminateHook)
	})
}

func (p Provider) annotate(ctx context.Context, m machine.Machine, change func(map[string]string)) error {
	obj, err := p.machine(ctx, m)
	if err != nil || obj == nil {
		return err
	}
	return p.update(ctx, obj, func() bool {
		a := obj.GetAnnotations()
		if a == nil {
			a = map[string]string{}
		}
		change(a)
		obj.SetAnnotations(a)
		return true
	})
}

// update patches with an optimistic lock: two operators, or one that repeats itself, change replicas once.
func (p Provider) update(ctx context.Context, obj *unstructured.Unstructured, change func() bool) error {
	before := obj.DeepCopy()
	if !change() {
		return nil
	}
	return client.IgnoreNotFound(p.Client.Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})))
}

func surgeKey(m machine.Machine) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(m.UID))
	return fmt.Sprintf("%s%016x", surgePrefix, h.Sum64())
}

// scale notes or takes back the surge for a machine, and changes the replicas with it.
func (p Provider) scale(ctx context.Context, owner *unstructured.Unstructured, m machine.Machine, up bool) error {
	key := surgeKey(m)
	return p.update(ctx, owner, func() bool {
		a := owner.GetAnnotations()
		if a == nil {
			a = map[string]string{}
		}
		if _, surged := a[key]; surged == up {
			return false
		}
		replicas, _, _ := unstructured.NestedInt64(owner.Object, "spec", "replicas")
		if up {
			a[key] = m.ID
			replicas++
		} else {
			delete(a, key)
			replicas--
		}
		owner.SetAnnotations(a)
		return unstructured.SetNestedField(owner.Object, replicas, "spec", "replicas") == nil
	})
}

// Surge raises the replicas by one and waits until so many are available.
func (p Provider) Surge(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	obj, err := p.machine(ctx, m)
	if err != nil {
		return machine.Progress{}, err
	}
	if obj == nil || obj.GetDeletionTimestamp() != nil {
		return machine.Progress{Done: true, Message: "the Machine is being deleted already"}, nil
	}
	owner, err := p.owner(ctx, obj)
	if err != nil {
		return machine.Progress{}, err
	}
	if err := p.scale(ctx, owner, m, true); err != nil {
		return machine.Progress{}, err
	}
	want, _, _ := unstructured.NestedInt64(owner.Object, "spec", "replicas")
	have, _, _ := unstructured.NestedInt64(owner.Object, "status", "availableReplicas")
	seen, _, _ := unstructured.NestedInt64(owner.Object, "status", "observedGeneration")
	return machine.Progress{
		Done:    have >= want && seen >= owner.GetGeneration(),
		Message: fmt.Sprintf("%s %s has %d of %d machines available", owner.GetKind(), owner.GetName(), have, want),
	}, nil
}

// GiveBack takes the replica of Surge back. The newest machine of the set is marked to be the one that goes: left to itself
// Cluster API would pick any. Should instances be on it by now, they are moved off like those of every machine that is
// being removed.
func (p Provider) GiveBack(ctx context.Context, m machine.Machine) error {
	obj, err := p.machine(ctx, m)
	if err != nil || obj == nil {
		return err
	}
	owner, err := p.owner(ctx, obj)
	if err != nil {
		return err
	}
	if _, surged := owner.GetAnnotations()[surgeKey(m)]; !surged {
		return nil
	}
	newest, err := p.newest(ctx, owner, m)
	if err != nil {
		return err
	}
	if newest != nil {
		if err := p.update(ctx, newest, func() bool {
			a := newest.GetAnnotations()
			if a == nil {
				a = map[string]string{}
			}
			a[DeleteMachine] = hookOwner
			newest.SetAnnotations(a)
			return true
		}); err != nil {
			return err
		}
	}
	return p.scale(ctx, owner, m, false)
}

// newest is the youngest Machine of an owner other than m that nobody is deleting; nil when there is none.
func (p Provider) newest(ctx context.Context, owner *unstructured.Unstructured, m machine.Machine) (*unstructured.Unstructured, error) {
	label := setName
	if owner.GetKind() == "MachineDeployment" {
		label = deploymentName
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(gvk("MachineList"))
	if err := p.Client.List(ctx, list, client.InNamespace(owner.GetNamespace()), client.MatchingLabels{label: owner.GetName()}); err != nil {
		return nil, err
	}
	var newest *unstructured.Unstructured
	for i := range list.Items {
		c := &list.Items[i]
		if string(c.GetUID()) == m.UID || c.GetDeletionTimestamp() != nil {
			continue
		}
		if newest == nil || c.GetCreationTimestamp().After(newest.GetCreationTimestamp().Time) {
			newest = c
		}
	}
	return newest, nil
}

// Replace marks the Machine, releases its hooks and takes the surge's replica back, so that Cluster API removes it. Without a
// surge (it was being deleted already, or its owner changed) the Machine is deleted. To delete it as well when it was
// marked is safe: of the machines of a set those that are being deleted go first.
func (p Provider) Replace(ctx context.Context, m machine.Machine) (machine.Progress, error) {
	obj, err := p.machine(ctx, m)
	if err != nil {
		return machine.Progress{}, err
	}
	if obj == nil {
		return machine.Progress{Done: true, Message: "the Machine is gone"}, nil
	}
	deleting := obj.GetDeletionTimestamp() != nil
	if err := p.annotate(ctx, m, func(a map[string]string) {
		a[DeleteMachine] = hookOwner
		delete(a, PreDrainHook)
		delete(a, PreTerminateHook)
	}); err != nil {
		return machine.Progress{}, err
	}
	owner, err := p.owner(ctx, obj)
	if err != nil {
		return machine.Progress{}, err
	}
	if _, surged := owner.GetAnnotations()[surgeKey(m)]; surged {
		if err := p.scale(ctx, owner, m, false); err != nil {
			return machine.Progress{}, err
		}
	} else if !deleting {
		uid := types.UID(m.UID)
		if err := p.Client.Delete(ctx, obj, client.Preconditions{UID: &uid}); client.IgnoreNotFound(err) != nil {
			return machine.Progress{}, err
		}
	}
	return machine.Progress{Done: true, Message: "waiting for Cluster API to remove the machine"}, nil
}

// Gone reports whether the Machine is.
func (p Provider) Gone(ctx context.Context, m machine.Machine) (bool, error) {
	obj, err := p.machine(ctx, m)
	return err == nil && obj == nil, err
}
