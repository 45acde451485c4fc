package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/images/internal/apt"
	"theseus.dev/theseus/images/internal/image"
	"theseus.dev/theseus/images/internal/layer"
	"theseus.dev/theseus/images/internal/recipe"
)

var epoch = time.Unix(1_000_000, 0).UTC()

// staticBinary builds the smallest Go program.
func staticBinary(t *testing.T, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\nfunc main() {}\n"), 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", "theseus", "main.go")
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="), env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return filepath.Join(dir, "theseus")
}

// smallRootfs stores a root file system of two files in a cache.
func smallRootfs(t *testing.T) Rootfs {
	t.Helper()
	dir := t.TempDir()
	tmp := filepath.Join(dir, "x.tmp")
	f, err := os.Create(tmp)
	require.NoError(t, err)
	defer f.Close()
	w, err := layer.NewWriter(f, epoch, gzip.BestSpeed)
	require.NoError(t, err)
	require.NoError(t, w.File("etc/passwd", 0o644, 1, strings.NewReader("x")))
	blob, err := w.Close()
	require.NoError(t, err)
	out := Rootfs{Blob: blob, Packages: []string{"postgresql-17 17.1"}}
	require.NoError(t, store(filepath.Join(dir, "base"), tmp, []byte("CERTS"), &out))
	return out
}

func common(t *testing.T, binary string) Common {
	t.Helper()
	return Common{
		Name: "theseus.test/operand:pg17", Arch: runtime.GOARCH, Version: "1.2", Binary: binary,
		Epoch: epoch, Out: filepath.Join(t.TempDir(), "out", "image.tar"),
	}
}

// untar unpacks an archive and returns its directory.
func untar(t *testing.T, archive string) string {
	t.Helper()
	f, err := os.Open(archive)
	require.NoError(t, err)
	defer f.Close()
	dir := t.TempDir()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		require.NoError(t, err)
		require.True(t, h.ModTime.Equal(epoch), h.Name)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, h.Name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, h.Name), data, 0o600))
	}
}

func TestTheOperandIsReadableByBothKindsOfTools(t *testing.T) {
	c := common(t, staticBinary(t))
	digest, err := Operand(c, "17", smallRootfs(t))
	require.NoError(t, err)

	// As an OCI layout.
	path, err := layout.FromPath(untar(t, c.Out))
	require.NoError(t, err)
	index, err := path.ImageIndex()
	require.NoError(t, err)
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 1)
	require.Equal(t, digest, manifest.Manifests[0].Digest)
	require.Equal(t, c.Name, manifest.Manifests[0].Annotations["io.containerd.image.name"])
	img, err := path.Image(digest)
	require.NoError(t, err)
	require.NoError(t, validate.Image(img))

	// As a `docker save` archive, with the same configuration and layers.
	docker, err := tarball.ImageFromPath(c.Out, nil)
	require.NoError(t, err)
	require.NoError(t, validate.Image(docker))
	a, err := img.ConfigName()
	require.NoError(t, err)
	b, err := docker.ConfigName()
	require.NoError(t, err)
	require.Equal(t, a, b)

	config, err := img.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "10001:10001", config.Config.User)
	require.Equal(t, []string{"/usr/local/bin/theseus"}, config.Config.Entrypoint)
	require.Contains(t, config.Config.Env, "PGBIN=/usr/lib/theseus/pgbin")
	require.Equal(t, "17", config.Config.Labels["theseus.dev/postgresql-major"])
	require.Len(t, config.RootFS.DiffIDs, 2)
	require.Len(t, config.History, 2)
}

// entries lists the files of an image's layer.
func entries(t *testing.T, archive string, n int) map[string]tar.Header {
	t.Helper()
	img, err := tarball.ImageFromPath(archive, nil)
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	r, err := layers[n].Uncompressed()
	require.NoError(t, err)
	defer r.Close()
	out := map[string]tar.Header{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			return out
		}
		require.NoError(t, err)
		out[h.Name] = *h
	}
}

