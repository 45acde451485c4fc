package disk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// MountRoot is the directory inside a node under which its disks are mounted.
const MountRoot = "/var/lib/lab-volumes"

// MountPoint is where a disk is mounted inside its node.
func MountPoint(name string) string { return filepath.Join(MountRoot, name) }

// Mount mounts a disk inside the mount namespace of process pid. The caller makes sure
// that it is not mounted there yet.
func (s Store) Mount(name string, pid int) error {
	dev, err := attach(s.image(name))
	if err != nil {
		return err
	}
	// The mount keeps the device attached, so it need not stay open.
	defer dev.Close()
	mount, err := detachedMount(dev.Name())
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return inMountNamespace(pid, func() error {
		target := MountPoint(name)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mounting disk %s at %s: %w", name, target, err)
		}
		return nil
	})
}

// Unmount unmounts a disk inside the mount namespace of process pid, lazily if somebody
// still uses it. What is not mounted is no error.
func Unmount(name string, pid int) error {
	return inMountNamespace(pid, func() error {
		target := MountPoint(name)
		err := unix.Unmount(target, 0)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return &fs.PathError{Op: "umount", Path: target, Err: err}
		}
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// Mounted returns the names of the disks mounted in the mount namespace of process pid.
func Mounted(pid int) (map[string]bool, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

// parseMountinfo picks the disks from a mountinfo file.
func parseMountinfo(r io.Reader) (map[string]bool, error) {
	out := map[string]bool{}
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) > 4 && filepath.Dir(f[4]) == MountRoot {
			out[filepath.Base(f[4])] = true
		}
	}
	return out, s.Err()
}

// inMountNamespace calls do on a thread of its own that has entered the mount namespace
// of process pid. It refuses this process' own namespace: were pid stale and taken by
// another process of this machine, disks would otherwise be mounted in the machine.
func inMountNamespace(pid int, do func() error) error {
	if pid <= 0 {
		return fmt.Errorf("%d is not a process", pid)
	}
	done := make(chan error, 1)
	go onFreshThread(done, func() error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := notOurs(ns); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		// A thread can change its mount namespace only while it shares no directory
		// state with others.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("entering the mount namespace of process %d: %w", pid, err)
		}
		return do()
	})
	return <-done
}

// onFreshThread runs do on an operating system thread that ends with it, and never on
// the process' main thread, whose namespaces are what /proc shows of the process.
func onFreshThread(done chan<- error, do func() error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Holding on to the main thread keeps the next goroutine off it.
		inner := make(chan error, 1)
		go onFreshThread(inner, do)
		done <- <-inner
		runtime.UnlockOSThread()
		return
	}
	// The thread is never unlocked, so the runtime ends it with this goroutine.
	done <- do()
}

// notOurs returns an error if ns is the mount namespace of this process.
func notOurs(ns *os.File) error {
	var theirs, ours unix.Stat_t
	if err := errors.Join(unix.Fstat(int(ns.Fd()), &theirs), unix.Stat("/proc/self/ns/mnt", &ours)); err != nil {
		return err
	}
	if theirs.Ino == ours.Ino {
		return errors.New("not a node: it shares this process' mount namespace")
	}
	return nil
}
