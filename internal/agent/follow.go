package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
	if seed := a.seedingOf(); seed != nil {
		return a.followLater(ctx, seed, req)
	}
	if !a.pg.Initialised() {
		return nil, refuse("there is no data directory; it has to be seeded")
	}
	whom := target(req.GetTerm(), req.GetPrimary())
	st := a.snapshot()
	if err := lowerTerm(st.Term, req.GetTerm()); err != nil {
		return nil, err
	}
	if st.Intent != 0 && st.Intent != req.GetTerm() {
		if err := a.endIntent(ctx); err != nil {
			return nil, failed(err)
		}
	}
	if a.pg.Running() && !a.isPrimary() && st.Primary == nil && (st.Follow == nil || *st.Follow != *whom) {
		// Nothing more may come from the old upstream while its timelines are compared with the new one's.
		if st.Follow != nil {
			a.askTimeline(ctx, *st.Follow)
		}
		if err := a.pg.StopReceiver(ctx); err != nil {
			return nil, failed(err)
		}
	}
	stale, err := a.acceptFollow(ctx, req.GetTimelineTerms(), whom, req.GetRewindTimeoutMs() > 0)
	if err != nil {
		return nil, failed(err)
	}
	if a.isPrimary() || st.Primary != nil { // or one that still recovers, which nobody calls primary yet
		if err := a.stop(ctx, postgres.Immediate, 0); err != nil {
			return nil, failed(err)
		}
	}
	if len(stale) > 0 {
		if err := a.forgetTimelines(ctx, stale); err != nil {
			return nil, failed(err)
		}
	}
	return a.follow(ctx, whom, time.Duration(req.GetRewindTimeoutMs())*time.Millisecond)
}

// learnTimeline has a running standby, whose receiver is stopped and whose WAL ends at end, know the new primary's timeline
// before it connects. Not one of a number that was heard of already: whose that is has to be compared first. Failing costs
// time and nothing else.
func (a *Agent) learnTimeline(timelines []*agentpb.TimelineTerm, end postgres.Position) {
	st := a.snapshot()
	if st.Diverged != "" || st.Rewinding || !a.pg.Running() {
		return
	}
	for _, t := range timelines {
		if _, heard := st.Timelines[t.GetTimeline()]; heard || t.GetHistory() == "" {
			continue
		}
		if err := a.pg.LearnTimeline(t.GetTimeline(), t.GetHistory(), end); err != nil {
			a.log.Warn("the new primary's timeline is left to PostgreSQL", "timeline", t.GetTimeline(), "error", err)
		}
	}
}

// followLater changes whom a copy under way follows in the end. Of timelines that the copy does not have, or not yet, all is
// hearsay.
func (a *Agent) followLater(ctx context.Context, seed *seeding, req *agentpb.FollowRequest) (*agentpb.FollowReply, error) {
	err := a.update(ctx, func(s *State) error {
		_, err := s.follow(target(req.GetTerm(), req.GetPrimary()), agentapi.TimelineTermsFromPB(req.GetTimelineTerms()), max(seed.copied, 1))
		return err
	})
	if err != nil {
		return nil, failed(err)
	}
	st := a.snapshot()
	return &agentpb.FollowReply{Term: st.Term, Diverged: st.Diverged != "", Why: st.Diverged}, nil
}

// acceptFollow persists whom to follow and the terms of its timelines, before any of its WAL is taken. stale are
// timelines that this instance has heard of from an earlier primary, and that have begun in another term on this one.
func (a *Agent) acceptFollow(ctx context.Context, timelines []*agentpb.TimelineTerm, whom *Target, rewind bool) (stale []uint32, err error) {
	end, theirs := a.end(ctx), agentapi.TimelineTermsFromPB(timelines)
	// Early, so that PostgreSQL has looked at it when it is told to connect.
	a.learnTimeline(timelines, end)
	err = a.update(ctx, func(s *State) (err error) {
		if s.Rewindable && rewind {
			s.Diverged, s.Rewindable = "", false
		}
		stale, err = s.follow(whom, theirs, end.Timeline)
		return err
	})
	return stale, err
}

