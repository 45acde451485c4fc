package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// within is generous: it only bounds waits that normally take milliseconds.
const within = 20 * time.Second

// machine is a stand-in for a node: a process with mount and pid namespaces of its own.
type machine struct {
	cmd *exec.Cmd
	pid int
}

// newMachine starts a stand-in node, or skips the test where that is not possible.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat(loopControl); err != nil {
		t.Skip("no loop devices here")
	}
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
		"mount -t tmpfs tmpfs /var/lib && echo ready && read forever")
	// The read ends when the test does, however it ends.
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	m := &machine{cmd: cmd, pid: cmd.Process.Pid}
	t.Cleanup(func() { stdin.Close(); m.kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return m
}

// kill kills everything on the machine.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// path is where a file of the machine is seen from here.
func (m *machine) path(elements ...string) string {
	return filepath.Join(append([]string{fmt.Sprintf("/proc/%d/root", m.pid)}, elements...)...)
}

// run runs a program on the machine.
func (m *machine) run(script string) *exec.Cmd {
	return exec.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", m.pid), "sh", "-c", script)
}

// newDisk makes a disk and mounts it in m.
func newDisk(t *testing.T, m *machine, size int64) (Store, Disk) {
	t.Helper()
	s := Store{Dir: filepath.Join(t.TempDir(), "volumes")}
	d := Disk{Name: "pvc-1", Namespace: "shop", Claim: "data", Node: "n1", Created: time.Unix(1, 0).UTC(), Size: size}
	require.NoError(t, s.Create(t.Context(), d))
	require.NoError(t, s.Mount(d.Name, m.pid))
	t.Cleanup(func() { _ = s.Destroy(d.Name) })
	return s, d
}

// detachedSoon requires that no loop device is left for a deleted or destroyed image.
func detachedSoon(t *testing.T, dir string) {
	t.Helper()
	require.Eventually(t, func() bool {
		files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, f := range files {
			if name, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(name), dir) {
				return false
			}
		}
		return true
	}, within, 20*time.Millisecond, "a loop device is still attached")
}

func TestADiskHasExactlyTheSizeAskedForAndRunsFull(t *testing.T) {
	m := newMachine(t)
	s, d := newDisk(t, m, 64*mib)
	got, err := s.Get(d.Name)
	require.NoError(t, err)
	require.Equal(t, d, got)

	file := m.path(MountPoint(d.Name), "file")
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	written := 0
	for block := make([]byte, mib); written <= 64; written++ {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Greater(t, written, 48, "a disk of 64 MiB held only %d", written)

	// What is deleted is given back to the machine.
	require.NoError(t, f.Close())
	require.NoError(t, os.Remove(file))
	require.NoError(t, m.run("sync -f "+MountPoint(d.Name)).Run())
	require.Eventually(t, func() bool {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(s.image(d.Name), &st))
		return st.Blocks*512 < 16*mib
	}, within, 50*time.Millisecond)
}

func TestADiskIsInvisibleOutsideItsNode(t *testing.T) {
	m, other := newMachine(t), newMachine(t)
	_, d := newDisk(t, m, 16*mib)
	seen, err := Mounted(m.pid)
	require.NoError(t, err)
	require.Equal(t, map[string]bool{d.Name: true}, seen)
	for _, pid := range []int{os.Getpid(), other.pid} {
		seen, err = Mounted(pid)
		require.NoError(t, err)
		require.Empty(t, seen)
	}
}

func TestNothingIsEverMountedInTheMachineItself(t *testing.T) {
	m := newMachine(t)
	s, d := newDisk(t, m, 16*mib)
	for _, pid := range []int{os.Getpid(), 0, -1} {
		require.Error(t, s.Mount(d.Name, pid), "pid %d", pid)
		require.Error(t, Unmount(d.Name, pid), "pid %d", pid)
	}
}

func TestAFrozenDiskHangsWritesAndFsyncUntilThawed(t *testing.T) {
	m := newMachine(t)
	s, d := newDisk(t, m, 16*mib)
	f, err := os.Create(m.path(MountPoint(d.Name), "file"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, s.Thaw(d.Name), "thawing what is not frozen changes nothing")
	require.NoError(t, s.Freeze(d.Name))
	require.NoError(t, s.Freeze(d.Name), "freezing twice changes nothing")

	done := make(chan error, 1)
	go func() {
		_, err := f.WriteString("x")
		done <- errors.Join(err, f.Sync())
	}()
	select {
	case err := <-done:
		require.Fail(t, "the write went through", "%v", err)
	case <-time.After(300 * time.Millisecond):
	}
	require.ErrorIs(t, s.Grow(d.Name, 32*mib), ErrFrozen, "it must say so rather than hang")
	// A program that knows nothing but the directory can thaw it: no state is in memory.
	require.NoError(t, Store{Dir: s.Dir}.Thaw(d.Name))
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(within):
		require.Fail(t, "the write still hangs")
	}
}

