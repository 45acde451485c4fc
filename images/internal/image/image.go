// Package image puts layers and a configuration together into one archive that
// containerd, Docker, Podman and crane all read, and whose bytes depend on nothing else.
package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"theseus.dev/theseus/images/internal/layer"
)

// nameAnnotation is where containerd looks for an image's full name in an OCI layout.
const nameAnnotation = "io.containerd.image.name"

// Layer is one layer of an image: what it is, what made it, and its bytes.
type Layer struct {
	layer.Blob
	// CreatedBy appears in the image's history.
	CreatedBy string
	// Open returns the compressed bytes.
	Open func() (io.ReadCloser, error)
}

// Image is everything an archive is made from.
type Image struct {
	// Name is the full name with its tag, such as theseus.local/operand:pg17.
	Name string
	// Arch is Go's name of the architecture.
	Arch string
	// Created is the only timestamp in the image's metadata.
	Created time.Time
	// Config is what a container started from the image gets by default.
	Config v1.Config
	// Layers, lowest first.
	Layers []Layer
}

// manifests are the three documents an image consists of besides its layers.
type manifests struct {
	config, manifest, index, docker []byte
	configDigest, manifestDigest    v1.Hash
}

// Write writes the archive: an OCI image layout that is a `docker save` archive too,
// as Docker itself has written since version 25. It returns the manifest's digest.
func (i Image) Write(w io.Writer) (v1.Hash, error) {
	m, err := i.manifests()
	if err != nil {
		return v1.Hash{}, err
	}
	out := tar.NewWriter(w)
	files := []struct {
		name string
		data []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", m.index},
		{"manifest.json", m.docker},
		{blobPath(m.manifestDigest), m.manifest},
		{blobPath(m.configDigest), m.config},
	}
	for _, f := range files {
		if err := i.add(out, f.name, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return v1.Hash{}, err
		}
	}
	for _, l := range i.Layers {
		if err := i.addLayer(out, l); err != nil {
			return v1.Hash{}, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return m.manifestDigest, out.Close()
}

// addLayer copies one layer's bytes into the archive.
func (i Image) addLayer(out *tar.Writer, l Layer) error {
	r, err := l.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return i.add(out, blobPath(l.Digest), l.Size, r)
}

// add writes one file of the archive.
func (i Image) add(out *tar.Writer, name string, size int64, body io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: i.Created}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(out, body)
	return err
}

// manifests builds the image's documents.
func (i Image) manifests() (manifests, error) {
	var m manifests
	var err error
	if m.config, err = json.Marshal(i.configFile()); err != nil {
		return m, err
	}
	if m.configDigest, _, err = v1.SHA256(bytes.NewReader(m.config)); err != nil {
		return m, err
	}
	manifest := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(m.config)), Digest: m.configDigest},
	}
	docker := dockerEntry{Config: blobPath(m.configDigest), RepoTags: []string{i.Name}}
	for _, l := range i.Layers {
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: types.OCILayer, Size: l.Size, Digest: l.Digest})
		docker.Layers = append(docker.Layers, blobPath(l.Digest))
	}
	if m.manifest, err = json.Marshal(manifest); err != nil {
		return m, err
	}
	if m.manifestDigest, _, err = v1.SHA256(bytes.NewReader(m.manifest)); err != nil {
		return m, err
	}
	index := v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType:   types.OCIManifestSchema1,
			Size:        int64(len(m.manifest)),
			Digest:      m.manifestDigest,
			Platform:    &v1.Platform{OS: "linux", Architecture: i.Arch},
			Annotations: map[string]string{nameAnnotation: i.Name},
		}},
	}
	if m.index, err = json.Marshal(index); err != nil {
		return m, err
	}
	m.docker, err = json.Marshal([]dockerEntry{docker})
	return m, err
}

// configFile is the image's configuration document.
func (i Image) configFile() v1.ConfigFile {
	c := v1.ConfigFile{
		Architecture: i.Arch,
		OS:           "linux",
		Created:      v1.Time{Time: i.Created.UTC()},
		Config:       i.Config,
		RootFS:       v1.RootFS{Type: "layers"},
	}
	for _, l := range i.Layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.DiffID)
		c.History = append(c.History, v1.History{Created: v1.Time{Time: i.Created.UTC()}, CreatedBy: l.CreatedBy})
	}
	return c
}

// dockerEntry is one image in the manifest.json of a `docker save` archive.
type dockerEntry struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
