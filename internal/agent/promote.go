package agent

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
	"theseus.dev/theseus/internal/quorum"
)

// Configure implements the RPC.
func (a *Agent) Configure(ctx context.Context, req *agentpb.ConfigureRequest) (*agentpb.CommandReply, error) {
	cohort := agentapi.CohortFromPB(req.GetCohort())
	if cohort == nil || cohort.Primary != a.conf.Instance || cohort.Term != req.GetTerm() {
		return nil, status.Error(codes.InvalidArgument, "Configure needs a cohort of this term and instance")
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Configure")
	if err != nil {
		return nil, err
	}
	defer done()
	err = a.update(ctx, func(s *State) error {
		if err := s.leads(req.GetTerm()); err != nil {
			return err
		}
		// A call that was overtaken on the way must not bring back members that were dropped from the record since.
		if in := s.Primary.Cohort; in.Term == cohort.Term && in.Revision > cohort.Revision {
			return refuse("this primary uses revision %d of the cohort, which is newer than %d", in.Revision, cohort.Revision)
		}
		s.Primary.Cohort = *cohort
		return nil
	})
	if err != nil {
		return nil, failed(err)
	}
	if !a.pg.Running() {
		return nil, status.Error(codes.Unavailable, "PostgreSQL is down")
	}
	if err := a.pg.SetSynchronous(ctx, cohort.Members, cohort.Acks); err != nil {
		return nil, failed(err)
	}
	a.setCohort(cohort)
	return a.commandReply(), nil
}

// leads refuses unless this instance is the primary of exactly this term.
func (s *State) leads(term uint64) error {
	if err := lowerTerm(s.Term, term); err != nil {
		return err
	}
	if s.Primary == nil || s.Term != term {
		return refuse("this instance is not the primary of term %d", term)
	}
	return nil
}

func (a *Agent) setCohort(c *quorum.Cohort) {
	a.mu.Lock()
	a.live.use(c, a.now())
	a.mu.Unlock()
	a.changed()
}

// Promote implements the RPC. The intent is on the device before the promotion, so that the new timeline is attributed
// to the right term even if the agent dies between the promotion and writing down what became of it.
func (a *Agent) Promote(ctx context.Context, req *agentpb.PromoteRequest) (*agentpb.CommandReply, error) {
	cohort := agentapi.CohortFromPB(req.GetCohort())
	if req.GetTerm() == 0 || cohort == nil || cohort.Primary != a.conf.Instance || cohort.Term != req.GetTerm() {
		return nil, status.Error(codes.InvalidArgument, "Promote needs a cohort of this term and instance")
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Promote")
	if err != nil {
		return nil, err
	}
	defer done()
	if err := a.recover(ctx, req.GetTerm()); err != nil {
		a.say("promotion failed: %v", err)
		return nil, failed(err)
	}
	begun, already, own := time.Now(), false, a.timeline(ctx)
	err = a.update(ctx, func(s *State) error {
		if err := s.promotable(req.GetTerm()); err != nil {
			return err
		}
		if already = s.Primary != nil; !already {
			if own == 0 { // hearsay of timelines could not be told from what is here
				return status.Error(codes.Unavailable, "PostgreSQL does not say on which timeline it is")
			}
			s.promoting(req.GetTerm(), own)
		}
		return nil
	})
	if err != nil {
		return nil, failed(err)
	}
	if already {
		if !a.isPrimary() {
			return nil, status.Error(codes.Unavailable, "promoted already, but PostgreSQL is down")
		}
		return a.commandReply(), nil
	}
	if err := a.promote(ctx, req.GetTerm(), cohort); err != nil {
		a.say("promotion failed: %v", err)
		return nil, failed(err)
	}
	a.log.Info("promoted", "term", req.GetTerm(), "coordinator", req.GetCoordinator(), "took", took(begun))
	reply := a.commandReply()
	for _, t := range reply.GetStatus().GetTimelineTerms() {
		if t.GetTerm() == req.GetTerm() {
			t.History = a.pg.HistoryOf(t.GetTimeline())
		}
	}
	return reply, nil
}

// recover starts a PostgreSQL that is down, as a standby of nobody, before anything of a promotion is remembered. Recovery may take
// longer than the caller waits: then it goes on, and whoever asks next finds it further on, instead of ending it.
func (a *Agent) recover(ctx context.Context, term uint64) error {
	if !a.pg.Initialised() {
		return refuse("there is no data directory")
	}
	if a.pg.Running() {
		return nil
	}
	begun := a.pg.NewestTimeline()
	err := a.update(ctx, func(s *State) error {
		if err := s.promotable(term); err != nil || s.Primary != nil {
			return err
		}
		s.attribute(begun)
		s.Term, s.Follow, s.Halted, s.Fenced = term, nil, "", ""
		return nil
	})
	if err != nil || a.snapshot().Primary != nil {
		return err
	}
	return a.start(ctx, postgres.AsStandby, postgres.Runtime{Sync: postgres.Nobody})
}

func (s *State) promotable(term uint64) error {
	if err := lowerTerm(s.Term, term); err != nil {
		return err
	}
	switch {
	case s.Diverged != "" || s.Rewinding || s.Bootstrapping || s.Halted == haltedSeeding:
		return refuse("the data directory is not whole")
	case s.Term == term && s.Follow != nil:
		return refuse("this instance follows %s in term %d", s.Follow.Instance, term)
	case s.Primary != nil && s.Term != term:
		return refuse("this instance leads term %d; demote it first", s.Term)
	}
	return nil
}

// promoting makes s a state that begins to be promoted. own is the timeline of the last record. An earlier order may have begun
// it and been interrupted, and the start after that may have failed to say so: the next timeline must not make it forgotten.
func (s *State) promoting(term uint64, own uint32) {
	s.attribute(own)
	s.Term, s.Intent, s.Follow, s.Halted, s.Fenced = term, term, nil, "", ""
	s.forgetHearsay(own)
}

func (a *Agent) promote(ctx context.Context, term uint64, cohort *quorum.Cohort) error {
	steps := newSteps()
	if err := a.pg.StopReceiver(ctx); err != nil {
		return err
	}
	steps.done("receiver stopped")
	if err := a.pg.WriteSynchronous(cohort.Members, cohort.Acks); err != nil {
		return err
	}
	pos, err := a.pg.Promote(ctx)
	if err != nil {
		return err
	}
	steps.done("promoted")
	if err := a.update(ctx, func(s *State) error { return s.promoted(term, pos.Timeline, *cohort) }); err != nil {
		return err
	}
	steps.done("remembered")
	a.log.Info("steps of the promotion", steps.took...)
	a.mu.Lock()
	a.live.role, a.live.established, a.live.draining, a.live.message = agentpb.Role_PRIMARY, false, false, ""
	a.live.use(cohort, a.now())
	a.live.lastFlushed = pos
	a.mu.Unlock()
	a.changed()
	return nil
}

// promoted makes s the state of a primary, unless something has come between.
func (s *State) promoted(term uint64, timeline uint32, cohort quorum.Cohort) error {
	if term == 0 || s.Term != term || s.Intent != term || s.Follow != nil {
		return refuse("the promotion in term %d was overtaken", term)
	}
	if s.Timelines == nil {
		s.Timelines = map[uint32]uint64{}
	}
	// Possibly over the term of another instance's failed promotion that had picked this number: here it is ours.
	s.Timelines[timeline] = term
	s.Intent, s.Primary = 0, &Primary{Cohort: cohort}
	return nil
}

// Establish implements the RPC.
func (a *Agent) Establish(ctx context.Context, req *agentpb.EstablishRequest) (*agentpb.CommandReply, error) {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Establish")
	if err != nil {
		return nil, err
	}
	defer done()
	if err := a.establish(ctx, req.GetTerm(), req.GetKind(), req.GetReason()); err != nil {
		return nil, failed(err)
	}
	return a.commandReply(), nil
}

func (a *Agent) establish(ctx context.Context, term uint64, kind, reason string) error {
	st := a.snapshot()
	if err := st.leads(term); err != nil {
		return err
	}
	a.mu.Lock()
	already := a.live.established
	a.mu.Unlock()
	if already {
		return nil
	}
	begun := time.Now()
	if err := a.pg.Journal(ctx, term, kind, reason); err != nil {
		return err
	}
	a.mu.Lock()
	// PostgreSQL may have been stopped meanwhile; a new promise would have superseded this command.
	if a.live.role == agentpb.Role_PRIMARY && a.state.Term == term {
		a.live.established, a.live.draining = true, false
	}
	a.mu.Unlock()
	a.changed()
	a.log.Info("established", "term", term, "kind", kind, "reason", reason, "took", took(begun))
	return nil
}

// Checkpoint implements the RPC.
func (a *Agent) Checkpoint(ctx context.Context, req *agentpb.CheckpointRequest) (*agentpb.CommandReply, error) {
	st := a.snapshot()
	if err := st.leads(req.GetTerm()); err != nil {
		return nil, err
	}
	if err := a.pg.Checkpoint(ctx); err != nil {
		return nil, failed(err)
	}
	a.lookAgain()
	return a.commandReply(), nil
}
