package reparent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestPhasesInTheJournal(t *testing.T) {
	st := &v1alpha1.ReparentStatus{}
	note(st, reparent.Phase{Name: reparent.PhaseRevoke, Started: now})
	require.Len(t, st.Phases, 1)
	require.Nil(t, st.Phases[0].FinishedAt)
	note(st, reparent.Phase{Name: reparent.PhaseRevoke, Started: now, Finished: now.Add(time.Second), Message: "3 promises"})
	require.Len(t, st.Phases, 1, "its end replaces its beginning")
	require.Equal(t, "3 promises", st.Phases[0].Message)
	note(st, reparent.Phase{Name: reparent.PhaseRevoke, Started: now.Add(time.Minute)})
	require.Len(t, st.Phases, 2, "the same phase a second time is another one")
	require.Equal(t, "Revoke", st.Phase)
}

func TestConclude(t *testing.T) {
	st := &v1alpha1.ReparentStatus{OldPrimary: "a"}
	conclude(st, 3, reparent.Result{
		Outcome: reparent.Succeeded, NewPrimary: "b", Why: "best", WriteUnavailable: 123456 * time.Microsecond,
		Candidates: []reparent.Candidate{{Instance: "b", Position: quorum.Position{WALTerm: 3, LSN: 0x1_0000_00AB}}},
	}, now)
	require.Equal(t, v1alpha1.OutcomeSucceeded, st.Outcome)
	require.Equal(t, "a", st.OldPrimary, "what was known stays")
	require.Equal(t, 123*time.Millisecond, st.WriteUnavailable.Duration)
	require.Equal(t, "1/AB", st.Candidates[0].LSN)
	require.Equal(t, metav1.ConditionTrue, st.Conditions[0].Status)
	require.EqualValues(t, 3, st.Conditions[0].ObservedGeneration)
	conclude(st, 3, reparent.Result{Outcome: reparent.Refused, Message: "no"}, now)
	require.Equal(t, metav1.ConditionFalse, st.Conditions[0].Status)
	require.Equal(t, "Refused", st.Conditions[0].Reason)
}

func TestExpiredKeepsTheNewestAndTheUnfinished(t *testing.T) {
	var items []v1alpha1.Reparent
	for term := range int64(6) {
		rp := v1alpha1.Reparent{Spec: v1alpha1.ReparentSpec{Term: term + 2}, Status: v1alpha1.ReparentStatus{Outcome: "Succeeded"}}
		rp.Name = fmt.Sprint(term + 2)
		rp.CreationTimestamp = metav1.NewTime(now.Add(time.Duration(term) * time.Hour))
		items = append(items, rp)
	}
	items[0].Status.Outcome = ""
	terms := func(keep int, before time.Time) (out []string) {
		for _, rp := range expired(items, keep, before) {
			out = append(out, rp.Name)
		}
		return out
	}
	require.Equal(t, []string{"4", "3"}, terms(3, time.Time{}), "beyond the newest three, but not the unfinished one")
	require.Equal(t, []string{"4", "3"}, terms(100, now.Add(150*time.Minute)), "too old")
	require.Equal(t, []string{"6", "5", "4", "3"}, terms(100, now.Add(24*time.Hour)), "the highest term stays for ever")
	require.Empty(t, terms(100, time.Time{}))
	items[4].Status.Coordinator = "somebody"
	require.Equal(t, []string{"5", "4", "3"}, terms(100, now.Add(24*time.Hour)), "nor the highest that was opened, below a request that was refused")
}

func TestAPromiseThatProvesNothingIsNone(t *testing.T) {
	good := &agentpb.PromiseReply{Term: 4, Flushed: &agentpb.Position{WalTerm: 3, Lsn: 7}}
	p, err := promiseOf("a", good)
	require.NoError(t, err)
	require.Equal(t, quorum.Promise{Instance: "a", Term: 4, Position: quorum.Position{WALTerm: 3, LSN: 7}}, p)
	for _, bad := range []*agentpb.PromiseReply{
		{Term: 4},
		{Term: 4, Flushed: &agentpb.Position{Lsn: 7}},
		{Term: 4, Flushed: &agentpb.Position{WalTerm: 3, Lsn: 7}, LowerBound: true},
	} {
		_, err := promiseOf("a", bad)
		require.ErrorIs(t, err, errNoPosition)
	}
}

// scripted is an agent that answers as told.
type scripted struct {
	agentpb.AgentClient
	term    uint64
	promise error
	asked   int
}

