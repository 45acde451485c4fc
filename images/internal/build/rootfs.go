// Package build makes the image archives. It is the only package here that runs
// programs and keeps a cache.
package build

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"theseus.dev/theseus/images/internal/apt"
	"theseus.dev/theseus/images/internal/image"
	"theseus.dev/theseus/images/internal/layer"
	"theseus.dev/theseus/images/internal/recipe"
)

// dpkgStatus is where dpkg keeps what is installed in a root file system.
const dpkgStatus = "var/lib/dpkg/status"

// Rootfs is a root file system in the cache.
type Rootfs struct {
	layer.Blob
	// Packages are the installed packages as "name version", sorted as dpkg sorts them.
	Packages []string `json:"packages"`
	// Tar is the path of the compressed layer.
	Tar string `json:"-"`
	// CACerts is the path of the bundle of certificate authorities.
	CACerts string `json:"-"`
}

// RootfsBuilder makes root file systems with mmdebstrap and caches them by recipe.
type RootfsBuilder struct {
	// Cache is the directory that holds finished root file systems.
	Cache string
	// Mirrors are used if set; otherwise the machine's apt is asked.
	Mirrors apt.Mirrors
	// Fresh makes the cache be ignored, so that the mirror's newest packages are used.
	Fresh bool
	// Log receives the progress of mmdebstrap.
	Log io.Writer
}

// Rootfs returns the root file system of r, made or cached.
func (b RootfsBuilder) Rootfs(ctx context.Context, r recipe.Recipe) (Rootfs, error) {
	base := filepath.Join(b.Cache, fmt.Sprintf("rootfs-pg%s-%s", r.Major, r.Key()))
	if out, err := load(base); err == nil && !b.Fresh {
		return out, nil
	}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return Rootfs{}, err
	}
	sources, options, err := b.sources(ctx, r.Suite)
	if err != nil {
		return Rootfs{}, err
	}
	return b.make(ctx, r, base, sources, options)
}

