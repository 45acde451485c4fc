package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/sim"
)

func TestManyRunsAsManySeedsAsAsked(t *testing.T) {
	require.Nil(t, many(sim.Config{}, 1, 3, 0, time.Hour, 2))
	require.Nil(t, many(sim.Config{}, 1, 0, 1, time.Hour, 1), "bounded by steps")
	require.Nil(t, many(sim.Config{}, 1, 0, 0, 0, 1), "bounded by time")
}

// What a broken rule does is found, and the seed that found it is told.
func TestManyReturnsTheViolation(t *testing.T) {
	conf := sim.Config{Variant: variantOf("lsn-only")}
	bad := many(conf, 1, 2000, 0, time.Minute, 2)
	require.NotNil(t, bad)
	conf.Seed = bad.Seed
	require.Equal(t, bad.Violation, sim.Run(conf).Violation, "and it can be replayed")
}

func TestFind(t *testing.T) {
	require.Equal(t, sim.Variant{}, variantOf(""))
	for _, v := range sim.Variants {
		require.Equal(t, v.Variant, variantOf(v.Name))
		require.Contains(t, names(), v.Name)
	}
}

// A replay is of the same variant, plot and size, or it is of something else.
func TestReplayLine(t *testing.T) {
	require.Equal(t, "go run ./internal/sim/cmd/sim", replay("", "", 0))
	require.Equal(t, `go run ./internal/sim/cmd/sim --variant lsn-only --plot "both who promised forget" --instances 5`, replay("lsn-only", "both who promised forget", 5))
	for _, v := range sim.Variants {
		require.Equal(t, v.Plot, find("plot", v.Plot, sim.Plots()), "its plot exists")
	}
}
