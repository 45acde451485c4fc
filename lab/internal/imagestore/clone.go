package imagestore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Clone makes to a copy of containerd's root directory from, in which file
// contents are shared by hard links: blobs and unpacked layers are never written
// again, overlayfs copies before it writes. Databases, which are written in
// place, are real copies. The containerd that owns from must not be running.
func Clone(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return cloneDir(path, target)
		case strings.HasSuffix(path, ".db"):
			return copyFile(path, target)
		default:
			if err := os.Link(path, target); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("link %s: %w", target, err)
			}
			return nil
		}
	})
}

// cloneDir makes a directory with the mode, owner and extended attributes of
// another; overlayfs marks opaque directories by an attribute.
func cloneDir(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	return cloneXattrs(from, to)
}

func cloneXattrs(from, to string) error {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(from, buf)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list attributes of %s: %w", from, err)
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		m, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("read attribute %s of %s: %w", name, from, err)
		}
		if err := unix.Lsetxattr(to, name, value[:m], 0); err != nil {
			return fmt.Errorf("set attribute %s of %s: %w", name, to, err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
