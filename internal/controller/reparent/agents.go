package reparent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// agents implements reparent.Agents over connections that are made for one reparent, when they are first needed.
type agents struct {
	dial        shard.Agents
	key         types.NamespacedName
	coordinator string
	endpoints   map[string]*agentpb.Endpoint

	mu    sync.Mutex
	conns map[string]*conn
}

type conn struct {
	ready  chan struct{}
	client agentpb.AgentClient
	close  func()
	err    error
}

func newAgents(dial shard.Agents, key types.NamespacedName, coordinator string, endpoints map[string]*agentpb.Endpoint) *agents {
	return &agents{dial: dial, key: key, coordinator: coordinator, endpoints: endpoints, conns: map[string]*conn{}}
}

// warm connects to everybody in the background, so that no handshake is in the way of a step.
func (a *agents) warm(ctx context.Context) {
	for name := range a.endpoints {
		a.connection(ctx, name)
	}
}

// connection returns the one to the instance, which may still be being made. The dialling outlives the caller's context
// but not the bounds of dial.
func (a *agents) connection(ctx context.Context, instance string) *conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.conns[instance]; c != nil {
		return c
	}
	c := &conn{ready: make(chan struct{})}
	a.conns[instance] = c
	endpoint := a.endpoints[instance]
	if endpoint == nil {
		c.err = fmt.Errorf("%s has no address", instance)
		close(c.ready)
		return c
	}
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer close(c.ready)
		c.client, c.close, c.err = a.dial(ctx, a.key, endpoint)
	}()
	return c
}

// drop closes a connection, so that the next call dials afresh.
func (a *agents) drop(instance string, c *conn) {
	a.mu.Lock()
	if a.conns[instance] == c {
		delete(a.conns, instance)
	}
	a.mu.Unlock()
	if c.close != nil {
		c.close()
	}
}

// Close ends all connections.
func (a *agents) Close() {
	a.mu.Lock()
	conns := a.conns
	a.conns = map[string]*conn{}
	a.mu.Unlock()
	for _, c := range conns {
		go func() {
			<-c.ready
			if c.close != nil {
				c.close()
			}
		}()
	}
}

// whoAccepted bounds the question after a refusal: which term the agent has accepted.
const whoAccepted = 200 * time.Millisecond

// call runs f on the instance's agent and turns the refusal of a lower term into *reparent.OvertakenError.
func (a *agents) call(ctx context.Context, instance string, term uint64, f func(ctx context.Context, c agentpb.AgentClient) error) error {
	c := a.connection(ctx, instance)
	select {
	case <-c.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.err != nil {
		a.drop(instance, c)
		return c.err
	}
	err := f(ctx, c.client)
	switch status.Code(err) {
	case codes.OK:
		return err
	case codes.FailedPrecondition:
		if term == 0 {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, whoAccepted)
		defer cancel()
		if st, e := c.client.GetStatus(ctx, &agentpb.GetStatusRequest{}); e == nil && st.GetTerm() > term {
			return &reparent.OvertakenError{Instance: instance, Term: st.GetTerm()}
		}
	case codes.Canceled:
		if ctx.Err() != nil {
			return ctx.Err()
		}
	case codes.Unavailable, codes.DeadlineExceeded:
		a.drop(instance, c)
	}
	return err
}

// Status implements reparent.Agents.
func (a *agents) Status(ctx context.Context, instance string) (reparent.Status, error) {
	var out reparent.Status
	err := a.call(ctx, instance, 0, func(ctx context.Context, c agentpb.AgentClient) error {
		st, err := c.GetStatus(ctx, &agentpb.GetStatusRequest{})
		out = statusOf(st)
		return err
	})
	return out, err
}

func statusOf(st *agentpb.Status) reparent.Status {
	out := reparent.Status{
		Term: st.GetTerm(), Established: st.GetEstablished(), Diverged: st.GetDiverged(),
		Position: agentapi.PositionFromPB(st.GetFlushed()), Replayed: st.GetReplayedLsn(),
	}
	switch st.GetRole() {
	case agentpb.Role_STANDBY:
		out.Role = reparent.RoleStandby
	case agentpb.Role_PRIMARY:
		out.Role = reparent.RolePrimary
	case agentpb.Role_STOPPED:
		out.Role = reparent.RoleStopped
	}
	if r := st.GetReceiver(); r.GetStreaming() {
		out.Source = r.GetSource()
	}
	return out
}

// errNoPosition is given for a promise that proves nothing.
var errNoPosition = errors.New("its promise has no exact position")

func promiseOf(instance string, r *agentpb.PromiseReply) (quorum.Promise, error) {
	if r.GetLowerBound() || r.GetFlushed().GetWalTerm() == 0 {
		return quorum.Promise{}, fmt.Errorf("%s: %w", instance, errNoPosition)
	}
	return agentapi.PromiseFromPB(instance, r), nil
}

// Promise implements reparent.Agents.
func (a *agents) Promise(ctx context.Context, instance string, term uint64, after time.Duration) (p quorum.Promise, err error) {
	err = a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		r, err := c.Promise(ctx, &agentpb.PromiseRequest{Term: term, Coordinator: a.coordinator, AfterReceiverMs: after.Milliseconds()})
		if err == nil {
			p, err = promiseOf(instance, r)
		}
		return err
	})
	return p, err
}

