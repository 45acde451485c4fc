package charts

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const release = "theseus-system"

// helm runs helm as a user would; `make test` has built it before.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path, err := filepath.Abs("../bin/helm")
	require.NoError(t, err)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("helm"); err != nil {
			t.Skip("there is no helm: make bin/helm")
		}
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// template renders the chart with values given as --set wants them. It renders a copy: what this process does not read
// itself could change without go test noticing that what it remembers of an earlier run is old.
func template(t *testing.T, set ...string) (stdout, stderr string, err error) {
	t.Helper()
	chart := t.TempDir()
	require.NoError(t, os.CopyFS(chart, os.DirFS("theseus")))
	args := []string{"template", "theseus", chart, "--namespace", release}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	return helm(t, args...)
}

// render is what the chart makes of these values.
func render(t *testing.T, set ...string) []unstructured.Unstructured {
	t.Helper()
	out, errs, err := template(t, set...)
	require.NoError(t, err, errs)
	var objects []unstructured.Unstructured
	for text := range strings.SplitSeq(out, "\n---\n") {
		o := unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte(text), &o.Object), text)
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
	require.NotEmpty(t, objects)
	return objects
}

// as reads an object as the type that Kubernetes has for it, and refuses what that does not know.
func as[T any](t *testing.T, o unstructured.Unstructured) T {
	t.Helper()
	var v T
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &v, true), o.GetName())
	return v
}
