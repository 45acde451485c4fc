// Package cgroup makes, freezes and removes the control groups of machines, on
// cgroup v1 (one directory tree per controller) and v2 (a single one).
//
// A machine's group has the child "system", where its own services run; the
// kubelet puts Pods beside it. On v2 a group with processes of its own may not
// have children with controllers, which is why pid 1 is not in the group itself.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// System is the child group that a machine's own services run in.
const System = "system"

// Tree is the control group hierarchies of this machine.
type Tree struct {
	// roots are the mount points: one per v1 hierarchy, or the single v2 one.
	roots   []string
	cpuset  string // v1 only
	freezer string // v1 only
	v2      bool
}

// Detect finds the hierarchies. It fails when none is mounted.
func Detect() (*Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	defer f.Close()
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return parse(lines)
}

// parse reads mountinfo. A hybrid machine (v1 controllers and an empty v2 tree)
// counts as v1; its v2 tree is among the roots all the same, because container
// runtimes put processes there too.
func parse(mountinfo []string) (*Tree, error) {
	t := &Tree{}
	v1 := false
	for _, line := range mountinfo {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 || !strings.HasPrefix(left[4], "/sys/fs/cgroup") {
			continue
		}
		switch right[0] {
		case "cgroup":
			v1 = true
			t.roots = append(t.roots, left[4])
			for _, opt := range strings.Split(right[2], ",") {
				switch opt {
				case "cpuset":
					t.cpuset = left[4]
				case "freezer":
					t.freezer = left[4]
				}
			}
		case "cgroup2":
			t.roots = append(t.roots, left[4])
		}
	}
	if len(t.roots) == 0 {
		return nil, errors.New("no control groups are mounted under /sys/fs/cgroup")
	}
	t.v2 = !v1
	return t, nil
}

// Version is 1 or 2.
func (t *Tree) Version() int {
	if t.v2 {
		return 2
	}
	return 1
}

// Create makes a group and its System child in every hierarchy, ready to take
// processes. A group that exists is left as it is.
func (t *Tree) Create(path string) error {
	for _, root := range t.roots {
		dir := root
		for _, part := range strings.Split(strings.Trim(path, "/")+"/"+System, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if t.v2 {
				if err := delegate(parent); err != nil {
					return err
				}
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make control group: %w", err)
			}
			if root == t.cpuset {
				if err := inheritCPUSet(parent, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// inheritCPUSet gives a new v1 cpuset its parent's CPUs and memory nodes: it
// starts empty, and an empty one takes no process.
func inheritCPUSet(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		now, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(now))) > 0 {
			continue
		}
		from, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), from, 0o644); err != nil {
			return fmt.Errorf("set %s of %s: %w", file, dir, err)
		}
	}
	return nil
}

// delegate switches on, for a v2 group's children, every controller it has.
func delegate(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for _, c := range strings.Fields(string(b)) {
		// One at a time: a controller that cannot be delegated must not keep the others.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
	return nil
}

// ProcsFiles lists the files a process writes "0" to in order to join the
// System child of a group in every hierarchy.
func (t *Tree) ProcsFiles(path string) []string {
	var files []string
	for _, root := range t.roots {
		files = append(files, filepath.Join(root, path, System, "cgroup.procs"))
	}
	return files
}

// Processes lists the processes in a group and everything below it.
func (t *Tree) Processes(path string) []int {
	seen := map[int]bool{}
	var pids []int
	for _, root := range t.roots {
		_ = filepath.WalkDir(filepath.Join(root, path), func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids
}

// Freeze stops every process of a group, or lets it run again, and waits until
// the kernel says so or ctx ends.
func (t *Tree) Freeze(ctx context.Context, path string, frozen bool) error {
	file, want, check := t.freezeFiles(path, frozen)
	for {
		// v1 may need the request repeated while processes are forked.
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			return fmt.Errorf("freeze or thaw %s: %w", path, err)
		}
		if b, err := os.ReadFile(check); err == nil && settled(string(b), frozen, t.v2) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("freeze or thaw %s: %w", path, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (t *Tree) freezeFiles(path string, frozen bool) (file, want, check string) {
	if t.v2 {
		dir := filepath.Join(t.roots[0], path)
		want = "0"
		if frozen {
			want = "1"
		}
		return filepath.Join(dir, "cgroup.freeze"), want, filepath.Join(dir, "cgroup.events")
	}
	file = filepath.Join(t.freezer, path, "freezer.state")
	want = "THAWED"
	if frozen {
		want = "FROZEN"
	}
	return file, want, file
}

func settled(content string, frozen, v2 bool) bool {
	if v2 {
		want := "frozen 0"
		if frozen {
			want = "frozen 1"
		}
		return strings.Contains(content, want)
	}
	want := "THAWED"
	if frozen {
		want = "FROZEN"
	}
	return strings.TrimSpace(content) == want
}

// Remove kills what is left in a group and everything below it, and removes
// the groups. It keeps trying until ctx ends: a group whose last process has
// just died stays busy for a moment.
func (t *Tree) Remove(ctx context.Context, path string) error {
	for {
		// A frozen process does not die before it is thawed.
		file, want, _ := t.freezeFiles(path, false)
		_ = os.WriteFile(file, []byte(want), 0o644)
		for _, pid := range t.Processes(path) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		var last error
		for _, root := range t.roots {
			if err := removeTree(filepath.Join(root, path)); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w", path, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeTree removes a directory of a cgroup file system depth first. The files
// in it are the kernel's and go with the directory.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("rmdir %s: %w", dir, err)
	}
	return nil
}

// Prune removes a group in every hierarchy if it has neither children nor processes.
func (t *Tree) Prune(path string) {
	for _, root := range t.roots {
		_ = unix.Rmdir(filepath.Join(root, path))
	}
}
