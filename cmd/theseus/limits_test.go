package main

import (
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/ledger"
)

func limited(args ...string) (ledger.Limits, error) {
	var l ledger.Limits
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	registerLimits(f, &l)
	if err := f.Parse(args); err != nil {
		return l, err
	}
	return l, checkLimits(l)
}

func TestLimits(t *testing.T) {
	l, err := limited()
	require.NoError(t, err)
	require.Equal(t, ledger.Limits{PlannedShare: 0.02, UrgentShare: 0.1, RepairsShare: 0.1, StormFraction: 0.05, StormWindow: time.Hour}, l)
	l, err = limited("--freeze=Planned", "--limit-planned=0.04", "--limit-requests=1", "--limit-repairs=2e-1", "--storm-fraction=0", "--storm-window=30m")
	require.NoError(t, err)
	require.Equal(t, ledger.Limits{
		Freeze: ledger.FreezePlanned, PlannedShare: 0.04, UrgentShare: 1, RepairsShare: 0.2, StormFraction: -1, StormWindow: 30 * time.Minute,
	}, l)
	for _, wrong := range []string{
		"--freeze=Everything", "--limit-planned=0", "--limit-requests=1.1", "--limit-repairs=-1", "--limit-repairs=NaN", "--limit-planned=2%",
		"--storm-fraction=-0.1", "--storm-fraction=2", "--storm-window=0s",
	} {
		_, err = limited(wrong)
		require.Error(t, err, wrong)
	}
}

// What the chart says is what the operator does without it.
func TestTheChartHasTheDefaults(t *testing.T) {
	values, err := os.ReadFile("../../charts/theseus/values.yaml")
	require.NoError(t, err)
	deployment, err := os.ReadFile("../../charts/theseus/templates/deployment.yaml")
	require.NoError(t, err)
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	var l ledger.Limits
	registerLimits(f, &l)
	for value, flag := range map[string]string{
		"planned": "limit-planned", "requests": "limit-requests", "repairs": "limit-repairs",
		"stormFraction": "storm-fraction", "stormWindow": "storm-window",
	} {
		require.Contains(t, string(deployment), "- --"+flag+"={{ ."+value+" }}")
		m := regexp.MustCompile(`(?s)\nlimits:\n.*?\n  ` + value + `: (\S+)\n`).FindSubmatch(values)
		require.NotNil(t, m, value)
		require.NoError(t, f.Set(flag, string(m[1])))
		require.Equal(t, f.Lookup(flag).DefValue, f.Lookup(flag).Value.String(), value)
	}
}
