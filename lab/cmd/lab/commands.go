package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"theseus.dev/theseus/lab/internal/cluster"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

// app carries what the commands share.
type app struct {
	name string
	out  io.Writer
}

// with opens the lab the flags name and runs f on it.
func (a *app) with(f func(*cobra.Command, *cluster.Cluster, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := cluster.New(a.name, a.out)
		if err != nil {
			return err
		}
		return f(cmd, c, args)
	}
}

func root(out io.Writer) *cobra.Command {
	a := &app{out: out}
	cmd := &cobra.Command{
		Use:           "lab",
		Short:         "A real multi-node Kubernetes on this machine, without Docker",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	name := os.Getenv("THESEUS_LAB")
	if name == "" {
		name = plan.DefaultLab
	}
	cmd.PersistentFlags().StringVar(&a.name, "name", name, "which lab; several can run side by side (also THESEUS_LAB)")
	cmd.AddCommand(a.up(), a.down(), a.clean(), a.status(), a.kubeconfig(), a.image(), a.node(), a.volume(), a.controlPlane(), a.machineWebhook(), a.client(), a.daemon())
	return cmd
}

// group is a word that others follow. A wrong one is an error, where cobra would print the help and say that all is well.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

func nodeFlags(cmd *cobra.Command, o *cluster.NodeOptions) {
	cmd.Flags().StringVar(&o.CPU, "cpu", "", "CPU a new node offers to Pods, such as 1500m (default: all of this machine's)")
	cmd.Flags().StringVar(&o.Memory, "memory", "", "memory a new node offers to Pods, such as 2Gi (default: all of this machine's)")
}

func (a *app) up() *cobra.Command {
	var nodes int
	var o cluster.NodeOptions
	cmd := &cobra.Command{
		Use: "up", Short: "Start the lab, or repair it, and make sure it has this many nodes", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error {
			if err := c.Up(cmd.Context(), nodes, o); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "lab %s is up; export KUBECONFIG=%s\n", a.name, c.KubeconfigPath())
			return nil
		}),
	}
	cmd.Flags().IntVar(&nodes, "nodes", 3, "how many nodes to have")
	nodeFlags(cmd, &o)
	return cmd
}

func (a *app) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the cluster and its data; loaded images stay", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error { return c.Down(cmd.Context()) }),
	}
}

func (a *app) clean() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "clean", Short: "Remove every process, mount, namespace, control group and file of the lab", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := []string{a.name}
			if all {
				var err error
				if names, err = state.Labs(state.Root); err != nil {
					return err
				}
			}
			var failed error
			for _, name := range names {
				c, err := cluster.New(name, a.out)
				if err == nil {
					err = c.Clean(cmd.Context())
				}
				failed = errors.Join(failed, err)
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every lab of this machine, whatever its name")
	return cmd
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what the lab consists of and how it is", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error { return c.Status(cmd.Context(), a.out) }),
	}
}

func (a *app) kubeconfig() *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of a kubeconfig for this machine", Args: cobra.NoArgs,
		RunE: a.with(func(_ *cobra.Command, c *cluster.Cluster, _ []string) error {
			path, err := c.Kubeconfig()
			if err == nil {
				fmt.Fprintln(a.out, path)
			}
			return err
		}),
	}
}

func (a *app) image() *cobra.Command {
	cmd := group("image", "Container images")
	cmd.AddCommand(&cobra.Command{
		Use: "load FILE...", Short: "Give the images of docker or OCI archives to every node, present and future", Args: cobra.MinimumNArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, files []string) error {
			for _, f := range files {
				if err := c.ImageLoad(cmd.Context(), f); err != nil {
					return err
				}
			}
			return nil
		}),
	})
	return cmd
}

func (a *app) volume() *cobra.Command {
	cmd := group("volume", "Volumes, by claim (NAMESPACE/NAME, or NAME in namespace default)")
	cmd.AddCommand(&cobra.Command{
		Use: "stall PVC", Short: "Make writes and fsync on the claim's volume hang", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.VolumeStall(cmd.Context(), claim(args[0]))
		}),
	}, &cobra.Command{
		Use: "resume PVC", Short: "Let them go on", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.VolumeResume(cmd.Context(), claim(args[0]))
		}),
	})
	return cmd
}

func (a *app) controlPlane() *cobra.Command {
	cmd := group("control-plane", "etcd, API server, controllers and scheduler")
	cmd.AddCommand(&cobra.Command{
		Use: "stop", Short: "Stop them; nodes go on", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error {
			return c.ControlPlaneStop(cmd.Context())
		}),
	}, &cobra.Command{
		Use: "start", Short: "Start them again with the same data", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error {
			return c.ControlPlaneStart(cmd.Context())
		}),
	})
	return cmd
}

func (a *app) machineWebhook() *cobra.Command {
	return &cobra.Command{
		Use: "machine-webhook", Short: "Print the URL at which Theseus, inside the lab, has nodes replaced", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Fprintln(a.out, cluster.MachineWebhook()) },
	}
}

func (a *app) client() *cobra.Command {
	return &cobra.Command{
		Use:   "client -- CMD...",
		Short: "Run a program of this machine beside the nodes: cluster names resolve, Services and Pods answer",
		Args:  cobra.MinimumNArgs(1),
		RunE:  a.with(func(_ *cobra.Command, c *cluster.Cluster, args []string) error { return c.Client(args) }),
	}
}

func (a *app) daemon() *cobra.Command {
	return &cobra.Command{
		Use: "daemon", Short: "What `up` runs in the background", Args: cobra.NoArgs, Hidden: true,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error {
			return c.Daemon(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}),
	}
}