func (s *scripted) Promise(context.Context, *agentpb.PromiseRequest, ...grpc.CallOption) (*agentpb.PromiseReply, error) {
	s.asked++
	return &agentpb.PromiseReply{Flushed: &agentpb.Position{WalTerm: 1}}, s.promise
}

func (s *scripted) GetStatus(context.Context, *agentpb.GetStatusRequest, ...grpc.CallOption) (*agentpb.Status, error) {
	return &agentpb.Status{Term: s.term}, nil
}

func dialling(agent *scripted, dials *int, err error) shard.Agents {
	return func(context.Context, types.NamespacedName, *agentpb.Endpoint) (agentpb.AgentClient, func(), error) {
		*dials++
		return agent, func() {}, err
	}
}

func TestErrorsOfAgents(t *testing.T) {
	endpoints := map[string]*agentpb.Endpoint{"a": {Instance: "a"}}
	for name, c := range map[string]struct {
		agent     *scripted
		dial      error
		overtaken uint64
		dials     int
	}{
		"a higher term":            {agent: &scripted{term: 9, promise: status.Error(codes.FailedPrecondition, "no")}, overtaken: 9, dials: 1},
		"refused in its own term":  {agent: &scripted{term: 5, promise: status.Error(codes.FailedPrecondition, "no")}, dials: 1},
		"a connection that is bad": {agent: &scripted{promise: status.Error(codes.Unavailable, "gone")}, dials: 2},
		"nobody there":             {agent: &scripted{}, dial: errors.New("refused"), dials: 2},
	} {
		t.Run(name, func(t *testing.T) {
			dials := 0
			a := newAgents(dialling(c.agent, &dials, c.dial), types.NamespacedName{}, "me", endpoints)
			defer a.Close()
			for range 2 {
				_, err := a.Promise(t.Context(), "a", 5, 0)
				require.Error(t, err)
				var over *reparent.OvertakenError
				if c.overtaken > 0 {
					require.ErrorAs(t, err, &over)
					require.Equal(t, c.overtaken, over.Term)
				} else {
					require.NotErrorAs(t, err, &over)
				}
			}
			require.Equal(t, c.dials, dials, "a good connection is kept, a bad one is not")
		})
	}
	t.Run("no address", func(t *testing.T) {
		dials := 0
		a := newAgents(dialling(&scripted{}, &dials, nil), types.NamespacedName{}, "me", endpoints)
		_, err := a.Promise(t.Context(), "b", 5, 0)
		require.ErrorContains(t, err, "no address")
		require.ErrorContains(t, a.Follow(t.Context(), "a", 5, "b", nil), "no address")
	})
}

func TestTheVersionOfARecordIsTheRecord(t *testing.T) {
	var st v1alpha1.ShardStatus
	shard.SetRecord(&st, quorum.Record{Established: 2, Cohorts: []quorum.Cohort{{Term: 2, Primary: "a", Members: []string{"b"}, Acks: 1, Revision: 3}}})
	v, err := versionOf(&st.Record)
	require.NoError(t, err)
	var back v1alpha1.CohortRecord
	require.NoError(t, json.Unmarshal([]byte(v), &back))
	require.Equal(t, st.Record, back)
	st.Record.Cohorts[0].Revision++
	other, err := versionOf(&st.Record)
	require.NoError(t, err)
	require.NotEqual(t, v, other)
}

