package charts

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever sees that something is not ready asks why: kubectl get -o wide has the answer for both kinds.
func TestDatabasesAndShardsSayWhyInAColumn(t *testing.T) {
	for _, kind := range []string{"databases", "shards"} {
		data, err := os.ReadFile("theseus/crds/theseus.dev_" + kind + ".yaml")
		require.NoError(t, err)
		require.Contains(t, string(data), `
    - jsonPath: .status.conditions[?(@.type=="Ready")].reason
      name: Reason
      priority: 1
      type: string
`, kind)
	}
}
