// Package layer makes image layers whose bytes depend on their content alone.
package layer

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Blob identifies a compressed layer.
type Blob struct {
	// Digest is the SHA-256 of the compressed bytes.
	Digest v1.Hash `json:"digest"`
	// DiffID is the SHA-256 of the uncompressed tar.
	DiffID v1.Hash `json:"diffID"`
	// Size is that of the compressed bytes.
	Size int64 `json:"size"`
}

// Writer writes one layer: a gzip-compressed tar with normalised headers.
type Writer struct {
	tar   *tar.Writer
	gz    *gzip.Writer
	raw   hash.Hash
	sum   hash.Hash
	count *counter
	epoch time.Time
}

// NewWriter starts a layer on w. No timestamp in it will be later than epoch. level
// is one of compress/gzip.
func NewWriter(w io.Writer, epoch time.Time, level int) (*Writer, error) {
	out := &Writer{raw: sha256.New(), sum: sha256.New(), count: &counter{}, epoch: epoch}
	gz, err := gzip.NewWriterLevel(io.MultiWriter(w, out.sum, out.count), level)
	if err != nil {
		return nil, err
	}
	out.gz = gz
	out.tar = tar.NewWriter(io.MultiWriter(gz, out.raw))
	return out, nil
}

// Add appends an entry. Names lose their leading "./"; owners' names, access times and
// extended attributes are dropped, and so are setuid and setgid bits: nothing in these
// images may gain privileges, and their user could not use them anyway.
func (w *Writer) Add(h *tar.Header, body io.Reader) error {
	clean := tar.Header{
		Typeflag: h.Typeflag,
		Name:     h.Name,
		Linkname: h.Linkname,
		Size:     h.Size,
		Mode:     h.Mode &^ 0o6000,
		Uid:      h.Uid,
		Gid:      h.Gid,
		ModTime:  h.ModTime,
	}
	if clean.ModTime.After(w.epoch) || clean.ModTime.IsZero() {
		clean.ModTime = w.epoch
	}
	clean.ModTime = clean.ModTime.Truncate(time.Second)
	if err := w.tar.WriteHeader(&clean); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if _, err := io.Copy(w.tar, body); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// Dir adds a directory owned by uid and gid.
func (w *Writer) Dir(name string, mode int64, uid, gid int) error {
	return w.Add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: uid, Gid: gid}, nil)
}

// File adds a file owned by root.
func (w *Writer) File(name string, mode, size int64, body io.Reader) error {
	return w.Add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size}, body)
}

// Symlink adds a symbolic link.
func (w *Writer) Symlink(name, target string) error {
	return w.Add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// Close finishes the layer and says what it is. It does not close the underlying writer.
func (w *Writer) Close() (Blob, error) {
	if err := errors.Join(w.tar.Close(), w.gz.Close()); err != nil {
		return Blob{}, err
	}
	return Blob{
		Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", w.sum.Sum(nil))},
		DiffID: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", w.raw.Sum(nil))},
		Size:   w.count.n,
	}, nil
}

// Copy copies the root file system src into w, leaving out what drops says and symbolic
// links to it. Such links are more than untidy: the name of one into a directory of
// certificates is a hash over a machine's name. Copy keeps the order of entries, which
// is the order of names in what mmdebstrap makes. inspect,
// if not nil, is offered every file that is kept and returns a writer for its content,
// or nil.
func Copy(w *Writer, src io.Reader, drops func(name string) bool, inspect func(name string) io.Writer) error {
	in := tar.NewReader(src)
	dropped := map[string]bool{}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the root file system: %w", err)
		}
		name := CleanName(h.Name)
		if name == "." {
			continue
		}
		if drops(name) || h.Typeflag == tar.TypeSymlink && drops(linkTarget(name, h.Linkname)) {
			dropped[name] = true
			continue
		}
		if err := copyEntry(w, h, name, in, dropped, inspect); err != nil {
			return err
		}
	}
}

// copyEntry copies one entry that is kept.
func copyEntry(w *Writer, h *tar.Header, name string, body io.Reader, dropped map[string]bool, inspect func(string) io.Writer) error {
	out := *h
	out.Name = name
	switch h.Typeflag {
	case tar.TypeDir:
		out.Name += "/"
	case tar.TypeLink:
		// A hard link to what is not there would make the layer impossible to unpack.
		if out.Linkname = CleanName(h.Linkname); dropped[out.Linkname] {
			return fmt.Errorf("%s is a hard link to %s, which is left out: leave out both or neither", name, out.Linkname)
		}
	case tar.TypeReg:
		if inspect != nil {
			if tee := inspect(name); tee != nil {
				body = io.TeeReader(body, tee)
			}
		}
	case tar.TypeSymlink:
	default:
		return fmt.Errorf("%s: devices, sockets and pipes have no place in an image", name)
	}
	return w.Add(&out, body)
}

// linkTarget is the name that the symbolic link called name points to, as far as can be
// told without following other links.
func linkTarget(name, target string) string {
	if path.IsAbs(target) {
		return CleanName(target)
	}
	return CleanName(path.Join(path.Dir(name), target))
}

// CleanName turns a name in a tar ("./usr/bin/") into a clean relative one ("usr/bin").
// The root itself is ".".
func CleanName(name string) string {
	abs := path.Clean("/" + name)
	if abs == "/" {
		return "."
	}
	return strings.TrimPrefix(abs, "/")
}

// counter counts the bytes written to it.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
