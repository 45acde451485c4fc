// Command theseus-load writes to a PostgreSQL without pause, prints a line per second, and at the end says how long
// clients were kept waiting and whether anything acknowledged is missing. See package load.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"theseus.dev/theseus/internal/load"
)

// The exit status says more than "failed": scripts tell data loss from a run that could not be judged.
const (
	exitLost     = 3
	exitUnjudged = 4
)

func main() {
	os.Exit(run())
}

func run() int {
	var c load.Config
	var out string
	var quiet bool
	flag.StringVar(&c.DSN, "dsn", os.Getenv("DATABASE_URL"), "where to write: a connection string, several hosts allowed (DATABASE_URL)")
	flag.IntVar(&c.Writers, "writers", 4, "connections that write")
	flag.DurationVar(&c.Interval, "interval", 0, "pace of each writer; 0 is as fast as it goes")
	flag.DurationVar(&c.Timeout, "timeout", 0, "of one write (default 5s)")
	flag.DurationVar(&c.ConnectTimeout, "connect-timeout", 0, "of one attempt to connect (default: timeout)")
	flag.DurationVar(&c.MaxLifetime, "max-lifetime", 0, "of a connection, as pools have it; 0 is for ever")
	flag.DurationVar(&c.Duration, "duration", 0, "of the run; 0 is until interrupted")
	flag.DurationVar(&c.VerifyTimeout, "verify-timeout", 0, "of reading everything back (default 1m)")
	flag.StringVar(&c.Table, "table", "", "table to write to, made if need be (default theseus_load)")
	flag.BoolVar(&c.KeepOps, "ops", false, "put every operation into the summary")
	flag.StringVar(&out, "out", "", "file for the summary as JSON (default: standard output)")
	flag.BoolVar(&quiet, "quiet", false, "no line per second")
	flag.Parse()
	if !quiet {
		c.Live = os.Stderr
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	summary, err := load.Run(ctx, c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "theseus-load:", err)
	}
	if summary == nil {
		return 1
	}
	if err := write(out, summary); err != nil {
		fmt.Fprintln(os.Stderr, "theseus-load:", err)
		return 1
	}
	switch {
	case !summary.Verified:
		return exitUnjudged
	case summary.Lost > 0:
		fmt.Fprintf(os.Stderr, "theseus-load: %d acknowledged writes are LOST\n", summary.Lost)
		return exitLost
	}
	return 0
}

func write(path string, s *load.Summary) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if path == "" {
		_, err = os.Stdout.Write(data)
		return err
	}
	return os.WriteFile(path, data, 0o644) //nolint:gosec // a report for everybody
}
