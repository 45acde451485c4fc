package initd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// joinCgroups moves this process, with all its threads, into the machine's
// control groups. It must come first, so that every child is born in them.
func joinCgroups(files []string) error {
	for _, f := range files {
		if err := os.WriteFile(f, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join control group: %w", err)
		}
	}
	return nil
}

// furnish makes the mount namespace look like a machine's.
func furnish(s *Spec) error {
	// Nothing mounted from here on may appear on the host.
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mounts from the host's: %w", err)
	}
	binds, err := cloneBinds(s.Binds)
	if err != nil {
		return err
	}
	for _, m := range []struct{ dir, opts string }{{"/run", "mode=755"}, {"/tmp", "mode=1777"}} {
		if err := unix.Mount("tmpfs", m.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, m.opts); err != nil {
			return fmt.Errorf("mount an empty %s: %w", m.dir, err)
		}
	}
	for _, b := range binds {
		if err := b.attach(); err != nil {
			return err
		}
	}
	if err := overlayEtc(s.Etc); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := maskSysctls(s.MaskedSysctls); err != nil {
		return err
	}
	// Kubernetes expects a shared root: containers see mounts made after them.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts with containers: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return nil
}

type clonedBind struct {
	fd int
	to string
}

// cloneBinds takes hold of the sources as detached mounts, because the places
// they are at (below /var/lib, /run or /tmp) are about to be hidden.
func cloneBinds(binds []Bind) ([]clonedBind, error) {
	var out []clonedBind
	for _, b := range binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.From, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, fmt.Errorf("take hold of %s: %w", b.From, err)
		}
		out = append(out, clonedBind{fd, b.To})
	}
	return out, nil
}

func (b clonedBind) attach() error {
	defer unix.Close(b.fd)
	if err := os.MkdirAll(b.to, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(b.fd, "", unix.AT_FDCWD, b.to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", b.to, err)
	}
	return nil
}

// overlayEtc lays the machine's files over the host's /etc. An overlay rather
// than a bind mount per file, so that files may be missing on the host or be
// links to places that are hidden now.
func overlayEtc(files map[string]string) error {
	const upper, work = "/run/lab/etc/upper", "/run/lab/etc/work"
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	opts := "lowerdir=/etc,upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", "/etc", "overlay", 0, opts); err != nil {
		return fmt.Errorf("lay the machine's files over /etc: %w", err)
	}
	for name, content := range files {
		path := filepath.Join("/etc", name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func maskSysctls(values map[string]string) error {
	const dir = "/run/lab/sysctl"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for key, value := range values {
		target := filepath.Join("/proc/sys", key)
		if _, err := os.Stat(target); err != nil {
			continue // this kernel does not have it, so nobody can change it
		}
		file := filepath.Join(dir, strings.ReplaceAll(key, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask %s: %w", target, err)
		}
	}
	return nil
}
