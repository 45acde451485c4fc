package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"theseus.dev/theseus/lab/internal/imagestore"
	"theseus.dev/theseus/lab/internal/initd"
	"theseus.dev/theseus/lab/internal/kubeconf"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

// NodeOptions describe a node to be made.
type NodeOptions struct {
	// Zone is one of plan.Zones; empty picks the one with the fewest nodes.
	Zone string
	// CPU and Memory cap what the node offers to Pods; empty for no cap.
	CPU    string
	Memory string
}

// Up makes the lab run with at least the given number of running nodes. What
// already runs is left alone; what an interrupted command or a crash left
// behind is repaired or replaced.
func (c *Cluster) Up(ctx context.Context, nodes int, o NodeOptions) error {
	if nodes < 0 {
		return fmt.Errorf("%d nodes cannot be made", nodes)
	}
	if _, _, err := reservations(o.CPU, o.Memory); err != nil {
		return err
	}
	return c.locked(ctx, "up", func() error {
		if err := c.checkTools(); err != nil {
			return err
		}
		if err := c.raiseLimits(); err != nil {
			return err
		}
		if err := c.sweep(ctx); err != nil {
			return err
		}
		if err := c.log.Step("certificates and kubeconfigs", c.writeAdminFiles); err != nil {
			return err
		}
		if err := c.preparePause(ctx); err != nil {
			return err
		}
		if err := c.startControlPlane(ctx); err != nil {
			return err
		}
		if err := c.startDaemon(ctx); err != nil {
			return err
		}
		if err := c.log.Step("the API server is ready", func() error { return c.awaitAPI(ctx) }); err != nil {
			return err
		}
		if err := c.grant(ctx); err != nil {
			return err
		}
		return c.populate(ctx, nodes, o)
	})
}

// populate brings the client and missing nodes up side by side and waits for
// what makes the cluster usable.
func (c *Cluster) populate(ctx context.Context, nodes int, o NodeOptions) error {
	if err := c.deleteLostNodeObjects(ctx); err != nil {
		return err
	}
	jobs := []func() error{
		func() error { return c.startClient(ctx) },
		func() error {
			return c.log.Step("controllers work", func() error { return c.awaitControllers(ctx) })
		},
	}
	for range max(0, nodes-len(c.state.RunningNodes())) {
		m, err := c.newNode(o)
		if err != nil {
			return err
		}
		jobs = append(jobs, func() error { return c.bootNode(ctx, m) })
	}
	if err := together(jobs); err != nil {
		return err
	}
	if have := len(c.state.RunningNodes()); have > nodes {
		c.log.Say("lab %q has %d nodes, more than the %d asked for; `lab node remove` takes one away", c.name, have, nodes)
	}
	return nil
}

// together runs jobs side by side and joins their errors.
func together(jobs []func() error) error {
	errs := make([]error, len(jobs))
	var wg sync.WaitGroup
	for i, job := range jobs {
		wg.Go(func() { errs[i] = job() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// checkTools fails early, with what to do, when something is not there.
func (c *Cluster) checkTools() error {
	needed := []string{"lab-init", "pause", "kube", "kubelet", "etcd", "coredns", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "cni/ptp"}
	for _, name := range needed {
		if _, err := os.Stat(filepath.Join(c.host.BinDir, name)); err != nil {
			return fmt.Errorf("%s is missing: run `make -f lab/lab.mk lab-binaries` in the repository first", filepath.Join(c.host.BinDir, name))
		}
	}
	for tool, pkg := range map[string]string{"nft": "nftables", "nsenter": "util-linux", "mkfs.ext4": "e2fsprogs", "losetup": "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install %s", tool, pkg)
		}
	}
	return nil
}

// kernelLimits are limits of the whole computer, counted per user, that a few
// nodes exceed: every component watches some files.
var kernelLimits = map[string]int{
	"/proc/sys/fs/inotify/max_user_instances": 8192,
	"/proc/sys/fs/inotify/max_user_watches":   524288,
}

// raiseLimits raises kernelLimits where they are lower, and says so: it is the
// one thing a lab changes outside itself. They never go down again.
func (c *Cluster) raiseLimits() error {
	for path, want := range kernelLimits {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read a kernel limit: %w", err)
		}
		have, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || have >= want {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(want)), 0o644); err != nil {
			return fmt.Errorf("raise %s from %d to %d: %w", path, have, want, err)
		}
		c.log.Say("  raised %s from %d to %d", path, have, want)
	}
	return nil
}

