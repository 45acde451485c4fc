// Package imagestore keeps a lab's container images unpacked, once, in the form
// of a containerd root directory from which every node's own is cloned. A node
// thereby boots with all images in a fraction of a second and no disk space.
package imagestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"theseus.dev/theseus/lab/internal/initd"
	"theseus.dev/theseus/lab/internal/kubeconf"
	"theseus.dev/theseus/lab/internal/machine"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/state"
)

// machineName is the machine that runs containerd while images are imported.
const machineName = "image-store"

// Names of every machine this package starts, for those who clean up.
func Names() []string { return []string{machineName} }

// Root is the directory nodes' containerd roots are cloned from.
func Root(s *state.Store) string { return s.Dir("images") }

// Digest is the SHA-256 of a file in hex.
func Digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open the image archive: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read the image archive: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Import unpacks archives (docker or OCI, as `docker save` writes them) into the
// store. It boots a containerd for it and stops that again.
func Import(ctx context.Context, h *machine.Host, archives ...string) (err error) {
	m := &state.Machine{Name: machineName}
	// A leftover of an interrupted import holds the store's files.
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := RemoveLeftovers(cleanup, h); err != nil {
		return err
	}
	if err := network.Isolate(h.Lab, machineName); err != nil {
		return err
	}
	dir := h.Store.MachineDir(machineName)
	if err := state.WriteFile(filepath.Join(dir, "containerd.toml"), []byte(kubeconf.ContainerdConfig()), 0o644); err != nil {
		return err
	}
	m.Init, err = h.Start(ctx, machineName, &initd.Spec{
		Binds:     []initd.Bind{{From: Root(h.Store), To: "/var/lib/containerd"}},
		Services:  kubeconf.NodeServices("", "", "")[:1],
		StopGrace: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if e := h.Stop(stop, m, 15*time.Second); e != nil && err == nil {
			err = e
		}
		if e := network.DeleteNS(h.Lab, machineName); e != nil && err == nil {
			err = e
		}
		if err == nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := awaitContainerd(ctx, m); err != nil {
		return err
	}
	for _, a := range archives {
		if err := ImportInto(ctx, m, a); err != nil {
			return err
		}
	}
	return nil
}

// RemoveLeftovers ends what an interrupted import left running.
func RemoveLeftovers(ctx context.Context, h *machine.Host) error {
	return h.KillGroup(ctx, machineName)
}

func awaitContainerd(ctx context.Context, m *state.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		cmd, err := machine.Exec(ctx, m, "ctr", "version")
		if err != nil {
			return err
		}
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd of %s does not answer: %s", m.Name, bytes.TrimSpace(out))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ImportInto unpacks an archive into a running machine's containerd.
func ImportInto(ctx context.Context, m *state.Machine, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("open the image archive: %w", err)
	}
	defer f.Close()
	cmd, err := machine.Exec(ctx, m, "ctr", "--namespace", "k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s into %s: %w: %s", archive, m.Name, err, bytes.TrimSpace(out))
	}
	return nil
}
