// Command failover compares what clients see of failovers: Theseus and Patroni, in the same lab, with the same client,
// under the same faults, in turns. See README.md beside it; `make bench-failover` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"theseus.dev/theseus/bench/failover/internal/trial"
	"theseus.dev/theseus/internal/labkit"
)

// options are the command line.
type options struct {
	root, out, lab, version  string
	n, each, nodes           int
	systems, faults          string
	resume, report, keepLab  bool
	deadline                 time.Duration
	patroniImage, patroniTar string
	endpoint, synchronous    string
	client                   trial.ClientConfig
	bounds                   trial.Bounds
}

func parse(args []string) (options, error) {
	o := options{bounds: trial.DefaultBounds()}
	f := flag.NewFlagSet("failover", flag.ContinueOnError)
	f.StringVar(&o.root, "root", ".", "the repository")
	f.StringVar(&o.out, "out", "bench/results", "directory for results")
	f.StringVar(&o.lab, "lab", envOr("THESEUS_LAB", "theseus-bench"), "the lab to use; it is started, and taken down at the end")
	f.StringVar(&o.version, "version", "", "version of Theseus, for the report")
	f.IntVar(&o.n, "n", 10, "repetitions of each fault of each system")
	f.IntVar(&o.each, "each", 2, "repetitions of each fault between installing a system and removing it")
	f.IntVar(&o.nodes, "nodes", 4, "nodes of the lab")
	f.StringVar(&o.systems, "systems", "theseus,patroni,patroni-tuned", "what to compare")
	f.StringVar(&o.faults, "faults", "", "which faults (default: all)")
	f.BoolVar(&o.resume, "resume", false, "go on with the results that are there")
	f.BoolVar(&o.report, "report", false, "only make the documents anew from the results that are there")
	f.BoolVar(&o.keepLab, "keep-lab", false, "leave the lab up")
	f.DurationVar(&o.deadline, "deadline", 6*time.Hour, "of everything; what was measured until then is kept")
	f.StringVar(&o.patroniImage, "patroni-image", "theseus.local/patroni:pg17", "image of Patroni's members")
	f.StringVar(&o.patroniTar, "patroni-archive", "build/images/patroni-pg17.tar", "its archive")
	f.StringVar(&o.endpoint, "patroni-endpoint", "service", "where Patroni's clients connect: service (follows the leader) or hosts (all members, target_session_attrs=read-write)")
	f.StringVar(&o.synchronous, "patroni-synchronous-mode", "on", "Patroni's synchronous_mode: on or quorum")
	f.IntVar(&o.client.Writers, "writers", 4, "connections that write")
	f.DurationVar(&o.client.Interval, "interval", 10*time.Millisecond, "pace of each writer")
	f.DurationVar(&o.client.Timeout, "timeout", 5*time.Second, "of one write")
	f.DurationVar(&o.client.ConnectTimeout, "connect-timeout", time.Second, "of one attempt to connect")
	f.DurationVar(&o.bounds.Limit, "limit", o.bounds.Limit, "how long after a fault to wait for writes")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case o.n < 1 || o.each < 1:
		return o, errors.New("-n and -each must be at least 1")
	case o.endpoint != "service" && o.endpoint != "hosts":
		return o, errors.New("-patroni-endpoint must be service or hosts")
	case o.synchronous != "on" && o.synchronous != "quorum":
		return o, errors.New("-patroni-synchronous-mode must be on or quorum")
	}
	root, err := filepath.Abs(o.root)
	if err != nil {
		return o, err
	}
	o.root = root
	for _, p := range []*string{&o.out, &o.patroniTar} {
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(root, *p)
		}
	}
	o.client.Command = []string{
		filepath.Join(root, "bin", "lab"), "--name", o.lab, "client", "--", filepath.Join(root, "bin", "theseus-load"),
	}
	return o, nil
}

func envOr(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}

func main() {
	log.SetLogger(logr.Discard()) // the Kubernetes client would complain that it has none
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.deadline)
	defer cancel()
	start := time.Now()
	b := &bench{options: o, say: func(line string) { fmt.Printf("[%7.1fs] %s\n", time.Since(start).Seconds(), line) }}
	b.kit = &labkit.Kit{Root: o.root, LabName: o.lab, Out: func(line string) {
		if !strings.HasPrefix(line, "  ") { // what a Database waits for is of no interest here
			b.say(line)
		}
	}}
	if b.systems, err = chosen(b.known(), o.systems); err != nil {
		return err
	}
	if b.faults, err = trial.Select(o.faults); err != nil {
		return err
	}
	if err := b.open(); err != nil {
		return err
	}
	if !o.report {
		err = b.measure(ctx)
	}
	return errors.Join(err, b.write())
}
