// Command sim-fleet runs a simulated year of a fleet and says whether it went as promised; see package simfleet.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"theseus.dev/theseus/internal/simfleet"
)

func main() {
	cfg := simfleet.Default()
	mode := flag.String("mode", string(cfg.Mode), "what expires: nodes (with their instances) or instances")
	flag.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "one seed always gives the same run")
	flag.IntVar(&cfg.Shards, "shards", cfg.Shards, "number of shards, of three instances each")
	flag.IntVar(&cfg.PerNode, "per-node", cfg.PerNode, "instances per node")
	flag.IntVar(&cfg.Days, "days", cfg.Days, "days to simulate")
	out := flag.String("out", "", "directory for the plots (SVG) and the table; none are written without it")
	profile := flag.String("cpuprofile", "", "file for a CPU profile")
	flag.Parse()
	cfg.Mode = simfleet.Mode(*mode)
	if err := run(cfg, *out, *profile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(cfg simfleet.Config, out, profile string) error {
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
	r := simfleet.Run(cfg)
	r.Print(os.Stdout)
	fmt.Printf("took %s\n", time.Since(began).Round(100*time.Millisecond))
	if out != "" {
		if err := write(r, out, string(cfg.Mode)); err != nil {
			return err
		}
	}
	if n := len(r.Problems()); n > 0 {
		return fmt.Errorf("%d problems", n)
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
