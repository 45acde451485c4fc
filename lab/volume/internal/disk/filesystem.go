package disk

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These requests are missing from golang.org/x/sys/unix; the numbers are those of
// linux/fs.h and of fs/ext4/ext4.h on 64-bit machines.
const (
	fiFreeze     = 0xc0045877
	fiThaw       = 0xc0045878
	ext4ResizeFS = 0x40086610
)

// ErrFrozen says that something cannot be done to a disk while it is frozen.
var ErrFrozen = errors.New("the disk is stalled")

// ErrCannotGrow says that this machine does not let its root enlarge a file system in use.
var ErrCannotGrow = errors.New("this machine lacks CAP_SYS_RESOURCE, which growing a file system in use needs")

// Freeze makes every write and fsync on the disk hang until Thaw. It works wherever the
// disk is mounted, and on a frozen disk changes nothing.
func (s Store) Freeze(name string) error {
	return s.onFilesystem(name, func(root *os.File) error {
		err := unix.IoctlSetInt(int(root.Fd()), fiFreeze, 0)
		if errors.Is(err, unix.EBUSY) {
			return nil
		}
		return err
	})
}

// Thaw lets writes go on. On a disk that is not frozen it changes nothing.
func (s Store) Thaw(name string) error {
	return s.onFilesystem(name, func(root *os.File) error {
		err := unix.IoctlSetInt(int(root.Fd()), fiThaw, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		return err
	})
}

// Grow makes the disk and its file system at least size bytes large, while it is in use.
// It never shrinks them. The kernel grants this only to processes with CAP_SYS_RESOURCE,
// which containers and some virtual machines withhold even from root: ErrCannotGrow.
func (s Store) Grow(name string, size int64) error {
	image := s.image(name)
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	size = max(RoundUp(size), info.Size())
	// Asking for the size it has finds out, before anything is changed, whether asking is
	// allowed. Every step is repeated after a crash, for the same reason: growing to the
	// size that is there already does nothing.
	if err := s.onFilesystem(name, resize(info.Size())); err != nil {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	dev, err := attached(image)
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("enlarging %s: %w", dev.Name(), err)
	}
	return s.onFilesystem(name, resize(size))
}

// resize returns a function that makes a file system size bytes large.
func resize(size int64) func(root *os.File) error {
	return func(root *os.File) error {
		// On a frozen file system the request would hang, and this process with it.
		if frozen(root) {
			return ErrFrozen
		}
		blocks := uint64(size) / blockSize
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
		switch errno {
		case 0:
			return nil
		case unix.EPERM:
			return ErrCannotGrow
		default:
			return fmt.Errorf("enlarging the file system: %w", errno)
		}
	}
}

// frozen says whether the file system of root is frozen. The kernel tells that only to
// those who try to freeze it.
func frozen(root *os.File) bool {
	if err := unix.IoctlSetInt(int(root.Fd()), fiFreeze, 0); err != nil {
		return errors.Is(err, unix.EBUSY)
	}
	return unix.IoctlSetInt(int(root.Fd()), fiThaw, 0) != nil
}

// onFilesystem calls do with the root directory of the disk's file system, through a
// mount that appears in no namespace. The disk's own mounts may be in a namespace this
// process cannot enter any more, that of a node that is dying; and a frozen file system
// can be mounted once more. Without a loop device it returns ErrNotAttached.
func (s Store) onFilesystem(name string, do func(root *os.File) error) error {
	dev, err := attached(s.image(name))
	if err != nil {
		return err
	}
	defer dev.Close()
	mount, err := detachedMount(dev.Name())
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the root of %s: %w", name, err)
	}
	root := os.NewFile(uintptr(fd), name)
	defer root.Close()
	if err := do(root); err != nil {
		return fmt.Errorf("disk %s: %w", name, err)
	}
	return nil
}

// detachedMount mounts the ext4 on device outside every namespace and returns the mount.
// It lasts until it is closed, or for good once it is moved somewhere.
func detachedMount(device string) (int, error) {
	context, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(context)
	// "discard" gives the space of deleted files back to the sparse file.
	if err := errors.Join(
		unix.FsconfigSetString(context, "source", device),
		unix.FsconfigSetFlag(context, "discard"),
		unix.FsconfigSetFlag(context, "noinit_itable"),
	); err != nil {
		return -1, fmt.Errorf("mount options for %s: %w", device, err)
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("mounting %s: %w", device, err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount of %s: %w", device, err)
	}
	return mount, nil
}
