// Command imagebuild makes Theseus' container images from Debian packages and the
// theseus binary, with neither Docker nor a registry.
//
//	imagebuild operand  -recipe images -major 17 -binary bin/theseus -out FILE
//	imagebuild operator -recipe images -major 17 -binary bin/theseus -out FILE
//	imagebuild push FILE NAME
//
// SOURCE_DATE_EPOCH (seconds since 1970) is the newest timestamp in the image.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"theseus.dev/theseus/images/internal/apt"
	"theseus.dev/theseus/images/internal/build"
	"theseus.dev/theseus/images/internal/recipe"
)

// buildDeadline bounds one build. A root file system takes a minute from a near mirror.
const buildDeadline = 20 * time.Minute

// options are the command line.
type options struct {
	build.Common
	verb    string
	recipe  string
	major   string
	cache   string
	fresh   bool
	mirrors apt.Mirrors
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, buildDeadline)
	defer cancel()
	if err := run(ctx, os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH"), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "imagebuild:", err)
		os.Exit(1)
	}
}

// run is main without the process around it.
func run(ctx context.Context, args []string, epoch string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "push" {
		return push(ctx, args[1:], stdout)
	}
	o, err := parse(args, epoch, stderr)
	if err != nil {
		return err
	}
	r, err := readRecipe(o)
	if err != nil {
		return err
	}
	began := time.Now()
	builder := build.RootfsBuilder{Cache: o.cache, Mirrors: o.mirrors, Fresh: o.fresh, Log: stderr}
	root, err := builder.Rootfs(ctx, r)
	if err != nil {
		return err
	}
	var digest v1.Hash
	if o.verb == "operand" {
		digest, err = build.Operand(o.Common, o.major, root)
	} else {
		digest, err = build.Operator(o.Common, root.CACerts)
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(o.Out)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s  %s  %s  %d MB  %.1fs\n", o.Name, digest, o.Out, info.Size()>>20, time.Since(began).Seconds())
	return nil
}

// parse reads the command line. epoch is the value of SOURCE_DATE_EPOCH.
func parse(args []string, epoch string, stderr io.Writer) (options, error) {
	if len(args) == 0 || (args[0] != "operand" && args[0] != "operator") {
		return options{}, errors.New("usage: imagebuild operand|operator [flags] (see -h of each), or imagebuild push FILE NAME")
	}
	o := options{verb: args[0]}
	f := flag.NewFlagSet("imagebuild "+o.verb, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.Name, "name", "", "full image name with tag")
	f.StringVar(&o.Arch, "arch", runtime.GOARCH, "architecture, as Go names it")
	f.StringVar(&o.Version, "version", "", "recorded as the image's version label")
	f.StringVar(&o.Binary, "binary", "bin/theseus", "the static theseus binary")
	f.StringVar(&o.Out, "out", "", "archive to write")
	f.StringVar(&o.recipe, "recipe", "images", "directory with suites.txt, packages-operand.txt and slim.txt")
	f.StringVar(&o.major, "major", "17", "PostgreSQL major; the operator takes its certificates from that root file system")
	f.StringVar(&o.cache, "cache", "build/images/cache", "where root file systems are kept")
	f.BoolVar(&o.fresh, "fresh", false, "make the root file system anew with the mirror's newest packages")
	f.StringVar(&o.mirrors.Main, "mirror", "", "Debian mirror (default: the one this machine's apt uses)")
	f.StringVar(&o.mirrors.Security, "security-mirror", "", "Debian mirror of security updates, with -mirror")
	if err := f.Parse(args[1:]); err != nil {
		return options{}, err
	}
	if o.Name == "" || o.Out == "" {
		return options{}, errors.New("-name and -out are needed")
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds <= 0 {
		return options{}, fmt.Errorf("SOURCE_DATE_EPOCH must be set to seconds since 1970, not %q", epoch)
	}
	o.Epoch = time.Unix(seconds, 0).UTC()
	return o, nil
}

// readRecipe reads the list files.
func readRecipe(o options) (recipe.Recipe, error) {
	r := recipe.Recipe{Major: o.major, Arch: o.Arch, Epoch: o.Epoch}
	read := func(name string, parse func(io.Reader) error) error {
		f, err := os.Open(filepath.Join(o.recipe, name))
		if err != nil {
			return err
		}
		defer f.Close()
		return parse(f)
	}
	return r, errors.Join(
		read("suites.txt", func(f io.Reader) (err error) { r.Suite, err = recipe.Suite(f, o.major); return err }),
		read("packages-operand.txt", func(f io.Reader) (err error) { r.Packages, err = recipe.Packages(f, o.major); return err }),
		read("slim.txt", func(f io.Reader) (err error) { r.Slim, err = recipe.ParseSlim(f); return err }),
	)
}
