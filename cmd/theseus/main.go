// Command theseus is everything: the agent in an instance, the operator, the gateway's sidecar, and the verbs of the
// kubectl plugin. Each subcommand is in a file of its own and adds itself to commands.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// release is set by the linker.
var release = "dev"

// commands makes the subcommands; files of this package add theirs in init.
var commands []func() *cobra.Command

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "theseus",
		Short:         "PostgreSQL on Kubernetes, where every plank gets replaced",
		Version:       release,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	for _, make := range commands {
		root.AddCommand(make())
	}
	return root
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "theseus:", err)
		os.Exit(1)
	}
}
