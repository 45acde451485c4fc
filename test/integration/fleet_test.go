//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/observer"
)

// fleet plays the agents of all instances, in memory. What an agent knows belongs to its volume: an instance whose Pod
// comes back on its claim finds it again, one whose claim went does not.
type fleet struct {
	mu     sync.Mutex
	agents map[string]*agent // by instance
	// bootstraps counts initdb per shard; establishes remembers with how many acknowledgements each first primary was.
	bootstraps  map[string]int
	established []string
	violations  []string
	// slowSeeds makes every seeding take longer than any test.
	slowSeeds bool
}

// agent is one instance's. Its mutex is the fleet's.
type agent struct {
	f       *fleet
	shard   string
	name    string
	uid     string
	running bool // its Pod is there
	frozen  bool // it answers nothing
	st      *agentpb.Status
	seq     uint64
	// source is whom it follows, seeding until when.
	source  string
	seeding time.Time
}

func newFleet() *fleet { return &fleet{agents: map[string]*agent{}, bootstraps: map[string]int{}} }

func (f *fleet) violated(format string, args ...any) {
	f.violations = append(f.violations, fmt.Sprintf(format, args...))
}

// start begins the process of an instance whose Pod got an address.
func (f *fleet) start(shard, name, uid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[name]
	if a == nil {
		a = &agent{f: f, shard: shard, name: name, st: &agentpb.Status{Instance: name, Role: agentpb.Role_EMPTY}}
		f.agents[name] = a
	}
	a.uid, a.running, a.frozen = uid, true, false
	a.st.PodUid, a.st.BootId = uid, uid
}

// stop ends the process; wipe loses the volume.
func (f *fleet) stop(name string, wipe bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.agents[name]; a != nil {
		a.running = false
		a.st.Established = false
		if wipe {
			delete(f.agents, name)
		}
	}
}

// tick moves WAL: primaries write, standbys follow.
func (f *fleet) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.agents {
		if a.running && !a.frozen && a.st.Role == agentpb.Role_PRIMARY {
			a.st.Flushed.Lsn += 8
		}
	}
	for _, a := range f.agents {
		p := f.agents[a.source]
		if !a.running || a.frozen || p == nil {
			continue
		}
		if a.st.Role == agentpb.Role_SEEDING && time.Now().After(a.seeding) {
			a.st.Role = agentpb.Role_STANDBY
			if p.st.Flushed != nil {
				a.st.Flushed = proto.Clone(p.st.Flushed).(*agentpb.Position)
			}
		}
		up := p.running && !p.frozen && p.st.Role == agentpb.Role_PRIMARY
		a.st.Receiver = &agentpb.Receiver{Streaming: up && a.st.Role == agentpb.Role_STANDBY, Source: a.source}
		if a.st.Receiver.Streaming {
			a.st.Flushed = proto.Clone(p.st.Flushed).(*agentpb.Position)
			a.st.ReceivedLsn, a.st.ReplayedLsn = a.st.Flushed.Lsn, a.st.Flushed.Lsn
		}
	}
	for _, p := range f.agents {
		p.st.Peers = nil
		for _, a := range f.agents {
			if p.st.Role == agentpb.Role_PRIMARY && a.running && !a.frozen && a.source == p.name && a.st.Role == agentpb.Role_STANDBY {
				p.st.Peers = append(p.st.Peers, &agentpb.ReplicationPeer{
					Instance: a.name, State: "streaming", FlushedLsn: a.st.Flushed.GetLsn(), ReplayedLsn: a.st.Flushed.GetLsn(),
				})
			}
		}
		slices.SortFunc(p.st.Peers, func(a, b *agentpb.ReplicationPeer) int {
			if a.Instance < b.Instance {
				return -1
			}
			return 1
		})
	}
}

func (f *fleet) run(ctx context.Context) {
	for ctx.Err() == nil {
		f.tick()
		time.Sleep(10 * time.Millisecond)
	}
}

