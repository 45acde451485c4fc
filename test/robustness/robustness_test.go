//go:build e2e

package robustness

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/labkit"
)

const (
	// nodes of the lab: one more than instances, so that a new one can be made before an old one goes.
	nodes = 4
	// defaultFaults is how many faults a run has if nobody says.
	defaultFaults = 6
	// moveLimit is how long after a fault another instance must be the primary. It is generous: what is asserted here is that
	// it happens, bench-failover says how fast.
	moveLimit = 45 * time.Second
	// wholeLimit is how long after a fault was undone the shard must be whole, with all it takes to seed an instance on a busy
	// machine.
	wholeLimit = 4 * time.Minute
	// undoLimit bounds the undoing of a step's faults, undoOne one attempt at one of them.
	undoLimit = 3 * time.Minute
	undoOne   = 30 * time.Second
	// removeLimit bounds the deletion of a run's Database.
	removeLimit = 2 * time.Minute
	// secondLimit bounds the injection of a fault on top of another one, which may make that hang.
	secondLimit = 20 * time.Second
	// checkLimit bounds the judging of one object's history.
	checkLimit = 2 * time.Minute
)

var kit *labkit.Kit // Set by TestMain before any test runs.

func TestMain(m *testing.M) {
	os.Exit(labkit.RunTests(m, func(k *labkit.Kit) { kit = k }, nodes, "17"))
}

// TestRobustness runs one schedule; see the package comment for how to choose it.
func TestRobustness(t *testing.T) {
	schedule := chosen(t)
	dir := filepath.Join(kit.Root, "build", "robustness", time.Now().UTC().Format("20060102-150405"))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	save(t, dir, "schedule.json", schedule)
	t.Logf("seed %d, %d faults; again with SEED=%d FAULTS=%d or SCHEDULE=%s/schedule.json", schedule.Seed, len(schedule.Steps), schedule.Seed, len(schedule.Steps), dir)
	limit := 5*time.Minute + time.Duration(len(schedule.Steps))*(moveLimit+wholeLimit+undoLimit)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	r := &run{t: t, dir: dir, report: report{Schedule: schedule}}
	r.create(ctx)
	r.watch(ctx)
	r.begin(ctx)
	for i, step := range schedule.Steps {
		r.step(ctx, i, step)
	}
	r.end(ctx)
	r.judge()
}

// chosen is the schedule that the environment asks for.
func chosen(t *testing.T) Schedule {
	t.Helper()
	if path := os.Getenv("SCHEDULE"); path != "" {
		if !filepath.IsAbs(path) {
			path = filepath.Join(kit.Root, path)
		}
		s, err := ReadSchedule(path)
		require.NoError(t, err)
		return s
	}
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, name)
		return n
	}
	return Draw(number("SEED", uint64(time.Now().UnixNano())%1_000_000), int(number("FAULTS", defaultFaults)))
}
