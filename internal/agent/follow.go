package agent

import (
	"context"
	"fmt"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

// Follow implements the RPC.
func (a *Agent) Follow(ctx context.Context, req *agentpb.FollowRequest) (*agentpb.FollowReply, error) {
	if req.GetTerm() == 0 || req.GetPrimary().GetInstance() == "" || req.GetPrimary().GetInstance() == a.conf.Instance {
		return nil, status.Error(codes.InvalidArgument, "Follow needs a term and another instance")
	}
	ctx, cancel := context.WithTimeout(ctx, followLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, req.GetTerm(), "Follow")
	if err != nil {
		return nil, err
	}
	defer done()
	if a.seedingNow() {
		return nil, status.Error(codes.Unavailable, "seeding")
	}
	if !a.pg.Initialised() {
		return nil, refuse("there is no data directory; it has to be seeded")
	}
	whom := target(req.GetTerm(), req.GetPrimary())
	wasPrimary, err := a.acceptFollow(ctx, req, whom)
	if err != nil {
		return nil, failed(err)
	}
	if wasPrimary || a.isPrimary() {
		if _, err := a.stopPrimary(ctx, postgres.Fast); err != nil {
			return nil, failed(err)
		}
	}
	return a.follow(ctx, whom, time.Duration(req.GetRewindTimeoutMs())*time.Millisecond)
}

func (a *Agent) acceptFollow(ctx context.Context, req *agentpb.FollowRequest, whom *Target) (wasPrimary bool, err error) {
	theirs := agentapi.TimelineTermsFromPB(req.GetTimelineTerms())
	err = a.update(ctx, func(s *State) error {
		if err := lowerTerm(s.Term, req.GetTerm()); err != nil {
			return err
		}
		if s.Term == req.GetTerm() && (s.Primary != nil || s.Intent == s.Term) {
			return refuse("this instance was promoted in term %d", s.Term)
		}
		if s.Bootstrapping {
			return refuse("the data directory is not whole")
		}
		wasPrimary = s.Primary != nil
		s.Term, s.Follow, s.Primary, s.Fenced = req.GetTerm(), whom, nil, ""
		if tli := s.conflicting(theirs); tli != 0 && s.Diverged == "" {
			s.Diverged = fmt.Sprintf("timeline %d began in term %d here and in term %d on %s", tli, s.Timelines[tli], theirs[tli], whom.Instance)
		}
		if s.Diverged != "" || s.Rewinding {
			return nil
		}
		if s.Timelines == nil {
			s.Timelines = map[uint32]uint64{}
		}
		maps.Copy(s.Timelines, theirs)
		return nil
	})
	return wasPrimary, err
}

// follow points this instance at whom. A running standby is pointed there first and compared afterwards: PostgreSQL
// refuses by itself to stream what does not fit, and the new primary may be waiting for this acknowledgement.
func (a *Agent) follow(ctx context.Context, whom *Target, rewind time.Duration) (*agentpb.FollowReply, error) {
	st := a.snapshot()
	if st.Diverged != "" || st.Rewinding {
		return a.diverged(ctx, st.Diverged)
	}
	up := upstream(whom)
	if a.pg.Running() {
		if err := a.pg.Follow(up); err != nil {
			return nil, failed(err)
		}
		a.changed()
		why, err := a.fits(ctx, up)
		if err != nil || why == "" {
			// A primary that does not answer yet is no reason to give up on following it.
			return &agentpb.FollowReply{Term: st.Term}, nil
		}
		a.log.Warn("diverged", "primary", whom.Instance, "why", why)
		if _, err := a.pg.Stop(ctx, postgres.Fast); err != nil {
			return nil, failed(err)
		}
		return a.rejoin(ctx, up, rewind, why)
	}
	why, err := a.fitsStopped(ctx, up)
	if err != nil {
		return nil, failed(err)
	}
	if why != "" {
		return a.rejoin(ctx, up, rewind, why)
	}
	return a.startFollowing(ctx, up)
}

func (a *Agent) startFollowing(ctx context.Context, up postgres.Upstream) (*agentpb.FollowReply, error) {
	if err := a.update(ctx, func(s *State) error { s.Halted = ""; return nil }); err != nil {
		return nil, failed(err)
	}
	if err := a.start(ctx, postgres.AsStandby, postgres.Runtime{Upstream: &up, Sync: postgres.Nobody}); err != nil {
		return nil, failed(err)
	}
	return &agentpb.FollowReply{Term: a.snapshot().Term}, nil
}

// compareTimeout bounds asking the primary how its timeline came to be.
const compareTimeout = 2 * time.Second

// fits says why a running standby cannot stream from up, "" if it can.
func (a *Agent) fits(ctx context.Context, up postgres.Upstream) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	id, history, err := a.pg.Ask(ctx, up)
	if err != nil {
		return "", err
	}
	pos, err := a.pg.Position(ctx)
	if err != nil {
		return "", err
	}
	return a.compare(id, history, pos), nil
}

