package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"theseus.dev/theseus/lab/internal/imagestore"
	"theseus.dev/theseus/lab/internal/machine"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
	"theseus.dev/theseus/lab/volume"
)

// ControlPlaneStop ends etcd, the API server, controllers and the scheduler.
// Nodes and what runs on them go on.
func (c *Cluster) ControlPlaneStop(ctx context.Context) error {
	return c.locked(ctx, "control-plane stop", func() error {
		m := c.state.Machine(plan.ControlPlaneName)
		if m == nil {
			return c.notUp()
		}
		if m.Phase == state.Stopped {
			return nil
		}
		return c.log.Step("stop the control plane", func() error {
			if err := c.host.Stop(ctx, m, controlPlaneGrace); err != nil {
				return err
			}
			return c.update(func(*state.Lab) { m.Phase, m.Init = state.Stopped, state.Process{} })
		})
	})
}

// ControlPlaneStart starts it again, with the data it had.
func (c *Cluster) ControlPlaneStart(ctx context.Context) error {
	return c.locked(ctx, "control-plane start", func() error {
		if c.state.Machine(plan.ControlPlaneName) == nil {
			return c.notUp()
		}
		if err := c.startControlPlane(ctx); err != nil {
			return err
		}
		return c.log.Step("the API server is ready", func() error { return c.awaitAPI(ctx) })
	})
}

// startDaemon runs `lab daemon` in the background unless it runs.
func (c *Cluster) startDaemon(ctx context.Context) error {
	if c.state.Daemon.Alive() {
		return nil
	}
	path := c.store.Dir("log", "daemon.log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not CommandContext: the daemon outlives the command that starts it.
	cmd := exec.Command(filepath.Join(c.host.BinDir, "lab"), "--name", c.name, "daemon")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the lab's daemon: %w", err)
	}
	p, err := state.Identify(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("the lab's daemon ended at once, see %s: %w", path, err)
	}
	go func() { _ = cmd.Wait() }()
	if err := c.update(func(s *state.Lab) { s.Daemon = p }); err != nil {
		return err
	}
	return ctx.Err()
}

// Down ends the cluster: every process, namespace, control group, volume, and
// all of its data. The image store stays, so that the next `up` is fast.
func (c *Cluster) Down(ctx context.Context) error {
	return c.locked(ctx, "down", func() error { return c.log.Step("take lab "+c.name+" down", func() error { return c.down(ctx) }) })
}

// Clean is Down and removes every file of the lab.
func (c *Cluster) Clean(ctx context.Context) error {
	return c.locked(ctx, "clean", func() error {
		return c.log.Step("remove lab "+c.name, func() error {
			if err := c.down(ctx); err != nil {
				return err
			}
			if err := os.RemoveAll(c.store.Dir()); err != nil {
				return fmt.Errorf("remove the lab's files: %w", err)
			}
			// The common parents go with the last lab.
			_ = os.Remove(filepath.Dir(c.store.Dir()))
			c.host.Cgroups.Prune("/theseus-lab")
			return nil
		})
	})
}

// down does not trust the state file to be complete: it also looks for what
// carries the lab's name.
func (c *Cluster) down(ctx context.Context) error {
	if err := c.state.Daemon.Stop(ctx, 5*time.Second); err != nil {
		return err
	}
	names := append(c.machineNames(), imagestore.Names()...)
	machine.KillStragglers(c.name, names)
	jobs := make([]func() error, 0, len(c.state.Machines))
	for _, m := range c.state.Machines {
		jobs = append(jobs, func() error {
			if err := c.host.Shoot(ctx, m); err != nil {
				return err
			}
			return errors.Join(volume.DropNode(c.volumeDir(), m.Name), c.host.Bury(ctx, m))
		})
	}
	if err := together(jobs); err != nil {
		return err
	}
	if err := c.host.KillGroup(ctx, ""); err != nil {
		return err
	}
	if err := volume.Clean(c.volumeDir()); err != nil {
		return err
	}
	for _, name := range names {
		if err := network.DeleteNS(c.name, name); err != nil {
			return err
		}
	}
	for _, dir := range []string{"machines", "pki", "volumes", "log", "kubeconfig", "kubeconfig-inside"} {
		if err := os.RemoveAll(c.store.Dir(dir)); err != nil {
			return fmt.Errorf("remove the lab's files: %w", err)
		}
	}
	return c.update(func(s *state.Lab) {
		*s = state.Lab{Name: s.Name, Names: s.Names, Images: s.Images, APIPort: s.APIPort}
	})
}

// machineNames lists everything that may have a network namespace: what is
// recorded and what is found.
func (c *Cluster) machineNames() []string {
	names := []string{plan.RouterName, plan.ControlPlaneName, plan.ClientName}
	for _, m := range c.state.Machines {
		names = append(names, m.Name)
	}
	names = append(names, network.Found(c.name)...)
	slices.Sort(names)
	return slices.Compact(names)
}
