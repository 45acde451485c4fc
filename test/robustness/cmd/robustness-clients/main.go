// Command robustness-clients runs the clients of the robustness test beside the nodes until it is interrupted, and writes
// what they did to a file. Connection strings come from GATEWAY_URL and DIRECT_URL, since they hold a password.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"theseus.dev/theseus/test/robustness/clients"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "robustness-clients:", err)
		os.Exit(1)
	}
}

func run() error {
	gateway := clients.Endpoint{Name: "gateway", DSN: os.Getenv("GATEWAY_URL"), Timeout: 10 * time.Second}
	// Impatient enough to cancel commits that wait for standbys before another primary is made.
	direct := clients.Endpoint{Name: "direct", DSN: os.Getenv("DIRECT_URL"), Timeout: time.Second, Cancels: true}
	c := clients.Config{SetupTimeout: time.Minute, AuditTimeout: 2 * time.Minute, Live: os.Stderr}
	flag.IntVar(&gateway.Clients, "gateway", 6, "clients that go through the gateways")
	flag.IntVar(&direct.Clients, "direct", 4, "clients that go to the primary")
	flag.IntVar(&c.Registers, "registers", 24, "registers to work on")
	flag.IntVar(&c.Ledgers, "ledgers", 4, "ledgers to work on")
	flag.DurationVar(&c.Interval, "interval", 30*time.Millisecond, "pace of each client")
	flag.Uint64Var(&c.Seed, "seed", 1, "of what clients choose to do")
	out := flag.String("out", "history.jsonl", "file for the history")
	flag.Parse()
	for _, e := range []clients.Endpoint{gateway, direct} {
		if e.Clients > 0 && e.DSN != "" {
			c.Endpoints = append(c.Endpoints, e)
		}
	}
	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := clients.Run(ctx, c, f); err != nil {
		return err
	}
	return f.Close()
}
