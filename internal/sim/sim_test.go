package sim

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSeeds runs a fixed number of seeds. `go run ./internal/sim/cmd/sim` runs more of them.
func TestSeeds(t *testing.T) {
	steps, acked, counts := 0, 0, map[string]int{}
	begun := time.Now()
	for seed := range uint64(seeds) {
		r := Run(Config{Seed: seed})
		if r.Violation != "" {
			t.Fatalf("%v\nreplay and shrink with: go run ./internal/sim/cmd/sim --seed %d", r, seed)
		}
		steps, acked = steps+r.Steps, acked+r.Acked
		for k, v := range r.Counts {
			counts[k] += v
		}
	}
	t.Logf("%d steps in %v (%.1f million a minute), %d commits acknowledged", steps, time.Since(begun).Round(time.Millisecond), float64(steps)/1e6/time.Since(begun).Minutes(), acked)
	t.Log(counts)
	if brief {
		return
	}
	// A simulation in which nothing happens finds nothing: everything it is about must have happened.
	for _, k := range kinds {
		require.Positive(t, counts["fault "+string(k.kind)], k.kind)
	}
	for _, e := range events {
		require.Positive(t, counts["fault on "+e], e)
	}
	for what, n := range counts {
		if strings.HasPrefix(what, "hopeless") {
			require.LessOrEqual(t, n, seeds/100, what)
		}
	}
	for _, what := range []string{
		"promotion", "established", "cohort change", "reparent Succeeded", "reparent Undone", "reparent Failed", "reparent Overtaken",
		"verdict PrimaryDead", "verdict PrimaryStalled", "verdict PrimaryIsolated", "verdict NoPrimary", "verdict StandbyDead", "verdict CannotCommit", "verdict AgentDead", "verdict TwoPrimaries",
	} {
		require.Positive(t, counts[what], what)
	}
}

// TestRegressions replays the seeds that once found something. The file says what.
func TestRegressions(t *testing.T) {
	f, err := os.Open("testdata/seeds.txt")
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line, why, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		conf := regression(t, line)
		r := Run(conf)
		require.Empty(t, r.Violation, "%s (%s)", line, strings.TrimSpace(why))
	}
	require.NoError(t, lines.Err())
}

// regression is a line of the file: a seed, and the number of instances and the plot if they are not the seed's.
func regression(t *testing.T, line string) (conf Config) {
	seed, more, _ := strings.Cut(line, " ")
	instances, plot, _ := strings.Cut(strings.TrimSpace(more), " ")
	var err error
	conf.Seed, err = strconv.ParseUint(seed, 10, 64)
	require.NoError(t, err, line)
	if instances != "" {
		conf.Instances, err = strconv.Atoi(instances)
		require.NoError(t, err, line)
	}
	if conf.Plot = strings.TrimSpace(plot); conf.Plot != "" {
		require.Contains(t, Plots(), conf.Plot)
	}
	return conf
}

// TestSimulatorCatchesBrokenRules is the test of the simulator: with any one rule left out it finds a violation within
// the budget.
func TestSimulatorCatchesBrokenRules(t *testing.T) {
	if brief {
		t.Skip("not under the race detector")
	}
	for _, v := range Variants {
		t.Run(v.Name, func(t *testing.T) {
			for seed := range uint64(v.Budget) {
				if r := Run(Config{Seed: seed, Variant: v.Variant, Plot: v.Plot, Instances: v.Instances}); r.Violation != "" {
					t.Log(r)
					return
				}
			}
			t.Fatalf("not caught in %d seeds", v.Budget)
		})
	}
}

// TestPlotsOfBrokenRules: it is the broken rule that is caught, and not the plot that is made for it.
func TestPlotsOfBrokenRules(t *testing.T) {
	for _, v := range Variants {
		if v.Plot == "" {
			continue
		}
		for seed := range uint64(seeds / 60) {
			r := Run(Config{Seed: seed, Plot: v.Plot, Instances: v.Instances})
			require.Empty(t, r.Violation, "%s: seed %d", v.Plot, seed)
		}
	}
}

// TestDeterminism: the same seed is the same run, event by event.
func TestDeterminism(t *testing.T) {
	for seed := range uint64(6) {
		var traces [2][]string
		for n := range traces {
			r := Run(Config{Seed: seed, Trace: func(at time.Duration, line string) { traces[n] = append(traces[n], at.String()+" "+line) }})
			traces[n] = append(traces[n], r.String())
		}
		require.Equal(t, traces[0], traces[1])
	}
}

// TestShrink: what is left of a violation is smaller and still one.
func TestShrink(t *testing.T) {
	for seed := range uint64(200) {
		conf := Config{Seed: seed, Variant: Variant{LSNOnly: true}}
		before := Run(conf)
		if before.Violation == "" {
			continue
		}
		small := Shrink(conf, 100)
		require.Less(t, len(small.Faults), len(before.Faults))
		require.NotEmpty(t, Run(small).Violation)
		return
	}
	t.Fatal("nothing to shrink")
}

func TestQuietShardStaysQuiet(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5} {
		r := Run(Config{Seed: 1, Instances: n, Faults: []Fault{}})
		require.Empty(t, r.Violation)
		require.Zero(t, r.Counts["promotion"], "%d instances: %v", n, r.Counts)
		require.Greater(t, r.Acked, 1000)
	}
}

// A planned reparent that waits for a checkpoint has touched nothing: the emergency of the disk that hangs does not wait for it.
func TestAnEmergencyDoesNotWaitForACheckpoint(t *testing.T) {
	for seed := range uint64(20) {
		var back time.Duration
		r := Run(Config{Seed: seed, Instances: 3, Trouble: 60 * time.Second, Faults: []Fault{
			at(time.Second, Switchover, 0, 0, 0), at(time.Second+time.Millisecond, StallDisk, 7, 0, 50*time.Second),
		}, Trace: func(at time.Duration, line string) {
			if back == 0 && at > time.Second && strings.Contains(line, "is established in term") {
				back = at - time.Second
			}
		}})
		require.Empty(t, r.Violation)
		require.Less(t, back, 10*time.Second, "seed %d", seed)
	}
}
