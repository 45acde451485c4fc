package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/simfleet"
)

// A fleet this small is not level by the hour, which is a problem that is reported; everything else is there.
func TestBothModesLeaveTheirPlotsAndTables(t *testing.T) {
	cfg := simfleet.Default()
	cfg.Shards, cfg.Days, cfg.Troubles = 20, 35, nil
	modes, err := modesOf(both)
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "out")
	var b bytes.Buffer
	if err := run(&b, cfg, modes, dir, ""); err != nil {
		require.ErrorContains(t, err, "problems")
	}
	for _, mode := range []string{"nodes", "instances"} {
		require.Contains(t, b.String(), mode+" expire")
		table, err := os.ReadFile(filepath.Join(dir, mode+"-table.txt"))
		require.NoError(t, err)
		require.Contains(t, string(table), mode+" expire")
		for _, plot := range []string{"rate", "oldest", "ages", "in-flight"} {
			require.FileExists(t, filepath.Join(dir, mode+"-"+plot+".svg"))
		}
	}
}

func TestModes(t *testing.T) {
	one, err := modesOf("instances")
	require.NoError(t, err)
	require.Equal(t, []simfleet.Mode{simfleet.Instances}, one)
	_, err = modesOf("shards")
	require.ErrorContains(t, err, "nodes, instances or both")
}
