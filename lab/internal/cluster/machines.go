package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"theseus.dev/theseus/lab/internal/machinehook"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

// MachineWebhook is the URL at which Theseus, running in the lab, has machines replaced.
func MachineWebhook() string {
	return "http://" + netip.AddrPortFrom(plan.ControlPlane, plan.MachinePort).String() + "/"
}

// serveMachines answers Theseus' calls about machines at an address of the
// control plane's, which Pods can reach. It goes on while the control plane is stopped.
func (c *Cluster) serveMachines(ctx context.Context, log *slog.Logger) error {
	var l net.Listener
	if err := network.Do(c.name, plan.ControlPlaneName, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(plan.ControlPlane.String(), strconv.Itoa(plan.MachinePort)))
		return err
	}); err != nil {
		return err
	}
	y := &yard{c: c, log: log, jobs: map[string]*job{}, base: ctx}
	defer y.wg.Wait()
	return machinehook.Serve(ctx, l, y, log)
}

// yard does what is asked of machines, in the background: one job at a time for each node.
type yard struct {
	c    *Cluster
	log  *slog.Logger
	base context.Context //nolint:containedctx // jobs outlive the request that starts them
	wg   sync.WaitGroup

	mu   sync.Mutex
	jobs map[string]*job
}

// job is what is being done, or was done last, to a node's machine.
type job struct {
	what    string
	running bool
	err     error
}

// hookDrain bounds the wait for Pods that are not Theseus' own: it has emptied the node before it asks.
const hookDrain = 2 * time.Minute

// Status implements machinehook.Machines.
func (y *yard) Status(node string) (machinehook.State, error) {
	lab, err := y.c.store.Load()
	if err != nil {
		return machinehook.State{}, err
	}
	m := lab.Machine(node)
	switch {
	case m == nil && slices.Contains(lab.Names, node):
		return machinehook.State{Gone: true, Message: "it is gone"}, nil
	case m == nil || m.Kind != state.Node:
		return machinehook.State{}, machinehook.ErrUnknown
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	j := y.jobs[node]
	s := machinehook.State{Removing: j != nil && j.running && j.what == "replace", Message: string(m.Phase)}
	if j != nil && j.err != nil {
		s.Message = fmt.Sprintf("%s failed: %s", j.what, j.err)
	}
	return s, nil
}

// Surge implements machinehook.Machines.
func (y *yard) Surge(node string) (done bool, message string, err error) {
	lab, err := y.c.store.Load()
	if err != nil {
		return false, "", err
	}
	j := y.start(node, "surge", func(ctx context.Context, c *Cluster) error {
		_, err := c.NodeSurge(ctx, node)
		return err
	})
	if m := lab.Machine(node); m != nil && m.Successor != "" && !j.running && j.err == nil {
		return true, m.Successor + " is Ready", nil
	}
	if j.err != nil && !j.running {
		return false, j.err.Error(), nil
	}
	return false, "another node is being made in the same zone", nil
}

// GiveBack implements machinehook.Machines.
func (y *yard) GiveBack(node string) error {
	c, err := y.fresh()
	if err != nil {
		return err
	}
	y.mu.Lock()
	delete(y.jobs, node)
	y.mu.Unlock()
	return c.NodeGiveBack(y.base, node)
}

// Replace implements machinehook.Machines.
func (y *yard) Replace(node string) (message string, err error) {
	j := y.start(node, "replace", func(ctx context.Context, c *Cluster) error {
		_, err := c.NodeReplace(ctx, node, hookDrain)
		return err
	})
	if j.err != nil && !j.running {
		return "", j.err
	}
	return "it is being taken away", nil
}

// start begins a job unless it runs or has ended well, and returns how it is. One that failed begins again at the next call.
func (y *yard) start(node, what string, f func(context.Context, *Cluster) error) job {
	y.mu.Lock()
	defer y.mu.Unlock()
	j := y.jobs[node]
	if j != nil && (j.running || j.what == what && j.err == nil) {
		return *j
	}
	failed := error(nil)
	if j != nil && j.what == what {
		failed = j.err
	}
	j = &job{what: what, running: true}
	y.jobs[node] = j
	y.wg.Go(func() {
		c, err := y.fresh()
		if err == nil {
			err = f(y.base, c)
		}
		y.mu.Lock()
		defer y.mu.Unlock()
		j.running, j.err = false, err
		if err != nil {
			y.log.Error("a machine could not be handled", "what", what, "node", node, "error", err)
		}
	})
	if failed != nil {
		return job{what: what, err: failed}
	}
	return *j
}

// fresh is the lab again, with a state of its own: commands are made to be run once.
func (y *yard) fresh() (*Cluster, error) { return New(y.c.name, y.c.log.Out) }
