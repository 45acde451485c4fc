package agent

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

const (
	// settle is how long no transaction must have been open before a drain counts as done when some gateway does not
	// say itself that it has paused: longer than the announcement takes to arrive and to be obeyed.
	settle = 30 * time.Millisecond
	// drainLook is the time between two looks.
	drainLook = 3 * time.Millisecond
	// awaitLook is the same while nobody waits.
	awaitLook = 20 * time.Millisecond
	// drainLease is how long a drain that is over waits for the Demote, or another Drain: longer than a coordinator needs to
	// look at the candidate once more, or to choose another one.
	drainLease = 5 * time.Second
	// terminating is how long ending the sessions that are left may take: half of what a coordinator waits longer than it
	// lets the drain last (reparent.Limits.Store).
	terminating = time.Second
)

// Await implements the RPC. What begins meanwhile is not waited for, so that it ends on a server that is never idle, too.
func (a *Agent) Await(ctx context.Context, req *agentpb.AwaitRequest) (*agentpb.AwaitReply, error) {
	st := a.snapshot()
	if err := st.leads(req.GetTerm()); err != nil {
		return nil, err
	}
	asked := time.Now()
	over := time.After(time.Duration(req.GetTimeoutMs()) * time.Millisecond)
	for {
		open, err := a.pg.CountOpen(ctx, asked)
		if err != nil {
			return nil, failed(err)
		}
		reply := &agentpb.AwaitReply{OpenTransactions: uint32(open), AskedUnixUs: asked.UnixMicro()}
		if open == 0 {
			return reply, nil
		}
		select {
		case <-over:
			return reply, nil
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-time.After(awaitLook):
		}
	}
}

// Drain implements the RPC. Sessions whose transaction is overdue are terminated at once, and those that still have one open at
// the end, then: never cancelled, because cancelling one that waits for acknowledgement would tell its client that it was
// committed.
//
// A coordinator that dies leaves a drain behind, and clients waiting. One that dies while it waits takes its call along:
// the drain is taken back at once, and nobody else is terminated. After that it is taken back when the lease ends.
func (a *Agent) Drain(ctx context.Context, req *agentpb.DrainRequest) (*agentpb.DrainReply, error) {
	st := a.snapshot()
	if err := st.leads(req.GetTerm()); err != nil {
		return nil, err
	}
	a.hub.forgetPauses()
	a.mu.Lock()
	a.live.draining = a.live.role == agentpb.Role_PRIMARY
	a.live.drains++
	turn := a.live.drains
	a.mu.Unlock()
	a.publish()
	time.AfterFunc(time.Duration(req.GetTimeoutMs())*time.Millisecond+drainLease, func() { a.endDrain(turn) })
	overdue := 0
	if req.GetOverdueUnixUs() != 0 {
		// Not earlier: clients that are cut off come back at once, and begin the same again.
		var err error
		if overdue, err = a.terminate(ctx, time.UnixMicro(req.GetOverdueUnixUs())); err != nil {
			return nil, failed(err)
		}
	}
	limit, cancel := context.WithTimeout(ctx, time.Duration(req.GetTimeoutMs())*time.Millisecond)
	defer cancel()
	begun := time.Now()
	pending, err := a.awaitQuiet(limit, req.GetTerm())
	if err != nil {
		return nil, failed(err)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		a.endDrain(turn)
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if limit.Err() == nil {
		a.log.Info("drained", "term", req.GetTerm(), "took", took(begun))
		return &agentpb.DrainReply{OpenTransactions: uint32(overdue)}, nil
	}
	open, err := a.terminate(ctx, time.Time{})
	return &agentpb.DrainReply{OpenTransactions: uint32(overdue + open), GatewaysPending: uint32(pending)}, failed(err)
}

// terminate ends the sessions that have a transaction open, and says how many. The call's own deadline may be the same as the drain's.
func (a *Agent) terminate(ctx context.Context, begunBefore time.Time) (int, error) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminating)
	defer cancel()
	return a.pg.TerminateOpen(end, begunBefore)
}

// awaitQuiet waits until gateways have paused and no client has a transaction open, or limit ends. Clients that go past the
// gateways are told nothing and never stop beginning transactions; while everybody else is kept waiting, what they
// begin after the gateways have paused is not waited for. When a gateway lets its clients through again, because it has held
// them for as long as it may, there will be no quiet: the drain has failed, and nobody else is terminated for it.
func (a *Agent) awaitQuiet(limit context.Context, term uint64) (pending int, err error) {
	var quietSince, paused time.Time
	for limit.Err() == nil {
		if a.hub.passing(term) {
			return 0, refuse("a gateway lets its clients through: it has held them for as long as it may")
		}
		pending = a.hub.pending(term)
		told := pending == 0 && a.hub.allAcknowledge()
		switch {
		case !told:
			paused = time.Time{}
		case paused.IsZero():
			paused = time.Now()
		}
		open, err := a.pg.CountOpen(limit, paused)
		if err != nil && limit.Err() == nil {
			return pending, err
		}
		now := time.Now()
		switch {
		case open > 0 || pending > 0:
			quietSince = time.Time{}
		case quietSince.IsZero():
			quietSince = now
		}
		if !quietSince.IsZero() && (told || now.Sub(quietSince) >= settle) {
			return 0, nil
		}
		select {
		case <-limit.Done():
		case <-a.hub.word:
		case <-time.After(drainLook):
		}
	}
	return pending, nil
}

// Undrain implements the RPC.
func (a *Agent) Undrain(_ context.Context, req *agentpb.UndrainRequest) (*agentpb.CommandReply, error) {
	st := a.snapshot()
	if err := st.leads(req.GetTerm()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	turn := a.live.drains
	a.mu.Unlock()
	a.endDrain(turn)
	return a.commandReply(), nil
}

// endDrain takes a drain back, unless another one or a stop has begun since.
func (a *Agent) endDrain(turn int) {
	a.mu.Lock()
	mine := a.live.drains == turn && a.live.draining && a.live.role == agentpb.Role_PRIMARY && !a.live.stopping
	if mine {
		a.live.draining = false
	}
	a.mu.Unlock()
	if mine {
		a.log.Info("the drain is taken back")
		a.publish()
	}
}
