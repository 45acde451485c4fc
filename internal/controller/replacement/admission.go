package replacement

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/replacement"
)

// askLedger asks whether the replacement may begin, as if everything more urgent that waits had begun before. The
// Replacements are read with read; what they are about is read from the cache.
func (r *Reconciler) askLedger(ctx context.Context, read client.Reader, w *world, rp *v1alpha1.Replacement) error {
	verdicts, err := r.judge(ctx, read, func(q *ledger.Request, uid types.UID) {
		if uid == rp.UID {
			q.Node, q.Zone = w.nodes[rp.Spec.Instance], w.zones[rp.Spec.Instance]
			q.Healthy, q.Wanted, q.Dead = w.healthy(), w.observed.Wanted, w.dead()
		}
	})
	if err != nil {
		return err
	}
	j, known := verdicts[rp.UID]
	if !known {
		j.Message = "it is not known to the ledger yet"
	}
	w.told(j)
	return nil
}

// judged is the ledger's verdict on one that waits.
type judged struct {
	ledger.Verdict
	storm bool // it is one of too many condemnations
}

func (w *world) told(j judged) {
	w.why = string(j.Why)
	w.observed.Ledger = replacement.Ledger{Allowed: j.Allowed, Storm: j.storm, Message: j.Message, Retry: j.Retry}
}

// judge has the ledger decide on all that wait, by what the shards' statuses say of them; edit knows better.
func (r *Reconciler) judge(ctx context.Context, read client.Reader, edit func(*ledger.Request, types.UID)) (map[types.UID]judged, error) {
	all, err := r.all(ctx, read)
	if err != nil {
		return nil, err
	}
	f, err := r.fleet(ctx)
	if err != nil {
		return nil, err
	}
	account := r.account(f, all)
	var requests []ledger.Request
	var of []types.UID
	for i := range all {
		rp := &all[i]
		if finished(rp) || rp.Status.AdmittedAt != nil || !rp.DeletionTimestamp.IsZero() {
			continue
		}
		q := f.request(rp, r.Clock.Now())
		edit(&q, rp.UID)
		requests, of = append(requests, q), append(of, rp.UID)
	}
	out := make(map[types.UID]judged, len(requests))
	for i, v := range account.Grant(requests) {
		out[of[i]] = judged{v, account.Storming(requests[i].Created)}
	}
	return out, nil
}

// all are the Replacements of the namespaces that are watched.
func (r *Reconciler) all(ctx context.Context, read client.Reader) ([]v1alpha1.Replacement, error) {
	namespaces := r.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	var out []v1alpha1.Replacement
	for _, ns := range namespaces {
		list := &v1alpha1.ReplacementList{}
		if err := read.List(ctx, list, client.InNamespace(ns)); err != nil {
			return nil, err
		}
		out = append(out, list.Items...)
	}
	return out, nil
}

func (w *world) healthy() int {
	n := 0
	for _, in := range w.observed.Instances {
		if in.Healthy {
			n++
		}
	}
	return n
}

func (w *world) dead() bool {
	in := w.instance(w.observed.Request.Instance)
	return in == nil || in.Dead || !in.Healthy
}

// account derives the ledger from what there is.
func (r *Reconciler) account(f *fleet, all []v1alpha1.Replacement) *ledger.Account {
	entries := make([]ledger.Entry, 0, len(all))
	for i := range all {
		entries = append(entries, f.entry(&all[i]))
	}
	limits := r.Limits
	limits.PerPolicy = f.budgets
	if r.PerHour != nil {
		limits.PerHour = r.PerHour()
	}
	return ledger.New(entries, f.rotations, ledger.Fleet{Instances: f.instances, Nodes: len(f.nodes)}, limits, r.Clock.Now())
}

// Account is the ledger at this moment, by what is cached.
func (r *Reconciler) Account(ctx context.Context) (*ledger.Account, error) {
	all, err := r.all(ctx, r.Client)
	if err != nil {
		return nil, err
	}
	f, err := r.fleet(ctx)
	if err != nil {
		return nil, err
	}
	return r.account(f, all), nil
}