// stream implements observer.Stream.
func (f *fleet) stream(ctx context.Context, _ types.NamespacedName, t observer.Target, _ *agentpb.WatchRequest, got func(*agentpb.Status)) error {
	for ctx.Err() == nil {
		st, err := f.status(t.Instance)
		if err != nil {
			return err
		}
		got(st)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return ctx.Err()
}

func (f *fleet) status(name string) (*agentpb.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[name]
	if a == nil || !a.running || a.frozen {
		return nil, errors.New("not reachable")
	}
	a.seq++
	st := proto.Clone(a.st).(*agentpb.Status)
	st.Sequence, st.AtUnixMs = a.seq, time.Now().UnixMilli()
	return st, nil
}

// dial implements shard.Agents.
func (f *fleet) dial(_ context.Context, _ types.NamespacedName, ep *agentpb.Endpoint) (agentpb.AgentClient, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[ep.GetInstance()]
	if a == nil || !a.running || a.frozen {
		return nil, nil, errors.New("not reachable")
	}
	return &agentClient{f: f, a: a}, func() {}, nil
}

// agentClient is the connection to one agent.
type agentClient struct {
	agentpb.AgentClient
	f *fleet
	a *agent
}

// do runs a command under the rules every command begins with.
func (c *agentClient) do(ctx context.Context, term uint64, f func(a *agent) error) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	a := c.a
	for a.frozen && ctx.Err() == nil {
		c.f.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		c.f.mu.Lock()
	}
	switch {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case !a.running:
		return status.Error(codes.Unavailable, "gone")
	case term > 0 && term < a.st.Term:
		return status.Errorf(codes.FailedPrecondition, "term %d is over", term)
	}
	return f(a)
}

func (c *agentClient) GetStatus(ctx context.Context, _ *agentpb.GetStatusRequest, _ ...grpc.CallOption) (*agentpb.Status, error) {
	var out *agentpb.Status
	err := c.do(ctx, 0, func(a *agent) error {
		out = proto.Clone(a.st).(*agentpb.Status)
		out.AtUnixMs = time.Now().UnixMilli()
		return nil
	})
	return out, err
}

func (c *agentClient) Testify(ctx context.Context, req *agentpb.TestifyRequest, _ ...grpc.CallOption) (*agentpb.TestifyReply, error) {
	out := &agentpb.TestifyReply{}
	err := c.do(ctx, 0, func(a *agent) error {
		p := c.f.agents[req.GetPrimary()]
		out.Term, out.Role, out.Receiver = a.st.Term, a.st.Role, a.st.Receiver
		out.AgentReachable = p != nil && p.running && !p.frozen
		out.PostgresReachable = out.AgentReachable && p.st.Role == agentpb.Role_PRIMARY
		return nil
	})
	return out, err
}

func (c *agentClient) Bootstrap(ctx context.Context, req *agentpb.BootstrapRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	return reply(c.do(ctx, req.GetTerm(), func(a *agent) error {
		if a.st.Role != agentpb.Role_EMPTY {
			if a.st.Term == req.GetTerm() && a.st.Role == agentpb.Role_PRIMARY {
				return nil
			}
			return status.Error(codes.FailedPrecondition, "there is data")
		}
		if req.GetOwnerPassword() == "" || req.GetOwner() == "" || req.GetDatabase() == "" {
			c.f.violated("Bootstrap of %s without the application's role", a.name)
		}
		c.f.bootstraps[a.shard]++
		a.st.Role, a.st.Term, a.st.Cohort = agentpb.Role_PRIMARY, req.GetTerm(), req.GetCohort()
		a.st.Flushed, a.st.CohortSinceLsn = &agentpb.Position{WalTerm: req.GetTerm(), Lsn: 1 << 20, Timeline: 1}, 1<<20
		a.st.TimelineTerms = []*agentpb.TimelineTerm{{Timeline: 1, Term: req.GetTerm()}}
		a.st.SystemIdentifier = 42
		return nil
	}))
}

