package labkit

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Bounds of setting a lab up for tests, and of taking it away.
const (
	setUpLimit = 10 * time.Minute
	cleanLimit = 2 * time.Minute
)

// RunTests is for TestMain of a package two folders below the root: it sets up the lab that THESEUS_LAB names, hands it to
// the tests, runs them, and cleans up unless KEEP is set. It returns the exit status.
func RunTests(tests interface{ Run() int }, hand func(*Kit), nodes int, majors ...string) int {
	root, err := filepath.Abs("../..")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	start := time.Now()
	k := &Kit{Root: root, LabName: cmp.Or(os.Getenv("THESEUS_LAB"), "theseus-test"), Out: func(line string) {
		fmt.Printf("[%6.1fs] %s\n", time.Since(start).Seconds(), line)
	}}
	hand(k)
	ctx, cancel := context.WithTimeout(context.Background(), setUpLimit)
	defer cancel()
	if os.Getenv("KEEP") == "" {
		defer func() {
			down, cancel := context.WithTimeout(context.Background(), cleanLimit)
			defer cancel()
			if _, err := k.Lab(down, "clean"); err != nil {
				fmt.Fprintln(os.Stderr, "cleaning the lab:", err)
			}
		}()
	}
	if err := k.SetUp(ctx, nodes, majors...); err != nil {
		fmt.Fprintln(os.Stderr, "setting up the lab:", err)
		return 1
	}
	return tests.Run()
}

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
