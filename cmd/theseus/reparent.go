package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/names"
)

func init() { commands = append(commands, newReparent) }

// reparentFlags are what a reparent can be told.
type reparentFlags struct {
	namespace, kubeContext   string
	to, awayFrom, expect     string
	reason                   string
	emergency                bool
	drainTimeout, waitAtMost time.Duration
}

func newReparent() *cobra.Command {
	var f reparentFlags
	cmd := &cobra.Command{
		Use:   "reparent DATABASE[/SHARD]",
		Short: "Change the primary of a shard, and wait for the outcome",
		Long: "Change the primary of a shard by creating the Reparent of its next term, and wait for the outcome.\n" +
			"SHARD is the name of the Shard or its number, and may be left out when the Database has one.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, namespace, err := kubeClient(f.kubeContext, f.namespace)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), f.waitAtMost)
			defer cancel()
			return f.run(ctx, c, namespace, args[0], cmd.OutOrStdout())
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.namespace, "namespace", "n", "", "namespace (default: that of the kubeconfig's context)")
	fl.StringVar(&f.kubeContext, "context", "", "context of the kubeconfig")
	fl.StringVar(&f.to, "to", "", "instance to promote (default: the best placed)")
	fl.StringVar(&f.awayFrom, "away-from", "", "instance that must not be the primary afterwards")
	fl.StringVar(&f.expect, "expect-primary", "", "refuse when another instance is the primary")
	fl.StringVar(&f.reason, "reason", "Requested", "reason in a word, for metrics")
	fl.BoolVar(&f.emergency, "emergency", false, "do without the old primary: for when it is in the way of a planned reparent")
	fl.DurationVar(&f.drainTimeout, "drain-timeout", 3*time.Second, "how long open transactions may take to finish")
	fl.DurationVar(&f.waitAtMost, "timeout", 2*time.Minute, "how long to wait for the outcome")
	cmd.MarkFlagsMutuallyExclusive("to", "away-from")
	return cmd
}

// kubeClient connects as kubectl would, and says in which namespace.
func kubeClient(kubeContext, namespace string) (client.WithWatch, string, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), &clientcmd.ConfigOverrides{CurrentContext: kubeContext})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("no cluster to talk to: %w", err)
	}
	if namespace == "" {
		if namespace, _, err = loader.Namespace(); err != nil {
			return nil, "", err
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: controller.Scheme()})
	return c, namespace, err
}

func (f *reparentFlags) run(ctx context.Context, c client.Client, namespace, target string, out io.Writer) error {
	shard, err := findShard(ctx, c, namespace, target)
	if err != nil {
		return err
	}
	rp, err := f.create(ctx, c, shard)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %s reparent of %s, term %d\n", rp.Name, rp.Spec.Kind, shard.Name, rp.Spec.Term)
	return follow(ctx, c, rp, out)
}

// findShard resolves DATABASE[/SHARD].
func findShard(ctx context.Context, c client.Client, namespace, target string) (*v1alpha1.Shard, error) {
	database, which, _ := strings.Cut(target, "/")
	list := &v1alpha1.ShardList{}
	if err := c.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelDatabase: database}); err != nil {
		return nil, err
	}
	var have []string
	for i := range list.Items {
		sh := &list.Items[i]
		have = append(have, sh.Name)
		if sh.Name == which || fmt.Sprint(sh.Spec.Index) == which || which == "" && len(list.Items) == 1 {
			return sh, nil
		}
	}
	if len(have) == 0 {
		return nil, fmt.Errorf("there is no Database %s with shards in namespace %s", database, namespace)
	}
	return nil, fmt.Errorf("which shard of %s? one of: %s", database, strings.Join(have, ", "))
}

// create makes the Reparent of the next free term. Terms may have been used up by reparents that were refused.
func (f *reparentFlags) create(ctx context.Context, c client.Client, shard *v1alpha1.Shard) (*v1alpha1.Reparent, error) {
	kind := v1alpha1.ReparentPlanned
	if f.emergency {
		kind = v1alpha1.ReparentEmergency
	}
	for term := shard.Status.Term + 1; ; term++ {
		rp := &v1alpha1.Reparent{
			ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.Reparent(shard.Name, uint64(term))},
			Spec: v1alpha1.ReparentSpec{
				Shard: shard.Name, Term: term, Kind: kind, To: f.to, AwayFrom: f.awayFrom, ExpectPrimary: f.expect,
				Reason: f.reason, DrainTimeout: metav1.Duration{Duration: f.drainTimeout},
			},
		}
		err := c.Create(ctx, rp)
		if err == nil {
			return rp, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
		taken := &v1alpha1.Reparent{}
		if err := c.Get(ctx, client.ObjectKeyFromObject(rp), taken); err != nil {
			return nil, err
		}
		if taken.Status.Outcome == "" {
			return nil, fmt.Errorf("%s is under way: wait for its outcome", taken.Name)
		}
	}
}

// follow prints the phases as they come and returns when there is an outcome: an error unless it succeeded.
func follow(ctx context.Context, c client.Client, rp *v1alpha1.Reparent, out io.Writer) error {
	key, said := types.NamespacedName{Namespace: rp.Namespace, Name: rp.Name}, 0
	for {
		if err := c.Get(ctx, key, rp); err != nil {
			return err
		}
		for ; said < len(rp.Status.Phases) && rp.Status.Phases[said].FinishedAt != nil; said++ {
			p := rp.Status.Phases[said]
			fmt.Fprintf(out, "  %-10s %8s  %s\n", p.Name, p.FinishedAt.Sub(p.StartedAt.Time).Round(time.Millisecond), p.Message)
		}
		switch st := &rp.Status; st.Outcome {
		case "":
		case v1alpha1.OutcomeSucceeded:
			fmt.Fprintf(out, "%s → %s: %s\n", st.OldPrimary, st.NewPrimary, st.Why)
			if st.WriteUnavailable != nil {
				fmt.Fprintf(out, "writes were unavailable for %s\n", st.WriteUnavailable.Duration)
			}
			return nil
		default:
			return fmt.Errorf("%s: %s", strings.ToLower(st.Outcome), st.Message)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("no outcome yet, in phase %q; it goes on by itself: kubectl describe reparent %s", rp.Status.Phase, rp.Name))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
