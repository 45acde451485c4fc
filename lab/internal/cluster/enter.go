package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"theseus.dev/theseus/lab/internal/machine"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
)

// Client replaces this process by a host program running in the client's
// network, where the cluster's names resolve and Services and Pods answer. The
// program sees the host's files; KUBECONFIG names one that works there. It
// returns only when that failed.
func (c *Cluster) Client(argv []string) error {
	lab, err := c.store.Load()
	if err != nil {
		return err
	}
	c.state = lab
	if !c.alive(plan.ClientName) {
		return c.notUp()
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	// From here on this thread belongs to the program it is about to become.
	runtime.LockOSThread()
	ns, err := netns.GetFromPath(network.Path(c.name, plan.ClientName))
	if err != nil {
		return fmt.Errorf("enter the client's network: %w", err)
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter the client's network: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount(c.clientResolv(), "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("put the cluster's resolv.conf in place: %w", err)
	}
	env := append(withoutKubeconfig(os.Environ()), "KUBECONFIG="+c.internalKubeconfig())
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, argv, env))
}

func withoutKubeconfig(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "KUBECONFIG=") {
			out = append(out, e)
		}
	}
	return out
}

// NodeExec runs a program inside a machine (a node, control-plane or client)
// with this command's standard streams.
func (c *Cluster) NodeExec(ctx context.Context, name string, argv []string) error {
	lab, err := c.store.Load()
	if err != nil {
		return err
	}
	m := lab.Machine(name)
	if m == nil {
		return fmt.Errorf("lab %q has no machine %q: `lab status` shows what there is", c.name, name)
	}
	if m.Frozen {
		return errors.New(name + " is frozen: `lab node thaw` first")
	}
	cmd, err := machine.Exec(ctx, m, argv...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