// follow makes s a state that follows whom. own is the timeline of the last record here, 0 if that is not known.
//
// Two promotions, at least one of which failed, can pick the same number for their timelines. A WAL that has records of
// such a timeline has diverged although PostgreSQL would not notice. One that only heard of it has to forget it.
func (s *State) follow(whom *Target, theirs map[uint32]uint64, own uint32) (stale []uint32, err error) {
	switch {
	case whom.Term < s.Term:
		return nil, lowerTerm(s.Term, whom.Term)
	case s.Term == whom.Term && (s.Primary != nil || s.Intent == s.Term):
		return nil, refuse("this instance was promoted in term %d", s.Term)
	case s.Bootstrapping:
		return nil, refuse("the data directory is not whole")
	}
	s.Term, s.Follow, s.Primary, s.Fenced = whom.Term, whom, nil, ""
	if s.Diverged != "" || s.Rewinding {
		return nil, nil
	}
	if s.Timelines == nil {
		s.Timelines = map[uint32]uint64{}
	}
	if s.unattributed(own) {
		// They may be anybody's: that the number is the same proves nothing.
		s.Diverged = fmt.Sprintf("nobody said in which term timeline %d began here", own)
		return nil, nil
	}
	for _, tli := range slices.Sorted(maps.Keys(theirs)) {
		ours, known := s.Timelines[tli]
		if known && ours != theirs[tli] {
			if own == 0 || own >= tli {
				s.Diverged = fmt.Sprintf("timeline %d began in term %d here and in term %d on %s", tli, ours, theirs[tli], whom.Instance)
				return nil, nil
			}
			stale = append(stale, tli)
		}
		s.Timelines[tli] = theirs[tli]
	}
	if own != 0 { // what was only heard of others must not outlive them: the next primary may be promoted on the same number
		maps.DeleteFunc(s.Timelines, func(tli uint32, _ uint64) bool { return tli > own && theirs[tli] == 0 })
	}
	return stale, nil
}

// timeline is that of the last record here, 0 if it cannot be known.
func (a *Agent) timeline(ctx context.Context) uint32 { return a.end(ctx).Timeline }

// end is where the WAL here ends, with timeline 0 if that cannot be known. Of a stopped standby only the timeline is.
func (a *Agent) end(ctx context.Context) postgres.Position {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	if a.pg.Running() {
		pos, err := a.pg.Position(ctx)
		if err != nil {
			return postgres.Position{}
		}
		return pos
	}
	control, err := a.pg.Control(ctx)
	if err != nil {
		return postgres.Position{}
	}
	if control.WasPrimary() {
		if pos, err := a.stoppedEnd(ctx, control); err == nil {
			return pos
		}
		return postgres.Position{}
	}
	return postgres.Position{Timeline: max(control.Checkpoint.Timeline, control.MinRecovery.Timeline)}
}

// endIntent ends an interrupted promotion for good: whatever timeline it has begun is attributed to its term.
func (a *Agent) endIntent(ctx context.Context) error {
	if err := a.stop(ctx, postgres.Immediate, 0); err != nil {
		return err
	}
	// Even one that never left recovery may have written the beginning of its timeline.
	begun := a.pg.NewestTimeline()
	return a.update(ctx, func(s *State) error {
		s.attribute(begun)
		s.Halted = "a promotion was interrupted"
		return nil
	})
}

// attribute ends the intent: a timeline that nobody told of was begun by it. 0 is none, and the first is the bootstrap's.
func (s *State) attribute(begun uint32) {
	if s.Intent != 0 && begun > 1 {
		if s.Timelines == nil {
			s.Timelines = map[uint32]uint64{}
		}
		if _, known := s.Timelines[begun]; !known {
			s.Timelines[begun] = s.Intent
		}
	}
	s.Intent = 0
}

// forgetTimelines removes what an earlier primary told of timelines that this one counts differently.
func (a *Agent) forgetTimelines(ctx context.Context, stale []uint32) error {
	if !a.pg.KnowsTimelines(stale) {
		return nil
	}
	a.log.Warn("forgetting timelines of a failed promotion", "timelines", stale)
	if _, err := a.pg.Stop(ctx, postgres.Fast); err != nil {
		return err
	}
	return a.pg.ForgetTimelines(stale)
}

