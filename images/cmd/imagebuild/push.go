package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// push pushes an archive to a registry under a name, with the credentials that
// `docker login` and its likes have left for this user.
func push(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: imagebuild push FILE NAME")
	}
	ref, err := name.ParseReference(args[1])
	if err != nil {
		return err
	}
	image, err := tarball.ImageFromPath(args[0], nil)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := remote.Write(ref, image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "pushed %s\n", ref)
	return nil
}
