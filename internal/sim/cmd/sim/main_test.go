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
	conf := sim.Config{Variant: find("lsn-only")}
	bad := many(conf, 1, 2000, 0, time.Minute, 2)
	require.NotNil(t, bad)
	conf.Seed = bad.Seed
	require.Equal(t, bad.Violation, sim.Run(conf).Violation, "and it can be replayed")
}

func TestFind(t *testing.T) {
	require.Equal(t, sim.Variant{}, find(""))
	for _, v := range sim.Variants {
		require.Equal(t, v.Variant, find(v.Name))
		require.Contains(t, names(), v.Name)
	}
}
