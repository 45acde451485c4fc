package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/bench/failover/internal/result"
	"theseus.dev/theseus/bench/failover/internal/trial"
)

func TestParse(t *testing.T) {
	o, err := parse(nil)
	require.NoError(t, err)
	require.Equal(t, 10, o.n)
	require.True(t, filepath.IsAbs(o.root) && filepath.IsAbs(o.out) && filepath.IsAbs(o.patroniTar))
	require.Contains(t, o.client.Command, "client")
	require.NotZero(t, o.bounds.Steady)
	for _, bad := range [][]string{{"-n", "0"}, {"-patroni-endpoint", "dns"}, {"-patroni-synchronous-mode", "off"}} {
		_, err := parse(bad)
		require.ErrorContains(t, err, bad[0])
	}
}

func testBench(t *testing.T) *bench {
	t.Helper()
	o, err := parse([]string{"-out", t.TempDir()})
	require.NoError(t, err)
	b := &bench{options: o, say: func(string) {}}
	b.systems, err = chosen(b.known(), o.systems)
	require.NoError(t, err)
	b.faults = trial.Faults()
	return b
}

func TestChosen(t *testing.T) {
	b := testBench(t)
	require.Len(t, b.systems, 3)
	two, err := chosen(b.known(), "patroni-tuned, theseus")
	require.NoError(t, err)
	require.Equal(t, "patroni-tuned", two[0].ID)
	_, err = chosen(b.known(), "theseus,stolon")
	require.ErrorContains(t, err, "stolon")
}

// Every system is first as often as any other.
func TestTurn(t *testing.T) {
	b := testBench(t)
	firsts := map[string]int{}
	for round := 1; round <= 9; round++ {
		order := turn(b.systems, round)
		require.Len(t, order, 3)
		firsts[order[0].ID]++
	}
	require.Equal(t, map[string]int{"theseus": 3, "patroni": 3, "patroni-tuned": 3}, firsts)
}

// A comparison that goes on does only what is missing, and what could not be measured is missing.
func TestMissing(t *testing.T) {
	b := testBench(t)
	require.Len(t, b.missing("patroni", 1), 8)
	b.runs = []result.Run{
		{System: "patroni", Fault: "kill", Rep: 1, Measured: true},
		{System: "patroni", Fault: "cut", Rep: 1},
		{System: "theseus", Fault: "power", Rep: 1, Measured: true},
	}
	var ids []string
	for _, f := range b.missing("patroni", 1) {
		ids = append(ids, f.ID)
	}
	require.Equal(t, []string{"switchover", "pod", "stop", "stall", "power", "freeze", "cut"}, ids)
	ids = nil
	for _, f := range b.missing("patroni", 2) {
		ids = append(ids, f.ID)
	}
	require.Equal(t, []string{"switchover", "kill", "pod", "stop", "stall", "power", "freeze", "cut", "switchover", "pod", "stop", "stall", "power", "freeze", "cut"}, ids, "in turns")
}

// Old results are put aside, not mixed with new ones, unless that is asked for.
func TestOpen(t *testing.T) {
	b := testBench(t)
	require.NoError(t, b.open())
	require.Empty(t, b.runs)
	run := result.Run{System: "patroni", Fault: "kill", Rep: 1, Measured: true}
	require.NoError(t, result.Append(b.runsFile(), run))
	b.resume = true
	require.NoError(t, b.open())
	require.Len(t, b.runs, 1)
	require.NoError(t, b.write())
	for _, name := range []string{"failover.md", "failover.svg", "failover.json"} {
		require.FileExists(t, filepath.Join(b.out, name))
	}
	b.resume, b.runs = false, nil
	require.NoError(t, b.open())
	require.NoFileExists(t, b.runsFile())
	require.FileExists(t, filepath.Join(b.out, "runs.before.jsonl"))
	require.Empty(t, b.runs)
}

func TestFactsSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "facts.json")
	require.Empty(t, loadFacts(path).Settings)
	require.NoError(t, os.WriteFile(path, []byte(`{"settings":{"theseus":{"fsync":"on"}},"versions":{}}`), 0o600))
	require.Equal(t, "on", loadFacts(path).Settings["theseus"]["fsync"])
}

func TestLock(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	free, err := lock("x")
	require.NoError(t, err)
	_, err = lock("x")
	require.ErrorContains(t, err, "another comparison")
	other, err := lock("y")
	require.NoError(t, err)
	other()
	free()
	again, err := lock("x")
	require.NoError(t, err)
	again()
}