// compare is pure but for the system identifier it was seeded with.
func (a *Agent) compare(primary postgres.Identity, history postgres.History, mine postgres.Position) string {
	a.mu.Lock()
	system := a.live.obs.System
	a.mu.Unlock()
	return incompatible(system, mine, primary, history)
}

// incompatible says why a WAL that ends at mine cannot be continued from primary, "" if it can. system is 0 when it is
// not known here.
func incompatible(system uint64, mine postgres.Position, primary postgres.Identity, history postgres.History) string {
	switch {
	case system != 0 && system != primary.System:
		return fmt.Sprintf("system identifier %d is not the primary's %d", system, primary.System)
	case mine.Timeline > history.Timeline:
		return fmt.Sprintf("timeline %d is newer than the primary's %d", mine.Timeline, history.Timeline)
	case !postgres.Contains(history, mine):
		return fmt.Sprintf("%s on timeline %d is not in the history of the primary's timeline %d", mine.LSN, mine.Timeline, history.Timeline)
	}
	return ""
}

// fitsStopped is fits for an instance whose PostgreSQL is down. Only after a clean stop is the end of the WAL known
// without recovery.
func (a *Agent) fitsStopped(ctx context.Context, up postgres.Upstream) (why string, err error) {
	control, err := a.pg.Control(ctx)
	if err != nil {
		return "", err
	}
	if !control.WasPrimary() {
		return "", nil // a standby: streaming will show
	}
	if !control.Clean() {
		return "it was a primary and did not stop cleanly", nil
	}
	pos, err := a.pg.ShutdownPosition(control)
	if err != nil {
		return "", err
	}
	ask, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	id, history, err := a.pg.Ask(ask, up)
	if err != nil {
		return "", fmt.Errorf("cannot compare with %s: %w", up.Instance, err)
	}
	return incompatible(control.System, pos, id, history), nil
}

// rejoin rewinds within its deadline, or gives the data up.
func (a *Agent) rejoin(ctx context.Context, up postgres.Upstream, deadline time.Duration, why string) (*agentpb.FollowReply, error) {
	if deadline <= 0 {
		return a.diverged(ctx, why)
	}
	if err := a.update(ctx, func(s *State) error { s.Rewinding = true; return nil }); err != nil {
		return nil, failed(err)
	}
	a.say("rewinding: %s", why)
	a.publish()
	begun := time.Now()
	limit, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	// pg_rewind compares control files, and PostgreSQL 15 writes the new timeline there at the first checkpoint only.
	err := a.pg.CheckpointUpstream(limit, up)
	if err == nil {
		err = a.pg.Rewind(limit, up)
	}
	if err != nil {
		a.log.Warn("rewind failed", "error", err)
		// The caller's time may be up as well; what happened has to be remembered all the same.
		return a.diverged(context.WithoutCancel(ctx), fmt.Sprintf("%s; rewind: %v", why, err))
	}
	a.log.Info("rewound", "primary", up.Instance, "why", why, "took", time.Since(begun).Round(time.Millisecond))
	if err := a.update(ctx, func(s *State) error { s.Rewinding = false; return nil }); err != nil {
		return nil, failed(err)
	}
	a.say("")
	return a.startFollowing(ctx, up)
}

// diverged remembers that the data is of no use any more.
func (a *Agent) diverged(ctx context.Context, why string) (*agentpb.FollowReply, error) {
	if _, err := a.pg.Stop(ctx, postgres.Immediate); err != nil {
		a.log.Error("a diverged PostgreSQL does not stop", "error", err)
	}
	err := a.update(ctx, func(s *State) error {
		if s.Diverged == "" {
			s.Diverged = why
		}
		s.Rewinding = false
		return nil
	})
	if err != nil {
		return nil, failed(err)
	}
	a.mu.Lock()
	a.live.role, a.live.message = agentpb.Role_STOPPED, "diverged: "+why
	a.mu.Unlock()
	a.changed()
	return &agentpb.FollowReply{Term: a.snapshot().Term, Diverged: true, Why: why}, nil
}
