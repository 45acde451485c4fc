// Package robustness has real clients work on a shard while its primary fails again and again, at random, in every way
// that package faults knows, and judges what the clients saw (package history).
//
//	make test-robustness                      a few minutes of faults; the seed is printed
//	make test-robustness SEED=7 FAULTS=20     the same faults again, or more of them
//	make test-robustness SCHEDULE=FILE        exactly the schedule that a failed run has saved
//
// A seed fixes the schedule and what each client chooses to do; it cannot fix when threads run and packets arrive. A run
// that fails, or any with SAVE=1, leaves, in build/robustness/<time>: schedule.json to do it again; report.json with the violations and what
// happened when; history.jsonl with every operation; a picture of each object that is not linearizable; what the Shard,
// Reparent, Replacement and Pod objects were at each change (objects.jsonl); and the logs of every container (logs/), also
// of those that are gone.
package robustness

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"theseus.dev/theseus/test/faults"
)

// Step is one fault of a schedule.
type Step struct {
	Fault string `json:"fault"`
	// After is how long the whole shard is left alone before.
	After Duration `json:"after"`
	// Holds is how long the fault lasts before it is undone.
	Holds Duration `json:"holds"`
	// Second fault, if any: while the first one lasts, whoever is the primary then fails too.
	Second *Second `json:"second,omitempty"`
}

// Second is a fault on top of another one. Two at a time are more than a shard of three survives without a pause; it must
// lose nothing all the same, and be whole once both are undone. So both must leave the data where it is: with the primary
// and its only witness destroyed there would be nothing left to be right about.
type Second struct {
	Fault string `json:"fault"`
	// After is how long after the first one it happens.
	After Duration `json:"after"`
}

// Schedule is a run that can be repeated.
type Schedule struct {
	// Seed the schedule was drawn from; clients choose by it too.
	Seed  uint64 `json:"seed"`
	Steps []Step `json:"steps"`
}

// Duration is written as people write it.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Bounds of what is drawn: short enough for a primary to come back in the middle of everything, long enough for it to
// come back when all is over.
const (
	minAfter, maxAfter = 1 * time.Second, 5 * time.Second
	minHolds, maxHolds = 500 * time.Millisecond, 12 * time.Second
)

// Draw makes a schedule of n steps. Faults are dealt like cards, so that none comes again before all others were there.
func Draw(seed uint64, n int) Schedule {
	random := rand.New(rand.NewPCG(seed, 0))
	s := Schedule{Seed: seed}
	var deck []faults.Fault
	for range n {
		if len(deck) == 0 {
			deck = append(faults.All(), faults.Extra()...)
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := deck[0]
		deck = deck[1:]
		longest := maxHolds
		if f.Lasts > 0 {
			longest = min(longest, f.Lasts)
		}
		step := Step{Fault: f.Name, After: between(random, minAfter, maxAfter), Holds: between(random, minHolds, longest)}
		if second := random.IntN(secondOf) == 0; second && !f.Gone {
			step.Second = drawSecond(random, time.Duration(step.Holds))
		}
		s.Steps = append(s.Steps, step)
	}
	return s
}

// secondOf: one in so many faults has another one on top.
const secondOf = 4

func drawSecond(random *rand.Rand, holds time.Duration) *Second {
	for {
		all := append(faults.All(), faults.Extra()...)
		if f := all[random.IntN(len(all))]; !f.Gone {
			return &Second{Fault: f.Name, After: between(random, 0, holds)}
		}
	}
}

func between(random *rand.Rand, low, high time.Duration) Duration {
	return Duration((low + time.Duration(random.Int64N(int64(high-low)))).Round(time.Millisecond))
}

// ReadSchedule reads a schedule that a run has saved, and checks that its faults exist.
func ReadSchedule(path string) (Schedule, error) {
	var s Schedule
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	for _, step := range s.Steps {
		if _, err := faults.Named(step.Fault); err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
		if step.Second == nil {
			continue
		}
		if _, err := faults.Named(step.Second.Fault); err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
	}
	return s, nil
}
