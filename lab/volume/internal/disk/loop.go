package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	loopMajor   = 7
	// attachTries bounds the race for a free loop device against other processes.
	attachTries = 50
)

// ErrNotAttached says that a disk has no loop device, so it is mounted nowhere.
var ErrNotAttached = errors.New("not attached to any loop device")

// attached returns an open loop device that is backed by image, or ErrNotAttached. As
// long as it is open the device stays attached.
func attached(image string) (*os.File, error) {
	var want unix.Stat_t
	if err := unix.Stat(image, &want); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: image, Err: err}
	}
	bound, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	for _, dir := range bound {
		number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
		if err != nil {
			continue
		}
		dev, err := openLoop(number)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Device == want.Dev && info.Inode == want.Ino {
			return dev, nil
		}
		dev.Close()
	}
	return nil, fmt.Errorf("%s: %w", image, ErrNotAttached)
}

// attach returns an open loop device backed by image, making one if there is none. The
// device detaches itself when it is closed and no mount uses it.
func attach(image string) (*os.File, error) {
	if dev, err := attached(image); err == nil || !errors.Is(err, ErrNotAttached) {
		return dev, err
	}
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range attachTries {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("finding a free loop device: %w", err)
		}
		dev, err := openLoop(number)
		if err != nil {
			return nil, err
		}
		err = configure(dev, file)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attaching %s to /dev/loop%d: %w", image, number, err)
		}
	}
	return nil, fmt.Errorf("attaching %s: other processes took %d loop devices first", image, attachTries)
}

// configure binds dev to file. Direct I/O spares the machine a second copy of every
// page, where the file system below can do it.
func configure(dev, file *os.File) error {
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: blockSize}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file.Name())
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	err := unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	if errors.Is(err, unix.EINVAL) {
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	}
	return err
}

// openLoop opens a loop device, making its node if /dev does not do so by itself.
func openLoop(number int) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", number)
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return dev, err
	}
	id := int(unix.Mkdev(loopMajor, uint32(number)))
	if err := unix.Mknod(name, unix.S_IFBLK|0o600, id); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mknod", Path: name, Err: err}
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}
