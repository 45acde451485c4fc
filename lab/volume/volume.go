// Package volume gives the lab dynamic, node-local volumes: a StorageClass whose claims
// become loop-mounted file systems inside the node a Pod was scheduled to. They have real
// sizes and a real end, they can be made to stall, they go with their claim, and they are
// lost with their node.
//
// Run is the provisioner. The other functions need neither it nor an API server: they act
// on the files in the state directory and on the kernel, from any process.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

// Node is one machine of the lab.
type Node struct {
	// Name is its Kubernetes name and its kubernetes.io/hostname.
	Name string
	// Zone is its topology.kubernetes.io/zone.
	Zone string
	// PID is the process that runs as pid 1 in the node's namespaces.
	PID int
}

// Stall makes every write and fsync on the claim's volume hang until Resume, as a network
// disk does when its server is in trouble. Reads of what is cached go on. On a volume that
// is stalled already it changes nothing. It fails if the claim has no mounted volume.
func Stall(stateDir, namespace, claim string) error {
	return onDisk(stateDir, namespace, claim, disk.Store.Freeze)
}

// Resume ends a Stall. On a volume that is not stalled it changes nothing.
func Resume(stateDir, namespace, claim string) error {
	return onDisk(stateDir, namespace, claim, disk.Store.Thaw)
}

// onDisk calls do with the disk of a claim.
func onDisk(stateDir, namespace, claim string, do func(disk.Store, string) error) error {
	s := disk.Store{Dir: stateDir}
	d, err := s.Find(namespace, claim)
	if err != nil {
		return err
	}
	if err := do(s, d.Name); err != nil {
		return fmt.Errorf("volume of claim %s/%s on node %s: %w", namespace, claim, d.Node, err)
	}
	return nil
}

// DropNode destroys the volumes of a node that was killed. It is to be called after the
// kill: processes that hang in a stalled volume cannot die before it is thawed, and one
// thawed before the kill would let their writes succeed.
func DropNode(stateDir, node string) error {
	s := disk.Store{Dir: stateDir}
	all, err := s.List()
	if err != nil {
		return err
	}
	// One volume that cannot be destroyed does not keep the others.
	var failed []error
	for _, d := range all {
		if d.Node == node {
			failed = append(failed, s.Destroy(d.Name))
		}
	}
	return errors.Join(failed...)
}

// Clean destroys every volume, the half-made ones too, and the state directory. Mounts
// end with the nodes they are in.
func Clean(stateDir string) error {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s := disk.Store{Dir: stateDir}
	var failed []error
	for _, e := range entries {
		failed = append(failed, s.Destroy(e.Name()))
	}
	return errors.Join(append(failed, os.Remove(stateDir))...)
}
