package reparent

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

// history is what is remembered of one shard between two looks at it: since when something has lasted.
//
// It is locked by whoever uses it: while a planned reparent is under way here, the shard is looked at all the same.
type history struct {
	mu sync.Mutex
	// advanced is what a standby had received last, and since when.
	advanced map[string]moved
	// slowSince is since when a probe of an instance has been slow, by instance and probe.
	slowSince map[string]time.Time
	// podGoneSince is since when an instance has had no Pod.
	podGoneSince map[string]time.Time
	// inFlight is the phase of the newest Reparent without an outcome, and when we first saw it in that state: journals
	// carry the coordinator's clock, and ages must be by ours.
	inFlight      string
	inFlightSince time.Time
	// established is the term the record called established when we last looked, and since when it does.
	established      uint64
	establishedSince time.Time
	// wantedSince is since when a reparent has been called for; beside says whether a planned one was under way then.
	wantedSince time.Time
	beside      bool
	// doubted: it is being asked whether the planned reparent under way here is to be taken back.
	doubted bool
	// last verdict, for counting changes; retryAfter holds off after a reparent that failed.
	last verdict.Verdict
	// stands is the last verdict with its subject, and since when.
	stands      string
	standsSince time.Time
	// downSince is since when clients cannot write, as far as known; zero while they can. It outlasts reparents that failed.
	downSince time.Time
	// condemned is when a replacement was last asked for.
	condemned  time.Time
	failures   int
	retryAfter time.Time
}

type moved struct {
	lsn   uint64
	since time.Time
}

func newHistory() *history {
	return &history{advanced: map[string]moved{}, slowSince: map[string]time.Time{}, podGoneSince: map[string]time.Time{}}
}

// note remembers since when clients cannot write.
func (h *history) note(v verdict.Verdict, o verdict.Observed, now time.Time) {
	switch down, ok := v.Unwritable(); {
	case !ok: // it is as it was, or not
	case !down:
		h.downSince = time.Time{}
	case h.downSince.IsZero():
		h.downSince = now.Add(-o.Outage())
	}
}

// slowProbe is the latency from which a probe counts as slow: a commit or an fsync takes milliseconds, on a bad day tens.
const slowProbe = time.Second

// observed translates everything known of the shard for the verdict.
func (e *Emergency) observed(ctx context.Context, sh *v1alpha1.Shard, h *history) (verdict.Observed, error) {
	now := e.Runner.Clock.Now()
	pods := &corev1.PodList{}
	if err := e.Runner.Client.List(ctx, pods, client.InNamespace(sh.Namespace), client.MatchingLabels{
		v1alpha1.LabelShard: sh.Name, v1alpha1.LabelComponent: v1alpha1.ComponentInstance,
	}); err != nil {
		return verdict.Observed{}, err
	}
	byName := map[string]*corev1.Pod{}
	for i := range pods.Items {
		byName[pods.Items[i].Name] = &pods.Items[i]
	}
	leaving, err := shard.Leaving(ctx, e.Runner.Client, client.ObjectKeyFromObject(sh))
	if err != nil {
		return verdict.Observed{}, err
	}
	o := verdict.Observed{Record: shard.RecordOf(sh)}
	o.EstablishedFor = h.establishedFor(o.Record.Established, now)
	seen, named := map[string]bool{}, o.Record.Names()
	for name, ob := range e.Runner.Observer.Observations(client.ObjectKeyFromObject(sh)) {
		i := h.instance(name, &ob, now)
		i.Leaving = leaving[name]
		e.fromKubernetes(ctx, &i, byName[name], h, now)
		seen[name] = true
		if i.PodGone && !slices.Contains(named, name) {
			continue // it was taken away; what is left of it is no verdict's business
		}
		o.Instances = append(o.Instances, i)
	}
	// Those the record names and nobody watches any more are part of the picture.
	for _, name := range named {
		if !seen[name] {
			i := verdict.Instance{Name: name, Age: time.Hour, Disconnected: true}
			e.fromKubernetes(ctx, &i, byName[name], h, now)
			o.Instances = append(o.Instances, i)
		}
	}
	o.Reparent, err = e.inFlight(ctx, sh, h, now)
	return o, err
}

