// Package recorder is the flight recorder: it remembers the recent statuses and log lines of every instance that is
// observed, and writes them to the evidence bucket as it goes, so that a machine that can no longer be asked has left
// its trail.
//
// # Who records, who writes
//
// Every replica of the operator listens to every agent anyway, because emergencies do not wait for a leader; so every
// replica also remembers. In a shared bucket the leader alone writes the usual segments: once is enough. But when
// something happens to an instance (its connection breaks, a role, a term or a probe changes) every replica writes what
// it remembers and has not written, at once: a machine that loses power may take an instance and the leader with it. A
// replica that becomes the leader has everything pending that it remembers. Names of segments carry the replica, and
// readers drop what was written twice. Without a shared bucket each replica writes everything to its own.
//
// # What it costs
//
// Memory: at most Options.Instance bytes for an instance and Options.Total for all. Requests: one for an instance with
// news every Options.Every, one every Options.Quiet for one that has nothing to say but that it lives.
//
// A bucket that fails or hangs costs the trail, counted, and nothing else: listening never waits for it.
package recorder

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
)

// Options of New. Durations and sizes that are zero have defaults.
type Options struct {
	// Trails is where segments go.
	Trails evidence.Trails
	// Replica is this replica's name.
	Replica string
	// All says whether this replica writes everything now, and not only faults: it is the leader, or the bucket is its own.
	All   func() bool
	Clock clock.WithTicker
	Log   logr.Logger
	// Every is how soon news is written. Default 30s.
	Every time.Duration
	// Quiet is how soon samples of an instance without news are written. Default 5m.
	Quiet time.Duration
	// Instance is the most that is remembered of one instance, in bytes. Default 256 KiB, some quarter of an hour.
	Instance int
	// Total is the most that is remembered of all. Default 64 MiB. It goes before Instance, but leaves each 8 KiB.
	Total int
	// Linger is how long an instance is remembered after its last word. Default 30m.
	Linger time.Duration
	// Upload bounds the writing of one segment. Default 20s.
	Upload time.Duration
}

func (o *Options) defaults() {
	duration := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	duration(&o.Every, 30*time.Second)
	duration(&o.Quiet, 5*time.Minute)
	duration(&o.Linger, 30*time.Minute)
	duration(&o.Upload, 20*time.Second)
	if o.Instance <= 0 {
		o.Instance = 256 << 10
	}
	if o.Total <= 0 {
		o.Total = 64 << 20
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.All == nil {
		o.All = func() bool { return true }
	}
}

const (
	// least is remembered of every instance, in bytes, however many there are.
	least = 8 << 10
	// look is how often the tapes are looked through for what is due; a fault is written sooner.
	look = time.Second
	// apart is the least time between two segments of one instance for faults: a flapping one must not flood the bucket.
	apart = 2 * time.Second
	// uploads is how many segments are written at a time.
	uploads = 8
	// retryLogs is how soon a log stream that ended is opened again.
	retryLogs = time.Second
	// lastFlush bounds writing what is pending when the operator ends.
	lastFlush = 4 * time.Second
)

// pace is what counts as due.
type pace struct {
	all, now            bool
	every, quiet, apart time.Duration
}

// Recorder records. Its methods may be called from any goroutine.
type Recorder struct {
	opts Options
	kick chan struct{}
	slot chan struct{}

	mu    sync.Mutex
	tapes map[evidence.Walker]*tape
}

// New makes a recorder; it writes once Start runs.
func New(o Options) *Recorder {
	o.defaults()
	return &Recorder{
		opts: o, kick: make(chan struct{}, 1), slot: make(chan struct{}, uploads), tapes: map[evidence.Walker]*tape{},
	}
}

// Beside records the logs of every agent that is connected to; nil of a nil recorder.
func (r *Recorder) Beside() observer.Beside {
	if r == nil {
		return nil
	}
	return r.Follow
}

// Stream records what passes through another stream; a nil recorder records nothing.
func (r *Recorder) Stream(next observer.Stream) observer.Stream {
	if r == nil {
		return next
	}
	return func(ctx context.Context, shard types.NamespacedName, target observer.Target, req *agentpb.WatchRequest, got func(*agentpb.Status)) error {
		t, limit := r.tape(shard, target.Instance)
		err := next(ctx, shard, target, req, func(s *agentpb.Status) {
			got(s)
			if s.GetInstance() == target.Instance && (s.GetPodUid() == "" || s.GetPodUid() == string(target.UID)) {
				r.say(t, true, "connected to Pod "+string(target.UID), limit)
				urgent, lost := t.status(s, r.opts.Clock.Now(), limit)
				r.lose(lost)
				if urgent {
					r.soon()
				}
			}
		})
		// A stream that we end ourselves says nothing about the instance.
		if ctx.Err() == nil {
			r.say(t, false, fmt.Sprintf("the connection ended: %v", err), limit)
		}
		return err
	}
}

func (r *Recorder) say(t *tape, connected bool, text string, limit int) {
	if t.say(connected, text, r.opts.Replica, r.opts.Clock.Now(), limit) && !connected {
		r.soon()
	}
}

// Follow records the agent's logs until ctx ends. It is an observer.Beside.
func (r *Recorder) Follow(ctx context.Context, shard types.NamespacedName, target observer.Target, client agentpb.AgentClient) {
	t, limit := r.tape(shard, target.Instance)
	for ctx.Err() == nil {
		err := r.follow(ctx, t, limit, target, client)
		if status.Code(err) == codes.Unimplemented {
			return // an agent of an older release
		}
		select {
		case <-ctx.Done():
		case <-r.opts.Clock.After(retryLogs):
		}
	}
}

func (r *Recorder) follow(ctx context.Context, t *tape, limit int, target observer.Target, client agentpb.AgentClient) error {
	stream, err := client.Logs(ctx, t.resume())
	for err == nil {
		var reply *agentpb.LogsReply
		if reply, err = stream.Recv(); err != nil {
			break
		}
		if reply.GetInstance() != target.Instance || (reply.GetPodUid() != "" && reply.GetPodUid() != string(target.UID)) {
			return fmt.Errorf("instance %s (%s) answered at the address of %s", reply.GetInstance(), reply.GetPodUid(), target.Instance)
		}
		r.lose(t.logs(reply, r.opts.Clock.Now(), limit))
	}
	return err
}

// Entries is what is remembered of an instance since a time, in order.
func (r *Recorder) Entries(who evidence.Walker, from time.Time) []evidence.Entry {
	r.mu.Lock()
	t := r.tapes[who]
	r.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.all(from)
}

// tape of an instance, and how many bytes it may have.
func (r *Recorder) tape(shard types.NamespacedName, instance string) (*tape, int) {
	who := evidence.Walker{Namespace: shard.Namespace, Shard: shard.Name, Instance: instance}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tapes[who]
	if t == nil {
		t = &tape{who: who, heardAt: r.opts.Clock.Now()}
		r.tapes[who] = t
	}
	return t, r.limit()
}

// limit of one tape; mu is held. Streams that run keep the one they began with, which is near enough.
func (r *Recorder) limit() int {
	return min(r.opts.Instance, max(least, r.opts.Total/max(1, len(r.tapes))))
}

// lose counts entries that nobody will read. Replicas that do not store everything lose nothing.
func (r *Recorder) lose(n int) {
	if n > 0 && r.opts.All() {
		lostEntries.Add(float64(n))
	}
}

func (r *Recorder) soon() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica records.
func (*Recorder) NeedLeaderElection() bool { return false }

// Start writes what is due until ctx ends, and then, within bounds, what is pending.
func (r *Recorder) Start(ctx context.Context) error {
	ticker := r.opts.Clock.NewTicker(look)
	defer ticker.Stop()
	var writing sync.WaitGroup
	uploading := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C():
			r.round(uploading, false, &writing)
		case <-r.kick:
			r.round(uploading, false, &writing)
		}
	}
	if r.opts.All() {
		last, cancel := context.WithTimeout(uploading, lastFlush)
		defer cancel()
		r.round(last, true, &writing)
		r.await(last, &writing)
	}
	return nil
}