func TestAKilledNodeWithAFrozenDiskLeavesNothingBehind(t *testing.T) {
	m := newMachine(t)
	s, d := newDisk(t, m, 16*mib)
	require.NoError(t, s.Freeze(d.Name))
	// A child of the node's pid 1, which cannot end before the child does.
	writer := exec.Command("nsenter", "--all", "--target", fmt.Sprint(childOf(t, m.pid)),
		"dd", "if=/dev/zero", "of="+MountPoint(d.Name)+"/file", "bs=1k", "count=1", "conv=fsync")
	require.NoError(t, writer.Start())
	time.Sleep(200 * time.Millisecond) // Into the hanging write; too short only weakens the test.

	require.NoError(t, m.cmd.Process.Kill())
	dead := make(chan struct{})
	go func() { _ = writer.Wait(); m.kill(); close(dead) }()
	require.NoError(t, s.Destroy(d.Name))
	select {
	case <-dead:
	case <-time.After(within):
		require.Fail(t, "the writer is still there")
	}
	detachedSoon(t, s.Dir)
	_, err := s.Get(d.Name)
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, s.Destroy(d.Name), "destroying twice changes nothing")
}

// childOf returns the first child of a process: the node's pid 1, below unshare.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	require.NoError(t, err)
	var child int
	_, err = fmt.Sscan(string(data), &child)
	require.NoError(t, err)
	return child
}

func TestADiskThatIsUnmountedAndDestroyedFreesItsDevice(t *testing.T) {
	m := newMachine(t)
	s, d := newDisk(t, m, 16*mib)
	busy, err := os.Create(m.path(MountPoint(d.Name), "file"))
	require.NoError(t, err)
	require.NoError(t, Unmount(d.Name, m.pid), "somebody using it does not matter")
	require.NoError(t, Unmount(d.Name, m.pid), "unmounting twice changes nothing")
	require.NoError(t, s.Destroy(d.Name))
	require.NoError(t, busy.Close())
	detachedSoon(t, s.Dir)
	require.NoDirExists(t, m.path(MountPoint(d.Name)))
}

func TestADiskGrowsInUseAndKeepsItsContent(t *testing.T) {
	m := newMachine(t)
	s, d := newDisk(t, m, 64*mib)
	file := m.path(MountPoint(d.Name), "file")
	require.NoError(t, os.WriteFile(file, []byte("kept"), 0o600))
	err := s.Grow(d.Name, 256*mib)
	if errors.Is(err, ErrCannotGrow) {
		got, err := s.Get(d.Name)
		require.NoError(t, err)
		require.Equal(t, d.Size, got.Size, "what cannot grow must stay as it is")
		t.Skip(ErrCannotGrow)
	}
	require.NoError(t, err)
	require.NoError(t, s.Grow(d.Name, 256*mib), "growing twice changes nothing")
	require.NoError(t, s.Grow(d.Name, 64*mib), "it never shrinks")

	got, err := s.Get(d.Name)
	require.NoError(t, err)
	require.EqualValues(t, 256*mib, got.Size)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(m.path(MountPoint(d.Name)), &st))
	require.Greater(t, int64(st.Blocks)*st.Bsize, int64(200*mib))
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "kept", string(content))
}

func TestAHalfMadeDiskIsNotADiskAndIsMadeAnew(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	require.NoError(t, os.MkdirAll(filepath.Join(s.Dir, "pvc-1"+unfinished), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "pvc-1"+unfinished, imageFile), []byte("half"), 0o600))
	all, err := s.List()
	require.NoError(t, err)
	require.Empty(t, all)

	d := Disk{Name: "pvc-1", Size: 16 * mib}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, s.Create(gone, d))
	_, err = s.Get(d.Name)
	require.ErrorIs(t, err, ErrNotFound)

	require.NoError(t, s.Create(t.Context(), d))
	require.NoError(t, s.Create(t.Context(), d), "making it twice changes nothing")
	all, err = s.List()
	require.NoError(t, err)
	require.Len(t, all, 1)
}

func TestOfTwoDisksForOneClaimTheNewestIsFound(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "missing until the first disk")}
	_, err := s.Find("shop", "data")
	require.ErrorIs(t, err, ErrNotFound)
	for i, name := range []string{"pvc-z-old", "pvc-a-new"} {
		d := Disk{Name: name, Namespace: "shop", Claim: "data", Size: 16 * mib, Created: time.Unix(int64(i), 0)}
		require.NoError(t, s.Create(t.Context(), d))
	}
	got, err := s.Find("shop", "data")
	require.NoError(t, err)
	require.Equal(t, "pvc-a-new", got.Name)
	_, err = s.Find("other", "data")
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorIs(t, s.Freeze("pvc-a-new"), ErrNotAttached)
}

func TestSizes(t *testing.T) {
	require.EqualValues(t, 4096, RoundUp(1))
	require.EqualValues(t, 4096, RoundUp(4096))
	require.EqualValues(t, 8192, RoundUp(4097))
	require.ErrorContains(t, Store{Dir: t.TempDir()}.Create(t.Context(), Disk{Name: "x", Size: MinSize - 1}), "smallest")
	require.NoError(t, Store{Dir: t.TempDir()}.Create(t.Context(), Disk{Name: "x", Size: MinSize}))
}

func TestMountinfo(t *testing.T) {
	got, err := parseMountinfo(strings.NewReader(strings.Join([]string{
		"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
		"90 22 7:0 / /var/lib/lab-volumes/pvc-1 rw,relatime shared:5 - ext4 /dev/loop0 rw,discard",
		"91 22 7:0 / /var/lib/kubelet/pods/x/volumes/kubernetes.io~local-volume/pvc-1 rw - ext4 /dev/loop0 rw",
		"92 22 7:0 / /var/lib/lab-volumes rw - tmpfs tmpfs rw",
		"", "broken",
	}, "\n")))
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"pvc-1": true}, got)
}
