package reparent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/verdict"
)

// fleet is a shard of three for tests of the whole way from a status to a new primary: agents in memory, which obey as real
// ones do in outline, and an API server. It runs in a synctest bubble.
type fleet struct {
	t      *testing.T
	client client.Client

	mu      sync.Mutex
	agents  map[string]*member
	drained []time.Duration // how long the drains may have taken
	awaited int             // how often open transactions were waited for
	late    time.Duration   // how long pushed statuses are under way
}

type member struct {
	agentpb.AgentClient
	f       *fleet
	status  *agentpb.Status
	frozen  bool
	changed chan struct{} // closed when the status changes
	// before is called ahead of every command, by its name.
	before func(command string)
	// refuses says of each command whether it fails.
	refuses func(command string) bool
}

func newFleet(t *testing.T) *fleet {
	f := &fleet{t: t, agents: map[string]*member{}}
	sh := object()
	sh.Spec.Template.Instances, sh.Spec.Template.Lifetime.MaxAge.Duration = 3, 29*24*time.Hour
	sh.Spec.Template.Gateway.MaxPause.Duration = time.Second
	sh.Status.Term, sh.Status.Primary = 4, "a"
	objects := []client.Object{sh}
	for _, name := range []string{"a", "b", "c"} {
		st := &agentpb.Status{
			Instance: name, Role: agentpb.Role_STANDBY, Term: 4, Flushed: &agentpb.Position{WalTerm: 4, Lsn: 1000, Timeline: 1}, ReplayedLsn: 1000, ReceivedLsn: 1000,
			TimelineTerms: []*agentpb.TimelineTerm{{Timeline: 1, Term: 1}}, Receiver: &agentpb.Receiver{Streaming: true, Source: "a"},
		}
		if name == "a" {
			st.Role, st.Established, st.Receiver = agentpb.Role_PRIMARY, true, nil
			st.Peers = []*agentpb.ReplicationPeer{{Instance: "b", State: "streaming"}, {Instance: "c", State: "streaming"}}
		}
		f.agents[name] = &member{f: f, status: st, changed: make(chan struct{})}
		objects = append(objects, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour)),
			Labels: map[string]string{v1alpha1.LabelShard: "db-0", v1alpha1.LabelComponent: v1alpha1.ComponentInstance},
		}})
	}
	f.client = server(t, interceptor.Funcs{}, objects...)
	return f
}

// replica is one operator, watching. It ends with the test.
func (f *fleet) replica(name string, leading bool) *Reconciler {
	o := observer.New(observer.Options{Stream: f.stream, Log: logr.Discard()})
	var targets []observer.Target
	for _, n := range slices.Sorted(maps.Keys(f.agents)) {
		targets = append(targets, observer.Target{Instance: n, Endpoint: &agentpb.Endpoint{Instance: n, Host: n}})
	}
	o.Sync(shardKey, targets)
	r := &Runner{
		Client: f.client, Live: f.client, Observer: o, Recorder: events.NewFakeRecorder(1000), Clock: clock.RealClock{}, Log: logr.Discard(), Name: name, Params: verdict.DefaultParams(),
		Agents: func(_ context.Context, _ types.NamespacedName, e *agentpb.Endpoint) (agentpb.AgentClient, func(), error) {
			return f.agents[e.GetInstance()], func() {}, nil
		},
	}
	e := &Emergency{Runner: r, Leading: func() bool { return leading }}
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = e.Start(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		<-ended
		o.Close()
		time.Sleep(2 * writeApart) // the last words of journals
	})
	return &Reconciler{Runner: r}
}