// Demote implements reparent.Agents.
func (a *agents) Demote(ctx context.Context, instance string, term uint64, candidate string, timeout time.Duration) (p quorum.Promise, err error) {
	err = a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		r, err := c.Demote(ctx, &agentpb.DemoteRequest{Term: term, Candidate: candidate, TimeoutMs: timeout.Milliseconds()})
		if err == nil {
			p, err = promiseOf(instance, r)
		}
		return err
	})
	return p, err
}

// Promote implements reparent.Agents.
func (a *agents) Promote(ctx context.Context, instance string, cohort quorum.Cohort) (timelines []reparent.Timeline, err error) {
	err = a.call(ctx, instance, cohort.Term, func(ctx context.Context, c agentpb.AgentClient) error {
		r, err := c.Promote(ctx, &agentpb.PromoteRequest{Term: cohort.Term, Cohort: agentapi.CohortToPB(&cohort), Coordinator: a.coordinator})
		for _, t := range r.GetStatus().GetTimelineTerms() {
			timelines = append(timelines, reparent.Timeline{ID: t.GetTimeline(), Term: t.GetTerm(), History: t.GetHistory()})
		}
		return err
	})
	return timelines, err
}

// kindInJournal is how the table of reparents in the database calls a kind.
func kindInJournal(k reparent.Kind) string {
	if k == reparent.Emergency {
		return "ERS"
	}
	return "PRS"
}

// Establish implements reparent.Agents.
func (a *agents) Establish(ctx context.Context, instance string, term uint64, kind reparent.Kind, reason string) error {
	return a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		_, err := c.Establish(ctx, &agentpb.EstablishRequest{Term: term, Kind: kindInJournal(kind), Reason: reason})
		return err
	})
}

// Follow implements reparent.Agents.
func (a *agents) Follow(ctx context.Context, instance string, term uint64, primary string, timelines []reparent.Timeline) error {
	endpoint := a.endpoints[primary]
	if endpoint == nil {
		return fmt.Errorf("%s has no address", primary)
	}
	req := &agentpb.FollowRequest{Term: term, Primary: endpoint}
	for _, t := range timelines {
		req.TimelineTerms = append(req.TimelineTerms, &agentpb.TimelineTerm{Timeline: t.ID, Term: t.Term, History: t.History})
	}
	return a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		r, err := c.Follow(ctx, req)
		if err == nil && r.GetDiverged() {
			return fmt.Errorf("%s: %w: %s", instance, reparent.ErrDiverged, r.GetWhy())
		}
		return err
	})
}

// Checkpoint implements reparent.Agents.
func (a *agents) Checkpoint(ctx context.Context, instance string, term uint64) error {
	return a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		_, err := c.Checkpoint(ctx, &agentpb.CheckpointRequest{Term: term})
		return err
	})
}

// Await implements reparent.Agents.
func (a *agents) Await(ctx context.Context, instance string, term uint64, timeout time.Duration) (open int, asked time.Time, err error) {
	err = a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		r, err := c.Await(ctx, &agentpb.AwaitRequest{Term: term, TimeoutMs: timeout.Milliseconds()})
		open, asked = int(r.GetOpenTransactions()), time.UnixMicro(r.GetAskedUnixUs())
		return err
	})
	return open, asked, err
}

// Drain implements reparent.Agents.
func (a *agents) Drain(ctx context.Context, instance string, term uint64, timeout time.Duration, overdue time.Time) (open int, err error) {
	req := &agentpb.DrainRequest{Term: term, TimeoutMs: timeout.Milliseconds()}
	if !overdue.IsZero() {
		req.OverdueUnixUs = overdue.UnixMicro()
	}
	err = a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		r, err := c.Drain(ctx, req)
		open = int(r.GetOpenTransactions())
		return err
	})
	return open, err
}

// Undrain implements reparent.Agents.
func (a *agents) Undrain(ctx context.Context, instance string, term uint64) error {
	return a.call(ctx, instance, term, func(ctx context.Context, c agentpb.AgentClient) error {
		_, err := c.Undrain(ctx, &agentpb.UndrainRequest{Term: term})
		return err
	})
}
