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
	"theseus.dev/theseus/internal/names"
)

// Replace asks for the replacement of one instance and, unless told not to, follows it to its end.
type Replace struct {
	Client    client.Client
	Clock     clock.Clock
	Out       io.Writer
	Namespace string
	// Database the instance must be of; empty is any.
	Database string
	Instance string
	Reason   v1alpha1.Reason
	Message  string
	// Wait for the end at most this long; 0 does not wait.
	Wait time.Duration
}

// Run creates the request. The error says why it was refused or how it failed.
func (v *Replace) Run(ctx context.Context) error {
	shard, err := v.shard(ctx)
	if err != nil {
		return err
	}
	r, err := v.create(ctx, shard)
	if err != nil {
		return err
	}
	fmt.Fprintf(v.Out, "replacement %s created\n", r.Name)
	if v.Wait == 0 {
		return nil
	}
	return v.follow(ctx, r)
}

// shard finds the one the instance is of.
func (v *Replace) shard(ctx context.Context) (*v1alpha1.Shard, error) {
	list := &v1alpha1.ShardList{}
	if err := v.Client.List(ctx, list, client.InNamespace(v.Namespace)); err != nil {
		return nil, err
	}
	var known []string
	for i := range list.Items {
		s := &list.Items[i]
		if v.Database != "" && s.Spec.Database != v.Database {
			continue
		}
		for _, in := range s.Status.Instances {
			if in.Name != v.Instance {
				known = append(known, in.Name)
				continue
			}
			if !s.DeletionTimestamp.IsZero() {
				return nil, fmt.Errorf("%s is being deleted with all its instances", s.Name)
			}
			return s, nil
		}
	}
	where := "namespace " + v.Namespace
	if v.Database != "" {
		where = "Database " + v.Database + " of " + where
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("there is no instance %s: %s has none", v.Instance, where)
	}
	slices.Sort(known)
	return nil, fmt.Errorf("there is no instance %s: %s has %s", v.Instance, where, strings.Join(known, ", "))
}

func (v *Replace) create(ctx context.Context, shard *v1alpha1.Shard) (*v1alpha1.Replacement, error) {
	list := &v1alpha1.ReplacementList{}
	if err := v.Client.List(ctx, list, client.InNamespace(v.Namespace)); err != nil {
		return nil, err
	}
	for i := range list.Items {
		r := &list.Items[i]
		if r.Status.Outcome != "" || r.Spec.Shard != shard.Name {
			continue
		}
		switch {
		case r.Status.Successor == v.Instance:
			return nil, fmt.Errorf("%s is about to take the place of %s (replacement %s, %s): wait for that, or delete it", v.Instance, r.Spec.Instance, r.Name, phaseOf(r))
		case r.Spec.Instance == v.Instance && (r.Status.AdmittedAt != nil || r.Spec.Reason == v.Reason):
			return nil, fmt.Errorf("%s is being replaced already: replacement %s (%s, %s)", v.Instance, r.Name, r.Spec.Reason, phaseOf(r))
		}
	}
	for n := range attempts * 10 {
		r := &v1alpha1.Replacement{
			ObjectMeta: metav1.ObjectMeta{Namespace: v.Namespace, Name: names.Replacement(v.Instance, string(v.Reason), n)},
			Spec:       v1alpha1.ReplacementSpec{Shard: shard.Name, Instance: v.Instance, Reason: v.Reason, Message: v.Message},
		}
		err := v.Client.Create(ctx, r)
		if err == nil || !apierrors.IsAlreadyExists(err) {
			return r, err
		}
	}
	return nil, fmt.Errorf("%s was asked to be replaced many times: look at kubectl get replacements", v.Instance)
}

func phaseOf(r *v1alpha1.Replacement) string {
	if r.Status.Phase == "" {
		return "Pending"
	}
	return string(r.Status.Phase)
}

// follow prints every step as it begins, and what is waited for.
func (v *Replace) follow(ctx context.Context, r *v1alpha1.Replacement) error {
	printed, waiting := 0, ""
	err := follow(ctx, v.Client, v.Clock, v.Wait, "replacement", r, func() (bool, error) {
		for ; printed < len(r.Status.Steps); printed++ {
			s := r.Status.Steps[printed]
			fmt.Fprintf(v.Out, "  %6.1f s  %s\n", s.StartedAt.Sub(r.CreationTimestamp.Time).Seconds(), s.Phase)
			waiting = ""
		}
		if r.Status.Waiting != waiting && r.Status.Waiting != "" {
			waiting = r.Status.Waiting
			fmt.Fprintf(v.Out, "            %s\n", waiting)
		}
		if r.Status.Outcome == "" {
			return false, nil
		}
		return true, v.outcome(r)
	})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%s was taken back: somebody deleted it", r.Name)
	}
	return err
}

func (v *Replace) outcome(r *v1alpha1.Replacement) error {
	if r.Status.Outcome != "Succeeded" {
		return errors.New(strings.TrimSpace(r.Status.Outcome + ": " + r.Status.Message))
	}
	fmt.Fprintln(v.Out, r.Status.Message)
	if r.Status.VolumeKept != "" {
		fmt.Fprintf(v.Out, "its volume was kept for now: %s\n", r.Status.VolumeKept)
	}
	if r.Status.Evidence != "" {
		fmt.Fprintf(v.Out, "evidence: %s\n", r.Status.Evidence)
	}
	return nil
}