// make runs mmdebstrap and stores its result under base.
func (b RootfsBuilder) make(ctx context.Context, r recipe.Recipe, base, sources string, options []string) (Rootfs, error) {
	// The temporary file is private to this process, so that two builds at once each
	// finish their own and the last rename wins with equal content.
	tmp, err := os.CreateTemp(b.Cache, "rootfs-*.tmp")
	if err != nil {
		return Rootfs{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	w, err := layer.NewWriter(tmp, r.Epoch, gzip.DefaultCompression)
	if err != nil {
		return Rootfs{}, err
	}
	var status, certs bytes.Buffer
	inspect := func(name string) io.Writer {
		return map[string]io.Writer{dpkgStatus: &status, image.CACerts: &certs}[name]
	}
	if err := b.stream(ctx, r, sources, options, func(tar io.Reader) error {
		return layer.Copy(w, tar, r.Slim.Drops, inspect)
	}); err != nil {
		return Rootfs{}, err
	}
	blob, err := w.Close()
	if err != nil {
		return Rootfs{}, err
	}
	if certs.Len() == 0 || status.Len() == 0 {
		return Rootfs{}, fmt.Errorf("the root file system lacks %s or %s", image.CACerts, dpkgStatus)
	}
	out := Rootfs{Blob: blob, Packages: installed(status.String())}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Close()); err != nil {
		return Rootfs{}, err
	}
	return out, store(base, tmp.Name(), certs.Bytes(), &out)
}

// stream runs mmdebstrap and hands its tar to consume.
func (b RootfsBuilder) stream(ctx context.Context, r recipe.Recipe, sources string, options []string, consume func(io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mmdebstrap", mmdebstrapArgs(r, options)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.Epoch.Unix()))
	cmd.Stdin = strings.NewReader(sources)
	cmd.Stderr = b.Log
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w (the Debian packages in images/packages-host.txt are needed)", err)
	}
	consumed := consume(pipe)
	if consumed != nil {
		cancel()
	} else {
		// mmdebstrap pads its tar; it must not die of a closed pipe.
		_, consumed = io.Copy(io.Discard, pipe)
	}
	if err := cmd.Wait(); err != nil && consumed == nil {
		return fmt.Errorf("mmdebstrap: %w (if it lacks a public key, this machine's debian-archive-keyring is older than %s: upgrade it)", err, r.Suite)
	}
	return consumed
}

// mmdebstrapArgs is the command line for r. The user is made before the packages are
// installed, so that their maintainer scripts find it and its number is always ours.
func mmdebstrapArgs(r recipe.Recipe, options []string) []string {
	args := []string{
		"--variant=essential", "--format=tar",
		"--architectures=" + r.Arch,
		"--include=" + strings.Join(r.Packages, ","),
		"--essential-hook=" + fmt.Sprintf(`echo 'postgres:x:%d:' >> "$1"/etc/group`, image.GID),
		"--essential-hook=" + fmt.Sprintf(`echo 'postgres:x:%d:%d:PostgreSQL:/%s:/usr/sbin/nologin' >> "$1"/etc/passwd`, image.UID, image.GID, image.VolumeDir),
		// Debian would initialise a cluster on installation, only for us to drop it.
		`--essential-hook=mkdir -p "$1"/etc/postgresql-common && echo 'create_main_cluster = false' > "$1"/etc/postgresql-common/createcluster.conf`,
		`--dpkgopt=force-confold`,
	}
	for _, o := range options {
		args = append(args, "--aptopt="+o)
	}
	return append(args, r.Suite, "-", "-")
}

// sources returns the sources.list for suite and the apt options it needs.
func (b RootfsBuilder) sources(ctx context.Context, suite string) (string, []string, error) {
	dump, err := output(ctx, "apt-config", "dump")
	if err != nil {
		return "", nil, err
	}
	mirrors := b.Mirrors
	if mirrors.Main == "" {
		codename, err := osRelease("/etc/os-release", "VERSION_CODENAME")
		if err != nil {
			return "", nil, err
		}
		targets, err := output(ctx, "apt-get", "indextargets", "--format", apt.TargetFormat, "Created-By: Packages")
		if err != nil {
			return "", nil, err
		}
		if mirrors, err = apt.ParseTargets(targets, codename); err != nil {
			return "", nil, err
		}
	}
	return mirrors.Sources(suite, apt.Keyring), apt.InheritedOptions(dump), nil
}

// output runs a program and returns what it printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// osRelease returns the value of key in an os-release file; empty if it has none.
func osRelease(file, key string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(data), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok && k == key {
			return strings.Trim(v, `"'`), nil
		}
	}
	return "", nil
}

// installed lists the packages in a dpkg status file as "name version".
func installed(status string) []string {
	var out []string
	for _, paragraph := range strings.Split(status, "\n\n") {
		var name, version string
		for _, line := range strings.Split(paragraph, "\n") {
			if v, ok := strings.CutPrefix(line, "Package: "); ok {
				name = v
			}
			if v, ok := strings.CutPrefix(line, "Version: "); ok {
				version = v
			}
		}
		if name != "" {
			out = append(out, name+" "+version)
		}
	}
	return out
}

// load reads a cache entry. The description is written last, so an entry that has one
// is complete.
func load(base string) (Rootfs, error) {
	data, err := os.ReadFile(base + ".json")
	if err != nil {
		return Rootfs{}, err
	}
	out := Rootfs{Tar: base + ".tar.gz", CACerts: base + ".crt"}
	if err := json.Unmarshal(data, &out); err != nil {
		return Rootfs{}, err
	}
	info, err := os.Stat(out.Tar)
	if err != nil {
		return Rootfs{}, err
	}
	if info.Size() != out.Size {
		return Rootfs{}, fmt.Errorf("%s has %d bytes, not %d", out.Tar, info.Size(), out.Size)
	}
	_, err = os.Stat(out.CACerts)
	return out, err
}

// store moves a finished root file system into the cache.
func store(base, tmp string, certs []byte, out *Rootfs) error {
	out.Tar, out.CACerts = base+".tar.gz", base+".crt"
	description, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	if err := os.Remove(base + ".json"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(
		os.Rename(tmp, out.Tar),
		os.WriteFile(out.CACerts, certs, 0o644),
		os.WriteFile(base+".json", description, 0o644),
	)
}
