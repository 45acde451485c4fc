package agent

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

// Promise implements the RPC. The order is the argument: the term is on the device before anything else, so that a
// crash right after the answer cannot take it back; the WAL receiver (or the primary) is provably stopped before the
// position is measured, so that nothing is acknowledged beyond it.
func (a *Agent) Promise(ctx context.Context, req *agentpb.PromiseRequest) (*agentpb.PromiseReply, error) {
	if req.GetTerm() == 0 {
		return nil, status.Error(codes.InvalidArgument, "Promise needs a term")
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Promise")
	if err != nil {
		return nil, err
	}
	defer done()
	wasPrimary := false
	err = a.update(ctx, func(s *State) error {
		wasPrimary = s.Primary != nil
		return s.promise(req.GetTerm())
	})
	if err != nil {
		a.log.Warn("promise refused", "term", req.GetTerm(), "coordinator", req.GetCoordinator(), "error", err)
		return nil, failed(err)
	}
	reply, err := a.revoke(ctx, wasPrimary || a.isPrimary(), postgres.Immediate)
	if err != nil {
		return nil, failed(err)
	}
	a.log.Info("promised", "term", req.GetTerm(), "coordinator", req.GetCoordinator(), "walTerm", reply.GetFlushed().GetWalTerm(),
		"lsn", postgres.LSN(reply.GetFlushed().GetLsn()).String(), "wasPrimary", reply.GetWasPrimary())
	return reply, nil
}

// promise makes s a state that has promised term, or refuses. A term in which this instance already follows or leads
// is not open any more: answering would stop what the term lives from.
func (s *State) promise(term uint64) error {
	if err := lowerTerm(s.Term, term); err != nil {
		return err
	}
	if term == s.Term && s.Promised != term {
		return refuse("term %d has begun, it cannot be promised any more", term)
	}
	if term == s.Term && (s.Follow != nil || s.Primary != nil || s.Intent == term) {
		return refuse("term %d was promised and has begun", term)
	}
	if s.Primary != nil {
		s.Halted = "was the primary of an earlier term"
	}
	s.Term, s.Promised, s.Follow, s.Primary = term, term, nil, nil
	return nil
}

func (a *Agent) isPrimary() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live.role == agentpb.Role_PRIMARY
}

// revoke makes sure that this instance acknowledges nothing more, and says where its WAL ends.
func (a *Agent) revoke(ctx context.Context, wasPrimary bool, mode postgres.StopMode) (*agentpb.PromiseReply, error) {
	if wasPrimary {
		return a.stopPrimary(ctx, mode)
	}
	st := a.snapshot()
	reply := &agentpb.PromiseReply{Term: st.Term, TimelineTerms: agentapi.TimelineTermsToPB(st.Timelines), Flushed: &agentpb.Position{}}
	if st.Halted != "" && st.Diverged == "" && a.wasPrimaryOnDisk() {
		reply.WasPrimary = true // repeated call
		return a.stoppedPosition(ctx, reply)
	}
	if a.seedingNow() || st.Diverged != "" || !a.pg.Initialised() || st.Bootstrapping {
		return reply, nil // has nothing to acknowledge with, and nothing to offer
	}
	if err := a.pg.StopReceiver(ctx); err != nil {
		return nil, err
	}
	a.changed()
	if !a.pg.Running() {
		if err := a.start(ctx, postgres.AsStandby, postgres.Runtime{Sync: postgres.Nobody}); err != nil {
			return nil, err
		}
	} else if err := a.pg.AwaitReady(ctx); err != nil {
		return nil, err
	}
	pos, err := a.pg.Position(ctx)
	if err != nil {
		return nil, err
	}
	return a.positioned(reply, pos)
}

func (a *Agent) seedingNow() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live.seed != nil
}

// stopPrimary stops a primary's PostgreSQL and measures. An immediate stop leaves no exact end of WAL; then the last
// position seen is answered, which is a lower bound.
func (a *Agent) stopPrimary(ctx context.Context, mode postgres.StopMode) (*agentpb.PromiseReply, error) {
	begun := time.Now()
	clean, err := a.pg.Stop(ctx, mode)
	a.mu.Lock()
	a.live.role, a.live.established, a.live.draining, a.live.cohort = agentpb.Role_STOPPED, false, false, nil
	a.mu.Unlock()
	a.publish()
	if err != nil {
		return nil, err
	}
	a.log.Info("primary stopped", "clean", clean, "took", time.Since(begun).Round(time.Millisecond))
	st := a.snapshot()
	reply := &agentpb.PromiseReply{Term: st.Term, WasPrimary: true, TimelineTerms: agentapi.TimelineTermsToPB(st.Timelines), Flushed: &agentpb.Position{}}
	return a.stoppedPosition(ctx, reply)
}

// stoppedPosition fills in the end of a stopped primary's WAL: exact after a clean stop.
func (a *Agent) stoppedPosition(ctx context.Context, reply *agentpb.PromiseReply) (*agentpb.PromiseReply, error) {
	control, err := a.pg.Control(ctx)
	if err != nil {
		return nil, err
	}
	if control.Clean() {
		pos, err := a.pg.ShutdownPosition(control)
		if err != nil {
			return nil, err
		}
		reply.CleanShutdown = true
		return a.positioned(reply, pos)
	}
	a.mu.Lock()
	pos := a.live.lastFlushed
	a.mu.Unlock()
	if pos.LSN < control.Checkpoint.LSN {
		pos = control.Checkpoint
	}
	return a.positioned(reply, pos)
}

func (a *Agent) wasPrimaryOnDisk() bool {
	if a.pg.Running() || !a.pg.Initialised() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	control, err := a.pg.Control(ctx)
	return err == nil && control.WasPrimary()
}

func (a *Agent) positioned(reply *agentpb.PromiseReply, pos postgres.Position) (*agentpb.PromiseReply, error) {
	st := a.snapshot()
	term, err := st.walTerm(pos.Timeline)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	reply.Flushed = &agentpb.Position{WalTerm: term, Lsn: uint64(pos.LSN), Timeline: pos.Timeline}
	return reply, nil
}

// Demote implements the RPC.
func (a *Agent) Demote(ctx context.Context, req *agentpb.DemoteRequest) (*agentpb.PromiseReply, error) {
	if req.GetTerm() == 0 {
		return nil, status.Error(codes.InvalidArgument, "Demote needs a term")
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Demote")
	if err != nil {
		return nil, err
	}
	defer done()
	wasPrimary := false
	err = a.update(ctx, func(s *State) error {
		wasPrimary = s.Primary != nil
		if err := s.promise(req.GetTerm()); err != nil {
			return err
		}
		if s.Halted == "" {
			s.Halted = "demoted"
		}
		return nil
	})
	if err != nil {
		return nil, failed(err)
	}
	if !wasPrimary && !a.isPrimary() {
		reply, err := a.revoke(ctx, false, postgres.Fast)
		return reply, failed(err)
	}
	a.mu.Lock()
	a.live.draining = true
	a.mu.Unlock()
	a.publish()
	mode, limit := postgres.Fast, ctx
	if req.GetImmediate() {
		mode = postgres.Immediate
	} else if ms := req.GetTimeoutMs(); ms > 0 {
		var cancel context.CancelFunc
		limit, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
		defer cancel()
	}
	clean, err := a.pg.Stop(limit, mode)
	if err != nil {
		return nil, failed(err)
	}
	_ = clean
	reply, err := a.stopPrimary(ctx, postgres.Immediate) // already down: only measures
	return reply, failed(err)
}