// stream pushes statuses: at once when something changes, and twice a second.
func (f *fleet) stream(ctx context.Context, _ types.NamespacedName, target observer.Target, _ *agentpb.WatchRequest, got func(*agentpb.Status)) error {
	m := f.agents[target.Instance]
	for {
		f.mu.Lock()
		st, changed, frozen, late := m.say(), m.changed, m.frozen, f.late
		f.mu.Unlock()
		time.Sleep(late)
		if !frozen {
			got(st)
		}
		select {
		case <-changed:
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// say is its status now. The mutex is held, here and in change.
func (m *member) say() *agentpb.Status {
	st := proto.CloneOf(m.status)
	st.AtUnixMs = time.Now().UnixMilli()
	return st
}

func (m *member) change(edit func(st *agentpb.Status)) {
	edit(m.status)
	close(m.changed)
	m.changed = make(chan struct{})
}

// freeze stops an instance with all it does: nothing is answered, and nobody hears from it any more.
func (f *fleet) freeze(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.agents[name].frozen = true
	for _, m := range f.agents {
		if m.status.GetReceiver().GetSource() == name {
			m.change(func(st *agentpb.Status) { st.Receiver = nil })
		}
	}
}

// do carries out a command of a term, unless the instance is frozen by then.
func (m *member) do(ctx context.Context, command string, term uint64, act func(st *agentpb.Status)) (*agentpb.Status, error) {
	if m.before != nil {
		m.before(command)
	}
	time.Sleep(time.Millisecond)
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	if m.frozen {
		m.f.mu.Unlock()
		<-ctx.Done()
		m.f.mu.Lock()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if m.refuses != nil && m.refuses(command) {
		return nil, status.Error(codes.Internal, "not now")
	}
	if term > 0 && term < m.status.GetTerm() {
		return nil, status.Error(codes.FailedPrecondition, "that term is over")
	}
	if act != nil {
		m.change(act)
	}
	return m.say(), nil
}

func (m *member) GetStatus(ctx context.Context, _ *agentpb.GetStatusRequest, _ ...grpc.CallOption) (*agentpb.Status, error) {
	return m.do(ctx, "GetStatus", 0, nil)
}

func (m *member) Testify(ctx context.Context, _ *agentpb.TestifyRequest, _ ...grpc.CallOption) (*agentpb.TestifyReply, error) {
	_, err := m.do(ctx, "Testify", 0, nil)
	return &agentpb.TestifyReply{}, err
}

func (m *member) Checkpoint(ctx context.Context, r *agentpb.CheckpointRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	st, err := m.do(ctx, "Checkpoint", r.GetTerm(), nil)
	return &agentpb.CommandReply{Status: st}, err
}

func (m *member) Await(ctx context.Context, r *agentpb.AwaitRequest, _ ...grpc.CallOption) (*agentpb.AwaitReply, error) {
	m.f.mu.Lock()
	m.f.awaited++
	m.f.mu.Unlock()
	_, err := m.do(ctx, "Await", r.GetTerm(), nil)
	return &agentpb.AwaitReply{}, err
}

func (m *member) Drain(ctx context.Context, r *agentpb.DrainRequest, _ ...grpc.CallOption) (*agentpb.DrainReply, error) {
	m.f.mu.Lock()
	m.f.drained = append(m.f.drained, time.Duration(r.GetTimeoutMs())*time.Millisecond)
	m.f.mu.Unlock()
	_, err := m.do(ctx, "Drain", r.GetTerm(), func(st *agentpb.Status) { st.Draining = true })
	return &agentpb.DrainReply{}, err
}

func (m *member) Undrain(ctx context.Context, r *agentpb.UndrainRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	st, err := m.do(ctx, "Undrain", r.GetTerm(), func(st *agentpb.Status) { st.Draining = false })
	return &agentpb.CommandReply{Status: st}, err
}

func (m *member) stop(term uint64) func(st *agentpb.Status) {
	return func(st *agentpb.Status) {
		st.Term, st.Receiver = term, nil
		if st.GetRole() == agentpb.Role_PRIMARY {
			st.Role, st.Established, st.Draining, st.Peers = agentpb.Role_STOPPED, false, false, nil
		}
	}
}

func (m *member) Demote(ctx context.Context, r *agentpb.DemoteRequest, _ ...grpc.CallOption) (*agentpb.PromiseReply, error) {
	st, err := m.do(ctx, "Demote", r.GetTerm(), m.stop(r.GetTerm()))
	return &agentpb.PromiseReply{Term: st.GetTerm(), Flushed: st.GetFlushed(), WasPrimary: true}, err
}

func (m *member) Promise(ctx context.Context, r *agentpb.PromiseRequest, _ ...grpc.CallOption) (*agentpb.PromiseReply, error) {
	st, err := m.do(ctx, "Promise", r.GetTerm(), m.stop(r.GetTerm()))
	return &agentpb.PromiseReply{Term: st.GetTerm(), Flushed: st.GetFlushed(), WasPrimary: st.GetRole() == agentpb.Role_STOPPED}, err
}

func (m *member) Promote(ctx context.Context, r *agentpb.PromoteRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	st, err := m.do(ctx, "Promote", r.GetTerm(), func(st *agentpb.Status) {
		st.Role, st.Term, st.Receiver = agentpb.Role_PRIMARY, r.GetTerm(), nil
		st.TimelineTerms = append(st.TimelineTerms, &agentpb.TimelineTerm{Timeline: 2, Term: r.GetTerm()})
		st.Flushed = &agentpb.Position{WalTerm: r.GetTerm(), Lsn: 1010, Timeline: 2}
	})
	return &agentpb.CommandReply{Status: st}, err
}

func (m *member) Establish(ctx context.Context, r *agentpb.EstablishRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	st, err := m.do(ctx, "Establish", r.GetTerm(), func(st *agentpb.Status) { st.Established = true })
	return &agentpb.CommandReply{Status: st}, err
}

func (m *member) Follow(ctx context.Context, r *agentpb.FollowRequest, _ ...grpc.CallOption) (*agentpb.FollowReply, error) {
	primary := r.GetPrimary().GetInstance()
	st, err := m.do(ctx, "Follow", r.GetTerm(), func(st *agentpb.Status) {
		st.Role, st.Term, st.Receiver = agentpb.Role_STANDBY, r.GetTerm(), &agentpb.Receiver{Streaming: true, Source: primary}
		m.f.agents[primary].change(func(p *agentpb.Status) {
			p.Peers = append(p.Peers, &agentpb.ReplicationPeer{Instance: st.GetInstance(), State: "streaming"})
		})
	})
	return &agentpb.FollowReply{Term: st.GetTerm()}, err
}

// on calls f once, before the instance carries out the command.
func (f *fleet) on(instance, command string, do func()) {
	var once sync.Once
	f.agents[instance].before = func(c string) {
		if c == command {
			once.Do(do)
		}
	}
}

// reparents are those there are by term.
func (f *fleet) reparents() map[int64]v1alpha1.Reparent {
	list := &v1alpha1.ReparentList{}
	require.NoError(f.t, f.client.List(context.Background(), list))
	out := map[int64]v1alpha1.Reparent{}
	for _, rp := range list.Items {
		out[rp.Spec.Term] = rp
	}
	return out
}

// asked has somebody ask for a planned reparent, which r begins.
func (f *fleet) asked(r *Reconciler) {
	rp := request(func(rp *v1alpha1.Reparent) { rp.Spec.Reason = "Requested" })
	require.NoError(f.t, f.client.Create(f.t.Context(), rp))
	_, err := r.start(f.t.Context(), rp)
	require.NoError(f.t, err)
}

// await waits until the term has an outcome, and says how long that took.
func (f *fleet) await(term int64) (v1alpha1.Reparent, time.Duration) {
	f.t.Helper()
	begun := time.Now()
	for {
		rp := f.reparents()[term]
		if rp.Status.Outcome != "" {
			return rp, time.Since(begun)
		}
		if time.Since(begun) > time.Minute {
			f.t.Fatalf("term %d: %+v", term, rp)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// inFleet runs a test with a fleet in virtual time, once every replica has heard of everybody.
func inFleet(t *testing.T, test func(t *testing.T, f *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newFleet(t)) })
}

// An emergency does not wait for a planned reparent that waits for the very primary that needs one.
func TestAnEmergencyDoesNotWaitForAPlannedReparent(t *testing.T) {
	for _, command := range []string{"Await", "Checkpoint", "Drain"} {
		t.Run("of its own, frozen at "+command, func(t *testing.T) {
			inFleet(t, func(t *testing.T, f *fleet) {
				leader := f.replica("one", true)
				f.replica("two", false)
				time.Sleep(2 * time.Second)
				f.on("a", command, func() { f.freeze("a") })
				f.asked(leader)
				ers, took := f.await(6)
				require.Equal(t, v1alpha1.OutcomeSucceeded, ers.Status.Outcome, ers.Status.Message)
				require.Equal(t, v1alpha1.ReparentEmergency, ers.Spec.Kind)
				require.Less(t, took, 3*time.Second)
				prs, _ := f.await(5)
				require.Contains(t, []string{v1alpha1.OutcomeRefused, v1alpha1.OutcomeUndone}, prs.Status.Outcome)
				require.Len(t, f.reparents(), 2, "one replica acts")
			})
		})
	}
	t.Run("of another, whose coordinator is frozen, too", func(t *testing.T) {
		inFleet(t, func(t *testing.T, f *fleet) {
			f.replica("two", false)
			time.Sleep(2 * time.Second)
			frozen := newJournal(f.client)
			frozen.clock = clock.RealClock{}
			require.NoError(t, frozen.Open(t.Context(), opening("one")))
			f.freeze("a")
			ers, took := f.await(6)
			require.Equal(t, v1alpha1.OutcomeSucceeded, ers.Status.Outcome, ers.Status.Message)
			require.Less(t, took, 3500*time.Millisecond)
		})
	})
}

// Nobody takes a planned reparent for an emergency: neither who runs it nor another replica, while the old primary stops
// and the new one is not there yet.
func TestAPlannedReparentIsLeftAlone(t *testing.T) {
	inFleet(t, func(t *testing.T, f *fleet) {
		leader := f.replica("one", true)
		f.replica("two", false)
		time.Sleep(2 * time.Second)
		for _, m := range f.agents {
			m.before = func(command string) { // slow, so that everybody has time to look
				if command == "Demote" || command == "Promote" || command == "Establish" {
					time.Sleep(time.Second)
				}
			}
		}
		f.asked(leader)
		prs, _ := f.await(5)
		require.Equal(t, v1alpha1.OutcomeSucceeded, prs.Status.Outcome, prs.Status.Message)
		time.Sleep(10 * time.Second)
		require.Len(t, f.reparents(), 1)
		require.Equal(t, []time.Duration{500 * time.Millisecond}, f.drained, "gateways hold their clients for a second")
	})
}

// A primary whose volume is full is moved away from by the leader, and by another replica when there is no leader to do it.
func TestAFullPrimaryIsMovedAwayFromWithoutALeader(t *testing.T) {
	for name, tc := range map[string]struct {
		leader         bool
		atLeast, below time.Duration
	}{
		"a leader":  {true, 0, yieldPlanned},
		"no leader": {false, yieldPlanned, 2 * yieldPlanned},
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, func(t *testing.T, f *fleet) {
				f.replica("one", tc.leader)
				f.replica("two", false)
				time.Sleep(2 * time.Second)
				f.mu.Lock()
				for instance, available := range map[string]uint64{"a": 1, "b": 500, "c": 500} {
					f.agents[instance].change(func(st *agentpb.Status) { st.Disk = &agentpb.Disk{SizeBytes: 1000, AvailableBytes: available} })
				}
				f.mu.Unlock()
				prs, took := f.await(5)
				require.Equal(t, v1alpha1.OutcomeSucceeded, prs.Status.Outcome, prs.Status.Message)
				require.Equal(t, v1alpha1.ReparentPlanned, prs.Spec.Kind)
				require.Equal(t, string(verdict.DiskFull), prs.Spec.Reason)
				require.Zero(t, f.awaited, "clients of a full volume get errors")
				require.GreaterOrEqual(t, took, tc.atLeast)
				require.Less(t, took, tc.below)
				time.Sleep(10 * time.Second)
				for _, rp := range f.reparents() {
					require.NotEqual(t, v1alpha1.ReparentEmergency, rp.Spec.Kind)
				}
			})
		})
	}
}

// A primary that was established a moment ago is not taken away because the newest status there is of it is older: the push
// is under way, and it is too busy to be asked.
func TestANewPrimaryIsNotJudgedByAnOldStatus(t *testing.T) {
	inFleet(t, func(t *testing.T, f *fleet) {
		f.replica("one", true)
		f.replica("two", false)
		time.Sleep(2 * time.Second)
		var established time.Time
		f.mu.Lock()
		for _, m := range f.agents {
			m.refuses = func(command string) bool { // with the mutex held
				if command == "Establish" {
					established = time.Now()
				}
				return command == "GetStatus" && time.Since(established) < time.Second
			}
		}
		f.late = 300 * time.Millisecond
		f.mu.Unlock()
		f.freeze("a")
		ers, _ := f.await(5)
		require.Equal(t, v1alpha1.OutcomeSucceeded, ers.Status.Outcome, ers.Status.Message)
		time.Sleep(10 * time.Second)
		require.Len(t, f.reparents(), 1)
	})
}

// A primary whose PostgreSQL is back by itself keeps its term although it was not established yet when it was asked: what it
// has said by the time that the slowest has answered counts.
func TestWhatIsSaidWhileOthersAnswerCounts(t *testing.T) {
	inFleet(t, func(t *testing.T, f *fleet) {
		f.replica("one", true)
		f.replica("two", false)
		time.Sleep(2 * time.Second)
		establish := func(on bool) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.agents["a"].change(func(st *agentpb.Status) { st.Established = on })
		}
		slow := func(command string) {
			if command == "GetStatus" {
				time.Sleep(confirmTimeout - 30*time.Millisecond)
			}
		}
		f.agents["b"].before, f.agents["c"].before = slow, slow
		establish(false)
		time.Sleep(confirmTimeout / 2)
		establish(true)
		time.Sleep(2 * time.Second)
		require.Empty(t, f.reparents())

		establish(false)
		ers, _ := f.await(5)
		require.Equal(t, v1alpha1.OutcomeSucceeded, ers.Status.Outcome, "it is not back: "+ers.Status.Message)
	})
}

// What was asked for is not refused by an operator that is so new that it has heard of nobody.
func TestANewOperatorListensBeforeItBegins(t *testing.T) {
	for name, tc := range map[string]struct {
		frozen  bool
		outcome string
		after   time.Duration
	}{
		"until it knows everybody":          {false, v1alpha1.OutcomeSucceeded, 300 * time.Millisecond},
		"no longer than they have time for": {true, v1alpha1.OutcomeRefused, introduction},
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, func(t *testing.T, f *fleet) {
				f.late = 300 * time.Millisecond
				f.agents["a"].frozen = tc.frozen
				rp := request(nil)
				require.NoError(t, f.client.Create(t.Context(), rp))
				r, begun := f.replica("one", true), time.Now()
				for !r.Runner.Busy(shardKey) {
					again, err := r.start(t.Context(), rp)
					require.NoError(t, err)
					if !r.Runner.Busy(shardKey) {
						time.Sleep(again.RequeueAfter)
					}
				}
				require.InDelta(t, tc.after, time.Since(begun), float64(startAgain))
				got, _ := f.await(5)
				require.Equal(t, tc.outcome, got.Status.Outcome, got.Status.Message)
			})
		})
	}
}

