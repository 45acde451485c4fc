package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"theseus.dev/theseus/lab/internal/cluster"
	"theseus.dev/theseus/lab/internal/plan"
)

// claim completes the name of a PersistentVolumeClaim.
func claim(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return "default/" + name
}

func (a *app) node() *cobra.Command {
	cmd := group("node", "Nodes: add, remove, break, mend")
	cmd.AddCommand(a.nodeAdd(), a.nodeCut(), a.nodeHeal(), a.nodeExec(), a.nodeReplace(), &cobra.Command{
		Use: "list", Short: "Show the nodes", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error {
			return c.NodeList(cmd.Context(), a.out)
		}),
	}, &cobra.Command{
		Use: "remove NAME", Short: "Take a node away for good, with its volumes and its Node object (drain it first)", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeRemove(cmd.Context(), args[0])
		}),
	}, &cobra.Command{
		Use: "kill NAME", Short: "Cut a node's power: everything on it is gone, its Node object stays", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeKill(cmd.Context(), args[0])
		}),
	}, &cobra.Command{
		Use: "freeze NAME", Short: "Stop every process of a node where it is", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeFreeze(cmd.Context(), args[0], true)
		}),
	}, &cobra.Command{
		Use: "thaw NAME", Short: "Let them go on", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeFreeze(cmd.Context(), args[0], false)
		}),
	})
	return cmd
}

func (a *app) nodeAdd() *cobra.Command {
	var o cluster.NodeOptions
	cmd := &cobra.Command{
		Use: "add", Short: "Make a node; the last line printed is its name", Args: cobra.NoArgs,
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, _ []string) error {
			name, err := c.NodeAdd(cmd.Context(), o)
			if err == nil {
				fmt.Fprintln(a.out, name)
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&o.Zone, "zone", "", "one of "+strings.Join(plan.Zones(), ", ")+" (default: the one with the fewest nodes)")
	nodeFlags(cmd, &o)
	return cmd
}

func (a *app) nodeReplace() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use: "replace NAME", Short: "Make a new node in the same zone, drain the old one and take it away; the last line printed is the new name", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			name, err := c.NodeReplace(cmd.Context(), args[0], drain)
			if err == nil {
				fmt.Fprintln(a.out, name)
			}
			return err
		}),
	}
	cmd.Flags().DurationVar(&drain, "drain-timeout", cluster.DrainLimit, "how long Pods may take to leave; then the old node stays, cordoned")
	return cmd
}

func (a *app) nodeCut() *cobra.Command {
	var peer, direction string
	cmd := &cobra.Command{
		Use: "cut NAME", Short: "Cut a node off the network; what runs on it goes on", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeCut(cmd.Context(), args[0], peer, cluster.Direction(direction))
		}),
	}
	cmd.Flags().StringVar(&peer, "peer", "", "only from this node, or from control-plane or client (default: from everyone)")
	cmd.Flags().StringVar(&direction, "direction", string(cluster.Both), "drop packets to the node (in), from it (out), or both")
	return cmd
}

func (a *app) nodeHeal() *cobra.Command {
	var peer string
	cmd := &cobra.Command{
		Use: "heal NAME", Short: "Undo the cuts of a node", Args: cobra.ExactArgs(1),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeHeal(cmd.Context(), args[0], peer)
		}),
	}
	cmd.Flags().StringVar(&peer, "peer", "", "only those towards this machine")
	return cmd
}

func (a *app) nodeExec() *cobra.Command {
	return &cobra.Command{
		Use: "exec NAME -- CMD...", Short: "Run a program inside a machine: a node, control-plane or client", Args: cobra.MinimumNArgs(2),
		RunE: a.with(func(cmd *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.NodeExec(cmd.Context(), args[0], args[1:])
		}),
	}
}
