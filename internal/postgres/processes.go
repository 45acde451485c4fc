package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Processes starts every child of the agent, so that the reaper can tell them from orphans that the kernel handed to
// it: as PID 1, or as a subreaper outside a container, the agent inherits what a dead postmaster leaves behind.
type Processes struct {
	mu    sync.Mutex
	known map[int]bool
	proc  string // "/proc"; another path in tests
}

// NewProcesses makes this process the parent of all orphans below it.
func NewProcesses() *Processes {
	if os.Getpid() != 1 {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	return &Processes{known: map[int]bool{}, proc: "/proc"}
}

// Start starts cmd as a child that the reaper leaves alone until Wait.
func (p *Processes) Start(cmd *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	p.known[cmd.Process.Pid] = true
	return nil
}

// Wait waits for a child that Start started.
func (p *Processes) Wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	p.mu.Lock()
	delete(p.known, cmd.Process.Pid)
	p.mu.Unlock()
	return err
}

// Run runs a tool to its end and returns what it printed to stdout. When ctx ends the tool's whole process group is
// killed. The error holds the end of stderr.
func (p *Processes) Run(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	errs := &tail{limit: 4 << 10}
	cmd.Stdout = &out
	if cmd.Stderr == nil {
		cmd.Stderr = errs
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := p.Start(cmd); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()
	err := p.Wait(cmd)
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.String(), fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(errs.String()))
}

// Reap collects orphans that have exited, until ctx ends.
func (p *Processes) Reap(ctx context.Context) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	for {
		select {
		case <-ctx.Done():
			return
		case <-children:
			p.reapOnce()
		}
	}
}

func (p *Processes) reapOnce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pid := range p.list() {
		st, err := p.stat(pid)
		if err == nil && st.parent == os.Getpid() && st.state == 'Z' && !p.known[pid] {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
	}
}

type procStat struct {
	state  byte
	parent int
}

func (p *Processes) list() []int {
	dir, err := os.Open(p.proc)
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(-1)
	pids := make([]int, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *Processes) stat(pid int) (procStat, error) {
	data, err := os.ReadFile(filepath.Join(p.proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(data))
}

// parseStat reads state and parent from /proc/PID/stat. The second field, the name in parentheses, may itself hold
// spaces and parentheses.
func parseStat(line string) (procStat, error) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return procStat{}, errors.New("no name in stat")
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 2 || len(fields[0]) != 1 {
		return procStat{}, errors.New("short stat")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return procStat{}, err
	}
	return procStat{state: fields[0][0], parent: parent}, nil
}

// lives says that a process is there and has not exited.
func (p *Processes) lives(pid int) bool {
	st, err := p.stat(pid)
	return err == nil && st.state != 'Z' && st.state != 'X'
}

// Within lists the living processes whose working directory is dir: PostgreSQL changes into its data directory, and
// commands it starts inherit that. A zombie has no working directory any more and is not listed.
func (p *Processes) Within(dir string) []int {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		real = dir
	}
	var in []int
	for _, pid := range p.list() {
		if pid == os.Getpid() {
			continue
		}
		cwd, err := os.Readlink(filepath.Join(p.proc, strconv.Itoa(pid), "cwd"))
		if err == nil && strings.TrimSuffix(cwd, " (deleted)") == real {
			in = append(in, pid)
		}
	}
	return in
}

// KillWithin kills every process of Within and waits until none is left. SIGKILL reaches stopped processes as well;
// one that sleeps in a stalled device's queue stays until the device answers, and is an error here.
func (p *Processes) KillWithin(ctx context.Context, dir string) error {
	for {
		left := p.Within(dir)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of %s cannot be killed: %w", len(left), dir, context.Cause(ctx))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// children lists the direct children of pid. The kernel's own list is asked where there is one, because looking at every
// process takes milliseconds on a machine with many.
func (p *Processes) children(pid int) []int {
	name := strconv.Itoa(pid)
	if data, err := os.ReadFile(filepath.Join(p.proc, name, "task", name, "children")); err == nil {
		var out []int
		for _, f := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, child)
			}
		}
		return out
	}
	return p.childrenOf(pid)
}

// childrenOf is children without the kernel's list, which may lack one while another of them ends (proc(5)).
func (p *Processes) childrenOf(pid int) (out []int) {
	for _, child := range p.list() {
		if st, err := p.stat(child); err == nil && st.parent == pid {
			out = append(out, child)
		}
	}
	return out
}

// title is the command line of a process as ps shows it.
func (p *Processes) title(pid int) string {
	data, err := os.ReadFile(filepath.Join(p.proc, strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return ""
	}
	return strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), " ")
}

// tail keeps the end of what is written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	data  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, b...)
	if over := len(t.data) - t.limit; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
