package shard

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/replacement"
)

// memory is what is remembered of a shard between reconciles: since when something has lasted. Losing it (a restart)
// makes the operator wait that long again.
type memory struct {
	noPrimarySince    time.Time
	cannotCommitSince time.Time
	notStreamingSince map[string]time.Time
	// strandedSince is since when a Pod could not be scheduled although its claim is bound.
	strandedSince map[string]time.Time
	// expected are instances whose Pod was just made, until the cache shows it: it may lag behind our own writes, and
	// what is missing from it must not be made twice.
	expected map[string]time.Time
	// refused are instances whose Pod the API server would not have, and another one whose claim it would not.
	refused map[string]failure
	// summarized is when the status was last written for numbers alone.
	summarized time.Time
	// known are the conditions that were last announced as events.
	known map[string]string
	// begun is the term last seen recorded and not established, begunAt when it was first seen.
	begun   uint64
	begunAt time.Time
}

// standingBack is the longest time that a change of the primary is left alone: many times what one takes when nothing goes wrong.
const standingBack = time.Second

// standBack is how long to wait because the primary is being changed, 0 for not at all. Clients wait until that is done, every
// agent has news of it several times over, and nothing that is found out meanwhile stays true: looking, labelling Pods and
// writing a status each time would only take processors from those who change it, and from everybody who follows Endpoints.
func (m *memory) standBack(record quorum.Record, now time.Time) time.Duration {
	switch term := record.Term(); {
	case record.Established == 0 || term <= record.Established:
		m.begun = 0
		return 0
	case term != m.begun:
		m.begun, m.begunAt = term, now
	}
	return max(0, standingBack-now.Sub(m.begunAt))
}

func newMemory() *memory {
	return &memory{
		notStreamingSince: map[string]time.Time{}, strandedSince: map[string]time.Time{}, expected: map[string]time.Time{},
		refused: map[string]failure{}, known: map[string]string{},
	}
}

// expectation is how long a made instance may take to show up in the cache.
const expectation = 15 * time.Second

// gather reads everything about the shard.
func (r *Reconciler) gather(ctx context.Context, shard *v1alpha1.Shard, m *memory) (*State, error) {
	now := r.Clock.Now()
	s := &State{
		Now: now, Wanted: int(shard.Spec.Template.Instances),
		Bootstrap: shard.Status.Bootstrap.DeepCopy(), Record: RecordOf(shard),
	}
	byName, err := gatherObjects(ctx, r.Client, r.Client, shard, now)
	if err != nil {
		return nil, err
	}
	key := client.ObjectKeyFromObject(shard)
	hear(byName, r.Observer, key, now)
	if err := r.gatherReplacements(ctx, shard, s); err != nil {
		return nil, err
	}
	for name, at := range m.expected {
		it := byName[name]
		_, refused := m.refused[name]
		switch {
		case it != nil && it.HasPod || now.Sub(at) > expectation:
			delete(m.expected, name)
		case it != nil:
			it.HasPod = !refused // the claim shows already, the Pod does not
		default:
			byName[name] = &Instance{Name: name, CreatedAt: at, HasPod: !refused, HasClaim: true}
		}
	}
	for _, it := range byName {
		it.Busy, it.Told = r.tasks.busy(key, it.Name, now.Add(-it.HeardAgo)), r.tasks.toldAddress(key, it.Name)
		s.leaves(it)
		s.Instances = append(s.Instances, *it)
	}
	slices.SortFunc(s.Instances, func(a, b Instance) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Name, b.Name))
	})
	s.recallRefused(m)
	r.tasks.forget(key, func(name string) bool { return byName[name] != nil })
	if s.Reparenting, err = r.reparenting(ctx, shard); err != nil {
		return nil, err
	}
	if s.NoGateway, err = r.noGateway(ctx, shard); err != nil {
		return nil, err
	}
	r.recall(s, m)
	return s, nil
}

// noGateway reports whether the read-write Service has nobody behind it yet.
func (r *Reconciler) noGateway(ctx context.Context, shard *v1alpha1.Shard) (bool, error) {
	if !gatewayEnabled(&shard.Spec.Template) {
		return false, nil
	}
	d := &appsv1.Deployment{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: shard.Namespace, Name: names.Gateway(shard.Name)}, d)
	return err != nil || d.Status.AvailableReplicas == 0, client.IgnoreNotFound(err)
}

// hear adds what the agents said.
func hear(byName map[string]*Instance, o *observer.Observer, shard types.NamespacedName, now time.Time) {
	for name, ob := range o.Observations(shard) {
		if it := byName[name]; it != nil && it.UID == ob.UID {
			it.heard(ob, now)
		}
	}
}