func TestTheTopLayerHoldsWhatTheAgentReliesOn(t *testing.T) {
	c := common(t, staticBinary(t))
	_, err := Operand(c, "15", smallRootfs(t))
	require.NoError(t, err)
	top := entries(t, c.Out, 1)
	require.Equal(t, "/usr/lib/postgresql/15/bin", top["usr/lib/theseus/pgbin"].Linkname)
	require.EqualValues(t, 0o755, top["usr/local/bin/theseus"].Mode)
	for _, own := range []string{"run/theseus/", "var/lib/theseus/"} {
		require.Equal(t, image.UID, top[own].Uid, own)
		require.Equal(t, image.GID, top[own].Gid, own)
	}
	require.Len(t, top, 5)
}

func TestEqualInputsGiveEqualBytesAndNewCodeOnlyANewTop(t *testing.T) {
	binary, root := staticBinary(t), smallRootfs(t)
	build := func(change func(*Common)) (v1.Hash, []byte, *v1.ConfigFile) {
		c := common(t, binary)
		change(&c)
		digest, err := Operand(c, "17", root)
		require.NoError(t, err)
		data, err := os.ReadFile(c.Out)
		require.NoError(t, err)
		img, err := tarball.ImageFromPath(c.Out, nil)
		require.NoError(t, err)
		config, err := img.ConfigFile()
		require.NoError(t, err)
		return digest, data, config
	}
	one, first, before := build(func(*Common) {})
	later := time.Now().Add(time.Hour)
	require.NoError(t, os.Chtimes(binary, later, later))
	two, second, _ := build(func(*Common) {})
	require.Equal(t, one, two)
	require.True(t, bytes.Equal(first, second))

	other := staticBinary(t, "GOFLAGS=-ldflags=-s")
	three, _, after := build(func(c *Common) { c.Binary = other })
	require.NotEqual(t, one, three)
	require.Equal(t, before.RootFS.DiffIDs[0], after.RootFS.DiffIDs[0])
	require.NotEqual(t, before.RootFS.DiffIDs[1], after.RootFS.DiffIDs[1])
}

func TestTheOperatorHasCertificatesUserAndBinaryOnly(t *testing.T) {
	c := common(t, staticBinary(t))
	_, err := Operator(c, smallRootfs(t).CACerts)
	require.NoError(t, err)
	var files []string
	for name, h := range entries(t, c.Out, 0) {
		if h.Typeflag == tar.TypeReg {
			files = append(files, name)
		}
	}
	require.ElementsMatch(t, []string{"etc/group", "etc/passwd", image.CACerts, image.Binary}, files)
}