// await returns when all is written or ctx has ended; a bucket that hangs is left behind.
func (r *Recorder) await(ctx context.Context, writing *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		writing.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// round begins to write what is due, as far as there are free slots.
func (r *Recorder) round(ctx context.Context, everything bool, writing *sync.WaitGroup) {
	all, now := r.opts.All(), r.opts.Clock.Now()
	p := pace{all: all, now: everything, every: r.opts.Every, quiet: r.opts.Quiet, apart: apart}
	r.mu.Lock()
	limit := r.limit()
	tapes := make([]*tape, 0, len(r.tapes))
	for who, t := range r.tapes {
		if t.over(now, r.opts.Linger, all) {
			delete(r.tapes, who)
			continue
		}
		tapes = append(tapes, t)
	}
	r.mu.Unlock()
	lag := time.Duration(0)
	for _, t := range tapes {
		if all {
			lag = max(lag, t.waiting(now))
		}
		if !r.enter(ctx, everything) {
			continue
		}
		b, due := t.due(now, p, limit)
		if !due {
			<-r.slot
			continue
		}
		writing.Go(func() {
			defer func() { <-r.slot }()
			r.write(ctx, t, b)
		})
	}
	lagSeconds.Set(lag.Seconds())
	instances.Set(float64(len(tapes)))
}

// enter takes a slot for an upload: at once or not at all, but for the last round.
func (r *Recorder) enter(ctx context.Context, wait bool) bool {
	select {
	case r.slot <- struct{}{}:
		return true
	default:
	}
	if !wait {
		return false
	}
	select {
	case r.slot <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *Recorder) write(ctx context.Context, t *tape, b batch) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Upload)
	defer cancel()
	n, err := r.opts.Trails.Write(ctx, t.who, r.opts.Replica, b.number, r.opts.Clock.Now(), plain(b.entries))
	t.stored(b, r.opts.Clock.Now(), err)
	if err != nil {
		segments.WithLabelValues("failed").Inc()
		r.opts.Log.Error(err, "a segment of the trail was not stored", "instance", t.who.Instance, "entries", len(b.entries))
		return
	}
	segments.WithLabelValues("stored").Inc()
	storedBytes.Add(float64(n))
}
