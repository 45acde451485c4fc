//go:build integration

// Package images_test starts PostgreSQL from the archives that `make images` and
// `make image-operand-15` left in build/images, the way a Pod does.
package images_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"
)

// podScript runs inside the image.
//
//go:embed testdata/pod.sh
var podScript string

// boxScript makes a container of sorts: read-only root, writable volume, socket directory
// and /tmp, no privileges. $1 is the root file system; the rest is run inside.
const boxScript = `set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for d in null:3 zero:5 random:8 urandom:9; do mknod -m 666 "$root/dev/${d%:*}" c 1 "${d#*:}"; done
mkdir "$root/dev/shm"; mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for d in run/theseus var/lib/theseus; do mount -t tmpfs -o mode=2770,uid=0,gid=10001 tmpfs "$root/$d"; done
mount -o remount,bind,ro "$root"
exec chroot --userspec=10001:10001 --groups= "$root" "$@"`

func TestPostgreSQLStartsFromTheImageAsAPodWouldStartIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	archives, err := filepath.Glob("../build/images/operand-pg*.tar")
	require.NoError(t, err)
	if len(archives) == 0 {
		t.Skip("run make images first")
	}
	for _, archive := range archives {
		t.Run(filepath.Base(archive), func(t *testing.T) {
			root, env := unpack(t, archive)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", boxScript, "box", root, "/usr/bin/env", "-i"}, env...)
			cmd := exec.CommandContext(ctx, "unshare", append(args, "/bin/bash", "-euc", podScript)...)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			t.Logf("%s", out)
			require.Contains(t, string(out), "all is well")
		})
	}
}

// unpack unpacks an image as root, and returns where, and the image's environment. What
// must not be in any image is looked for on the way.
func unpack(t *testing.T, archive string) (root string, env []string) {
	t.Helper()
	img, err := tarball.ImageFromPath(archive, nil)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "10001:10001", config.Config.User)
	layers, err := img.Layers()
	require.NoError(t, err)
	root = t.TempDir()
	for _, l := range layers {
		r, err := l.Uncompressed()
		require.NoError(t, err)
		defer r.Close()
		cmd := exec.Command("tar", "-C", root, "-x", "--numeric-owner", "-p")
		cmd.Stdin = r
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return root, config.Config.Env
}

// The mirrors this machine uses are its own business, and keys made while a package was
// installed would be the same for everybody.
func TestNoMirrorAndNoPrivateKeyIsInTheLayers(t *testing.T) {
	descriptions, err := filepath.Glob("../build/images/cache/*.json")
	require.NoError(t, err)
	if len(descriptions) == 0 {
		t.Skip("run make images first")
	}
	mirrors, err := exec.Command("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").Output()
	require.NoError(t, err)
	forbidden := []string{"-----BEGIN PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----"}
	for _, site := range strings.Fields(string(mirrors)) {
		// Debian's own documentation names Debian's own mirrors.
		if host := strings.TrimPrefix(strings.TrimPrefix(site, "http://"), "https://"); !strings.HasSuffix(host, "debian.org") {
			forbidden = append(forbidden, host)
		}
	}
	for _, description := range descriptions {
		var about struct{ Packages []string }
		data, err := os.ReadFile(description)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &about))
		require.NotEmpty(t, about.Packages)
		f, err := os.Open(strings.TrimSuffix(description, ".json") + ".tar.gz")
		require.NoError(t, err)
		defer f.Close()
		gz, err := gzip.NewReader(f)
		require.NoError(t, err)
		for r := tar.NewReader(gz); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			if h.Typeflag != tar.TypeReg || h.Size > 1<<20 || strings.HasPrefix(h.Name, "usr/lib/") || strings.HasPrefix(h.Name, "usr/bin/") {
				continue
			}
			content, err := io.ReadAll(r)
			require.NoError(t, err)
			for _, bad := range forbidden {
				require.NotContains(t, string(content), bad, h.Name)
			}
		}
	}
}
