package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
)

var (
	ctx    = context.Background()
	shard  = types.NamespacedName{Namespace: "ns", Name: "db-0"}
	target = observer.Target{Instance: "db-0-k4x2p", UID: "1", Endpoint: &agentpb.Endpoint{}}
	who    = evidence.Walker{Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p"}
	noon   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

// rig is a recorder in a world whose clock the test turns. Rounds are run by hand.
type rig struct {
	*Recorder
	t      *testing.T
	clock  *clocktesting.FakeClock
	bucket evidence.Bucket
	all    bool
	n      uint64
}

func newRig(t *testing.T, change func(*Options)) *rig {
	r := &rig{t: t, clock: clocktesting.NewFakeClock(noon), all: true}
	r.bucket = evidence.NewBucket(memblob.OpenBucket(nil), "")
	o := Options{Trails: r.bucket.Trails(), Replica: "op-1", Clock: r.clock, Log: logr.Discard(), All: func() bool { return r.all }}
	if change != nil {
		change(&o)
	}
	r.Recorder = New(o)
	return r
}

// watch runs a stream that yields the statuses and then ends as told.
func (r *rig) watch(err error, statuses ...*agentpb.Status) {
	ended := r.Stream(func(_ context.Context, _ types.NamespacedName, _ observer.Target, _ *agentpb.WatchRequest, got func(*agentpb.Status)) error {
		for _, s := range statuses {
			got(s)
		}
		return err
	})(ctx, shard, target, nil, func(*agentpb.Status) {})
	require.Equal(r.t, err, ended)
}

func (r *rig) status(edit func(*agentpb.Status)) *agentpb.Status {
	r.n++
	s := &agentpb.Status{Instance: target.Instance, PodUid: "1", BootId: "b", Sequence: r.n, AtUnixMs: r.clock.Now().UnixMilli(), Role: agentpb.Role_STANDBY, Term: 3}
	if edit != nil {
		edit(s)
	}
	return s
}

// later turns the clock and does what is due.
func (r *rig) later(d time.Duration) {
	r.t.Helper()
	r.clock.Step(d)
	r.flush()
}

func (r *rig) flush() {
	r.t.Helper()
	var writing sync.WaitGroup
	r.round(ctx, false, &writing)
	writing.Wait()
}

func (r *rig) stored() []evidence.Entry {
	r.t.Helper()
	entries, problems, err := r.bucket.Trails().Read(ctx, who, noon.Add(-time.Hour), noon.Add(48*time.Hour))
	require.NoError(r.t, err)
	require.Empty(r.t, problems)
	return entries
}

func text(entries []evidence.Entry) string {
	var out strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&out, "%s %s %s\n", e.Kind, e.Text, e.Status)
	}
	return out.String()
}

// logs plays an agent's log stream.
type logs struct {
	agentpb.AgentClient
	replies []*agentpb.LogsReply
	asked   []*agentpb.LogsRequest
	end     error
}

type logStream struct {
	grpc.ClientStream
	l *logs
}

func (l *logs) Logs(_ context.Context, req *agentpb.LogsRequest, _ ...grpc.CallOption) (agentpb.Agent_LogsClient, error) {
	l.asked = append(l.asked, req)
	return &logStream{l: l}, nil
}

func (s *logStream) Recv() (*agentpb.LogsReply, error) {
	if len(s.l.replies) == 0 {
		return nil, s.l.end
	}
	next := s.l.replies[0]
	s.l.replies = s.l.replies[1:]
	return next, nil
}

func reply(boot string, from, to int, edit func(*agentpb.LogsReply)) *agentpb.LogsReply {
	out := &agentpb.LogsReply{Instance: target.Instance, PodUid: "1", BootId: boot}
	for i := from; i < to; i++ {
		out.Lines = append(out.Lines, &agentpb.LogLine{
			Source: agentpb.LogSource_POSTGRES, Sequence: uint64(i), AtUnixMs: noon.UnixMilli() + int64(i), Text: fmt.Sprintf("%s line %d", boot, i),
		})
	}
	if edit != nil {
		edit(out)
	}
	return out
}

// read feeds the replies and ends.
func (r *rig) read(replies ...*agentpb.LogsReply) *logs {
	l := &logs{replies: replies, end: status.Error(codes.Unimplemented, "no more")}
	r.Follow(ctx, shard, target, l)
	return l
}

func TestTheLastWordsOfADyingInstanceAreStoredAtOnce(t *testing.T) {
	for _, leader := range []bool{true, false} {
		t.Run(fmt.Sprint("leader ", leader), func(t *testing.T) {
			r := newRig(t, nil)
			r.all = leader
			r.watch(nil, r.status(nil))
			r.flush()
			r.clock.Step(3 * time.Second)
			r.read(reply("b", 1, 3, nil))
			r.flush()
			require.NotContains(t, text(r.stored()), "line 2", "news of a healthy instance waits for its turn")
			r.watch(errors.New("agent silent"), r.status(nil), r.status(func(s *agentpb.Status) { s.ReplayedLsn = 4711 }))
			r.flush()
			got := text(r.stored())
			require.Contains(t, got, "b line 2")
			require.Contains(t, got, "4711", "the very last status, though it says nothing new")
			require.Contains(t, got, "agent silent")
		})
	}
}

