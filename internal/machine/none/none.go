// Package none is the provider of machines that nobody replaces: old nodes are emptied and left to people.
package none

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/machine"
)

// Provider does nothing to machines. It reads nodes with Reader to learn whether they are gone.
type Provider struct{ Reader client.Reader }

var _ machine.Provider = Provider{}

// Name is "None".
func (Provider) Name() string { return "None" }

// Find calls the node itself its machine.
func (Provider) Find(_ context.Context, node *corev1.Node) (machine.Machine, error) {
	return machine.Machine{
		ID: node.Name, UID: string(node.UID), Node: node.Name, NodeUID: string(node.UID),
		CreatedAt: node.CreationTimestamp.Time, Removing: node.DeletionTimestamp != nil, Held: true,
	}, nil
}

// Hold does nothing.
func (Provider) Hold(context.Context, machine.Machine) error { return nil }

// Release does nothing.
func (Provider) Release(context.Context, machine.Machine) error { return nil }

// GiveBack does nothing.
func (Provider) GiveBack(context.Context, machine.Machine) error { return nil }

// Surge does nothing: whether there is room turns out when a Pod wants it.
func (Provider) Surge(context.Context, machine.Machine) (machine.Progress, error) {
	return machine.Progress{Done: true}, nil
}

// Replace leaves the machine to people.
func (Provider) Replace(context.Context, machine.Machine) (machine.Progress, error) {
	return machine.Progress{Done: true, Left: true, Message: "no provider replaces the machine; remove it, or let it rejoin as a new node"}, nil
}

// Gone reports whether the node is.
func (p Provider) Gone(ctx context.Context, m machine.Machine) (bool, error) {
	var node corev1.Node
	err := p.Reader.Get(ctx, client.ObjectKey{Name: m.Node}, &node)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return err == nil && string(node.UID) != m.NodeUID, err
}
