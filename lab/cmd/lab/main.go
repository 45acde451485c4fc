// Command lab runs a real multi-node Kubernetes on one Linux machine, without
// Docker or a network: see docs/lab.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := root(os.Stdout).ExecuteContext(ctx)
	if err == nil {
		return
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode()) // a program run inside the lab speaks for itself
	}
	fmt.Fprintln(os.Stderr, "lab:", err)
	os.Exit(1)
}