// What cannot be taken back any more is not: see reparent.Coordinator.Run.
func TestOnlyWhatCanBeTakenBackIsCancelled(t *testing.T) {
	r := &Runner{}
	require.False(t, r.Cancellable(shardKey))
	require.False(t, r.Cancel(shardKey, errEmergency))
	ctx, cancel := context.WithCancelCause(t.Context())
	going := make(chan struct{})
	require.True(t, r.Go(shardKey, func() { <-going }))
	require.False(t, r.Cancellable(shardKey), "an emergency")
	r.offer(shardKey, cancel)
	require.True(t, r.Cancellable(shardKey))
	r.offer(shardKey, nil)
	require.False(t, r.Cancel(shardKey, errEmergency), "the primary was told to stop")
	require.NoError(t, ctx.Err())
	r.offer(shardKey, cancel)
	require.True(t, r.Cancel(shardKey, errEmergency))
	require.ErrorIs(t, context.Cause(ctx), errEmergency)
	close(going)
	r.Wait()
	require.False(t, r.Cancellable(shardKey))
}

// The outage is counted from the last sign of the old primary, over every attempt to end it.
func TestTheOutageIsCountedFromItsBeginning(t *testing.T) {
	for name, refused := range map[string]time.Duration{"at the first attempt": 0, "after some that failed": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, func(t *testing.T, f *fleet) {
				f.replica("one", true)
				time.Sleep(2*time.Second + 50*time.Millisecond)
				until := time.Now().Add(refused)
				for _, m := range f.agents {
					m.refuses = func(command string) bool { return command == "Promote" && time.Now().Before(until) }
				}
				f.freeze("a")
				begun := time.Now()
				term := int64(5)
				rp, _ := f.await(term)
				for rp.Status.Outcome != v1alpha1.OutcomeSucceeded {
					require.Nil(t, rp.Status.WriteUnavailable, "it is not over")
					term++
					rp, _ = f.await(term)
				}
				took := rp.Status.FinishedAt.Sub(begun)
				require.Greater(t, took, max(verdict.DefaultParams().SilentAfter-500*time.Millisecond, refused))
				require.GreaterOrEqual(t, rp.Status.WriteUnavailable.Duration, took-50*time.Millisecond)
				require.LessOrEqual(t, rp.Status.WriteUnavailable.Duration, took+500*time.Millisecond, "a heartbeat")
			})
		})
	}
}
