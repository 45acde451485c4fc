// Package disk makes the lab's disks: each is a sparse file of exactly the size that was
// asked for, with an ext4 of its own, attached to a loop device and mounted inside one
// node's mount namespace. So a full disk is really full, and a stalled one really stalls.
//
// All state is the files themselves and what the kernel knows: any process may list,
// stall or destroy disks, and a restarted one finds them as they are.
package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// blockSize is ext4's, and the granularity of disk sizes, in bytes.
	blockSize = 4096
	// MinSize is the smallest disk that holds an ext4 with a journal, in bytes.
	MinSize = 8 << 20

	imageFile = "disk.img"
	aboutFile = "disk.json"
	// unfinished ends the name of a disk's directory while the disk is being made.
	unfinished = ".new"
)

// ErrNotFound says that there is no such disk.
var ErrNotFound = errors.New("no such disk")

// Disk describes one disk.
type Disk struct {
	// Name is that of the PersistentVolume.
	Name string `json:"name"`
	// Namespace and Claim name the PersistentVolumeClaim the disk was made for.
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	// Node is the name of the node the disk is in.
	Node string `json:"node"`
	// Created is when it was made.
	Created time.Time `json:"created"`
	// Size is the length of the file, in bytes.
	Size int64 `json:"-"`
}

// Store is a directory of disks, one subdirectory each.
type Store struct {
	// Dir need not exist until the first disk is made.
	Dir string
}

// List returns all finished disks, by name.
func (s Store) List() ([]Disk, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Disk
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), unfinished) {
			continue
		}
		d, err := s.Get(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // Destroyed meanwhile.
		}
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// Get returns one disk, or ErrNotFound.
func (s Store) Get(name string) (Disk, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir, name, aboutFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Disk{}, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return Disk{}, err
	}
	var d Disk
	if err := json.Unmarshal(data, &d); err != nil {
		return Disk{}, fmt.Errorf("disk %s: %w", name, err)
	}
	info, err := os.Stat(s.image(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Disk{}, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return Disk{}, err
	}
	d.Size = info.Size()
	return d, nil
}

// Find returns the newest disk made for a claim, or ErrNotFound. There can be an older
// one whose claim of the same name was deleted a moment ago.
func (s Store) Find(namespace, claim string) (Disk, error) {
	all, err := s.List()
	if err != nil {
		return Disk{}, err
	}
	var found *Disk
	for i, d := range all {
		if d.Namespace == namespace && d.Claim == claim && (found == nil || d.Created.After(found.Created)) {
			found = &all[i]
		}
	}
	if found == nil {
		return Disk{}, fmt.Errorf("%w: none was made for the claim %s/%s", ErrNotFound, namespace, claim)
	}
	return *found, nil
}

// Create makes the file and the file system of d, unless they are there already. Size is
// rounded up to whole blocks.
func (s Store) Create(ctx context.Context, d Disk) error {
	if d.Size < MinSize {
		return fmt.Errorf("disk %s: %d bytes are less than the smallest possible, %d", d.Name, d.Size, MinSize)
	}
	if _, err := s.Get(d.Name); err == nil {
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	// Everything is made aside and renamed, so that a disk either is whole or is not.
	tmp := filepath.Join(s.Dir, d.Name+unfinished)
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700)); err != nil {
		return err
	}
	about, err := json.Marshal(d)
	if err != nil {
		return err
	}
	image := filepath.Join(tmp, imageFile)
	if err := errors.Join(
		os.WriteFile(filepath.Join(tmp, aboutFile), about, 0o600),
		os.WriteFile(image, nil, 0o600),
		os.Truncate(image, RoundUp(d.Size)),
	); err != nil {
		return err
	}
	if err := mkfs(ctx, image); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.Dir, d.Name))
}

// mkfs makes an ext4 without reserved blocks. A new sparse file reads as zeros, so there
// is nothing to initialise, now or later in the background.
func mkfs(ctx context.Context, image string) error {
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0",
		"-b", fmt.Sprint(blockSize), "-E", "assume_storage_prezeroed=1,nodiscard", image).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// RoundUp rounds a size in bytes up to whole blocks.
func RoundUp(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

// Destroy thaws a disk and deletes its file. The file's space is free once its last
// mount is gone: the loop device detaches itself then. Destroying what is not there is
// no error.
func (s Store) Destroy(name string) error {
	if _, err := os.Stat(s.image(name)); errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(filepath.Join(s.Dir, name))
	}
	// A frozen file system outlives its mounts and keeps killed processes from dying.
	if err := s.Thaw(name); err != nil && !errors.Is(err, ErrNotAttached) {
		return err
	}
	return os.RemoveAll(filepath.Join(s.Dir, name))
}

func (s Store) image(name string) string { return filepath.Join(s.Dir, name, imageFile) }
