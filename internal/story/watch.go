package story

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// Observe reads everything about a Database of one cluster at the moment now. Errors are those of the API server.
func Observe(ctx context.Context, c client.Reader, namespace, database string, now time.Time) (Observation, error) {
	o := Observation{At: now}
	ours := []client.ListOption{client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelDatabase: database}}
	shards, pods, nodes := &v1alpha1.ShardList{}, &corev1.PodList{}, &corev1.NodeList{}
	reparents, replacements := &v1alpha1.ReparentList{}, &v1alpha1.ReplacementList{}
	for list, opts := range map[client.ObjectList][]client.ListOption{
		shards: ours, reparents: {client.InNamespace(namespace)}, replacements: {client.InNamespace(namespace)}, nodes: nil,
		pods: append(ours, client.MatchingLabels{v1alpha1.LabelDatabase: database, v1alpha1.LabelComponent: v1alpha1.ComponentInstance}),
	} {
		if err := c.List(ctx, list, opts...); err != nil {
			return o, err
		}
	}
	roles := map[string]string{}
	for i := range shards.Items {
		st := &shards.Items[i].Status
		o.Term = max(o.Term, st.Term)
		for _, in := range st.Instances {
			roles[in.Name] = in.Role
		}
	}
	for i := range pods.Items {
		o.Subjects = append(o.Subjects, subjectOfPod(&pods.Items[i], roles[pods.Items[i].Name]))
	}
	for i := range nodes.Items {
		o.Subjects = append(o.Subjects, subjectOfNode(&nodes.Items[i]))
	}
	for i := range reparents.Items {
		if r := &reparents.Items[i]; r.Status.Outcome != "" {
			out := Reparent{
				Name: r.Name, Kind: string(r.Spec.Kind), Reason: r.Spec.Reason, Outcome: r.Status.Outcome,
				From: r.Status.OldPrimary, To: r.Status.NewPrimary,
			}
			if r.Status.WriteUnavailable != nil {
				out.Unavailable = r.Status.WriteUnavailable.Duration
			}
			o.Reparents = append(o.Reparents, out)
		}
	}
	for i := range replacements.Items {
		r := &replacements.Items[i]
		o.Replacements = append(o.Replacements, Replacement{
			Name: r.Name, Instance: r.Spec.Instance, Successor: r.Status.Successor, Reason: string(r.Spec.Reason),
			Phase: string(r.Status.Phase), Outcome: r.Status.Outcome, Waiting: r.Status.Waiting,
		})
	}
	return o, nil
}

func subjectOfPod(p *corev1.Pod, role string) Subject {
	s := Subject{Kind: Instance, Name: p.Name, Place: p.Spec.NodeName, Born: p.CreationTimestamp.Time, State: Joining}
	switch {
	case !p.DeletionTimestamp.IsZero() || p.Status.Phase == corev1.PodFailed:
		s.State = Failing
	case role == "primary": // the words of InstanceStatus.Role
		s.State = Primary
	case role == "member":
		s.State = Standby
	case role == "unreachable" || role == "leaving":
		s.State = Failing
	}
	return s
}

func subjectOfNode(n *corev1.Node) Subject {
	s := Subject{Kind: Node, Name: n.Name, Place: n.Labels[corev1.LabelTopologyZone], Born: n.CreationTimestamp.Time, State: Joining}
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type != corev1.NodeReady:
		case c.Status == corev1.ConditionTrue:
			s.State = Standby
		case n.CreationTimestamp.Time.Before(c.LastTransitionTime.Time):
			s.State = Failing
		}
	}
	if !n.DeletionTimestamp.IsZero() || n.Spec.Unschedulable {
		s.State = Failing
	}
	return s
}