func TestWhatTheVerdictIsTold(t *testing.T) {
	h := newHistory()
	st := &agentpb.Status{
		Instance: "a", Role: agentpb.Role_PRIMARY, Term: 3, Established: true, AtUnixMs: now.UnixMilli(), ReceivedLsn: 5,
		Peers:        []*agentpb.ReplicationPeer{{Instance: "b", State: "streaming", ReplyAgeMs: 40}, {Instance: "c", State: "catchup"}},
		DiskProbe:    &agentpb.Probe{PendingSinceUnixMs: now.Add(-3 * time.Second).UnixMilli()},
		WriteProbe:   &agentpb.Probe{Failures: 2, Error: "no", LatencyUs: 2_000_000},
		ConnectProbe: &agentpb.Probe{LatencyUs: 900},
		Disk:         &agentpb.Disk{SizeBytes: 100, AvailableBytes: 10},
	}
	ob := &observer.Observation{Status: st, ReceivedAt: now, Connected: true}
	i := h.instance("a", ob, now.Add(200*time.Millisecond))
	require.Equal(t, verdict.RolePrimary, i.Role)
	require.Equal(t, 200*time.Millisecond, i.Age)
	require.True(t, i.Peers["b"].Streaming)
	require.False(t, i.Peers["c"].Streaming)
	require.Equal(t, 3*time.Second, i.DiskProbe.Pending, "by the agent's own clock")
	require.Equal(t, 2, i.WriteProbe.Failures)
	require.Zero(t, i.WriteProbe.SlowFor)
	require.InDelta(t, 0.9, i.DiskUsed, 1e-9)

	later := now.Add(5 * time.Second)
	i = h.instance("a", ob, later)
	require.Equal(t, 5*time.Second-200*time.Millisecond, i.WriteProbe.SlowFor)
	require.Zero(t, i.Receiver.AdvanceAge, "a primary receives nothing")

	st.Role = agentpb.Role_STOPPED
	later = later.Add(4 * time.Second)
	i = h.instance("a", ob, later)
	require.Equal(t, 4*time.Second, i.Receiver.AdvanceAge, "since it was demoted")
	st.ReceivedLsn, st.WriteProbe.LatencyUs = 6, 100
	i = h.instance("a", ob, later)
	require.Zero(t, i.Receiver.AdvanceAge)
	require.Zero(t, i.WriteProbe.SlowFor)

	i = h.instance("x", &observer.Observation{FailingSince: now, Refused: true}, later)
	require.False(t, i.Heard)
	require.Equal(t, 9*time.Second, i.Age)
	require.True(t, i.Disconnected)
}

func TestConfirmingKeepsWhatOneStatusCannotSay(t *testing.T) {
	before := &verdict.Instance{PodGone: true, PodGoneFor: time.Second, Leaving: true, NodeNotReadyFor: 2 * time.Second}
	before.Receiver.AdvanceAge, before.DiskProbe.SlowFor = 3*time.Second, 4*time.Second
	next := &verdict.Instance{Role: verdict.RolePrimary}
	keep(next, before)
	require.Equal(t, verdict.RolePrimary, next.Role)
	require.True(t, next.PodGone && next.Leaving)
	require.Equal(t, 3*time.Second, next.Receiver.AdvanceAge)
	require.Equal(t, 4*time.Second, next.DiskProbe.SlowFor)
}

func TestTheNewestWordOfAnAgent(t *testing.T) {
	said := func(boot string, sequence uint64, at int64) *agentpb.Status {
		return &agentpb.Status{BootId: boot, Sequence: sequence, AtUnixMs: at}
	}
	require.True(t, newer(said("x", 1, 5), nil))
	require.True(t, newer(said("x", 3, 5), said("x", 2, 9)), "its clock was set back")
	require.False(t, newer(said("x", 2, 9), said("x", 3, 5)))
	require.False(t, newer(said("x", 2, 9), said("x", 2, 9)), "it is the same")
	require.True(t, newer(said("y", 1, 9), said("x", 7, 5)), "another process counts from the beginning")
	require.False(t, newer(said("x", 7, 5), said("y", 1, 9)))
	require.False(t, newer(nil, said("x", 1, 5)))
}

func TestOneReparentOfAShardAtATime(t *testing.T) {
	r := &Runner{}
	key, other := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
	blocked := make(chan struct{})
	require.True(t, r.Go(key, func() { <-blocked }))
	require.False(t, r.Go(key, func() { t.Error("ran") }))
	require.True(t, r.Go(other, func() {}))
	require.True(t, r.Busy(key))
	close(blocked)
	r.Wait()
	require.False(t, r.Busy(key))
	require.True(t, r.Go(key, func() {}))
	r.Wait()
}

// A primary lives no longer than the node below it.
func TestAnInstanceOnAnAgingNodeHasNoTimeLeft(t *testing.T) {
	node := func(name string, change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}
		change(n)
		return n
	}
	c := server(t, interceptor.Funcs{},
		node("young", func(*corev1.Node) {}),
		node("aging", func(n *corev1.Node) { n.Labels[v1alpha1.LabelAging] = "true" }),
		node("cordoned", func(n *corev1.Node) { n.Spec.Unschedulable = true }))
	r := &Runner{Client: c, Clock: testclock.NewFakeClock(now)}
	sh := object()
	sh.Spec.Template.Lifetime.MaxAge.Duration = 29 * 24 * time.Hour
	for on, want := range map[string]reparent.Instance{
		"young":    {TimeLeft: 28 * 24 * time.Hour},
		"aging":    {},
		"cordoned": {TimeLeft: 28 * 24 * time.Hour, Leaving: true},
	} {
		i := reparent.Instance{Name: "x"}
		r.fromPod(t.Context(), sh, &i, []corev1.Pod{{
			ObjectMeta: metav1.ObjectMeta{Name: "x", CreationTimestamp: metav1.NewTime(now.Add(-24 * time.Hour))}, Spec: corev1.PodSpec{NodeName: on},
		}}, now)
		require.Equal(t, reparent.Instance{Name: "x", Zone: "z", TimeLeft: want.TimeLeft, Leaving: want.Leaving}, i, on)
	}
}

