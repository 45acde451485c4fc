package main

import (
	"bytes"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	good := []string{"operand", "-name", "a/b:c", "-out", "x.tar"}
	o, err := parse(good, "1000", io.Discard)
	require.NoError(t, err)
	require.Equal(t, "17", o.major)
	require.EqualValues(t, 1000, o.Epoch.Unix())

	for want, c := range map[string]struct {
		args  []string
		epoch string
	}{
		"usage":             {nil, "1000"},
		"usage:":            {[]string{"build"}, "1000"},
		"-name and -out":    {good[:3], "1000"},
		"SOURCE_DATE_EPOCH": {good, ""},
		"not \"-1\"":        {good, "-1"},
		"not \"now\"":       {good, "now"},
		"flag provided":     {append(good, "-x"), "1000"},
	} {
		_, err := parse(c.args, c.epoch, io.Discard)
		require.ErrorContains(t, err, want)
	}
}

func TestReadRecipe(t *testing.T) {
	r, err := readRecipe(options{recipe: "../..", major: "15"})
	require.NoError(t, err)
	require.Equal(t, "bookworm", r.Suite)
	_, err = readRecipe(options{recipe: "../..", major: "8"})
	require.ErrorContains(t, err, "known majors")
	_, err = readRecipe(options{recipe: t.TempDir(), major: "17"})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	img, err := random.Image(100, 2)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, tarball.WriteToFile(file, nil, img))
	name := strings.TrimPrefix(server.URL, "http://") + "/theseus/operand:1"

	var out bytes.Buffer
	require.NoError(t, push(t.Context(), []string{file, name}, &out))
	require.Contains(t, out.String(), name)
	for want, args := range map[string][]string{
		"usage":              {file},
		"could not parse":    {file, "NOT A NAME"},
		"no such file":       {file + "x", name},
		"connection refused": {file, "127.0.0.1:1/x:y"},
	} {
		require.ErrorContains(t, push(t.Context(), args, io.Discard), want)
	}
}
