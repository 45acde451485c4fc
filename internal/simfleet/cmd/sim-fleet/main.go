// Command sim-fleet runs a simulated year of a fleet, once for nodes that expire and once for instances, and says whether it
// went as promised; see package simfleet.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"theseus.dev/theseus/internal/simfleet"
)

func main() {
	cfg := simfleet.Default()
	mode := flag.String("mode", both, "what expires: nodes (with their instances), instances, or both, each in a year of its own")
	flag.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "one seed always gives the same run")
	flag.IntVar(&cfg.Shards, "shards", cfg.Shards, "number of shards, of three instances each")
	flag.IntVar(&cfg.PerNode, "per-node", cfg.PerNode, "instances per node")
	flag.IntVar(&cfg.Days, "days", cfg.Days, "days to simulate")
	out := flag.String("out", "", "directory for the plots (SVG) and the table; none are written without it")
	profile := flag.String("cpuprofile", "", "file for a CPU profile")
	flag.Parse()
	modes, err := modesOf(*mode)
	if err == nil {
		err = run(os.Stdout, cfg, modes, *out, *profile)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const both = "both"

func modesOf(name string) ([]simfleet.Mode, error) {
	all := []simfleet.Mode{simfleet.Nodes, simfleet.Instances}
	switch {
	case name == both:
		return all, nil
	case slices.Contains(all, simfleet.Mode(name)):
		return []simfleet.Mode{simfleet.Mode(name)}, nil
	}
	return nil, fmt.Errorf("there is no mode %q: nodes, instances or %s", name, both)
}

// run runs the modes side by side: a year uses one processor.
func run(w io.Writer, cfg simfleet.Config, modes []simfleet.Mode, out, profile string) error {
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	began := time.Now()
	reports := make([]*simfleet.Report, len(modes))
	var years sync.WaitGroup
	for i, mode := range modes {
		cfg := cfg
		cfg.Mode = mode
		years.Go(func() { reports[i] = simfleet.Run(cfg) })
	}
	years.Wait()
	problems := 0
	for _, r := range reports {
		r.Print(w)
		fmt.Fprintln(w)
		problems += len(r.Problems())
		if out == "" {
			continue
		}
		if err := write(r, out, string(r.Config.Mode)); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "took %s\n", time.Since(began).Round(100*time.Millisecond))
	if problems > 0 {
		return fmt.Errorf("%d problems", problems)
	}
	return nil
}

func write(r *simfleet.Report, dir, prefix string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, plot := range map[string]func(io.Writer){
		"rate.svg": r.RateSVG, "oldest.svg": r.OldestSVG, "ages.svg": r.AgesSVG, "in-flight.svg": r.FlightSVG, "table.txt": r.Print,
	} {
		f, err := os.Create(filepath.Join(dir, prefix+"-"+name))
		if err != nil {
			return err
		}
		plot(f)
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