// gatherObjects reads Pods and claims with read, and nodes, which are only looked at, with nodes.
func gatherObjects(ctx context.Context, read, nodes client.Reader, shard *v1alpha1.Shard, now time.Time) (map[string]*Instance, error) {
	selector := client.MatchingLabels(instanceSelector(shard.Name))
	pods, claims := &corev1.PodList{}, &corev1.PersistentVolumeClaimList{}
	if err := read.List(ctx, pods, client.InNamespace(shard.Namespace), selector); err != nil {
		return nil, err
	}
	if err := read.List(ctx, claims, client.InNamespace(shard.Namespace), selector); err != nil {
		return nil, err
	}
	byName := map[string]*Instance{}
	bound := map[string]bool{}
	for i := range claims.Items {
		c := &claims.Items[i]
		if !OwnsClaim(shard, c) {
			continue
		}
		byName[c.Name] = &Instance{
			Name: c.Name, CreatedAt: c.CreationTimestamp.Time, HasClaim: true, ClaimTerminating: !c.DeletionTimestamp.IsZero(),
			Surge: c.Labels[v1alpha1.LabelReplacement],
		}
		if c.Status.Phase == corev1.ClaimLost {
			byName[c.Name].Broken = "its volume is lost"
		}
		bound[c.Name] = c.Status.Phase == corev1.ClaimBound
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if !metav1.IsControlledBy(p, shard) {
			continue
		}
		it := byName[p.Name]
		if it == nil {
			it = &Instance{Name: p.Name, CreatedAt: p.CreationTimestamp.Time}
			byName[p.Name] = it
		}
		it.pod(p, bound[p.Name], now)
		node := &corev1.Node{}
		if p.Spec.NodeName == "" {
			continue
		}
		if err := nodes.Get(ctx, types.NamespacedName{Name: p.Spec.NodeName}, node); err == nil {
			it.Zone, it.NodeNotReadyFor = nodeZone(node), notReadyFor(node, now)
		}
	}
	return byName, nil
}

// notReadyFor is how long a node has not been ready; 0 while it is.
func notReadyFor(node *corev1.Node, now time.Time) time.Duration {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return max(now.Sub(c.LastTransitionTime.Time), time.Millisecond)
		}
	}
	return 0
}

// gatherReplacements reads the shard's replacements.
func (r *Reconciler) gatherReplacements(ctx context.Context, shard *v1alpha1.Shard, s *State) error {
	list := &v1alpha1.ReplacementList{}
	if err := r.Client.List(ctx, list, client.InNamespace(shard.Namespace), client.MatchingFields{IndexReplacementShard: shard.Name}); err != nil {
		return err
	}
	s.Replacements = UnderWay(list.Items)
	for i := range list.Items {
		if st := &list.Items[i].Status; replacement.Phase(st.Phase) == replacement.Failed && st.FinishedAt != nil && st.FinishedAt.After(s.LastFailed) {
			s.LastFailed = st.FinishedAt.Time
		}
	}
	if r.Suspects != nil {
		s.suspects = r.Suspects(client.ObjectKeyFromObject(shard))
	}
	return nil
}

// UnderWay are the replacements that have not ended.
func UnderWay(list []v1alpha1.Replacement) []Replacement {
	var out []Replacement
	for i := range list {
		rp := &list[i]
		st := replacement.FromObject(rp.Status)
		if st.Phase.Finished() {
			continue
		}
		u := Replacement{
			Name: rp.Name, Instance: rp.Spec.Instance, Successor: st.Successor, Reason: rp.Spec.Reason,
			Admitted: !st.AdmittedAt.IsZero(), Leaving: st.Leaving(rp.Spec.Instance),
		}
		switch {
		case u.Leaving != "" && u.Leaving == u.Successor && st.Undo == replacement.Failed:
			u.Unfit = "the replacement it was made for gave it up: " + st.Message
		case rp.Spec.Reason == v1alpha1.ReasonCondemned:
			u.Leaving, u.Unfit = cmp.Or(u.Leaving, u.Instance), "it is condemned"
		}
		out = append(out, u)
	}
	return out
}

// Leaving are the instances of the shard that are to be replaced, or are surges that are taken back: not whom to promote.
func Leaving(ctx context.Context, c client.Reader, shard types.NamespacedName) (map[string]bool, error) {
	list := &v1alpha1.ReplacementList{}
	if err := c.List(ctx, list, client.InNamespace(shard.Namespace), client.MatchingFields{IndexReplacementShard: shard.Name}); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, r := range UnderWay(list.Items) {
		out[r.Instance] = true
		if r.Leaving != "" {
			out[r.Leaving] = true
		}
	}
	return out, nil
}

