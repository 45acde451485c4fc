package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/images/internal/layer"
)

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newLayer(t *testing.T, name, text string) Layer {
	var buf bytes.Buffer
	w, err := layer.NewWriter(&buf, created, gzip.BestSpeed)
	require.NoError(t, err)
	require.NoError(t, w.File(name, 0o644, int64(len(text)), strings.NewReader(text)))
	blob, err := w.Close()
	require.NoError(t, err)
	return Layer{Blob: blob, CreatedBy: "test " + name, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }}
}

func newImage(t *testing.T) Image {
	return Image{
		Name: "theseus.local/operand:pg17", Arch: "amd64", Created: created, Config: OperandConfig("17", "v1.2.3"),
		Layers: []Layer{newLayer(t, "etc/base", "base"), newLayer(t, Binary, "binary")},
	}
}

func archive(t *testing.T, i Image) (data []byte, digest v1.Hash) {
	var buf bytes.Buffer
	digest, err := i.Write(&buf)
	require.NoError(t, err)
	return buf.Bytes(), digest
}

// Two kinds of tools read the archive: those that expect a `docker save` and those that expect an OCI layout.
func TestBothKindsOfReadersFindTheSameImage(t *testing.T) {
	data, digest := archive(t, newImage(t))
	docker, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, nil)
	require.NoError(t, err)
	require.NoError(t, validate.Image(docker))

	index, err := layout.ImageIndexFromPath(unpack(t, data))
	require.NoError(t, err)
	require.NoError(t, validate.Index(index))
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 1)
	require.Equal(t, digest, manifest.Manifests[0].Digest)
	require.Equal(t, "theseus.local/operand:pg17", manifest.Manifests[0].Annotations[nameAnnotation])
	oci, err := index.Image(digest)
	require.NoError(t, err)

	ours, err := docker.ConfigName()
	require.NoError(t, err)
	theirs, err := oci.ConfigName()
	require.NoError(t, err)
	require.Equal(t, ours, theirs)
	layers, err := oci.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 2)
	conf, err := oci.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "10001:10001", conf.Config.User, "never root")
	require.Equal(t, []string{"/usr/local/bin/theseus"}, conf.Config.Entrypoint)
	require.Equal(t, "test etc/base", conf.History[0].CreatedBy)
}

func TestTheSameInputsGiveTheSameBytes(t *testing.T) {
	one, digest := archive(t, newImage(t))
	two, again := archive(t, newImage(t))
	require.Equal(t, digest, again)
	require.True(t, bytes.Equal(one, two))
	changed := newImage(t)
	changed.Created = created.Add(time.Second)
	_, other := archive(t, changed)
	require.NotEqual(t, digest, other)
}

func TestALayerThatIsNotWhatItSaysIsAnError(t *testing.T) {
	i := newImage(t)
	i.Layers[1].Open = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
	_, err := i.Write(io.Discard)
	require.ErrorContains(t, err, i.Layers[1].Digest.String())
	i.Layers[1].Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("short")), nil }
	_, err = i.Write(io.Discard)
	require.Error(t, err, "fewer bytes than announced")
}

func TestConfigs(t *testing.T) {
	operand := OperandConfig("15", "")
	require.Contains(t, operand.Env, "PG_MAJOR=15")
	require.Equal(t, "15", operand.Labels["theseus.dev/postgresql-major"])
	require.NotContains(t, operand.Labels, "org.opencontainers.image.version")
	operator := OperatorConfig("v9")
	require.Equal(t, operand.User, operator.User)
	require.Equal(t, "v9", operator.Labels["org.opencontainers.image.version"])
	data, err := json.Marshal(operator)
	require.NoError(t, err)
	require.NotContains(t, string(data), "PGDATA")
}

func unpack(t *testing.T, data []byte) string {
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		require.NoError(t, err)
		require.Equal(t, created, h.ModTime.UTC())
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
}