// instance translates what was heard from an agent.
func (h *history) instance(name string, ob *observer.Observation, now time.Time) verdict.Instance {
	st := ob.Status
	i := verdict.Instance{Name: name, Heard: st != nil, Disconnected: ob.Refused}
	if st == nil {
		i.Age = now.Sub(ob.FailingSince)
		return i
	}
	i.Age = now.Sub(ob.ReceivedAt)
	i.Role, i.Term, i.Established, i.Draining = roleOf(st.GetRole()), st.GetTerm(), st.GetEstablished(), st.GetDraining()
	i.Fenced, i.Exited, i.Diverged = st.GetFenced(), st.GetPostgresExit(), st.GetDiverged()
	i.Position = agentapi.PositionFromPB(st.GetFlushed())
	i.Receiver = verdict.Receiver{
		Streaming: st.GetReceiver().GetStreaming(), Source: st.GetReceiver().GetSource(),
		MessageAge: time.Duration(st.GetReceiver().GetMessageAgeMs()) * time.Millisecond,
		AdvanceAge: h.advance(name, st, now),
	}
	i.Peers = map[string]verdict.Peer{}
	for _, p := range st.GetPeers() {
		i.Peers[p.GetInstance()] = verdict.Peer{
			Streaming: p.GetState() == "streaming", ReplyAge: time.Duration(p.GetReplyAgeMs()) * time.Millisecond,
		}
	}
	at := time.UnixMilli(st.GetAtUnixMs())
	i.WriteProbe = h.probe(name+"/write", st.GetWriteProbe(), at, now)
	i.CommitProbe = h.probe(name+"/commit", st.GetCommitProbe(), at, now)
	i.DiskProbe = h.probe(name+"/disk", st.GetDiskProbe(), at, now)
	i.ConnectProbe = h.probe(name+"/connect", st.GetConnectProbe(), at, now)
	i.DiskUsed = diskUsed(st)
	return i
}

// diskUsed is the used share of the data volume; 0 when unknown.
func diskUsed(st *agentpb.Status) float64 {
	size := st.GetDisk().GetSizeBytes()
	if size == 0 {
		return 0
	}
	return 1 - float64(st.GetDisk().GetAvailableBytes())/float64(size)
}

func roleOf(r agentpb.Role) verdict.Role {
	switch r {
	case agentpb.Role_EMPTY:
		return verdict.RoleEmpty
	case agentpb.Role_SEEDING:
		return verdict.RoleSeeding
	case agentpb.Role_STANDBY:
		return verdict.RoleStandby
	case agentpb.Role_PRIMARY:
		return verdict.RolePrimary
	case agentpb.Role_STOPPED:
		return verdict.RoleStopped
	}
	return verdict.RoleUnknown
}

// advance is how long the instance has received nothing. A primary has nobody to receive from: its time begins when it is
// demoted, or one that was primary for days would be called stuck before it could connect to its successor.
func (h *history) advance(name string, st *agentpb.Status, now time.Time) time.Duration {
	received := st.GetReceivedLsn()
	if have, ok := h.advanced[name]; ok && have.lsn == received && st.GetRole() != agentpb.Role_PRIMARY {
		return now.Sub(have.since)
	}
	h.advanced[name] = moved{received, now}
	return 0
}

// probe translates a probe. Durations are between moments of the agent's own clock.
func (h *history) probe(key string, p *agentpb.Probe, at, now time.Time) verdict.Probe {
	out := verdict.Probe{Failures: int(p.GetFailures()), Error: p.GetError()}
	if since := p.GetPendingSinceUnixMs(); since > 0 {
		out.Pending = max(at.Sub(time.UnixMilli(since)), time.Millisecond)
	}
	if time.Duration(p.GetLatencyUs())*time.Microsecond < slowProbe {
		delete(h.slowSince, key)
		return out
	}
	if h.slowSince[key].IsZero() {
		h.slowSince[key] = now
	}
	out.SlowFor = now.Sub(h.slowSince[key])
	return out
}

