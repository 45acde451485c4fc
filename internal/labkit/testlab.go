package labkit

import (
	"context"
	"path/filepath"
)

// SetUp brings up a lab with the given number of nodes and what `make images` has built, ready for Databases. Tests begin
// with it.
func (k *Kit) SetUp(ctx context.Context, nodes int, majors ...string) error {
	images := filepath.Join(k.Root, "build", "images")
	archives := []string{filepath.Join(images, "operator.tar")}
	for _, m := range majors {
		archives = append(archives, filepath.Join(images, "operand-pg"+m+".tar"))
	}
	for _, step := range []struct {
		name string
		f    func() error
	}{
		// Before the lab is up an image is unpacked once, and every node begins with a copy; afterwards once per node.
		{"unpack images", func() error { return k.LoadImages(ctx, archives...) }},
		{"lab up", func() error { return k.Up(ctx, nodes) }},
		{"install chart", func() error { return k.Install(ctx, LabImages()) }},
	} {
		if err := k.Step(step.name, step.f); err != nil {
			return err
		}
	}
	return nil
}