func TestABadBinaryLeavesTheOldArchiveAlone(t *testing.T) {
	c := common(t, staticBinary(t))
	root := smallRootfs(t)
	_, err := Operand(c, "17", root)
	require.NoError(t, err)
	before, err := os.ReadFile(c.Out)
	require.NoError(t, err)

	script := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700))
	shell, err := exec.LookPath("sh")
	require.NoError(t, err)
	for bad, want := range map[string]string{script: "not an ELF", shell: "CGO_ENABLED=0", "/nonexistent": "no such file"} {
		c.Binary = bad
		_, err = Operand(c, "17", root)
		require.ErrorContains(t, err, want)
	}
	c.Binary, c.Arch = staticBinary(t), "arm64"
	if runtime.GOARCH == "arm64" {
		c.Arch = "amd64"
	}
	_, err = Operand(c, "17", root)
	require.ErrorContains(t, err, "not for "+c.Arch)
	after, err := os.ReadFile(c.Out)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after))
	left, err := filepath.Glob(filepath.Join(filepath.Dir(c.Out), "*.tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestADamagedCacheEntryIsNotUsed(t *testing.T) {
	whole := smallRootfs(t)
	base := strings.TrimSuffix(whole.Tar, ".tar.gz")
	got, err := load(base)
	require.NoError(t, err)
	require.Equal(t, whole, got)

	// In this order: each damage needs what the ones before it left.
	for _, step := range []struct {
		name   string
		damage func() error
	}{
		{"cut off", func() error { return os.Truncate(whole.Tar, whole.Size-1) }},
		{"layer gone", func() error { return os.Remove(whole.Tar) }},
		{"unreadable", func() error { return os.WriteFile(base+".json", []byte("{"), 0o600) }},
		{"not yet stored", func() error { return os.Remove(base + ".json") }},
	} {
		require.NoError(t, step.damage(), step.name)
		_, err := load(base)
		require.Error(t, err, step.name)
	}
}

func TestMmdebstrapsCommandLine(t *testing.T) {
	r := recipe.Recipe{Suite: "trixie", Arch: "amd64", Packages: []string{"a", "b"}}
	args := mmdebstrapArgs(r, []string{`Acquire::Retries "3"`})
	require.Contains(t, args, "--include=a,b")
	require.Contains(t, args, `--aptopt=Acquire::Retries "3"`)
	require.Equal(t, []string{"trixie", "-", "-"}, args[len(args)-3:], "the tar goes to the output, the sources come from the input")
}

// A pretended mmdebstrap makes whatever a test wants of the real one.
func pretend(t *testing.T, script string) RootfsBuilder {
	t.Helper()
	bin := t.TempDir()
	for name, body := range map[string]string{"mmdebstrap": script, "apt-config": "exit 0"} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700))
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return RootfsBuilder{Cache: filepath.Join(t.TempDir(), "cache"), Mirrors: apt.Mirrors{Main: "http://m.example/"}, Log: io.Discard}
}

func TestARootfsIsMadeOnceAndAFailedOneIsNotKept(t *testing.T) {
	tree := t.TempDir()
	for name, content := range map[string]string{
		dpkgStatus: "Package: zlib\nVersion: 1.3\nDescription: x\n\nPackage: bash\nVersion: 5\n", image.CACerts: "CERTS",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(tree, name), []byte(content), 0o600))
	}
	r := recipe.Recipe{Major: "17", Suite: "trixie", Arch: "amd64", Epoch: epoch}
	count := filepath.Join(t.TempDir(), "count")
	b := pretend(t, `cat >/dev/null; echo >> `+count+`; [ -e `+count+`.fail ] && exit 3; exec tar -C `+tree+` -c .`)

	require.NoError(t, os.WriteFile(count+".fail", nil, 0o600))
	_, err := b.Rootfs(t.Context(), r)
	require.Error(t, err)
	require.NoError(t, os.Remove(count+".fail"))

	made, err := b.Rootfs(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []string{"zlib 1.3", "bash 5"}, made.Packages)
	cached, err := b.Rootfs(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, made, cached)
	b.Fresh = true
	again, err := b.Rootfs(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, made, again)
	runs, err := os.ReadFile(count)
	require.NoError(t, err)
	require.Len(t, runs, 3, "failed, made, made fresh; the cached one ran nothing")
	left, err := filepath.Glob(filepath.Join(b.Cache, "*.tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestARootfsWithoutCertificatesIsRefused(t *testing.T) {
	tree := t.TempDir()
	b := pretend(t, `cat >/dev/null; exec tar -C `+tree+` -c .`)
	_, err := b.Rootfs(t.Context(), recipe.Recipe{Major: "17", Epoch: epoch})
	require.ErrorContains(t, err, image.CACerts)
}

func TestAHangingMmdebstrapEndsWithItsContext(t *testing.T) {
	b := pretend(t, `exec sleep 60`)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := b.Rootfs(ctx, recipe.Recipe{Major: "17", Epoch: epoch})
	require.Error(t, err)
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestOSRelease(t *testing.T) {
	file := filepath.Join(t.TempDir(), "os-release")
	require.NoError(t, os.WriteFile(file, []byte("NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID='debian'\n"), 0o600))
	for key, want := range map[string]string{"VERSION_CODENAME": "bookworm", "NAME": "Debian", "ID": "debian", "NONE": ""} {
		got, err := osRelease(file, key)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := osRelease(file+"x", "ID")
	require.Error(t, err)
}
