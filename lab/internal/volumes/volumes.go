// Package volumes is the lab's side of the volume provisioner.
package volumes

import (
	"context"
	"errors"
)

// Node is a machine that can hold volumes.
type Node struct {
	Name string
	// PID is the machine's pid 1, whose mount namespace volumes go to.
	PID  int
	Zone string
}

var errNone = errors.New("this lab was built without a volume provisioner")

// Run provisions volumes until ctx ends.
func Run(ctx context.Context, kubeconfig, dir string, nodes func() []Node) error {
	<-ctx.Done()
	return nil
}

// Stall makes writes to a claim's volume hang.
func Stall(dir, claim string) error { return errNone }

// Resume ends a stall.
func Resume(dir, claim string) error { return errNone }

// DropNode forgets the volumes of a node that is gone.
func DropNode(dir, node string) error { return nil }

// Clean removes every volume.
func Clean(dir string) error { return nil }
