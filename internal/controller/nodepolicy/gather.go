package nodepolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/replacement"
)

// world is everything one reconcile decides from.
type world struct {
	policy   *v1alpha1.NodePolicy
	policies []v1alpha1.NodePolicy
	// nodes by name, whoever selects them; mine are the policy's own.
	nodes map[string]*corev1.Node
	mine  []*corev1.Node
	// shared are nodes that another policy selects, too; elsewhere are those that exactly one other policy selects, alone.
	shared    []string
	elsewhere map[string]bool
	// unknown are nodes that are due and whose machine the provider does not know.
	unknown []string
	// pods of instances and gateways by node, and the shards ("namespace/name") they belong to.
	instances, gateways map[string][]corev1.Pod
	shards              map[string][]string
	replacements        []v1alpha1.Replacement
	fleet               ledger.Fleet
}

// gather reads the policies from the API server itself: what was written a moment ago for another policy counts.
func (r *Reconciler) gather(ctx context.Context, name string) (*world, error) {
	policies, nodes := &v1alpha1.NodePolicyList{}, &corev1.NodeList{}
	pods, replacements := &corev1.PodList{}, &v1alpha1.ReplacementList{}
	shards := &v1alpha1.ShardList{}
	if err := r.Live.List(ctx, policies); err != nil {
		return nil, err
	}
	for _, list := range []client.ObjectList{nodes, pods, replacements, shards} {
		if err := r.Client.List(ctx, list); err != nil {
			return nil, err
		}
	}
	w := &world{
		policies: policies.Items, nodes: map[string]*corev1.Node{}, instances: map[string][]corev1.Pod{}, gateways: map[string][]corev1.Pod{},
		shards: map[string][]string{}, replacements: replacements.Items, elsewhere: map[string]bool{},
	}
	for i := range policies.Items {
		if policies.Items[i].Name == name {
			w.policy = policies.Items[i].DeepCopy()
		}
	}
	if w.policy == nil {
		return w, nil
	}
	w.place(pods.Items)
	for i := range shards.Items {
		w.fleet.Instances += int(shards.Items[i].Spec.Template.Instances)
	}
	w.fleet.Nodes = len(w.instances)
	return w, w.sel(nodes.Items)
}

func (w *world) place(pods []corev1.Pod) {
	for i := range pods {
		p := &pods[i]
		if p.Spec.NodeName == "" || !occupies(p) {
			continue
		}
		switch p.Labels[v1alpha1.LabelComponent] {
		case v1alpha1.ComponentInstance:
			w.instances[p.Spec.NodeName] = append(w.instances[p.Spec.NodeName], *p)
			if s := p.Namespace + "/" + p.Labels[v1alpha1.LabelShard]; !slices.Contains(w.shards[p.Spec.NodeName], s) {
				w.shards[p.Spec.NodeName] = append(w.shards[p.Spec.NodeName], s)
			}
		case v1alpha1.ComponentGateway:
			w.gateways[p.Spec.NodeName] = append(w.gateways[p.Spec.NodeName], *p)
		}
	}
}

// occupies reports whether the node is still needed for the Pod. One that is being deleted needs it to the end, even though
// its containers have ended: only the kubelet says that it is gone, and takes its volume off. An instance needs it even when its
// Pod has ended: the volume may be on the node, and the only copy.
func occupies(p *corev1.Pod) bool {
	ended := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	return !ended || p.DeletionTimestamp != nil || p.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentInstance
}

// sel finds the policy's nodes. Those that another policy selects as well are nobody's; a rotation that has begun goes on.
func (w *world) sel(nodes []corev1.Node) error {
	selectors := map[string]func(*corev1.Node) bool{}
	for i := range w.policies {
		s, err := metav1.LabelSelectorAsSelector(&w.policies[i].Spec.Selector)
		if err != nil {
			if w.policies[i].Name == w.policy.Name {
				return fmt.Errorf("spec.selector: %w", err)
			}
			continue
		}
		selectors[w.policies[i].Name] = func(n *corev1.Node) bool { return s.Matches(labelsOf(n)) }
	}
	for i := range nodes {
		n := &nodes[i]
		w.nodes[n.Name] = n
		selected := 0
		for _, matches := range selectors {
			if matches(n) {
				selected++
			}
		}
		if !selectors[w.policy.Name](n) {
			w.elsewhere[n.Name] = selected == 1
			continue
		}
		if selected > 1 {
			w.shared = append(w.shared, n.Name)
			continue
		}
		if !left(w.policy, n, len(w.instances[n.Name])) {
			w.mine = append(w.mine, n)
		}
	}
	slices.Sort(w.shared)
	slices.SortFunc(w.mine, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// account is the ledger as it is now. PerHour is what this policy's plan allows.
func (r *Reconciler) account(w *world, limits ledger.Limits) *ledger.Account {
	entries := make([]ledger.Entry, 0, len(w.replacements))
	for i := range w.replacements {
		rp := &w.replacements[i]
		s := replacement.FromObject(rp.Status)
		entries = append(entries, ledger.Entry{
			Name: rp.Namespace + "/" + rp.Name, Shard: rp.Namespace + "/" + rp.Spec.Shard, Instance: rp.Spec.Instance,
			Node: rp.Status.Node, Zone: rp.Status.Zone, Reason: rp.Spec.Reason, Created: rp.CreationTimestamp.Time,
			Started: s.AdmittedAt, Finished: s.FinishedAt, NoCapacity: s.NoCapacityAt, GotMachine: s.GotMachineAt,
		})
	}
	var nodes []ledger.NodeEntry
	for i := range w.policies {
		rotations := w.policies[i].Status.Rotations
		if w.policies[i].Name == w.policy.Name {
			rotations = w.policy.Status.Rotations
		}
		for _, rot := range rotations {
			n := ledger.NodeEntry{Node: rot.Node, Policy: w.policies[i].Name, Zone: rot.Zone, Shards: w.shards[rot.Node], Started: rot.StartedAt.Time}
			if rot.FinishedAt != nil {
				n.Finished = rot.FinishedAt.Time
			}
			nodes = append(nodes, n)
		}
	}
	return ledger.New(entries, nodes, w.fleet, limits, r.Clock.Now())
}

// moving counts the Pods of a node whose replacement has begun.
func (w *world) moving(node string) int {
	n := 0
	for i := range w.instances[node] {
		p := &w.instances[node][i]
		for j := range w.replacements {
			rp := &w.replacements[j]
			if rp.Namespace == p.Namespace && rp.Spec.Instance == p.Name && !request.Finished(rp) && !request.Waiting(rp) {
				n++
				break
			}
		}
	}
	return n
}