func TestOnlyTheLeaderWritesWhatIsNoFault(t *testing.T) {
	r := newRig(t, nil)
	r.all = false
	r.tapeOf().connected = true
	r.read(reply("b", 1, 5, nil))
	r.later(time.Hour / 4)
	require.Empty(t, r.stored())
	r.all = true
	r.later(time.Second)
	require.Len(t, r.stored(), 4, "who becomes the leader writes what it remembers")
}

func (r *rig) tapeOf() *tape {
	t, _ := r.tape(shard, target.Instance)
	return t
}

func TestNewsSoonAndSilenceSeldom(t *testing.T) {
	r := newRig(t, nil)
	stream, steady := r.status(nil), func() int { return len(r.stored()) }
	feed := make(chan *agentpb.Status)
	done := make(chan error)
	go func() {
		done <- r.Stream(func(_ context.Context, _ types.NamespacedName, _ observer.Target, _ *agentpb.WatchRequest, got func(*agentpb.Status)) error {
			for s := range feed {
				got(s)
			}
			return errors.New("over")
		})(ctx, shard, target, nil, func(*agentpb.Status) {})
	}()
	say := func(s *agentpb.Status) { feed <- s; feed <- s } // the second is taken when the first is worked in
	say(stream)
	r.later(time.Second)
	first := steady()
	require.Positive(t, first, "a new instance is written at once")
	for range 20 { // 100 s of heartbeats that say nothing new
		say(r.status(nil))
		r.later(5 * time.Second)
	}
	require.Equal(t, first, steady())
	for range 50 {
		say(r.status(nil))
		r.later(5 * time.Second)
	}
	require.Greater(t, steady(), first, "but it lives, and that is written now and then")
	before := steady()
	r.read(reply("b", 1, 2, nil))
	r.later(29 * time.Second)
	require.Equal(t, before, steady())
	r.later(2 * time.Second)
	require.Greater(t, steady(), before)
	before = steady()
	say(r.status(func(s *agentpb.Status) { s.Term = 4 }))
	r.later(2 * time.Second)
	require.Greater(t, steady(), before, "a term is written at once")
	close(feed)
	require.Error(t, <-done)
}

func TestLogsResumeWhereTheyWere(t *testing.T) {
	r := newRig(t, nil)
	first := r.read(reply("b", 1, 5, nil), reply("b", 3, 7, nil)) // repeated lines are dropped
	require.Zero(t, first.asked[0].GetAfterPostgres())
	again := r.read(reply("c", 1, 3, nil)) // the agent was restarted meanwhile
	require.Equal(t, "b", again.asked[0].GetBootId())
	require.EqualValues(t, 6, again.asked[0].GetAfterPostgres())
	r.later(time.Minute)
	require.Len(t, r.stored(), 8)
}

func TestAnotherInstanceAtTheAddressIsNotRecorded(t *testing.T) {
	r := newRig(t, nil)
	l := &logs{replies: []*agentpb.LogsReply{reply("x", 1, 2, func(p *agentpb.LogsReply) { p.PodUid = "9" })}}
	require.ErrorContains(t, r.follow(ctx, r.tapeOf(), 1<<20, target, l), "answered at the address")
	r.watch(nil, r.status(func(s *agentpb.Status) { s.PodUid = "9" }), r.status(func(s *agentpb.Status) { s.Instance = "db-0-other" }))
	require.Empty(t, r.Entries(who, time.Time{}))
}

func TestAFloodOfLinesIsBoundedAndLeavesTheStatuses(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Instance = 16 << 10 })
	r.watch(nil, r.status(nil))
	for i := range 200 {
		r.read(reply("b", 1+100*i, 101+100*i, func(p *agentpb.LogsReply) { p.Lines[7].Text = strings.Repeat("x", 100_000) }))
	}
	tp := r.tapeOf()
	require.LessOrEqual(t, tp.lines.bytes+tp.statuses.bytes, 16<<10)
	got := r.Entries(who, time.Time{})
	require.Contains(t, text(got), `"term":"3"`, "the status is still there")
	require.Contains(t, text(got), "line 20000", "the newest line, too")
	r.flush()
	require.Len(t, r.stored(), len(got))
}

func TestAFlappingInstanceDoesNotFloodTheBucket(t *testing.T) {
	r := newRig(t, nil)
	for range 100 {
		r.watch(errors.New("reset"), r.status(nil))
		r.later(100 * time.Millisecond)
	}
	n := r.tapeOf().number
	require.LessOrEqual(t, n, uint64(6), "10 s, at most one segment in 2 s")
	require.GreaterOrEqual(t, n, uint64(4))
}