func (c *agentClient) Seed(ctx context.Context, req *agentpb.SeedRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	return reply(c.do(ctx, req.GetTerm(), func(a *agent) error {
		if a.st.Role != agentpb.Role_EMPTY && !req.GetDiscard() {
			return status.Error(codes.FailedPrecondition, "there is data")
		}
		a.st.Role, a.st.Term, a.st.Diverged = agentpb.Role_SEEDING, req.GetTerm(), false
		a.st.TimelineTerms = req.GetTimelineTerms()
		a.source, a.seeding = req.GetPrimary().GetInstance(), time.Now().Add(100*time.Millisecond)
		if c.f.slowSeeds {
			a.seeding = time.Now().Add(time.Hour)
		}
		a.st.SystemIdentifier = 42
		return nil
	}))
}

func (c *agentClient) Configure(ctx context.Context, req *agentpb.ConfigureRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	return reply(c.do(ctx, req.GetTerm(), func(a *agent) error {
		if a.st.Role != agentpb.Role_PRIMARY || a.st.Term != req.GetTerm() {
			return status.Error(codes.FailedPrecondition, "not the primary of this term")
		}
		if req.GetCohort().GetRevision() < a.st.GetCohort().GetRevision() {
			return status.Error(codes.FailedPrecondition, "an older revision")
		}
		a.st.Cohort = req.GetCohort()
		a.st.CohortSinceLsn = a.st.GetFlushed().GetLsn()
		return nil
	}))
}

