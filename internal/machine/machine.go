// Package machine is what Theseus needs to know of, and to ask from, whatever makes and removes the machines under nodes.
//
// The interface is small because the operator does the rest itself, the same way for every provider: it holds the machine,
// has room made, moves the instances off one by one (package replacement), and only then asks for the machine, which nobody
// needs any more, to be replaced. So no provider has to drain, to surge or to know what a database is; and killing a
// node is always safe by the time it is asked for.
//
// Every method may be called any number of times, after a restart, with a machine that is gone already. None blocks longer
// than its context allows, and none waits: what takes time says so in its Progress and is asked again.
package machine

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ErrNotMine says that the provider has no machine for a node.
var ErrNotMine = errors.New("the provider does not know this node")

// Machine is what is under a node.
type Machine struct {
	// ID is how the provider finds it again: "namespace/name", or a name. UID tells it from a later one of the same name.
	ID  string
	UID string
	// Node is the name of its node, NodeUID its identity.
	Node, NodeUID string
	// CreatedAt is when it was asked for; zero when the provider does not say.
	CreatedAt time.Time
	// Removing is true once somebody decided that it goes; Why says who and for what, as far as is known.
	Removing bool
	Why      string
	// RemovalDeadline is when it goes whether or not anything is left on it; zero when it waits.
	RemovalDeadline time.Time
	// ExpiresAt is when the provider would remove it for its age; zero when it never does.
	ExpiresAt time.Time
	// Held is true while the provider waits for Release before it takes the machine away.
	Held bool
}

// Progress of something that takes time.
type Progress struct {
	// Done is true when there is nothing more to wait for.
	Done bool
	// Message for people: what it waits for.
	Message string
	// Left is true when the provider does nothing about the machine: it is free of databases and left to people.
	Left bool
}

// Provider is one way to get machines.
type Provider interface {
	// Name as in NodePolicy.spec.machine.provider.
	Name() string
	// Find returns the machine under a node: who owns it, is it being removed. ErrNotMine when there is none.
	Find(ctx context.Context, node *corev1.Node) (Machine, error)
	// Hold keeps the provider from taking the machine away before Release, as far as it can be kept from it.
	Hold(ctx context.Context, m Machine) error
	// Release takes Hold back.
	Release(ctx context.Context, m Machine) error
	// Surge makes room for what is on the machine before it is moved off: Done once there is room, or when the provider
	// makes room by itself for Pods that wait.
	Surge(ctx context.Context, m Machine) (Progress, error)
	// Replace removes the machine for good and sees to a new one, unless Surge did. Done once it is under way.
	Replace(ctx context.Context, m Machine) (Progress, error)
	// GiveBack undoes Surge for a machine that stays after all.
	GiveBack(ctx context.Context, m Machine) error
	// Gone reports whether the machine does not exist any more.
	Gone(ctx context.Context, m Machine) (bool, error)
}
