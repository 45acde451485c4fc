// Package verbs holds what the kubectl plugin does: small programs over the API, with no rules of their own.
package verbs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	rules "theseus.dev/theseus/internal/controller/shard"
)

// Reparent asks for a reparent and, unless told not to, follows it to its outcome.
type Reparent struct {
	Client    client.Client
	Clock     clock.Clock
	Out       io.Writer
	Namespace string
	// Spec of the request; the term is filled in.
	Spec v1alpha1.ReparentSpec
	// Wait for the outcome at most this long; 0 does not wait.
	Wait time.Duration
}

// attempts at a term: each one that fails means that somebody else just took it.
const attempts = 5

// Run creates the request. The error says why it was refused or how it failed.
func (v *Reparent) Run(ctx context.Context) error {
	r, err := v.create(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(v.Out, "reparent %s created\n", r.Name)
	if v.Wait == 0 {
		return nil
	}
	return v.follow(ctx, r)
}

func (v *Reparent) create(ctx context.Context) (*v1alpha1.Reparent, error) {
	for range attempts {
		shard := &v1alpha1.Shard{}
		if err := v.Client.Get(ctx, client.ObjectKey{Namespace: v.Namespace, Name: v.Spec.Shard}, shard); err != nil {
			return nil, err
		}
		term, err := v.nextTerm(ctx, shard)
		if err != nil {
			return nil, err
		}
		r := &v1alpha1.Reparent{Spec: v.Spec, ObjectMeta: metav1.ObjectMeta{
			Namespace: v.Namespace, Name: fmt.Sprintf("%s-%d", v.Spec.Shard, term),
		}}
		r.Spec.Term = term
		err = v.Client.Create(ctx, r)
		if err == nil || !apierrors.IsAlreadyExists(err) {
			return r, err
		}
	}
	return nil, fmt.Errorf("%s: others keep opening its next term; look at kubectl get reparents", v.Spec.Shard)
}

// nextTerm is above every term that was begun or asked for: a refused request has used up its own, too. One that is out of
// reach counts for nothing.
func (v *Reparent) nextTerm(ctx context.Context, shard *v1alpha1.Shard) (int64, error) {
	list := &v1alpha1.ReparentList{}
	if err := v.Client.List(ctx, list, client.InNamespace(v.Namespace)); err != nil {
		return 0, err
	}
	ours := slices.DeleteFunc(list.Items, func(rp v1alpha1.Reparent) bool { return rp.Spec.Shard != shard.Name })
	return int64(rules.SpentTerm(uint64(max(shard.Status.Term, 1)), ours)) + 1, nil
}

func (v *Reparent) follow(ctx context.Context, r *v1alpha1.Reparent) error {
	printed := 0
	return follow(ctx, v.Client, v.Clock, v.Wait, "reparent", r, func() (bool, error) {
		printed = v.printPhases(r, printed)
		if r.Status.Outcome == "" {
			return false, nil
		}
		return true, v.outcome(r)
	})
}

func (v *Reparent) printPhases(r *v1alpha1.Reparent, from int) int {
	for ; from < len(r.Status.Phases); from++ {
		p := r.Status.Phases[from]
		if p.FinishedAt == nil {
			return from
		}
		fmt.Fprintf(v.Out, "  %-10s %6d ms  %s\n", p.Name, p.FinishedAt.Sub(p.StartedAt.Time).Milliseconds(), p.Message)
	}
	return from
}

func (v *Reparent) outcome(r *v1alpha1.Reparent) error {
	if r.Status.Outcome != v1alpha1.OutcomeSucceeded {
		return errors.New(strings.TrimSpace(r.Status.Outcome + ": " + r.Status.Message))
	}
	fmt.Fprintf(v.Out, "%s → %s", r.Status.OldPrimary, r.Status.NewPrimary)
	if r.Status.WriteUnavailable != nil {
		fmt.Fprintf(v.Out, ", no writes for %v", r.Status.WriteUnavailable.Round(time.Millisecond))
	}
	fmt.Fprintln(v.Out)
	if r.Status.Message != "" {
		fmt.Fprintln(v.Out, r.Status.Message)
	}
	return nil
}

// ShardName understands DB/2, DB/DB-2 and the name of a shard by itself, DB-2.
func ShardName(arg string) (string, error) {
	database, shard, ok := strings.Cut(arg, "/")
	switch {
	case arg == "":
		return "", errors.New("name a shard: DATABASE/INDEX or SHARD")
	case !ok:
		return arg, nil
	case database == "" || shard == "" || strings.Contains(shard, "/"):
		return "", fmt.Errorf("%q is no shard: DATABASE/INDEX or SHARD", arg)
	case strings.HasPrefix(shard, database+"-"):
		return shard, nil
	default:
		return database + "-" + shard, nil
	}
}
