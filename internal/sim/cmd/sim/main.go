// Command sim runs the simulation of package sim: one seed with a trace of what happened, or as many as fit in a time.
//
//	go run ./internal/sim/cmd/sim --seed 42            replay seed 42, with a trace
//	go run ./internal/sim/cmd/sim --for 1m             a minute of fresh seeds, on all cores
//	go run ./internal/sim/cmd/sim --for 8h --steps 0   a long run
//	go run ./internal/sim/cmd/sim --seeds 500          seeds --from to --from+499
//	go run ./internal/sim/cmd/sim --variant lsn-only   with a rule left out: it should find a violation
//
// On a violation it prints the seed, shrinks the schedule of faults, prints the trace of the smaller run, and exits with 1.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"theseus.dev/theseus/internal/sim"
)

func main() {
	seed := flag.Int64("seed", -1, "replay this seed with a trace; -1 runs many")
	seeds := flag.Int("seeds", 0, "how many seeds to run; 0 is as many as the time allows")
	from := flag.Uint64("from", 0, "first seed; 0 takes one from the clock, unless --seeds is given")
	limit := flag.Duration("for", time.Minute, "how long to run")
	steps := flag.Int("steps", 0, "stop after that many steps in all; 0 is no limit")
	instances := flag.Int("instances", 0, "instances of the shard; 0 varies them with the seed")
	variant := flag.String("variant", "", "leave out a rule: "+strings.Join(names(), ", "))
	plot := flag.String("plot", "", "repeat one plot only (its name, see plots.go)")
	shrink := flag.Int("shrink", 400, "runs to spend on shrinking a violation")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "runs at a time")
	flag.Parse()

	conf := sim.Config{Instances: *instances, Plot: find("plot", *plot, sim.Plots()), Variant: variantOf(*variant)}
	again := replay(*variant, *plot, *instances)
	if *seed >= 0 {
		conf.Seed = uint64(*seed)
		conf.Trace = trace
		r := sim.Run(conf)
		fmt.Println(r)
		if r.Violation != "" {
			explain(conf, *shrink, again)
			os.Exit(1)
		}
		return
	}
	if *from == 0 && *seeds == 0 {
		*from = uint64(time.Now().UnixNano()) >> 10
	}
	if bad := many(conf, *from, *seeds, *steps, *limit, *workers); bad != nil {
		fmt.Println(*bad)
		conf.Seed = bad.Seed
		explain(conf, *shrink, again)
		os.Exit(1)
	}
}

// many runs seeds until one violates something, and returns it.
func many(conf sim.Config, from uint64, seeds, steps int, limit time.Duration, workers int) (bad *sim.Result) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, runs, total, acked := from, 0, 0, 0
	begun, counts := time.Now(), map[string]int{}
	for range workers {
		wg.Go(func() {
			for {
				mu.Lock()
				stop := bad != nil || seeds > 0 && next >= from+uint64(seeds) || steps > 0 && total >= steps || time.Since(begun) > limit
				c := conf
				c.Seed = next
				next++
				mu.Unlock()
				if stop {
					return
				}
				r := sim.Run(c)
				mu.Lock()
				runs, total, acked = runs+1, total+r.Steps, acked+r.Acked
				for k, v := range r.Counts {
					counts[k] += v
				}
				if r.Violation != "" && (bad == nil || r.Seed < bad.Seed) {
					bad = &r
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	took := time.Since(begun)
	fmt.Printf("%d runs from seed %d in %v: %d steps (%.1f million a minute), %d commits acknowledged, %d promotions, %d reparents\n", runs, from, took.Round(time.Millisecond),
		total, float64(total)/1e6/took.Minutes(), acked, counts["promotion"], counts["reparent Succeeded"])
	return bad
}

// explain shrinks a violation and shows what is left.
func explain(conf sim.Config, tries int, again string) {
	conf.Trace = nil
	small := sim.Shrink(conf, tries)
	fmt.Printf("\nshrunk to %d faults:\n", len(small.Faults))
	for _, f := range small.Faults {
		fmt.Println("  " + f.String())
	}
	small.Trace = trace
	fmt.Println(sim.Run(small))
	fmt.Printf("replay with: %s --seed %d\n", again, conf.Seed)
}

// replay is the command that runs the same simulation again, but for the seed.
func replay(variant, plot string, instances int) string {
	cmd := "go run ./internal/sim/cmd/sim"
	if variant != "" {
		cmd += " --variant " + variant
	}
	if plot != "" {
		cmd += fmt.Sprintf(" --plot %q", plot)
	}
	if instances != 0 {
		cmd += fmt.Sprintf(" --instances %d", instances)
	}
	return cmd
}

func trace(at time.Duration, line string) { fmt.Printf("%10.4f  %s\n", at.Seconds(), line) }

func variantOf(name string) sim.Variant {
	find("variant", name, names())
	for _, v := range sim.Variants {
		if v.Name == name {
			return v.Variant
		}
	}
	return sim.Variant{}
}

// find ends the program when there is no such name; "" is none.
func find(what, name string, names []string) string {
	if name != "" && !slices.Contains(names, name) {
		fmt.Fprintf(os.Stderr, "no %s %q; there are:\n  %s\n", what, name, strings.Join(names, "\n  "))
		os.Exit(2)
	}
	return name
}

func names() []string {
	var out []string
	for _, v := range sim.Variants {
		out = append(out, v.Name)
	}
	return out
}
