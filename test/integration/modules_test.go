//go:build integration

package integration

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// module is a Go module whose files tests need, but none of its code: with its checksum, because no go.sum has it.
// `go mod download -json PATH@VERSION` prints the sum of another version.
type module struct{ path, version, sum string }

var (
	karpenterModule  = module{"sigs.k8s.io/karpenter", "v1.14.1", "h1:GjqvOHLjl2+OXM0ti5VEZSQuvcitB0pETd8zdChXEtI="}
	clusterAPIModule = module{"sigs.k8s.io/cluster-api", "v1.14.2", "h1:o3GFNaeNFAOEEMpDPfhCK+2CjmV6gtQ8yLEcUwCg7bA="}
)

// dir is where the module's files are; they are downloaded if need be.
func (m module) dir(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", m.path+"@"+m.version)
	cmd.Dir = t.TempDir() // outside of our own module
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	var got struct{ Dir, Sum string }
	require.NoError(t, json.Unmarshal(out, &got))
	require.Equal(t, m.sum, got.Sum)
	return got.Dir
}

// installCRDs gives the API server the kinds of another project, as that project defines them.
func installCRDs(t *testing.T, m module, paths ...string) {
	t.Helper()
	dir := m.dir(t)
	o := envtest.CRDInstallOptions{ErrorIfPathMissing: true}
	for _, p := range paths {
		o.Paths = append(o.Paths, filepath.Join(dir, filepath.FromSlash(p)))
	}
	_, err := envtest.InstallCRDs(cluster.config, o)
	require.NoError(t, err)
}
