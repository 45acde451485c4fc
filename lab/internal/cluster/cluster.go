// Package cluster is what the lab's commands do: it knows the order in which
// machines, networks, images and Kubernetes come and go, and keeps the state
// file in step. How each is done is in the packages below it.
//
// Rules that every operation here keeps:
//   - What is about to be made is recorded first, so that the next command can
//     clean up after one that was interrupted.
//   - Asking for what is already so succeeds and changes nothing.
//   - Every wait has a deadline and says what it was waiting for.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"theseus.dev/theseus/lab/internal/cgroup"
	"theseus.dev/theseus/lab/internal/machine"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/progress"
	"theseus.dev/theseus/lab/internal/state"
)

// lockWait bounds how long a command waits for another one to finish.
const lockWait = 5 * time.Minute

// Cluster is one lab.
type Cluster struct {
	name  string
	host  *machine.Host
	store *state.Store
	log   *progress.Log
	clock clock.WithTicker
	rand  *rand.Rand

	// mu guards state and its file while nodes are worked on side by side.
	mu    sync.Mutex
	state *state.Lab
}

// New is the lab of that name. Nothing is read or made yet.
func New(name string, out io.Writer) (*Cluster, error) {
	if err := plan.CheckLabName(name); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: namespaces, mounts and control groups are made")
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	exe, err = filepath.EvalSymlinks(exe)
	if err != nil {
		return nil, err
	}
	groups, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	store := state.Open(state.Root, name)
	return &Cluster{
		name:  name,
		host:  &machine.Host{Lab: name, BinDir: filepath.Dir(exe), Cgroups: groups, Store: store},
		store: store,
		log:   &progress.Log{Out: out, Clock: clock.RealClock{}},
		clock: clock.RealClock{},
		rand:  rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	}, nil
}

// locked runs f with the lab's lock held and its state loaded.
func (c *Cluster) locked(ctx context.Context, command string, f func() error) error {
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	unlock, err := c.store.Lock(wait, command, func(holder string) {
		c.log.Say("waiting for another command on lab %q (%s)", c.name, holder)
	})
	if err != nil {
		return err
	}
	defer unlock()
	if c.state, err = c.store.Load(); err != nil {
		return err
	}
	return f()
}

// update changes the state under the mutex and saves it.
func (c *Cluster) update(f func(*state.Lab)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c.state)
	return c.store.Save(c.state)
}

// node finds a node by name for a command.
func (c *Cluster) node(name string) (*state.Machine, error) {
	m := c.state.Machine(name)
	if m == nil || m.Kind != state.Node {
		return nil, fmt.Errorf("lab %q has no node %q: `lab node list` shows what there is", c.name, name)
	}
	return m, nil
}

// running finds a node that is switched on.
func (c *Cluster) running(name string) (*state.Machine, error) {
	m, err := c.node(name)
	if err != nil {
		return nil, err
	}
	if m.Phase != state.Running || !m.Init.Alive() {
		return nil, fmt.Errorf("node %s is not running (%s)", name, m.Phase)
	}
	return m, nil
}

// alive reports whether a machine is recorded as running and really is.
func (c *Cluster) alive(name string) bool {
	m := c.state.Machine(name)
	return m != nil && m.Phase == state.Running && m.Init.Alive()
}

// await polls check until it is true, or limit has passed; then the error says
// what was awaited and why it was not so.
func (c *Cluster) await(ctx context.Context, what string, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := c.clock.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		// The error of an attempt that the deadline cut short says nothing.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not after %s: %w (logs are in %s)", what, limit, last, c.store.Dir("machines"))
		case <-tick.C():
		}
	}
}
