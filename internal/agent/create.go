package agent

import (
	"context"

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
	a.live.message = ""
	a.live.use(cohort, a.now())
	a.mu.Unlock()
	a.started(postgres.AsPrimary)
	return nil
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
