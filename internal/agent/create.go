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

// Bootstrap implements the RPC. It starts over after an interruption, and is finished before it answers even if its
// caller has gone.
func (a *Agent) Bootstrap(ctx context.Context, req *agentpb.BootstrapRequest) (*agentpb.CommandReply, error) {
	if req.GetTerm() == 0 || req.GetCohort().GetPrimary() != a.conf.Instance {
		return nil, status.Error(codes.InvalidArgument, "Bootstrap needs a term and a cohort whose primary is this instance")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bootstrapLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Bootstrap")
	if err != nil {
		return nil, err
	}
	defer done()
	a.mu.Lock()
	finished := a.state.Bootstrap == req.GetTerm() && !a.state.Bootstrapping && a.state.Term == req.GetTerm()
	a.mu.Unlock()
	if finished {
		return a.commandReply(), nil
	}
	err = a.update(ctx, func(s *State) error {
		if err := lowerTerm(s.Term, req.GetTerm()); err != nil {
			return err
		}
		if a.pg.Initialised() && !s.Bootstrapping {
			return refuse("there is a data directory already")
		}
		*s = State{Term: req.GetTerm(), Promised: s.Promised, Bootstrap: req.GetTerm(), Bootstrapping: true, Parameters: req.GetParameters(), Endpoints: s.Endpoints}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := a.bootstrap(ctx, req); err != nil {
		a.say("bootstrap failed: %v", err)
		a.publish()
		return nil, failed(err)
	}
	return a.commandReply(), nil
}

func (a *Agent) bootstrap(ctx context.Context, req *agentpb.BootstrapRequest) error {
	a.say("bootstrapping")
	if a.pg.Running() {
		if _, err := a.pg.Stop(ctx, postgres.Immediate); err != nil {
			return err
		}
	}
	if err := a.pg.Discard(); err != nil {
		return err
	}
	if err := a.pg.Init(ctx); err != nil {
		return err
	}
	a.pg.SetParameters(mergeParameters(req.GetParameters(), a.conf.Parameters))
	if err := a.start(ctx, postgres.AsPrimary, postgres.Runtime{}); err != nil {
		return err
	}
	if err := a.pg.CreateRoles(ctx, req.GetDatabase(), req.GetOwner(), req.GetOwnerPassword()); err != nil {
		return err
	}
	cohort := agentapi.CohortFromPB(req.GetCohort())
	if err := a.pg.SetSynchronous(ctx, cohort.Members, cohort.Acks); err != nil {
		return err
	}
	err := a.update(ctx, func(s *State) error {
		s.Bootstrapping = false
		s.Timelines = map[uint32]uint64{1: req.GetTerm()}
		s.Primary = &Primary{Cohort: *cohort}
		return nil
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.live.role, a.live.message = agentpb.Role_PRIMARY, ""
	a.live.use(cohort, a.now())
	a.mu.Unlock()
	a.changed()
	return nil
}

// seeding is a copy under way.
type seeding struct {
	progress *postgres.Progress
	cancel   context.CancelFunc
	done     chan struct{}
	term     uint64
	source   string
}

// Seed implements the RPC: it prepares the copy, lets it run, and answers.
func (a *Agent) Seed(ctx context.Context, req *agentpb.SeedRequest) (*agentpb.CommandReply, error) {
	if req.GetTerm() == 0 || req.GetSource() == nil || req.GetPrimary() == nil {
		return nil, status.Error(codes.InvalidArgument, "Seed needs a term, a source and a primary")
	}
	ctx, cancel := context.WithTimeout(ctx, followLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Seed")
	if err != nil {
		return nil, err
	}
	defer done()
	a.mu.Lock()
	running := a.live.seed
	a.mu.Unlock()
	if running != nil && running.term == req.GetTerm() && running.source == req.GetSource().GetInstance() {
		return a.commandReply(), nil
	}
	if running != nil {
		running.cancel()
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, failed(context.Cause(ctx))
		}
	}
	if err := a.prepareSeed(ctx, req); err != nil {
		return nil, failed(err)
	}
	return a.commandReply(), nil
}

func (a *Agent) prepareSeed(ctx context.Context, req *agentpb.SeedRequest) error {
	initialised, mark := a.pg.Initialised(), randomHex()
	err := a.update(ctx, func(s *State) error {
		if err := lowerTerm(s.Term, req.GetTerm()); err != nil {
			return err
		}
		if initialised && !req.GetDiscard() && !s.Bootstrapping && s.Halted != haltedSeeding {
			return refuse("there is a data directory already; discard has to be asked for")
		}
		if s.Primary != nil && s.Term == req.GetTerm() {
			return refuse("this instance is the primary of term %d", s.Term)
		}
		// What is remembered of the old data goes with it, but never a promise.
		*s = State{
			Term: req.GetTerm(), Promised: s.Promised, Endpoints: s.Endpoints, Parameters: s.Parameters,
			Timelines: agentapi.TimelineTermsFromPB(req.GetTimelineTerms()), Follow: target(req.GetTerm(), req.GetPrimary()),
			Halted: haltedSeeding, Seed: mark,
		}
		return nil
	})
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.Background())
	seed := &seeding{progress: &postgres.Progress{}, cancel: cancel, done: make(chan struct{}), term: req.GetTerm(), source: req.GetSource().GetInstance()}
	a.mu.Lock()
	a.live.seed, a.live.role, a.live.established = seed, agentpb.Role_SEEDING, false
	a.live.message = "seeding from " + req.GetSource().GetInstance()
	a.mu.Unlock()
	a.changed()
	go a.seed(run, seed, upstream(target(0, req.GetSource())), mark)
	return nil
}

func (a *Agent) seed(ctx context.Context, seed *seeding, source postgres.Upstream, mark string) {
	begun := time.Now()
	err := a.copyFrom(ctx, seed, source, mark)
	if err == nil {
		err = a.update(ctx, func(s *State) error { s.Halted, s.Seed = "", ""; return nil })
	}
	a.mu.Lock()
	a.live.seed = nil
	a.live.role = agentpb.Role_STOPPED
	if err != nil {
		a.live.role = agentpb.Role_EMPTY
		a.live.message = "seeding failed: " + err.Error()
	} else {
		a.live.message = ""
	}
	a.mu.Unlock()
	close(seed.done)
	copied, _ := seed.progress.Get()
	if err != nil {
		a.log.Error("seeding failed", "source", source.Instance, "error", err)
	} else {
		a.log.Info("seeded", "source", source.Instance, "bytes", copied, "took", took(begun))
	}
	a.changed()
	a.reconsider() // the supervisor starts the standby
}

func (a *Agent) copyFrom(ctx context.Context, seed *seeding, source postgres.Upstream, mark string) error {
	if _, err := a.pg.Stop(ctx, postgres.Immediate); err != nil {
		return err
	}
	if err := a.pg.Discard(); err != nil {
		return err
	}
	return a.pg.Seed(ctx, source, mark, seed.progress)
}

func target(term uint64, ep *agentpb.Endpoint) *Target {
	t := &Target{Term: term, Instance: ep.GetInstance(), Host: ep.GetHost(), PostgresPort: int(ep.GetPostgresPort()), AgentPort: int(ep.GetAgentPort())}
	if t.PostgresPort == 0 {
		t.PostgresPort = agentapi.PostgresPort
	}
	if t.AgentPort == 0 {
		t.AgentPort = agentapi.AgentPort
	}
	return t
}

func upstream(t *Target) postgres.Upstream {
	return postgres.Upstream{Instance: t.Instance, Host: t.Host, Port: t.PostgresPort}
}

func endpoint(t Target) *agentpb.Endpoint {
	return &agentpb.Endpoint{Instance: t.Instance, Host: t.Host, PostgresPort: uint32(t.PostgresPort), AgentPort: uint32(t.AgentPort)}
}