// leaves marks an instance that a replacement takes away, or that a verdict speaks against.
func (s *State) leaves(it *Instance) {
	it.Unfit = s.suspects[it.Name]
	for _, r := range s.Replacements {
		if r.Leaving == it.Name {
			it.Retiring, it.Unfit = true, cmp.Or(r.Unfit, it.Unfit)
		}
	}
	if it.Surge != "" && !slices.ContainsFunc(s.Replacements, func(r Replacement) bool { return r.Name == it.Surge }) {
		it.Surge = ""
	}
}

// pod fills in what is known from the Pod.
func (it *Instance) pod(p *corev1.Pod, bound bool, now time.Time) {
	it.HasPod, it.UID, it.IP, it.Node = true, p.UID, p.Status.PodIP, p.Spec.NodeName
	it.Role = p.Labels[v1alpha1.LabelRole]
	it.Failed = p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	it.PodMessage = waitingMessage(p)
	it.Surge = cmp.Or(it.Surge, p.Labels[v1alpha1.LabelReplacement])
	_, it.Settled = p.Labels[v1alpha1.LabelSettled]
	it.Broken = cmp.Or(it.Broken, broken(p, now))
	if it.Terminating = !p.DeletionTimestamp.IsZero(); it.Terminating {
		// The deletion timestamp already includes the grace.
		it.StuckFor = max(now.Sub(p.DeletionTimestamp.Time), 0)
	}
	it.Unschedulable = p.Spec.NodeName == "" && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse
	})
	it.stranded = bound && it.Unschedulable
}

// heard fills in what its agent said.
func (it *Instance) heard(o observer.Observation, now time.Time) {
	it.Status, it.Connected, it.LastError = o.Status, o.Connected, o.LastError
	if !o.ReceivedAt.IsZero() {
		it.HeardAgo = now.Sub(o.ReceivedAt)
	}
	if !o.Connected && !o.FailingSince.IsZero() {
		it.FailingFor = now.Sub(o.FailingSince)
	}
}

// recall fills in how long things have lasted, and remembers what began just now.
func (r *Reconciler) recall(s *State, m *memory) {
	if s.established(r.Params) != nil {
		m.noPrimarySince = time.Time{}
	} else if m.noPrimarySince.IsZero() {
		m.noPrimarySince = s.Now
	}
	if !m.noPrimarySince.IsZero() {
		s.NoPrimaryFor = s.Now.Sub(m.noPrimarySince)
	}
	primary := s.primary(r.Params)
	switch c, _ := s.Record.Latest(); {
	case s.established(r.Params) == nil || canCommit(c, primary):
		m.cannotCommitSince = time.Time{}
	case m.cannotCommitSince.IsZero():
		m.cannotCommitSince = s.Now
	default:
		s.CannotCommitFor = s.Now.Sub(m.cannotCommitSince)
	}
	for i := range s.Instances {
		it := &s.Instances[i]
		switch {
		case primary == nil || streaming(primary, it.Name):
			delete(m.notStreamingSince, it.Name)
		case m.notStreamingSince[it.Name].IsZero():
			m.notStreamingSince[it.Name] = s.Now
		default:
			it.NotStreamingFor = s.Now.Sub(m.notStreamingSince[it.Name])
		}
	}
	for i := range s.Instances {
		it := &s.Instances[i]
		switch {
		case !it.stranded:
			delete(m.strandedSince, it.Name)
		case m.strandedSince[it.Name].IsZero():
			m.strandedSince[it.Name] = s.Now
		default:
			it.StrandedFor = s.Now.Sub(m.strandedSince[it.Name])
		}
	}
	for _, since := range []map[string]time.Time{m.notStreamingSince, m.strandedSince} {
		maps.DeleteFunc(since, func(name string, _ time.Time) bool { return s.instance(name) == nil })
	}
}

// reparenting reports whether a Reparent of the shard is not finished.
func (r *Reconciler) reparenting(ctx context.Context, shard *v1alpha1.Shard) (bool, error) {
	list := &v1alpha1.ReparentList{}
	if err := r.Client.List(ctx, list, client.InNamespace(shard.Namespace), client.MatchingFields{IndexReparentShard: shard.Name}); err != nil {
		return false, err
	}
	established := RecordOf(shard).Established
	return slices.ContainsFunc(list.Items, func(rp v1alpha1.Reparent) bool {
		// One whose term is established has nothing left to do that we would not do as well.
		return rp.Status.Outcome == "" && uint64(rp.Spec.Term) > established
	}), nil
}
