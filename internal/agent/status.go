package agent

import (
	"context"
	"time"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// changed looks again and publishes: for when what PostgreSQL does has changed.
func (a *Agent) changed() {
	a.publish()
	a.lookAgain()
}

// publish sends the status to all watchers and returns it. It touches memory only.
func (a *Agent) publish() *agentpb.Status {
	return a.hub.publish(a.status)
}

// heartbeat publishes at least every Heartbeat, whatever else hangs.
func (a *Agent) heartbeat(ctx context.Context) {
	ticker := a.clock.NewTicker(a.conf.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
			a.publish()
		}
	}
}

// GetStatus implements the RPC: it has the observer look first, for a moment.
func (a *Agent) GetStatus(ctx context.Context, _ *agentpb.GetStatusRequest) (*agentpb.Status, error) {
	a.mu.Lock()
	before := a.live.obsAt
	a.mu.Unlock()
	if a.pg.Running() {
		a.lookAgain()
		a.awaitObservation(ctx, before)
	}
	return a.publish(), nil
}

// awaitObservation waits for a newer observation than before, no longer than a healthy one takes.
func (a *Agent) awaitObservation(ctx context.Context, before time.Time) {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	for ctx.Err() == nil {
		a.mu.Lock()
		fresh := a.live.obsAt.After(before)
		a.mu.Unlock()
		if fresh {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// status assembles what is known, from memory.
func (a *Agent) status() *agentpb.Status {
	now := a.now()
	life := a.pg.Life()
	heard := a.operators.heard(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	l, s := &a.live, &a.state
	st := &agentpb.Status{
		Shard: a.conf.Shard.String(), Instance: a.conf.Instance, PodUid: a.conf.PodUID, Node: a.conf.Node, Zone: a.conf.Zone,
		Endpoint: a.self(), BootId: a.boot, AtUnixMs: now.UnixMilli(), Role: l.role, Term: s.Term,
		// From the promise of a higher term on it is nobody's primary any more, even while PostgreSQL is still stopping.
		Established: l.established && l.cohort != nil && l.cohort.Term == s.Term, Draining: l.draining, Fenced: s.Fenced, Halted: s.Halted, Diverged: s.Diverged != "",
		TimelineTerms: agentapi.TimelineTermsToPB(s.Timelines), Cohort: agentapi.CohortToPB(l.cohort),
		Disk:             &agentpb.Disk{SizeBytes: l.diskFree[0], AvailableBytes: l.diskFree[1]},
		SystemIdentifier: l.obs.System, PostgresVersion: l.obs.Version, Release: a.conf.Release, PostgresExit: l.exit,
		Message: l.message, ShardEndpoints: endpoints(s.Endpoints),
		WriteProbe: a.probes.write.status(), DiskProbe: a.probes.disk.status(), ConnectProbe: a.probes.connect.status(),
		CommitProbe: a.probes.commit.status(), CohortSinceLsn: uint64(l.cohortSince),
	}
	if st.Diverged && st.Message == "" {
		st.Message = "diverged: " + s.Diverged
	}
	if !heard.IsZero() {
		st.OperatorHeardUnixMs = heard.UnixMilli()
	}
	if l.seed != nil {
		st.SeededBytes, st.SeedTotalBytes = l.seed.progress.Get()
	}
	if life.Exited != nil && life.Exit == "" {
		st.PostgresStartedUnixMs = life.Started.UnixMilli()
		st.PostgresExit = ""
	}
	a.observed(st, now)
	return st
}

// observed adds what PostgreSQL itself says; mu is held.
func (a *Agent) observed(st *agentpb.Status, now time.Time) {
	l := &a.live
	st.Flushed = &agentpb.Position{Lsn: uint64(l.lastFlushed.LSN), Timeline: l.lastFlushed.Timeline}
	if term, err := a.state.walTerm(l.lastFlushed.Timeline); err == nil {
		st.Flushed.WalTerm = term
	}
	if l.role != agentpb.Role_PRIMARY && l.role != agentpb.Role_STANDBY {
		return
	}
	st.ReceivedLsn, st.ReplayedLsn = uint64(l.obs.Received), uint64(l.obs.Replayed)
	st.Clients, st.OpenTransactions = uint32(l.obs.Clients), uint32(l.obs.Open)
	if l.role == agentpb.Role_STANDBY {
		st.Receiver = a.receiver(now)
		return
	}
	for _, p := range l.obs.Peers {
		peer := &agentpb.ReplicationPeer{
			Instance: p.Instance, State: p.State, SentLsn: uint64(p.Sent), FlushedLsn: uint64(p.Flushed),
			ReplayedLsn: uint64(p.Replayed), SyncState: p.SyncState, ReplyAgeMs: -1,
		}
		if h, ok := l.heard[p.Instance]; ok {
			peer.ReplyAgeMs = now.Sub(h.at).Milliseconds()
		}
		st.Peers = append(st.Peers, peer)
	}
}

// receiver is the WAL receiver's state; mu is held.
func (a *Agent) receiver(now time.Time) *agentpb.Receiver {
	r := &agentpb.Receiver{Streaming: a.live.obs.Receiver.Streaming && a.state.Follow != nil}
	if a.state.Follow != nil {
		r.Source = a.state.Follow.Instance
	}
	if r.Streaming {
		r.MessageAgeMs = (a.live.obs.Receiver.MessageAge + now.Sub(a.live.obsAt)).Milliseconds()
	}
	return r
}

func (a *Agent) self() *agentpb.Endpoint {
	return &agentpb.Endpoint{
		Instance: a.conf.Instance, Host: a.conf.Advertise,
		PostgresPort: uint32(a.conf.PostgresPort), AgentPort: uint32(a.conf.AgentPort),
	}
}

func endpoints(targets []Target) []*agentpb.Endpoint {
	out := make([]*agentpb.Endpoint, 0, len(targets))
	for _, t := range targets {
		out = append(out, endpoint(t))
	}
	return out
}

// commandReply answers a command with the status after it.
func (a *Agent) commandReply() *agentpb.CommandReply {
	st := a.publish()
	return &agentpb.CommandReply{Term: st.GetTerm(), Status: st}
}