// sweep removes what is recorded but not alive: machines half made by an
// interrupted command, and nodes that died on their own or with a reboot.
// Machines that keep their identity (control plane, client) are only marked.
func (c *Cluster) sweep(ctx context.Context) error {
	if err := imagestore.RemoveLeftovers(ctx, c.host); err != nil {
		return err
	}
	for _, m := range slices.Clone(c.state.Machines) {
		if m.Phase == state.Killed || m.Phase == state.Stopped || (m.Phase == state.Running && m.Init.Alive()) {
			continue
		}
		err := c.log.Step("remove what is left of "+m.Name, func() error {
			if m.Kind == state.Node {
				return c.destroyNode(ctx, m)
			}
			if err := c.host.Kill(ctx, m); err != nil {
				return err
			}
			return c.update(func(*state.Lab) { m.Phase, m.Init = state.Stopped, state.Process{} })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteLostNodeObjects forgets nodes that are dead without `node kill`: they
// have no files left, so nobody can want them back.
func (c *Cluster) deleteLostNodeObjects(ctx context.Context) error {
	for _, m := range c.state.Nodes() {
		if m.Phase != state.Killed || m.Requested {
			continue
		}
		if err := c.deleteNodeObject(ctx, m.Name); err != nil {
			return err
		}
		if err := c.update(func(s *state.Lab) { s.Forget(m.Name) }); err != nil {
			return err
		}
	}
	return nil
}

// preparePause puts the image every Pod needs into the store.
func (c *Cluster) preparePause(ctx context.Context) error {
	archive := c.store.Dir("pause.tar")
	if err := os.MkdirAll(c.store.Dir(), 0o755); err != nil {
		return err
	}
	if err := imagestore.WriteStatic(archive, kubeconf.PauseImage, filepath.Join(c.host.BinDir, "pause")); err != nil {
		return err
	}
	return c.loadImage(ctx, archive)
}

// startControlPlane boots etcd, API server, controllers and scheduler, unless
// they run. Data of an earlier start is used again.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if c.alive(plan.ControlPlaneName) {
		return nil
	}
	return c.log.Step("start the control plane", func() error {
		if err := network.EnsureRouter(c.name); err != nil {
			return err
		}
		if err := network.ApplyCuts(ctx, c.name, c.state.Cuts); err != nil {
			return err
		}
		if err := c.writeControlPlaneFiles(); err != nil {
			return err
		}
		m := c.fixedMachine(plan.ControlPlaneName, state.ControlPlane)
		if err := network.Attach(c.name, m.Name, plan.ControlPlane, noPods); err != nil {
			return err
		}
		return c.boot(ctx, m, &initd.Spec{
			Etc:       etcFiles(m.Name, ""),
			Services:  kubeconf.ControlPlaneServices(),
			StopGrace: serviceGrace,
		})
	})
}

// startClient boots the machine that stands for a user's: it has the cluster's
// DNS and its Service rules (kept by the daemon), and nothing else.
func (c *Cluster) startClient(ctx context.Context) error {
	if !c.alive(plan.ClientName) {
		if err := c.writeClientFiles(); err != nil {
			return err
		}
		m := c.fixedMachine(plan.ClientName, state.Client)
		if err := network.Attach(c.name, m.Name, plan.Client, noPods); err != nil {
			return err
		}
		if err := c.boot(ctx, m, &initd.Spec{
			Etc:       etcFiles(m.Name, kubeconf.Resolv()),
			Services:  []initd.Service{kubeconf.DNSService()},
			StopGrace: serviceGrace,
		}); err != nil {
			return err
		}
	}
	return c.log.Step("DNS is ready for clients", func() error { return c.awaitDNS(ctx, plan.ClientName) })
}

// fixedMachine finds or adds one of the two machines that are not nodes.
func (c *Cluster) fixedMachine(name string, kind state.Kind) *state.Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.state.Machine(name); m != nil {
		return m
	}
	m := &state.Machine{Name: name, Kind: kind, Phase: state.Creating, Created: c.clock.Now()}
	c.state.Machines = append(c.state.Machines, m)
	return m
}

// boot starts a machine and records it, before and after.
func (c *Cluster) boot(ctx context.Context, m *state.Machine, spec *initd.Spec) error {
	if err := c.update(func(*state.Lab) { m.Phase = state.Creating }); err != nil {
		return err
	}
	p, err := c.host.Start(ctx, m.Name, spec)
	if p.PID != 0 {
		if e := c.update(func(*state.Lab) { m.Init, m.Phase, m.Frozen = p, state.Running, false }); e != nil {
			return e
		}
	}
	return err
}

// etcFiles are the files of /etc that differ from the host's.
func etcFiles(hostname, resolv string) map[string]string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // documented never to fail
	return map[string]string{
		"hostname":    hostname + "\n",
		"hosts":       "127.0.0.1 localhost\n127.0.1.1 " + hostname + "\n",
		"machine-id":  hex.EncodeToString(id) + "\n",
		"resolv.conf": resolv,
	}
}