// follow points this instance at whom. A running standby is pointed there first and compared afterwards: PostgreSQL
// refuses by itself to stream what does not fit, and the new primary may be waiting for this acknowledgement.
func (a *Agent) follow(ctx context.Context, whom *Target, rewind time.Duration) (*agentpb.FollowReply, error) {
	st := a.snapshot()
	if st.Diverged != "" || st.Rewinding {
		return a.diverged(ctx, st.Diverged, st.Rewindable)
	}
	up := upstream(whom)
	if a.pg.Running() {
		if err := a.pg.Follow(up); err != nil {
			return nil, failed(err)
		}
		a.changed()
		a.pg.AwaitStreaming(ctx, streamingFirst) // if it does not, the comparison says why
		why, err := a.fits(ctx, up)
		if err != nil || why == "" {
			// A primary that does not answer yet is no reason to give up on following it.
			return &agentpb.FollowReply{Term: st.Term}, nil
		}
		a.log.Warn("diverged", "primary", whom.Instance, "why", why)
		if rewind > 0 {
			if _, err := a.pg.Stop(ctx, postgres.Fast); err != nil {
				return nil, failed(err)
			}
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

// streamingFirst is how long a comparison with a new primary waits for the stream to begin. Both want a session there, just when the
// first commit waits for what is streamed.
const streamingFirst = 300 * time.Millisecond

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
	whole, err := a.pg.Whole(ctx, history, pos)
	if err != nil {
		a.log.Warn("the end of WAL cannot be looked at", "error", err)
	}
	return a.compare(id, history, whole), nil
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

// fitsStopped is fits for an instance whose PostgreSQL is down. Of a standby it is known where its data files are consistent
// at the earliest: with a primary that lacks this it would not even start.
func (a *Agent) fitsStopped(ctx context.Context, up postgres.Upstream) (why string, err error) {
	control, err := a.pg.Control(ctx)
	if err != nil {
		return "", err
	}
	pos := control.MinRecovery
	if control.WasPrimary() {
		if pos, err = a.stoppedEnd(ctx, control); err != nil {
			return fmt.Sprintf("it was a primary, and the end of its WAL cannot be read: %v", err), nil
		}
	}
	ask, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	id, history, err := a.pg.Ask(ask, up)
	switch {
	case err == nil && pos.LSN > 0:
		return incompatible(control.System, pos, id, history), nil
	case err == nil || !control.WasPrimary():
		return "", nil // a standby: streaming will show what there is beyond, or what could not be asked
	}
	return "", fmt.Errorf("cannot compare with %s: %w", up.Instance, err)
}

// rejoin rewinds within its deadline, or gives the data up.
func (a *Agent) rejoin(ctx context.Context, up postgres.Upstream, deadline time.Duration, why string) (*agentpb.FollowReply, error) {
	if deadline <= 0 {
		return a.diverged(ctx, why, true)
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
		return a.diverged(ctx, fmt.Sprintf("%s; rewind: %v", why, err), false)
	}
	a.log.Info("rewound", "primary", up.Instance, "why", why, "took", took(begun))
	if err := a.update(ctx, func(s *State) error { s.Rewinding = false; return nil }); err != nil {
		return nil, failed(err)
	}
	a.say("")
	return a.startFollowing(ctx, up)
}

// diverged remembers that the data is of no use any more, unless it can be rewound. It does so also when the caller has gone
// by now: what is not remembered would be started again and again.
func (a *Agent) diverged(ctx context.Context, why string, rewindable bool) (*agentpb.FollowReply, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickLimit)
	defer cancel()
	if _, err := a.pg.Stop(ctx, postgres.Immediate); err != nil {
		a.log.Error("a diverged PostgreSQL does not stop", "error", err)
	}
	err := a.update(ctx, func(s *State) error {
		if s.Diverged == "" {
			s.Diverged, s.Rewindable = why, rewindable
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
