// Package state is what a lab remembers between two commands: one JSON file,
// replaced atomically, guarded by a file lock that mutating commands hold.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"
)

// Root is the directory that holds every lab of this machine.
const Root = "/var/lib/theseus-lab"

// Labs are the names of the labs that have files below root, none if there is no such directory.
func Labs(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Kind says what a machine is for.
type Kind string

// The kinds of machine.
const (
	Node         Kind = "node"
	ControlPlane Kind = "control-plane"
	Client       Kind = "client"
)

// Phase is where a machine is in its life.
type Phase string

// The phases of a machine. Creating is recorded before anything is made, so
// that an interrupted command leaves nothing the next one does not know.
const (
	Creating Phase = "creating"
	Running  Phase = "running"
	Dying    Phase = "dying"   // a node that is being destroyed
	Stopped  Phase = "stopped" // the control plane after `control-plane stop`
	Killed   Phase = "killed"  // a node after `node kill`: only its Node object is left
)

// Machine is one machine of the lab.
type Machine struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// Index decides a node's addresses; 0 for machines that are not nodes.
	Index int    `json:"index,omitempty"`
	Zone  string `json:"zone,omitempty"`
	Phase Phase  `json:"phase"`
	// Init is the machine's pid 1.
	Init   Process `json:"init"`
	Frozen bool    `json:"frozen,omitempty"`
	// Requested says that a node's death was asked for (`node kill`), so that
	// it is somebody's intention that its Node object stays.
	Requested bool `json:"requested,omitempty"`
	// Images are the digests of archives this machine has.
	Images []string `json:"images,omitempty"`
	// CPU and Memory cap what the kubelet offers to Pods, as Kubernetes
	// quantities; empty means all the machine has.
	CPU    string `json:"cpu,omitempty"`
	Memory string `json:"memory,omitempty"`
	// Successor is the node that was made to stand in for this one.
	Successor string `json:"successor,omitempty"`
	// Spare is true for a successor that was not needed after all.
	Spare   bool      `json:"spare,omitempty"`
	Created time.Time `json:"created"`
}

// Image is an archive that was loaded.
type Image struct {
	// Digest is the SHA-256 of the archive, in hex.
	Digest string    `json:"digest"`
	Source string    `json:"source"`
	Loaded time.Time `json:"loaded"`
}

// Cut drops packets between two machines; To or From may be Everyone.
type Cut struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Everyone stands for all machines but the other side of a Cut.
const Everyone = "*"

// Lab is everything remembered of one lab.
type Lab struct {
	Name string `json:"name"`
	// APIPort is the port on 127.0.0.1 where the host reaches the API; 0 until chosen.
	APIPort int `json:"apiPort,omitempty"`
	// LastIndex is the highest node index ever given out.
	LastIndex int `json:"lastIndex"`
	// Names are all node names ever given out.
	Names    []string   `json:"names,omitempty"`
	Daemon   Process    `json:"daemon"`
	Machines []*Machine `json:"machines,omitempty"`
	Cuts     []Cut      `json:"cuts,omitempty"`
	// Images are the archives in the image store, oldest first.
	Images []Image `json:"images,omitempty"`
}

// Machine finds a machine by name, or returns nil.
func (l *Lab) Machine(name string) *Machine {
	for _, m := range l.Machines {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// Nodes lists the nodes, by index, including killed ones.
func (l *Lab) Nodes() []*Machine {
	var nodes []*Machine
	for _, m := range l.Machines {
		if m.Kind == Node {
			nodes = append(nodes, m)
		}
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].Index < nodes[j].Index })
	return nodes
}

// RunningNodes lists the nodes that are switched on: not killed, not half made.
func (l *Lab) RunningNodes() []*Machine {
	return slices.DeleteFunc(l.Nodes(), func(m *Machine) bool { return m.Phase != Running })
}

// Forget removes a machine and every cut it was part of.
func (l *Lab) Forget(name string) {
	l.Machines = slices.DeleteFunc(l.Machines, func(m *Machine) bool { return m.Name == name })
	l.Cuts = slices.DeleteFunc(l.Cuts, func(c Cut) bool { return c.From == name || c.To == name })
}

// Loaded records an archive in the image store. It replaces an older archive
// from the same file, also in what nodes are known to have: loading the older
// one again has to move its tags back.
func (l *Lab) Loaded(image Image) {
	for _, old := range l.Images {
		if old.Source != image.Source {
			continue
		}
		for _, m := range l.Machines {
			m.Images = slices.DeleteFunc(m.Images, func(d string) bool { return d == old.Digest })
		}
	}
	l.Images = slices.DeleteFunc(l.Images, func(i Image) bool { return i.Source == image.Source })
	l.Images = append(l.Images, image)
}

// AddCuts adds cuts that are not there yet.
func (l *Lab) AddCuts(cuts ...Cut) {
	for _, c := range cuts {
		if !slices.Contains(l.Cuts, c) {
			l.Cuts = append(l.Cuts, c)
		}
	}
}

// Heal removes the cuts a machine is part of; with a peer, only those between the two.
func (l *Lab) Heal(name, peer string) {
	l.Cuts = slices.DeleteFunc(l.Cuts, func(c Cut) bool {
		if peer != "" {
			return c == Cut{name, peer} || c == Cut{peer, name}
		}
		return c.From == name || c.To == name
	})
}

// Store keeps the state of one lab in a directory.
type Store struct {
	dir string
}

// Open is the store of the named lab below root (see Root). It makes nothing.
func Open(root, name string) *Store { return &Store{dir: filepath.Join(root, name)} }

// Dir is the lab's directory; with elements, a path below it.
func (s *Store) Dir(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

// MachineDir is the directory of one machine's files.
func (s *Store) MachineDir(machine string, elem ...string) string {
	return s.Dir(append([]string{"machines", machine}, elem...)...)
}

// Load reads the lab. A lab that does not exist is an empty one with that name.
func (s *Store) Load() (*Lab, error) {
	lab := &Lab{Name: filepath.Base(s.dir)}
	b, err := os.ReadFile(s.Dir("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return lab, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's state: %w", err)
	}
	if err := json.Unmarshal(b, lab); err != nil {
		return nil, fmt.Errorf("the lab's state in %s is damaged (run `lab clean` to start over): %w", s.Dir("lab.json"), err)
	}
	return lab, nil
}

// Save replaces the state atomically.
func (s *Store) Save(lab *Lab) error {
	b, err := json.MarshalIndent(lab, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the lab's state: %w", err)
	}
	return WriteFile(s.Dir("lab.json"), append(b, '\n'), 0o644)
}

// WriteFile writes a file by renaming a complete one into place, making its
// directory if needed. It does not fsync: nothing of a lab survives a reboot.
func WriteFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.tmp%d", path, os.Getpid())
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}
