package labkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// PrintInstances writes a table of a Database's instances, as the shards' status tells it.
func (k *Kit) PrintInstances(ctx context.Context, w io.Writer, namespace, database string) error {
	shards, err := k.Shards(ctx, namespace, database)
	if err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "INSTANCE\tROLE\tNODE\tZONE\tAGE\tLAG\tCOHORT")
	for i := range shards {
		for _, in := range shards[i].Status.Instances {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d B\t%s\n", in.Name, in.Role, in.Node, in.Zone,
				time.Since(in.CreatedAt.Time).Round(time.Second), in.LagBytes, cohortColumn(shards[i].Status.Record, in.Name))
		}
	}
	return tw.Flush()
}

func cohortColumn(record v1alpha1.CohortRecord, instance string) string {
	if len(record.Cohorts) == 0 {
		return "-"
	}
	c := record.Cohorts[len(record.Cohorts)-1]
	switch {
	case c.Primary == instance:
		return fmt.Sprintf("term %d, acks %d of %d", c.Term, c.Acks, len(c.Members))
	case slices.Contains(c.Members, instance):
		return "member"
	default:
		return "learner"
	}
}

// AppURI is the connection URI of the application user, from the Database's Secret.
func (k *Kit) AppURI(ctx context.Context, namespace, database string) (string, error) {
	secret := &corev1.Secret{}
	if err := k.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: database + "-app"}, secret); err != nil {
		return "", err
	}
	uri := string(secret.Data["uri"])
	if uri == "" {
		return "", fmt.Errorf("secret %s-app has no uri", database)
	}
	return uri, nil
}

// Psql runs psql inside one of the Database's Pods against the read-write endpoint, as the application user.
func (k *Kit) Psql(ctx context.Context, namespace, database string, args ...string) (string, error) {
	uri, err := k.AppURI(ctx, namespace, database)
	if err != nil {
		return "", err
	}
	pods := &corev1.PodList{}
	if err := k.Client.List(ctx, pods, client.InNamespace(namespace),
		client.MatchingLabels{v1alpha1.LabelDatabase: database, v1alpha1.LabelComponent: v1alpha1.ComponentInstance}); err != nil {
		return "", err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
			continue
		}
		return k.psqlIn(ctx, p, uri, args)
	}
	return "", errors.New("no running instance to run psql in")
}

// knownWithin is how long a new Service may take to be known: after an outage of the API server, DNS servers and the proxies of
// nodes ask it again only after a backoff of up to half a minute, which is jittered.
const knownWithin = 90 * time.Second

// notKnownYet are what psql says of a Service that is not. It has not begun anything then.
var notKnownYet = regexp.MustCompile(`could not translate host name|port \d+ failed: Connection refused`)

func (k *Kit) psqlIn(ctx context.Context, pod *corev1.Pod, uri string, args []string) (string, error) {
	limit, cancel := context.WithTimeout(ctx, knownWithin)
	defer cancel()
	// The URI holds the password: it goes in through standard input, not through arguments others can read.
	script := `read -r uri; exec psql "$uri" "$@"`
	command := append([]string{"-n", pod.Namespace, "exec", "-i", pod.Name, "--", "bash", "-c", script, "psql"}, args...)
	var out string
	err := Poll(limit, time.Second, func(context.Context) (done bool, waiting string, err error) {
		out, err = k.RunInput(ctx, strings.TrimSpace(uri)+"\n", k.kubectl(), command...)
		if err != nil && notKnownYet.MatchString(err.Error()) {
			return false, err.Error(), nil
		}
		return true, "", err
	})
	return out, err
}
