package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"theseus.dev/theseus/lab/internal/imagestore"
	"theseus.dev/theseus/lab/internal/initd"
	"theseus.dev/theseus/lab/internal/kubeconf"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
	"theseus.dev/theseus/lab/volume"
)

// noPods is the Pod range of a machine that runs none.
var noPods netip.Prefix

// newNode records a node that is about to be made, with a name and an index
// that were never used before.
func (c *Cluster) newNode(o NodeOptions) (*state.Machine, error) {
	if o.Zone != "" && !slices.Contains(plan.Zones(), o.Zone) {
		return nil, fmt.Errorf("zone %q is not one of %v", o.Zone, plan.Zones())
	}
	var m *state.Machine
	err := c.update(func(s *state.Lab) {
		var zones []string
		for _, n := range s.Nodes() {
			if n.Phase != state.Killed {
				zones = append(zones, n.Zone)
			}
		}
		zone := o.Zone
		if zone == "" {
			zone = plan.NextZone(zones)
		}
		name := plan.NodeName(c.rand, func(n string) bool { return slices.Contains(s.Names, n) })
		s.LastIndex++
		s.Names = append(s.Names, name)
		m = &state.Machine{
			Name: name, Kind: state.Node, Index: s.LastIndex, Zone: zone, Phase: state.Creating,
			CPU: o.CPU, Memory: o.Memory, Created: c.clock.Now(),
		}
		for _, i := range s.Images {
			m.Images = append(m.Images, i.Digest)
		}
		s.Machines = append(s.Machines, m)
	})
	return m, err
}

// bootNode makes a recorded node and waits until it is Ready. A node that does
// not get there stays for its logs; the next `up` replaces it if it has died.
func (c *Cluster) bootNode(ctx context.Context, m *state.Machine) error {
	return c.log.Step(fmt.Sprintf("node %s in %s is Ready", m.Name, m.Zone), func() error {
		addr, err := plan.NodeAddress(m.Index)
		if err != nil {
			return err
		}
		pods, err := plan.PodRange(m.Index)
		if err != nil {
			return err
		}
		if err := c.writeNodeFiles(m); err != nil {
			return err
		}
		dir := c.store.MachineDir(m.Name)
		if err := os.MkdirAll(filepath.Join(dir, "var-lib"), 0o755); err != nil {
			return err
		}
		if err := imagestore.Clone(imagestore.Root(c.store), filepath.Join(dir, "var-lib", "containerd")); err != nil {
			return fmt.Errorf("clone the image store: %w", err)
		}
		if err := network.Attach(c.name, m.Name, addr, pods); err != nil {
			return err
		}
		if err := c.boot(ctx, m, &initd.Spec{
			Etc:           etcFiles(m.Name, ""),
			MaskedSysctls: kubeconf.MaskedSysctls(),
			Binds: []initd.Bind{
				{From: filepath.Join(dir, "var-lib"), To: "/var/lib"},
				{From: filepath.Join(dir, "var-log"), To: "/var/log"},
			},
			Services:  kubeconf.NodeServices(m.Name, m.Zone, addr.String()),
			StopGrace: serviceGrace,
		}); err != nil {
			return err
		}
		return c.awaitNode(ctx, m.Name)
	})
}

// NodeAdd makes one node and returns its name.
func (c *Cluster) NodeAdd(ctx context.Context, o NodeOptions) (name string, err error) {
	if _, _, err := reservations(o.CPU, o.Memory); err != nil {
		return "", err
	}
	err = c.locked(ctx, "node add", func() error {
		if err := c.needControlPlane(); err != nil {
			return err
		}
		m, err := c.newNode(o)
		if err != nil {
			return err
		}
		name = m.Name
		return c.bootNode(ctx, m)
	})
	return name, err
}

// NodeKill cuts a node's power: its link first, so that nothing can say
// goodbye, then every process at once; its volumes are gone. The Node object
// stays, as it does when a real machine dies, until `node remove`.
func (c *Cluster) NodeKill(ctx context.Context, name string) error {
	return c.locked(ctx, "node kill "+name, func() error {
		m, err := c.node(name)
		if err != nil {
			return err
		}
		if m.Phase == state.Killed {
			return nil
		}
		return c.log.Step("cut the power of "+name, func() error {
			if err := c.update(func(*state.Lab) { m.Requested = true }); err != nil {
				return err
			}
			return c.destroyNode(ctx, m)
		})
	})
}

// NodeRemove takes a node away for good: the machine, its volumes and its Node
// object. It does not drain; `kubectl drain` does. Removing what is already
// gone succeeds if the name was once a node's.
func (c *Cluster) NodeRemove(ctx context.Context, name string) error {
	return c.locked(ctx, "node remove "+name, func() error {
		if c.state.Machine(name) == nil && slices.Contains(c.state.Names, name) {
			return nil
		}
		m, err := c.node(name)
		if err != nil {
			return err
		}
		if err := c.needControlPlane(); err != nil {
			return err
		}
		return c.log.Step("remove "+name, func() error {
			if m.Phase != state.Killed {
				if err := c.destroyNode(ctx, m); err != nil {
					return err
				}
			}
			if err := c.deleteNodeObject(ctx, name); err != nil {
				return err
			}
			return c.update(func(s *state.Lab) { s.Forget(name) })
		})
	})
}

// destroyNode ends a node's machine and everything on it, and records that it is dead.
func (c *Cluster) destroyNode(ctx context.Context, m *state.Machine) error {
	addr, err := plan.NodeAddress(m.Index)
	if err != nil {
		return err
	}
	pods, err := plan.PodRange(m.Index)
	if err != nil {
		return err
	}
	// From here on it takes no volumes, and an interruption does not save it.
	if err := c.update(func(*state.Lab) { m.Phase = state.Dying }); err != nil {
		return err
	}
	if err := network.Unplug(c.name, m.Name, addr, pods); err != nil {
		return err
	}
	if err := c.host.Shoot(ctx, m); err != nil {
		return err
	}
	// Volumes after the shot, so that nothing is written to one that is thawed,
	// and before the funeral, because a stalled one keeps processes from dying.
	dropped := volume.DropNode(c.volumeDir(), m.Name)
	if err := errors.Join(dropped, c.host.Bury(ctx, m)); err != nil {
		return err
	}
	err = errors.Join(
		network.DeleteNS(c.name, m.Name),
		c.dropFiles(m.Name),
	)
	if err != nil {
		return err
	}
	return c.update(func(s *state.Lab) {
		m.Phase, m.Frozen, m.Init = state.Killed, false, state.Process{}
		s.Heal(m.Name, "")
	})
}

// dropFiles removes a dead node's disk but keeps its logs: they are what is
// looked at afterwards.
func (c *Cluster) dropFiles(name string) error {
	dir := c.store.MachineDir(name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "log" || e.Name() == "var-log" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the disk of %s: %w", name, err)
		}
	}
	return nil
}

// volumeDir is where the volume provisioner keeps its files.
func (c *Cluster) volumeDir() string { return c.store.Dir("volumes") }
