package observer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// errEndpointsChanged ends a stream that is to be opened again at once with the new endpoints: not a failure.
var errEndpointsChanged = errors.New("endpoints changed")

// watcher holds the stream to one instance.
type watcher struct {
	o      *Observer
	shard  types.NamespacedName
	target Target
	ctx    context.Context
	stop   context.CancelFunc

	mu        sync.Mutex
	endpoints []*agentpb.Endpoint
	reopen    context.CancelCauseFunc // of the stream under way
	seen      Observation
}

func newWatcher(o *Observer, shard types.NamespacedName, target Target, endpoints []*agentpb.Endpoint) *watcher {
	ctx, stop := context.WithCancel(context.Background())
	return &watcher{
		o: o, shard: shard, target: target, ctx: ctx, stop: stop, endpoints: endpoints,
		seen: Observation{Target: target, FailingSince: o.opts.Clock.Now(), LastError: "not connected yet"},
	}
}

// tell passes a new set of endpoints to the agent by opening the stream again.
func (w *watcher) tell(endpoints []*agentpb.Endpoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.EqualFunc(w.endpoints, endpoints, func(a, b *agentpb.Endpoint) bool { return proto.Equal(a, b) }) {
		return
	}
	w.endpoints = endpoints
	if w.reopen != nil {
		w.reopen(errEndpointsChanged)
	}
}

func (w *watcher) observation() Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

// run opens the stream again and again until the watcher is stopped.
func (w *watcher) run() {
	defer w.stop()
	pause := w.o.opts.Backoff / 4
	for w.ctx.Err() == nil {
		heard := false
		err := w.stream(func(s *agentpb.Status) {
			heard = true
			w.got(s)
		})
		if w.ctx.Err() != nil {
			return
		}
		if errors.Is(err, errEndpointsChanged) {
			continue
		}
		w.failed(err)
		if heard {
			pause = w.o.opts.Backoff / 4
		}
		select {
		case <-w.ctx.Done():
		case <-w.o.opts.Clock.After(pause):
		}
		pause = min(2*pause, w.o.opts.Backoff)
	}
}

func (w *watcher) stream(got func(*agentpb.Status)) error {
	ctx, cancel := context.WithCancelCause(w.ctx)
	defer cancel(nil)
	w.mu.Lock()
	req := &agentpb.WatchRequest{Watcher: "operator", ShardEndpoints: w.endpoints}
	w.reopen = cancel
	w.mu.Unlock()
	err := w.o.opts.Stream(ctx, w.shard, w.target, req, got)
	w.mu.Lock()
	w.reopen = nil
	w.mu.Unlock()
	if cause := context.Cause(ctx); errors.Is(cause, errEndpointsChanged) {
		return errEndpointsChanged
	}
	return err
}

func (w *watcher) got(s *agentpb.Status) {
	// A Pod's address may be given to another Pod, of this shard even: what that one says is not about this one.
	if s.GetInstance() != w.target.Instance || (s.GetPodUid() != "" && s.GetPodUid() != string(w.target.UID)) {
		w.failed(fmt.Errorf("instance %s (%s) answered at the address of %s", s.GetInstance(), s.GetPodUid(), w.target.Instance))
		return
	}
	w.mu.Lock()
	change := Heartbeat
	if !w.seen.Connected || !SameMeaning(w.seen.Status, s) {
		change = Significant
	}
	w.seen.Status, w.seen.ReceivedAt = s, w.o.opts.Clock.Now()
	w.seen.Connected, w.seen.FailingSince, w.seen.LastError = true, time.Time{}, ""
	w.seen.Refused = false
	w.mu.Unlock()
	w.o.notify(w.shard, change)
}

func (w *watcher) failed(err error) {
	w.mu.Lock()
	was := w.seen.Connected
	if was || w.seen.FailingSince.IsZero() {
		w.seen.FailingSince = w.o.opts.Clock.Now()
	}
	w.seen.Connected, w.seen.LastError = false, err.Error()
	refused := errors.Is(err, syscall.ECONNREFUSED)
	news := was || refused != w.seen.Refused
	w.seen.Refused = refused
	w.mu.Unlock()
	if news {
		w.o.opts.Log.V(1).Info("stream broke", "shard", w.shard, "instance", w.target.Instance, "error", err.Error())
		w.o.notify(w.shard, Significant)
	}
}

// SameMeaning reports whether two statuses of one instance differ in nothing but what moves all the time.
func SameMeaning(a, b *agentpb.Status) bool {
	return a != nil && b != nil && proto.Equal(Meaning(a), Meaning(b))
}

// Meaning is s without positions, times and sizes.
func Meaning(s *agentpb.Status) *agentpb.Status {
	m := &agentpb.Status{
		Instance: s.GetInstance(), PodUid: s.GetPodUid(), BootId: s.GetBootId(),
		Role: s.GetRole(), Term: s.GetTerm(), Established: s.GetEstablished(), Draining: s.GetDraining(),
		Fenced: s.GetFenced(), TimelineTerms: s.GetTimelineTerms(), Cohort: s.GetCohort(),
		SystemIdentifier: s.GetSystemIdentifier(), PostgresExit: s.GetPostgresExit(), Diverged: s.GetDiverged(),
		Message: s.GetMessage(),
	}
	if r := s.GetReceiver(); r != nil {
		m.Receiver = &agentpb.Receiver{Streaming: r.GetStreaming(), Source: r.GetSource()}
	}
	for _, p := range s.GetPeers() {
		peer := &agentpb.ReplicationPeer{Instance: p.GetInstance(), State: p.GetState(), SyncState: p.GetSyncState()}
		if Overdue(p) {
			peer.ReplyAgeMs = ReplyTimeout.Milliseconds()
		}
		m.Peers = append(m.Peers, peer)
	}
	m.WriteProbe, m.DiskProbe = judged(s.GetWriteProbe()), judged(s.GetDiskProbe())
	m.ConnectProbe, m.CommitProbe = judged(s.GetConnectProbe()), judged(s.GetCommitProbe())
	return m
}

// ReplyTimeout is the age of a standby's last reply from which it does not count as streaming: replies come at least every
// second (wal_receiver_status_interval).
const ReplyTimeout = 2500 * time.Millisecond

// Overdue reports whether a primary has not heard its standby for too long. That it becomes so is news: the primary's own
// patience (wal_sender_timeout) lasts twice as long.
func Overdue(p *agentpb.ReplicationPeer) bool {
	return time.Duration(p.GetReplyAgeMs())*time.Millisecond >= ReplyTimeout
}

// judged keeps of a probe whether it fails, not how fast it is.
func judged(p *agentpb.Probe) *agentpb.Probe {
	if p == nil {
		return nil
	}
	return &agentpb.Probe{Failures: min(p.GetFailures(), 1), Error: p.GetError()}
}