// entry reads a disruption from its object. Of one that was not looked at yet the shard knows the node: were each taken for
// a failure of its own, the loss of one node would be a storm until they are.
func (f *fleet) entry(rp *v1alpha1.Replacement) ledger.Entry {
	s := replacement.FromObject(rp.Status)
	e := ledger.Entry{
		Name: rp.Namespace + "/" + rp.Name, Shard: rp.Namespace + "/" + rp.Spec.Shard, Instance: rp.Spec.Instance,
		Node: rp.Status.Node, Zone: rp.Status.Zone, Reason: rp.Spec.Reason, Created: rp.CreationTimestamp.Time,
		Started: s.AdmittedAt, Finished: s.FinishedAt, NoCapacity: s.NoCapacityAt, GotMachine: s.GotMachineAt,
	}
	sh := f.shards[types.NamespacedName{Namespace: rp.Namespace, Name: rp.Spec.Shard}]
	if e.Node != "" || sh == nil || s.Phase.Finished() {
		return e
	}
	for _, in := range sh.Status.Instances {
		if in.Name == rp.Spec.Instance {
			e.Node = in.Node
		}
	}
	return e
}

// fleet is everything that draws on the ledger. It is not changed once it was read.
type fleet struct {
	instances int
	nodes     map[string]bool
	shards    map[types.NamespacedName]*v1alpha1.Shard
	rotations []ledger.NodeEntry
	budgets   map[string]int
}

// fleetFor is how long the size of the fleet is taken as known: hundreds may wait for the ledger at once, and reading
// ten thousand shards for each would be the operator's whole day.
const fleetFor = time.Second

// fleet is what is known of everything that draws on the ledger, as of a moment ago.
func (r *Reconciler) fleet(ctx context.Context) (*fleet, error) {
	r.known.Lock()
	defer r.known.Unlock()
	if now := r.Clock.Now(); r.known.fleet == nil || now.Sub(r.known.at) >= fleetFor {
		f, err := r.readFleet(ctx)
		if err != nil {
			return nil, err
		}
		r.known.fleet, r.known.at = f, now
	}
	return r.known.fleet, nil
}

// readFleet reads the shards, and the nodes that are on their way out.
func (r *Reconciler) readFleet(ctx context.Context) (*fleet, error) {
	shards, policies := &v1alpha1.ShardList{}, &v1alpha1.NodePolicyList{}
	if err := r.Client.List(ctx, shards); err != nil {
		return nil, err
	}
	if err := r.Client.List(ctx, policies); err != nil {
		return nil, err
	}
	f := &fleet{nodes: map[string]bool{}, shards: map[types.NamespacedName]*v1alpha1.Shard{}}
	on := map[string][]string{}
	for i := range shards.Items {
		sh := &shards.Items[i]
		f.shards[client.ObjectKeyFromObject(sh)] = sh
		f.instances += int(sh.Spec.Template.Instances)
		for _, in := range sh.Status.Instances {
			if in.Node != "" {
				f.nodes[in.Node] = true
				on[in.Node] = append(on[in.Node], sh.Namespace+"/"+sh.Name)
			}
		}
	}
	for i := range policies.Items {
		for _, rot := range policies.Items[i].Status.Rotations {
			n := ledger.NodeEntry{Node: rot.Node, Policy: policies.Items[i].Name, Zone: rot.Zone, Shards: on[rot.Node], Started: rot.StartedAt.Time}
			if rot.FinishedAt != nil {
				n.Finished = rot.FinishedAt.Time
			}
			f.rotations = append(f.rotations, n)
		}
	}
	return f, nil
}

// nearShare of the maximum age before the deadline a replacement counts as near it.
const nearShare = 24

// request is what a replacement that waits asks of the ledger, by what its shard's status says.
func (f *fleet) request(rp *v1alpha1.Replacement, now time.Time) ledger.Request {
	q := ledger.Request{
		Name: rp.Namespace + "/" + rp.Name, Shard: rp.Namespace + "/" + rp.Spec.Shard, Instance: rp.Spec.Instance,
		Node: rp.Status.Node, Zone: rp.Status.Zone, Reason: rp.Spec.Reason, Created: rp.CreationTimestamp.Time, Dead: true,
	}
	sh := f.shards[types.NamespacedName{Namespace: rp.Namespace, Name: rp.Spec.Shard}]
	if sh == nil {
		return q
	}
	q.Wanted = int(sh.Spec.Template.Instances)
	for _, in := range sh.Status.Instances {
		if in.Ready {
			q.Healthy++
		}
		if in.Name == rp.Spec.Instance {
			q.Node, q.Zone, q.Dead = in.Node, in.Zone, !in.Ready
		}
	}
	if rp.Spec.Deadline != nil {
		q.Deadline = rp.Spec.Deadline.Time
		q.Near = q.Deadline.Sub(now) < sh.Spec.Template.Lifetime.MaxAge.Duration/nearShare
	}
	return q
}
