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
	if err := a.awaitReceiver(ctx, req); err != nil {
		return nil, failed(err)
	}
	begun := time.Now()
	if up := a.snapshot().Follow; up != nil {
		a.askTimeline(ctx, *up) // the last moment: a promise forgets whom it followed
	}
	if err := a.acceptPromise(ctx, req.GetTerm()); err != nil {
		a.log.Warn("promise refused", "term", req.GetTerm(), "coordinator", req.GetCoordinator(), "error", err)
		return nil, failed(err)
	}
	persisted := time.Now()
	reply, err := a.revoke(ctx)
	if err != nil {
		a.log.Warn("promised, but the end of WAL is not known", "term", req.GetTerm(), "coordinator", req.GetCoordinator(), "error", err)
		return nil, failed(err)
	}
	a.log.Info("promised", "persisted", persisted.Sub(begun).Round(100*time.Microsecond).String(), "revoked", took(persisted), "term", req.GetTerm(), "coordinator", req.GetCoordinator(), "walTerm", reply.GetFlushed().GetWalTerm(),
		"lsn", postgres.LSN(reply.GetFlushed().GetLsn()).String(), "wasPrimary", reply.GetWasPrimary())
	return reply, nil
}

// awaitReceiver lets the WAL receiver end by itself, if that was asked for. Nothing is promised yet, so whatever ends this
// wait early, a higher term for one, leaves nothing behind.
func (a *Agent) awaitReceiver(ctx context.Context, req *agentpb.PromiseRequest) error {
	if req.GetAfterReceiverMs() <= 0 {
		return nil
	}
	if err := lowerTerm(a.snapshot().Term, req.GetTerm()); err != nil {
		return err
	}
	begun := time.Now()
	ended := a.pg.AwaitReceiverEnd(ctx, time.Duration(req.GetAfterReceiverMs())*time.Millisecond)
	a.log.Info("waited for the end of the WAL receiver", "ended", ended, "took", took(begun))
	return context.Cause(ctx)
}

// acceptPromise persists the promise. A primary on a volume that does not take it is stopped all the same: it can
// promise nothing, but a term that somebody wants to leave is better not served from a stalled volume. What it may do
// later its cohort decides.
func (a *Agent) acceptPromise(ctx context.Context, term uint64) error {
	err := a.update(ctx, func(s *State) error { return s.promise(term) })
	if status.Code(err) == codes.Unavailable && a.isPrimary() {
		if _, serr := a.pg.Stop(ctx, postgres.Immediate); serr != nil {
			a.log.Error("a primary on a stalled volume does not stop", "error", serr)
		}
	}
	return err
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
	if s.Primary != nil || s.Intent != 0 && s.Halted == "" {
		s.Halted = "was promoted in an earlier term"
	}
	if s.Rewindable {
		// It could not follow a primary that may never be established, and may hold the only copy of what was acknowledged.
		s.Diverged, s.Rewindable = "", false
	}
	s.Term, s.Promised, s.Follow, s.Primary = term, term, nil, nil
	return nil
}

func (a *Agent) isPrimary() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live.role == agentpb.Role_PRIMARY
}

