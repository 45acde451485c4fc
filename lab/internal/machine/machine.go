// Package machine starts, stops and kills machines: sets of namespaces with
// lab-init as pid 1 (see package initd for what happens inside).
package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"theseus.dev/theseus/lab/internal/cgroup"
	"theseus.dev/theseus/lab/internal/initd"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

// Host is what machines of one lab have in common.
type Host struct {
	Lab string
	// BinDir is the host's directory of the lab's executables.
	BinDir  string
	Cgroups *cgroup.Tree
	Store   *state.Store
}

// Start boots a machine whose network exists, from a spec, and returns its pid 1.
// It returns as soon as that process exists; what the machine's services need
// to be ready is the caller's to await.
func (h *Host) Start(ctx context.Context, name string, spec *initd.Spec) (state.Process, error) {
	cg := plan.Cgroup(h.Lab, name)
	if err := h.Cgroups.Create(cg); err != nil {
		return state.Process{}, err
	}
	spec.Hostname = name
	spec.JoinCgroups = h.Cgroups.ProcsFiles(cg)
	dir := h.Store.MachineDir(name)
	spec.Binds = append([]initd.Bind{
		{From: h.BinDir, To: initd.BinDir},
		{From: dir, To: initd.MachineDir},
	}, spec.Binds...)
	for _, b := range spec.Binds {
		if err := os.MkdirAll(b.From, 0o755); err != nil {
			return state.Process{}, err
		}
	}
	content, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return state.Process{}, err
	}
	specPath := filepath.Join(dir, "spec.json")
	if err := state.WriteFile(specPath, content, 0o600); err != nil {
		return state.Process{}, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o755); err != nil {
		return state.Process{}, err
	}
	log, err := os.OpenFile(filepath.Join(dir, initd.LogFile("init")), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return state.Process{}, err
	}
	defer log.Close()
	// Not CommandContext: the machine outlives the command that starts it.
	cmd := exec.Command(filepath.Join(h.BinDir, "lab-init"), specPath)
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	// Forked from a thread inside the machine's network, the child stays in it.
	if err := network.Do(h.Lab, name, cmd.Start); err != nil {
		return state.Process{}, fmt.Errorf("start %s: %w", name, err)
	}
	p, err := state.Identify(cmd.Process.Pid)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return state.Process{}, fmt.Errorf("start %s (see %s): %w", name, log.Name(), err)
	}
	// Collect it should it end while this command still runs.
	go func() { _ = cmd.Wait() }()
	return p, ctx.Err()
}

// Kill ends a machine at once and everything in it, as a power cut would, and
// waits until no process of it is left.
func (h *Host) Kill(ctx context.Context, m *state.Machine) error {
	if err := h.Shoot(ctx, m); err != nil {
		return err
	}
	return h.Bury(ctx, m)
}

// Shoot gives a machine its death without waiting for it: processes that hang
// in a stalled volume die only once somebody has thawed that.
func (h *Host) Shoot(ctx context.Context, m *state.Machine) error {
	if err := m.Init.Signal(unix.SIGKILL); err != nil {
		return err
	}
	// A frozen process does not die before it is thawed. It runs no
	// instruction of its own in between.
	if m.Frozen {
		return h.Freeze(ctx, m.Name, false)
	}
	return nil
}

// Bury waits until no process of a machine that was shot is left, and removes
// its control groups.
func (h *Host) Bury(ctx context.Context, m *state.Machine) error {
	if err := m.Init.Kill(ctx); err != nil {
		return err
	}
	return h.cleanup(ctx, m.Name)
}

// Stop asks a machine to stop its services in order; after the grace it is killed.
func (h *Host) Stop(ctx context.Context, m *state.Machine, grace time.Duration) error {
	if m.Frozen {
		return h.Kill(ctx, m)
	}
	if err := m.Init.Stop(ctx, grace); err != nil {
		return err
	}
	return h.cleanup(ctx, m.Name)
}

// KillGroup kills whatever is in a machine's control groups and removes them,
// for machines of which nothing else is known any more.
func (h *Host) KillGroup(ctx context.Context, name string) error {
	return h.Cgroups.Remove(ctx, plan.Cgroup(h.Lab, name))
}

// cleanup removes a dead machine's control groups: stale ones make the next
// machine of the same name slow to boot.
func (h *Host) cleanup(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return h.Cgroups.Remove(ctx, plan.Cgroup(h.Lab, name))
}

// Freeze stops or resumes every process of a machine.
func (h *Host) Freeze(ctx context.Context, name string, frozen bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return h.Cgroups.Freeze(ctx, plan.Cgroup(h.Lab, name), frozen)
}

// Exec is a command that, when run, runs argv inside all of a machine's
// namespaces, with the lab's executables first in its path.
func Exec(ctx context.Context, m *state.Machine, argv ...string) (*exec.Cmd, error) {
	if !m.Init.Alive() {
		return nil, fmt.Errorf("%s is not running", m.Name)
	}
	enter := []string{
		"--target", strconv.Itoa(m.Init.PID), "--mount", "--uts", "--ipc", "--net", "--pid", "--",
		"env", "PATH=" + initd.BinDir + ":/usr/sbin:/usr/bin:/sbin:/bin",
	}
	return exec.CommandContext(ctx, "nsenter", append(enter, argv...)...), nil
}

// KillStragglers kills processes that are still inside one of the lab's network
// namespaces although no machine owns them, such as commands run as a client.
func KillStragglers(lab string, machines []string) {
	inodes := map[string]bool{}
	for _, m := range machines {
		if ino, err := network.Inode(network.Path(lab, m)); err == nil {
			inodes[fmt.Sprintf("net:[%d]", ino)] = true
		}
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && inodes[strings.TrimSpace(ns)] {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
