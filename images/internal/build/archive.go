package build

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"theseus.dev/theseus/images/internal/image"
	"theseus.dev/theseus/images/internal/layer"
)

// Common are the inputs both images share.
type Common struct {
	// Name is the image's full name with its tag.
	Name string
	// Arch is Go's name of the architecture.
	Arch string
	// Version is recorded as a label; may be empty.
	Version string
	// Binary is the path of the static theseus binary.
	Binary string
	// Epoch is the newest timestamp in the image.
	Epoch time.Time
	// Out is the path of the archive to write.
	Out string
}

// Operand writes the operand's archive: the root file system, and on top of it a small
// layer with the binary and our own directories, so that a change of code re-makes only
// that one. It returns the digest of the image's manifest.
func Operand(c Common, major string, root Rootfs) (v1.Hash, error) {
	top, err := topLayer(c, func(w *layer.Writer) error {
		return errors.Join(
			w.Dir(image.RunDir, 0o770, image.UID, image.GID),
			w.Dir("usr/lib/theseus", 0o755, 0, 0),
			w.Symlink(image.PGBin, image.PGBinTarget(major)),
			addBinary(w, c.Binary, c.Arch),
			w.Dir(image.VolumeDir, 0o750, image.UID, image.GID),
		)
	})
	if err != nil {
		return v1.Hash{}, err
	}
	base := image.Layer{
		Blob:      root.Blob,
		CreatedBy: "imagebuild: Debian packages",
		Open:      func() (io.ReadCloser, error) { return os.Open(root.Tar) },
	}
	return write(c, image.OperandConfig(major, c.Version), base, top)
}

// Operator writes the operator's archive: certificates, a user and the binary.
// caCerts is the path of the bundle of certificate authorities.
func Operator(c Common, caCerts string) (v1.Hash, error) {
	certs, err := os.ReadFile(caCerts)
	if err != nil {
		return v1.Hash{}, err
	}
	text := func(w *layer.Writer, name, content string) error {
		return w.File(name, 0o644, int64(len(content)), bytes.NewReader([]byte(content)))
	}
	top, err := topLayer(c, func(w *layer.Writer) error {
		return errors.Join(
			w.Dir("etc", 0o755, 0, 0),
			text(w, "etc/group", fmt.Sprintf("root:x:0:\ntheseus:x:%d:\n", image.GID)),
			text(w, "etc/passwd", fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\ntheseus:x:%d:%d:Theseus:/:/sbin/nologin\n", image.UID, image.GID)),
			w.Dir("etc/ssl", 0o755, 0, 0),
			w.Dir("etc/ssl/certs", 0o755, 0, 0),
			text(w, image.CACerts, string(certs)),
			w.Dir("tmp", 0o1777, 0, 0),
			w.Dir("usr", 0o755, 0, 0),
			w.Dir("usr/local", 0o755, 0, 0),
			w.Dir("usr/local/bin", 0o755, 0, 0),
			addBinary(w, c.Binary, c.Arch),
		)
	})
	if err != nil {
		return v1.Hash{}, err
	}
	return write(c, image.OperatorConfig(c.Version), top)
}

// topLayer makes the layer that changes with the code. It is small, so it is kept in
// memory and compressed fast rather than well.
func topLayer(c Common, fill func(*layer.Writer) error) (image.Layer, error) {
	var data bytes.Buffer
	w, err := layer.NewWriter(&data, c.Epoch, gzip.BestSpeed)
	if err != nil {
		return image.Layer{}, err
	}
	if err := fill(w); err != nil {
		return image.Layer{}, err
	}
	blob, err := w.Close()
	return image.Layer{
		Blob:      blob,
		CreatedBy: "imagebuild: theseus",
		Open:      func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data.Bytes())), nil },
	}, err
}

// addBinary adds the theseus binary after checking that it will run where there may be
// no libraries at all.
func addBinary(w *layer.Writer, file, arch string) error {
	if err := CheckStatic(file, arch); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Its own modification time would make equal binaries differ.
	return w.File(image.Binary, 0o755, info.Size(), f)
}

// machines are the ELF names of the architectures an image can be built for.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// CheckStatic returns an error unless file is an ELF executable for arch (as Go names it)
// that needs no interpreter, and so no library.
func CheckStatic(file, arch string) error {
	f, err := elf.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%s is not an ELF executable: %w", file, err)
	}
	defer f.Close()
	if f.Machine != machines[arch] {
		return fmt.Errorf("%s is for %s, not for %s", file, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked: build it with CGO_ENABLED=0", file)
		}
	}
	return nil
}

// write writes the archive in place of an older one, never leaving half of it.
func write(c Common, config v1.Config, layers ...image.Layer) (v1.Hash, error) {
	if err := os.MkdirAll(filepath.Dir(c.Out), 0o755); err != nil {
		return v1.Hash{}, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.Out), filepath.Base(c.Out)+"-*.tmp")
	if err != nil {
		return v1.Hash{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	img := image.Image{Name: c.Name, Arch: c.Arch, Created: c.Epoch, Config: config, Layers: layers}
	digest, err := img.Write(tmp)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Close()); err != nil {
		return v1.Hash{}, err
	}
	return digest, os.Rename(tmp.Name(), c.Out)
}
