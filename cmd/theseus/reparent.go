package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/verbs"
)

func init() { commands = append(commands, newReparentCommand) }

func newReparentCommand() *cobra.Command {
	var v verbs.Reparent
	var emergency bool
	var kubeconfig string
	cmd := &cobra.Command{
		Use:   "reparent DATABASE/SHARD",
		Short: "Change the primary of a shard, planned (the default) or as an emergency",
		Example: "  theseus reparent shop/0\n  theseus reparent -n quickstart shop/0 --away-from shop-0-x7k2p\n" +
			"  theseus reparent shop-0 --emergency --expect-primary shop-0-x7k2p",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if v.Spec.Shard, err = verbs.ShardName(args[0]); err != nil {
				return err
			}
			if v.Spec.To != "" && v.Spec.To == v.Spec.AwayFrom {
				return errors.New("--to and --away-from name the same instance")
			}
			v.Spec.Kind = v1alpha1.ReparentPlanned
			if emergency {
				v.Spec.Kind = v1alpha1.ReparentEmergency
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
	f.StringVar(&v.Spec.To, "to", "", "instance to promote (default: the best candidate)")
	f.StringVar(&v.Spec.AwayFrom, "away-from", "", "instance that must not be the primary afterwards")
	f.StringVar(&v.Spec.ExpectPrimary, "expect-primary", "", "refuse when another instance is the primary")
	f.DurationVar(&v.Spec.DrainTimeout.Duration, "drain-timeout", 0, "how long open transactions may take to finish before they are ended, up to 1m (default 3s)")
	f.BoolVar(&emergency, "emergency", false, "do not ask the old primary for anything")
	f.DurationVar(&v.Wait, "wait", 2*time.Minute, "for the outcome; 0 returns at once")
	v.Spec.Reason = "Requested"
	return cmd
}

// connect finds the API server and the namespace the way kubectl does.
func connect(kubeconfig, namespace string) (client.Client, string, error) {
	rest, namespace, err := clusterConfig(kubeconfig, namespace)
	if err != nil {
		return nil, "", err
	}
	c, err := client.New(rest, client.Options{Scheme: controller.Scheme()})
	return c, namespace, err
}