func TestADrainIsOverBeforeGatewaysLoseTheirPatience(t *testing.T) {
	for name, tc := range map[string]struct {
		maxPause, asked, want time.Duration
		off                   bool
	}{
		"the defaults":                {maxPause: 15 * time.Second, asked: reparent.Limits{}.WithDefaults().Drain, want: 3 * time.Second},
		"a long one":                  {maxPause: 15 * time.Second, asked: time.Minute, want: 7500 * time.Millisecond},
		"a short one":                 {maxPause: 15 * time.Second, asked: time.Second, want: time.Second},
		"gateways with no patience":   {maxPause: time.Second, asked: 3 * time.Second, want: 500 * time.Millisecond},
		"no gateways":                 {maxPause: time.Second, asked: time.Minute, off: true, want: time.Minute},
		"nobody said how much it has": {asked: time.Minute, want: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &v1alpha1.DatabaseSpec{}
			spec.Gateway.MaxPause.Duration, spec.Gateway.Enabled = tc.maxPause, ptr.To(!tc.off)
			require.Equal(t, tc.want, drainLimit(spec, tc.asked))
		})
	}
}

func TestTheNewestReparentAndItsFailures(t *testing.T) {
	rp := func(term int64, outcome reparent.Outcome) v1alpha1.Reparent {
		return v1alpha1.Reparent{Spec: v1alpha1.ReparentSpec{Term: term}, Status: v1alpha1.ReparentStatus{Outcome: string(outcome), Coordinator: "somebody"}}
	}
	request := func(term int64, outcome reparent.Outcome) v1alpha1.Reparent {
		r := rp(term, outcome)
		r.Status.Coordinator = ""
		return r
	}
	begun := request(5, "")
	begun.Annotations = map[string]string{v1alpha1.AnnotationCoordinator: "somebody"}
	for name, c := range map[string]struct {
		items    []v1alpha1.Reparent
		term     int64
		failures int
	}{
		"none":                            {nil, 0, 0},
		"under way":                       {[]v1alpha1.Reparent{rp(4, reparent.Failed), rp(5, "")}, 5, 0},
		"an abandoned one of old":         {[]v1alpha1.Reparent{rp(2, "")}, 0, 0},
		"ended well":                      {[]v1alpha1.Reparent{rp(4, reparent.Failed), rp(5, reparent.Undone)}, 0, 0},
		"failed twice, overtaken once":    {[]v1alpha1.Reparent{rp(4, reparent.Failed), rp(5, reparent.Overtaken), rp(6, reparent.Failed)}, 6, 2},
		"failures before what stands":     {[]v1alpha1.Reparent{rp(2, reparent.Failed), rp(3, reparent.Succeeded)}, 0, 0},
		"an open one below a failed one":  {[]v1alpha1.Reparent{rp(4, ""), rp(5, reparent.Failed)}, 5, 1},
		"one that was just opened":        {[]v1alpha1.Reparent{begun}, 5, 0},
		"a request nobody has taken":      {[]v1alpha1.Reparent{request(5, "")}, 0, 0},
		"one above what is under way":     {[]v1alpha1.Reparent{rp(4, ""), request(5, "")}, 4, 0},
		"one above what failed":           {[]v1alpha1.Reparent{rp(4, reparent.Failed), request(5, "")}, 4, 1},
		"a refused one above it":          {[]v1alpha1.Reparent{rp(4, reparent.Failed), request(1e12, reparent.Refused)}, 4, 1},
		"a refused one above one at work": {[]v1alpha1.Reparent{rp(4, ""), request(5, reparent.Refused)}, 4, 0},
	} {
		t.Run(name, func(t *testing.T) {
			newest, failures := newestReparent(c.items, 3)
			require.Equal(t, c.failures, failures)
			if c.term == 0 {
				require.Nil(t, newest)
				return
			}
			require.Equal(t, c.term, newest.Spec.Term)
		})
	}
}
