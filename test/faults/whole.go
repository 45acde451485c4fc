package faults

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// WaitWhole waits until nothing is left of a fault: the shard is ready and redundant, its one recorded cohort has all of its
// standbys, every instance is ready and there are as many as asked for, and nothing is being reparented or replaced.
func (t Target) WaitWhole(ctx context.Context) error {
	return labkit.Poll(ctx, 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		why, err := t.missing(ctx)
		if err != nil {
			return false, err.Error(), nil
		}
		return why == "", why, nil
	})
}

// missing says what keeps the shard from being whole, "" if nothing does.
func (t Target) missing(ctx context.Context) (string, error) {
	shard := &v1alpha1.Shard{}
	if err := t.Kit.Client.Get(ctx, client.ObjectKey{Namespace: t.Namespace, Name: t.Shard}, shard); err != nil {
		return "", err
	}
	if why := shardMissing(shard); why != "" {
		return why, nil
	}
	reparents := &v1alpha1.ReparentList{}
	if err := t.Kit.Client.List(ctx, reparents, client.InNamespace(t.Namespace)); err != nil {
		return "", err
	}
	for i := range reparents.Items {
		if r := &reparents.Items[i]; r.Spec.Shard == t.Shard && r.Status.Outcome == "" {
			return "Reparent " + r.Name + " has no outcome", nil
		}
	}
	replacements := &v1alpha1.ReplacementList{}
	if err := t.Kit.Client.List(ctx, replacements, client.InNamespace(t.Namespace)); err != nil {
		return "", err
	}
	for i := range replacements.Items {
		if r := &replacements.Items[i]; r.Status.Outcome == "" {
			return "Replacement " + r.Name + " has no outcome", nil
		}
	}
	return "", nil
}

func shardMissing(shard *v1alpha1.Shard) string {
	st := &shard.Status
	want := int(shard.Spec.Template.Instances)
	if n := len(st.Record.Cohorts); n != 1 {
		return fmt.Sprintf("%d cohorts are recorded", n)
	}
	c := st.Record.Cohorts[0]
	ready := 0
	for _, in := range st.Instances {
		if in.Ready {
			ready++
		}
	}
	switch {
	case c.Term != st.Record.EstablishedTerm:
		return fmt.Sprintf("term %d is not established", c.Term)
	case c.Primary != st.Primary:
		return fmt.Sprintf("%s is primary, the status says %q", c.Primary, st.Primary)
	case len(c.Members) != want-1:
		return fmt.Sprintf("the cohort has %d of %d members", len(c.Members), want-1)
	case ready != want || len(st.Instances) != want:
		return fmt.Sprintf("%d of %d instances are ready, %d wanted", ready, len(st.Instances), want)
	}
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionRedundant} {
		c := meta.FindStatusCondition(st.Conditions, kind)
		if c == nil || c.Status != metav1.ConditionTrue {
			return "the shard is not " + kind
		}
	}
	return ""
}
