package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"theseus.dev/theseus/lab/internal/imagestore"
	"theseus.dev/theseus/lab/internal/state"
)

// importers bounds how many nodes unpack an image at the same time.
const importers = 2

// ImageLoad puts the images of an archive into the store, from which future
// nodes get them, and into every running node. An archive that is there already
// is recognised by its digest and skipped. The lab need not be up.
func (c *Cluster) ImageLoad(ctx context.Context, archive string) error {
	path, err := filepath.Abs(archive)
	if err != nil {
		return err
	}
	return c.locked(ctx, "image load", func() error { return c.loadImage(ctx, path) })
}

func (c *Cluster) loadImage(ctx context.Context, archive string) error {
	digest, err := imagestore.Digest(archive)
	if err != nil {
		return err
	}
	base := filepath.Base(archive)
	if !slices.ContainsFunc(c.state.Images, func(i state.Image) bool { return i.Digest == digest }) {
		err := c.log.Step("unpack "+base+" into the image store", func() error {
			return imagestore.Import(ctx, c.host, archive)
		})
		if err != nil {
			return err
		}
		err = c.update(func(s *state.Lab) {
			s.Loaded(state.Image{Digest: digest, Source: archive, Loaded: c.clock.Now()})
		})
		if err != nil {
			return err
		}
	}
	return c.importIntoNodes(ctx, archive, digest)
}

// importIntoNodes brings running nodes to the state of the store.
func (c *Cluster) importIntoNodes(ctx context.Context, archive, digest string) error {
	slots := make(chan struct{}, importers)
	var jobs []func() error
	for _, m := range c.state.RunningNodes() {
		if slices.Contains(m.Images, digest) {
			continue
		}
		if m.Frozen {
			return fmt.Errorf("node %s is frozen and cannot take images: `lab node thaw %s` first", m.Name, m.Name)
		}
		jobs = append(jobs, func() error {
			slots <- struct{}{}
			defer func() { <-slots }()
			err := c.log.Step("load "+filepath.Base(archive)+" on "+m.Name, func() error {
				return imagestore.ImportInto(ctx, m, archive)
			})
			if err != nil {
				return err
			}
			return c.update(func(*state.Lab) { m.Images = append(m.Images, digest) })
		})
	}
	return together(jobs)
}
