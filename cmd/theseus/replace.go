package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/verbs"
)

func init() { commands = append(commands, newReplaceCommand) }

// askable are the reasons a person may give; the others are the operator's own.
var askable = []v1alpha1.Reason{v1alpha1.ReasonRequested, v1alpha1.ReasonCondemned, v1alpha1.ReasonDrill, v1alpha1.ReasonOutdated}

func newReplaceCommand() *cobra.Command {
	var v verbs.Replace
	var kubeconfig, reason string
	cmd := &cobra.Command{
		Use:   "replace INSTANCE",
		Short: "Replace one instance by a new one: surge, seed, swap, reparent if it is the primary, retire",
		Example: "  theseus replace shop-0-x7k2p\n  theseus replace shop-0-x7k2p --database quickstart/shop\n" +
			"  theseus replace shop-0-x7k2p --reason Condemned --message 'its disk is slow'",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			v.Instance, v.Reason = args[0], v1alpha1.Reason(reason)
			if !slices.Contains(askable, v.Reason) {
				return fmt.Errorf("--reason %s: only %v can be asked for", reason, askable)
			}
			if namespace, database, ok := strings.Cut(v.Database, "/"); ok {
				v.Namespace, v.Database = namespace, database
			}
			if v.Client, v.Namespace, err = connect(kubeconfig, v.Namespace); err != nil {
				return err
			}
			v.Clock, v.Out = clock.RealClock{}, cmd.OutOrStdout()
			return v.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&v.Namespace, "namespace", "n", "", "namespace (default: the kubeconfig's)")
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig (default: as kubectl)")
	f.StringVar(&v.Database, "database", "", "refuse instances of any other database: NAME or NAMESPACE/NAME")
	f.StringVar(&reason, "reason", string(v1alpha1.ReasonRequested), "Requested, Condemned (it counts as no copy from now on, evidence is taken), Drill or Outdated")
	f.StringVar(&v.Message, "message", "", "why, for people")
	f.DurationVar(&v.Wait, "wait", 2*time.Hour, "for the end; 0 returns at once")
	return cmd
}