func (c *agentClient) Establish(ctx context.Context, req *agentpb.EstablishRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	for ctx.Err() == nil {
		done := false
		err := c.do(ctx, req.GetTerm(), func(a *agent) error {
			if a.st.Role != agentpb.Role_PRIMARY || a.st.Term != req.GetTerm() {
				return status.Error(codes.FailedPrecondition, "not the primary of this term")
			}
			acks := 0
			for _, p := range a.st.Peers {
				if slices.Contains(a.st.Cohort.GetMembers(), p.GetInstance()) {
					acks++
				}
			}
			if done = acks >= int(a.st.Cohort.GetAcks()); done {
				a.st.Established = true
				c.f.established = append(c.f.established, fmt.Sprintf("%s term %d acks %d", a.shard, req.GetTerm(), a.st.Cohort.GetAcks()))
			}
			return nil
		})
		if err != nil || done {
			return reply(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, status.FromContextError(ctx.Err()).Err()
}

func (c *agentClient) Promise(ctx context.Context, req *agentpb.PromiseRequest, _ ...grpc.CallOption) (*agentpb.PromiseReply, error) {
	// One that was asked to wait for the primary's end promises all that the primary shipped until then.
	for by := time.Now().Add(time.Duration(req.GetAfterReceiverMs()) * time.Millisecond); time.Now().Before(by) && c.receives(); {
		time.Sleep(time.Millisecond)
	}
	return c.promise(ctx, req.GetTerm())
}

// receives reports whether there is a primary the agent streams from.
func (c *agentClient) receives() bool {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	p := c.f.agents[c.a.source]
	return c.a.running && p != nil && p.running && p.st.Role == agentpb.Role_PRIMARY
}

func (c *agentClient) Demote(ctx context.Context, req *agentpb.DemoteRequest, _ ...grpc.CallOption) (*agentpb.PromiseReply, error) {
	return c.promise(ctx, req.GetTerm())
}

func (c *agentClient) promise(ctx context.Context, term uint64) (*agentpb.PromiseReply, error) {
	var out *agentpb.PromiseReply
	err := c.do(ctx, term, func(a *agent) error {
		if a.st.Role == agentpb.Role_EMPTY || a.st.Role == agentpb.Role_SEEDING {
			return status.Error(codes.FailedPrecondition, "no data")
		}
		out = &agentpb.PromiseReply{Term: term, WasPrimary: a.st.Role == agentpb.Role_PRIMARY, CleanShutdown: true}
		if out.WasPrimary {
			// Everything is shipped before a primary stops.
			for _, s := range c.f.agents {
				if s.source == a.name && s.running && !s.frozen && s.st.Role == agentpb.Role_STANDBY && s.st.Term == a.st.Term {
					s.st.Flushed = proto.Clone(a.st.Flushed).(*agentpb.Position)
				}
			}
			a.st.Role = agentpb.Role_STOPPED
		}
		a.st.Term, a.st.Established, a.st.Draining, a.source = term, false, false, ""
		a.st.Receiver = nil
		out.Flushed = proto.Clone(a.st.Flushed).(*agentpb.Position)
		return nil
	})
	return out, err
}

func (c *agentClient) Promote(ctx context.Context, req *agentpb.PromoteRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	var st *agentpb.Status
	err := c.do(ctx, req.GetTerm(), func(a *agent) error {
		for _, o := range c.f.agents {
			if o != a && o.shard == a.shard && o.st.Role == agentpb.Role_PRIMARY && o.st.Term == req.GetTerm() {
				c.f.violated("%s promoted in term %d, of which %s is primary", a.name, req.GetTerm(), o.name)
			}
		}
		a.source, a.st.Receiver = "", nil
		a.st.Role, a.st.Term, a.st.Cohort, a.st.Established = agentpb.Role_PRIMARY, req.GetTerm(), req.GetCohort(), false
		a.st.CohortSinceLsn = a.st.GetFlushed().GetLsn()
		a.st.Flushed = &agentpb.Position{WalTerm: req.GetTerm(), Lsn: a.st.Flushed.GetLsn() + 8, Timeline: a.st.Flushed.GetTimeline() + 1}
		a.st.TimelineTerms = append(a.st.TimelineTerms, &agentpb.TimelineTerm{Timeline: a.st.Flushed.Timeline, Term: req.GetTerm()})
		st = proto.Clone(a.st).(*agentpb.Status)
		return nil
	})
	return &agentpb.CommandReply{Term: req.GetTerm(), Status: st}, err
}

func (c *agentClient) Follow(ctx context.Context, req *agentpb.FollowRequest, _ ...grpc.CallOption) (*agentpb.FollowReply, error) {
	err := c.do(ctx, req.GetTerm(), func(a *agent) error {
		if a.st.Role == agentpb.Role_EMPTY || a.st.Role == agentpb.Role_PRIMARY && a.st.Term == req.GetTerm() {
			return status.Error(codes.FailedPrecondition, "cannot follow")
		}
		a.st.Role, a.st.Term, a.st.Established, a.source = agentpb.Role_STANDBY, req.GetTerm(), false, req.GetPrimary().GetInstance()
		a.st.TimelineTerms = req.GetTimelineTerms()
		return nil
	})
	return &agentpb.FollowReply{Term: req.GetTerm()}, err
}

func (c *agentClient) Checkpoint(ctx context.Context, req *agentpb.CheckpointRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	return reply(c.do(ctx, req.GetTerm(), func(*agent) error { return nil }))
}

func (c *agentClient) Await(ctx context.Context, req *agentpb.AwaitRequest, _ ...grpc.CallOption) (*agentpb.AwaitReply, error) {
	return &agentpb.AwaitReply{}, c.do(ctx, req.GetTerm(), func(*agent) error { return nil })
}

func (c *agentClient) Drain(ctx context.Context, req *agentpb.DrainRequest, _ ...grpc.CallOption) (*agentpb.DrainReply, error) {
	err := c.do(ctx, req.GetTerm(), func(a *agent) error { a.st.Draining = true; return nil })
	return &agentpb.DrainReply{}, err
}

func (c *agentClient) Undrain(ctx context.Context, req *agentpb.UndrainRequest, _ ...grpc.CallOption) (*agentpb.CommandReply, error) {
	return reply(c.do(ctx, req.GetTerm(), func(a *agent) error { a.st.Draining = false; return nil }))
}

func reply(err error) (*agentpb.CommandReply, error) { return &agentpb.CommandReply{}, err }
