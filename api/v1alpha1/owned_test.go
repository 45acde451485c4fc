package v1alpha1

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/postgres"
)

// TestAdmissionKnowsTheOwnedParameters keeps the list in the validation rule in step with the one the server uses. When
// it fails, put the expression it names into both places of database_types.go and run make generate.
func TestAdmissionKnowsTheOwnedParameters(t *testing.T) {
	var patterns []string
	for _, name := range slices.Sorted(maps.Keys(postgres.Owned())) {
		patterns = append(patterns, strings.ReplaceAll(name, "*", ".*"))
	}
	slices.Sort(patterns)
	want := "'^(" + strings.Join(patterns, "|") + ")$'"
	source, err := os.ReadFile("database_types.go")
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(source), want), "want twice: %s", want)
}