// revoke makes sure that this instance acknowledges nothing more, and says where its WAL ends. The promise is
// persisted already.
func (a *Agent) revoke(ctx context.Context) (*agentpb.PromiseReply, error) {
	st := a.snapshot()
	reply := &agentpb.PromiseReply{Term: st.Term, TimelineTerms: agentapi.TimelineTermsToPB(st.Timelines), Flushed: &agentpb.Position{}}
	if a.seedingOf() != nil || st.Diverged != "" || st.Rewinding || st.Bootstrapping || st.Halted == haltedSeeding || !a.pg.Initialised() {
		return reply, nil // has nothing to acknowledge with, and nothing to offer
	}
	if st.Halted != "" {
		control, err := a.stopPrimary(ctx)
		if err != nil {
			return nil, err
		}
		// Whatever timeline an interrupted promotion has begun is its: the next one may pick the same number elsewhere.
		begun := a.pg.NewestTimeline()
		err = a.update(ctx, func(s *State) error {
			s.attribute(begun)
			if !control.WasPrimary() {
				s.Halted = "" // it never left recovery: a standby like any other
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if control.WasPrimary() {
			return a.stoppedPosition(ctx, control, reply)
		}
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
	if st.Intent != 0 {
		if err := a.update(ctx, func(s *State) error { s.attribute(pos.Timeline); return nil }); err != nil {
			return nil, err
		}
	}
	return a.positioned(reply, pos)
}

// seedingOf is the copy under way, nil if there is none.
func (a *Agent) seedingOf() *seeding {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live.seed
}

// stopPrimary stops a primary's PostgreSQL at once, says so to everybody, and reads what it left.
func (a *Agent) stopPrimary(ctx context.Context) (postgres.Control, error) {
	if err := a.stop(ctx, postgres.Immediate, 0); err != nil {
		return postgres.Control{}, err
	}
	return a.pg.Control(ctx)
}

// stop stops a primary's PostgreSQL and says so to everybody. A fast stop gets no more than within (0: as long as ctx).
func (a *Agent) stop(ctx context.Context, mode postgres.StopMode, within time.Duration) error {
	begun, running := time.Now(), a.pg.Running()
	limit, cancel := ctx, context.CancelFunc(func() {})
	if within > 0 {
		limit, cancel = context.WithTimeout(ctx, within)
	}
	defer cancel()
	a.mu.Lock()
	a.live.halting = true // what the end of its session makes the observer do would be one more for the postmaster to turn away
	a.mu.Unlock()
	clean, err := a.pg.Stop(limit, mode)
	a.mu.Lock()
	a.live.role, a.live.established, a.live.draining, a.live.cohort = agentpb.Role_STOPPED, false, false, nil
	a.live.halting = false
	a.mu.Unlock()
	a.publish()
	if err != nil {
		return err
	}
	if running {
		a.log.Info("primary stopped", "clean", clean, "took", took(begun))
	}
	return nil
}

// stoppedPosition fills in the end of a stopped primary's WAL: the shutdown checkpoint's, or what crash recovery
// would find. Should that fail, the last position seen is answered as a lower bound.
func (a *Agent) stoppedPosition(ctx context.Context, control postgres.Control, reply *agentpb.PromiseReply) (*agentpb.PromiseReply, error) {
	reply.WasPrimary = true
	reply.CleanShutdown = control.Clean()
	pos, err := a.stoppedEnd(ctx, control)
	if err != nil {
		a.log.Warn("the end of WAL cannot be read", "error", err)
		reply.LowerBound = true
		a.mu.Lock()
		pos = a.live.lastFlushed
		a.mu.Unlock()
	}
	if pos.LSN < control.Checkpoint.LSN {
		pos = control.Checkpoint
	}
	return a.positioned(reply, pos)
}

// stoppedEnd is where the WAL of a stopped primary ends.
func (a *Agent) stoppedEnd(ctx context.Context, control postgres.Control) (postgres.Position, error) {
	if control.Clean() {
		return a.pg.ShutdownPosition(control)
	}
	return a.pg.EndOfWAL(ctx, control)
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
	if err := a.acceptPromise(ctx, req.GetTerm()); err != nil {
		return nil, failed(err)
	}
	if a.snapshot().Halted != "" && a.pg.Running() {
		if err := a.demote(ctx, req); err != nil {
			return nil, failed(err)
		}
	}
	reply, err := a.revoke(ctx)
	return reply, failed(err)
}

// laggardsWithin bounds looking for standbys that would hold up a fast stop; it takes a millisecond where nothing is wrong.
const laggardsWithin = time.Second

// demote stops the primary as asked. The status says draining meanwhile, so that gateways wait rather than fail.
func (a *Agent) demote(ctx context.Context, req *agentpb.DemoteRequest) error {
	a.mu.Lock()
	a.live.draining = true
	a.live.drains++ // from here on it is not taken back
	a.mu.Unlock()
	a.publish()
	mode := postgres.Fast
	if req.GetImmediate() {
		mode = postgres.Immediate
	}
	if mode == postgres.Fast {
		look, cancel := context.WithTimeout(ctx, laggardsWithin)
		laggards, err := a.pg.Laggards(look, req.GetCandidate())
		cancel()
		if err != nil {
			a.log.Warn("standbys not looked at before the stop", "error", err)
		}
		defer a.pg.DisconnectSoon(laggards)()
	}
	return a.stop(ctx, mode, time.Duration(req.GetTimeoutMs())*time.Millisecond)
}
