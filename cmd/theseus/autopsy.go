package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/verbs"
)

func init() { commands = append(commands, newAutopsyCommand, newEvidenceCommand) }

// autopsyFlags say where the evidence is.
type autopsyFlags struct {
	kubeconfig, operatorNamespace string
	bucket, prefix                string
	allNamespaces                 bool
}

func newAutopsyCommand() *cobra.Command {
	var v verbs.Autopsy
	var where autopsyFlags
	cmd := &cobra.Command{
		Use:   "autopsy [NAME]",
		Short: "Show and fetch what was kept of a condemned instance; without a name, list the cases",
		Long: "NAME is an instance, a Replacement or a case. The operator's replicas are asked, through the API server, as kubectl\n" +
			"exec would: you need the right to do that in their namespace, and no key to the bucket. With --bucket the bucket\n" +
			"is read from here, which works without any cluster.",
		Example: "  theseus autopsy -n shop\n  theseus autopsy -n shop db-0-x7k2p --out /tmp/db-0-x7k2p\n" +
			"  theseus autopsy -n shop db-0-x7k2p --bucket s3://theseus-evidence?region=eu-west-1",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				v.Name = args[0]
			}
			v.Out = cmd.OutOrStdout()
			if err := where.open(&v); err != nil {
				return err
			}
			return v.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&v.Namespace, "namespace", "n", "", "namespace (default: the kubeconfig's)")
	f.BoolVarP(&where.allNamespaces, "all-namespaces", "A", false, "list the cases of all namespaces")
	f.StringVar(&v.Dir, "out", "", "directory to write every file to")
	f.IntVar(&v.Lines, "lines", 40, "last lines of each log in the timeline; all are in --out")
	f.StringVar(&where.kubeconfig, "kubeconfig", "", "path of the kubeconfig (default: as kubectl)")
	f.StringVar(&where.operatorNamespace, "operator-namespace", "theseus-system", "namespace of the operator")
	f.StringVar(&where.bucket, "bucket", "", "read this bucket instead of asking the operator")
	f.StringVar(&where.prefix, "prefix", "", "prefix in the bucket")
	return cmd
}

// open finds the archive, and the cluster when there is one.
func (w *autopsyFlags) open(v *verbs.Autopsy) error {
	config, namespace, err := clusterConfig(w.kubeconfig, v.Namespace)
	switch {
	case err == nil:
		c, err := client.New(config, client.Options{Scheme: controller.Scheme()})
		if err != nil {
			return err
		}
		run, err := verbs.Exec(config)
		if err != nil {
			return err
		}
		v.Namespace, v.Client = namespace, c
		v.Archive = verbs.Replicas{Client: c, Run: run, Namespace: w.operatorNamespace}
	case w.bucket == "":
		return err
	}
	if w.bucket != "" {
		if v.Archive, err = bucketArchive(w.bucket, w.prefix); err != nil {
			return err
		}
	}
	if w.allNamespaces {
		if v.Name != "" {
			return errors.New("--all-namespaces is for the list")
		}
		v.Namespace = ""
	}
	return nil
}

func bucketArchive(url, prefix string) (verbs.Archive, error) {
	bucket, err := evidence.Open(url, prefix)
	if err != nil {
		return nil, err
	}
	return verbs.BucketArchive{Bucket: bucket, Now: time.Now}, nil
}

// clusterConfig finds the API server and the namespace the way kubectl does.
func clusterConfig(kubeconfig, namespace string) (*rest.Config, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
	if namespace == "" {
		var err error
		if namespace, _, err = config.Namespace(); err != nil {
			return nil, "", err
		}
	}
	rest, err := config.ClientConfig()
	return rest, namespace, err
}

// newEvidenceCommand is the other end of autopsy, inside the operator's Pod.
func newEvidenceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "evidence", Hidden: true,
		Short: "What autopsy runs in the operator's Pod",
	}
	var namespace, bucket, prefix string
	cmd.PersistentFlags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	cmd.PersistentFlags().StringVar(&bucket, "bucket", os.Getenv(envBucket), "URL of the bucket ("+envBucket+")")
	cmd.PersistentFlags().StringVar(&prefix, "prefix", os.Getenv(envPrefix), "prefix in the bucket ("+envPrefix+")")
	open := func() (verbs.Archive, error) {
		if bucket == "" {
			return nil, errors.New("no evidence is kept: the operator has no bucket (values: evidence.bucket)")
		}
		return bucketArchive(bucket, prefix)
	}
	cmd.AddCommand(&cobra.Command{Use: "list", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		archive, err := open()
		if err != nil {
			return err
		}
		l, err := archive.List(cmd.Context(), namespace)
		if err != nil {
			return err
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
	}}, &cobra.Command{Use: "export NAME", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		archive, err := open()
		if err != nil {
			return err
		}
		found, err := archive.Fetch(cmd.Context(), namespace, args[0])
		if err != nil && !errors.Is(err, verbs.ErrNothingFound) {
			return err
		}
		return cmp.Or(found, &verbs.Found{}).Pack(cmd.OutOrStdout())
	}})
	return cmd
}