func TestDiallingADeadInstanceSaysNothingNew(t *testing.T) {
	r := newRig(t, nil)
	r.watch(errors.New("reset"), r.status(nil))
	n := len(r.Entries(who, time.Time{}))
	for range 100 {
		r.watch(errors.New("no route to host"))
	}
	require.Len(t, r.Entries(who, time.Time{}), n)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_ = r.Stream(func(context.Context, types.NamespacedName, observer.Target, *agentpb.WatchRequest, func(*agentpb.Status)) error {
		return errors.New("we ended it")
	})(canceled, shard, target, nil, nil)
	require.Len(t, r.Entries(who, time.Time{}), n)
}

func TestABucketThatFailsLosesNothingThatIsRemembered(t *testing.T) {
	broken, err := evidence.Open("mem://", "")
	require.NoError(t, err)
	require.NoError(t, broken.Write(ctx, "x", "", strings.NewReader("")))
	require.NoError(t, broken.Close(), "from now on everything fails")
	r := newRig(t, func(o *Options) { o.Trails = broken.Trails() })
	r.watch(errors.New("reset"), r.status(nil))
	for range 20 {
		r.later(time.Second)
	}
	require.LessOrEqual(t, r.tapeOf().failures, 6, "it backs off")
	require.Equal(t, 20*time.Second, r.tapeOf().waiting(r.clock.Now()), "and says how far behind it is")
	r.opts.Trails = r.bucket.Trails()
	r.later(time.Minute)
	require.Contains(t, text(r.stored()), "reset")
	require.Zero(t, r.tapeOf().waiting(r.clock.Now()))
}

func TestABucketThatHangsHoldsNobodyUp(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Upload = time.Hour })
	release := make(chan struct{})
	tp := r.tapeOf()
	for range uploads { // every slot is taken by an upload that hangs
		r.slot <- struct{}{}
	}
	go func() { <-release; <-r.slot }()
	began := time.Now()
	r.watch(errors.New("reset"), r.status(nil))
	r.later(time.Minute)
	require.Less(t, time.Since(began), 5*time.Second)
	require.Zero(t, tp.number)
	require.Equal(t, time.Minute, tp.waiting(r.clock.Now()))
	close(release)
	require.Eventually(t, func() bool { r.later(time.Second); return tp.number > 0 }, 10*time.Second, 10*time.Millisecond)
}

func TestAForgottenInstanceFreesItsMemory(t *testing.T) {
	r := newRig(t, nil)
	r.watch(errors.New("reset"), r.status(nil))
	r.later(time.Second)
	r.later(29 * time.Minute)
	require.Len(t, r.tapes, 1)
	r.later(2 * time.Minute)
	r.flush()
	require.Empty(t, r.tapes)
	require.Contains(t, text(r.stored()), "reset")
	require.Nil(t, r.Entries(who, time.Time{}))
}

func TestWhatIsPendingIsWrittenAtTheEnd(t *testing.T) {
	r := newRig(t, nil)
	r.read(reply("b", 1, 5, nil))
	ending, cancel := context.WithCancel(ctx)
	cancel()
	require.NoError(t, r.Start(ending))
	require.Len(t, r.stored(), 4)
}

func TestMemoryIsSharedOut(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Total = 1 << 20 })
	for i := range 1000 {
		r.tape(shard, fmt.Sprint(i))
	}
	_, limit := r.tape(shard, "one more")
	require.Equal(t, least, limit)
}

func TestANilRecorderRecordsNothing(t *testing.T) {
	var r *Recorder
	require.Nil(t, r.Beside())
	called := false
	_ = r.Stream(func(context.Context, types.NamespacedName, observer.Target, *agentpb.WatchRequest, func(*agentpb.Status)) error {
		called = true
		return io.EOF
	})(ctx, shard, target, nil, nil)
	require.True(t, called)
}

// Whatever order things come in, the ring stays within its bounds, knows what is stored, and keeps the newest.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ring
		limit := rapid.IntRange(200, 5000).Draw(t, "limit")
		next, lost, stored := uint64(0), 0, uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "store") {
				stored = max(stored, uint64(rapid.IntRange(int(r.first), int(next)).Draw(t, "to")))
				r.store(stored)
				continue
			}
			e := entry{Entry: evidence.Entry{Sequence: next, Text: strings.Repeat("x", rapid.IntRange(0, 400).Draw(t, "size"))}}
			next++
			lost += r.add(e, limit)
			require.Equal(t, next, r.next())
			require.True(t, r.bytes <= limit || len(r.entries) == 1)
			require.Equal(t, next-1, r.entries[len(r.entries)-1].Sequence)
			require.Equal(t, r.entries[0].Sequence, r.first)
			require.Len(t, r.pending(), int(next-max(stored, r.first)))
			waiting := 0
			for _, e := range r.pending() {
				waiting += e.size()
			}
			require.Equal(t, waiting, r.waiting)
		}
		require.LessOrEqual(t, lost, int(r.first))
	})
}