// fromKubernetes fills in what the Pod and the node say.
func (e *Emergency) fromKubernetes(ctx context.Context, i *verdict.Instance, pod *corev1.Pod, h *history, now time.Time) {
	ended := pod != nil && (pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded)
	if pod == nil || ended {
		if h.podGoneSince[i.Name].IsZero() {
			h.podGoneSince[i.Name] = now
		}
		i.PodGone, i.PodGoneFor = true, now.Sub(h.podGoneSince[i.Name])
		return
	}
	delete(h.podGoneSince, i.Name)
	if pod.Spec.NodeName == "" {
		return
	}
	node := &corev1.Node{}
	if err := e.Runner.Client.Get(ctx, types.NamespacedName{Name: pod.Spec.NodeName}, node); err != nil {
		return
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			i.NodeNotReadyFor = max(now.Sub(c.LastTransitionTime.Time), time.Millisecond)
		}
	}
}

// establishedFor is how long we have known the term to be the established one. Its first sight counts, even after a restart:
// nothing that was heard is older then.
func (h *history) establishedFor(term uint64, now time.Time) time.Duration {
	if term != h.established {
		h.established, h.establishedSince = term, now
	}
	return now.Sub(h.establishedSince)
}

// inFlight is the Reparent of the highest term that has no outcome, or how many of the newest failed. Its age is how long
// we have seen it in its state.
func (e *Emergency) inFlight(ctx context.Context, sh *v1alpha1.Shard, h *history, now time.Time) (*verdict.InFlight, error) {
	list := &v1alpha1.ReparentList{}
	if err := e.Runner.Client.List(ctx, list, client.InNamespace(sh.Namespace), client.MatchingFields{shard.IndexReparentShard: sh.Name}); err != nil {
		return nil, err
	}
	newest, failures := newestReparent(list.Items, sh.Status.Record.EstablishedTerm)
	if newest == nil {
		h.inFlight = ""
		return nil, nil
	}
	if state := newest.Name + "/" + newest.ResourceVersion; state != h.inFlight {
		h.inFlight, h.inFlightSince = state, now
	}
	limits := reparent.Limits{Drain: newest.Spec.DrainTimeout.Duration}
	return &verdict.InFlight{
		Term: uint64(newest.Spec.Term), Phase: newest.Status.Phase, Planned: newest.Spec.Kind == v1alpha1.ReparentPlanned, Failures: failures,
		PhaseAge: now.Sub(h.inFlightSince), PhaseLimit: limits.Phase(reparent.PhaseName(newest.Status.Phase)),
	}, nil
}

// newestReparent of the terms above the established one: the one without an outcome, or the last that failed and how many
// did in a row; nil when there is none or it ended well. A request nobody has opened holds nobody back, because nobody is at
// work on it: a replica that opens a higher term beats it, for its term is then spent. One that was refused says nothing of
// those below it.
func newestReparent(items []v1alpha1.Reparent, established int64) (newest *v1alpha1.Reparent, failures int) {
	sorted := slices.SortedFunc(slices.Values(items), func(a, b v1alpha1.Reparent) int { return cmp.Compare(b.Spec.Term, a.Spec.Term) })
	for i := range sorted {
		rp := &sorted[i]
		switch {
		case rp.Spec.Term <= established:
			return newest, failures
		case !rp.Opened():
		case rp.Status.Outcome == "" && newest == nil:
			return rp, 0
		case rp.Status.Outcome == string(reparent.Failed):
			failures++
			if newest == nil {
				newest = rp
			}
		case rp.Status.Outcome != string(reparent.Overtaken):
			return newest, failures
		}
	}
	return newest, failures
}
