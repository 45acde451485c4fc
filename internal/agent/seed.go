package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

// seeding is a copy under way.
type seeding struct {
	progress *postgres.Progress
	cancel   context.CancelFunc
	done     chan struct{}
	term     uint64
	source   string
	// copied is the timeline of the last WAL in the copy once its timelines are attributed, 0 before. Guarded like the state:
	// only update reads or writes it.
	copied uint32
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
		if err := s.replaceable(initialised, req.GetDiscard()); err != nil {
			return err
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
	go a.seed(run, seed, target(0, req.GetSource()), mark)
	return nil
}

// replaceable refuses to copy over a data directory that is of use. Whoever asks to discard has seen that it was of none, which
// may be long ago: an operator that was frozen between its look and its word sends the order after another one has had this
// instance seeded. By then it may be the only witness of what was acknowledged, in the same term, so that the term
// of the order says nothing. What is thrown away is therefore decided here, by what is the case now.
func (s State) replaceable(initialised, discard bool) error {
	switch {
	case !initialised, s.Bootstrapping, s.Halted == haltedSeeding:
		return nil // there is nothing, or the beginning of something
	case !discard:
		return refuse("there is a data directory already; discard has to be asked for")
	case s.Diverged == "" && !s.Rewinding:
		return refuse("the data directory has not diverged; it is not thrown away")
	}
	return nil
}

func (a *Agent) seed(ctx context.Context, seed *seeding, source *Target, mark string) {
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

func (a *Agent) copyFrom(ctx context.Context, seed *seeding, source *Target, mark string) error {
	if _, err := a.pg.Stop(ctx, postgres.Immediate); err != nil {
		return err
	}
	if err := a.pg.Discard(); err != nil {
		return err
	}
	before, err := a.askSource(ctx, *source, func(*agentpb.Status) error { return nil })
	if err != nil {
		return err
	}
	accept := func(ctx context.Context, end uint32) error { return a.attributeCopy(ctx, seed, *source, before, end) }
	return a.pg.Seed(ctx, upstream(source), mark, seed.progress, accept)
}

// askSourceLimit bounds asking the source of a copy. It may be busy, or about to hear of a new timeline itself.
const askSourceLimit = 20 * time.Second

// askSource asks until the source's answer is enough.
func (a *Agent) askSource(ctx context.Context, source Target, enough func(*agentpb.Status) error) (*agentpb.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askSourceLimit)
	defer cancel()
	for {
		st, err := a.askStatus(ctx, source)
		if err == nil {
			err = enough(st)
		}
		if err == nil {
			return st, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("asking the source: %w", err)
		case <-a.clock.After(reachTimeout):
		}
	}
}

// attributeCopy notes in which terms the timelines of a finished copy began, up to end, before it may become the data
// directory. Only the source knows: what the primary told when the copy began need not be true of WAL that came during it.
func (a *Agent) attributeCopy(ctx context.Context, seed *seeding, source Target, before *agentpb.Status, end uint32) error {
	after, err := a.askSource(ctx, source, func(after *agentpb.Status) error { return vouches(before, after, end) })
	if err != nil {
		return err
	}
	return a.update(ctx, func(s *State) error {
		if s.Halted != haltedSeeding || a.seedingOf() != seed {
			return refuse("this copy is not wanted any more")
		}
		s.copied(agentapi.TimelineTermsFromPB(after.GetTimelineTerms()), end)
		seed.copied = end
		return nil
	})
}

// vouches says why a source does not know of which terms a copy of it is that ends on timeline end, nil if it does. Should its
// PostgreSQL not be the one that was copied, it may have been rewound since.
func vouches(before, after *agentpb.Status, end uint32) error {
	if before.GetPostgresStartedUnixMs() == 0 || after.GetPostgresStartedUnixMs() != before.GetPostgresStartedUnixMs() {
		return fmt.Errorf("PostgreSQL of %s was started anew while it was copied", after.GetInstance())
	}
	if _, known := agentapi.TimelineTermsFromPB(after.GetTimelineTerms())[end]; !known && end > 1 {
		return fmt.Errorf("%s does not know in which term timeline %d began", after.GetInstance(), end)
	}
	return nil
}

// copied takes the source's word for the timelines of a copy that ends on timeline end. If another was told of the
// primary that was to be followed, that one is not followed before somebody has compared the two: PostgreSQL would
// stream one into the other.
func (s *State) copied(theirs map[uint32]uint64, end uint32) {
	if s.Timelines == nil {
		s.Timelines = map[uint32]uint64{}
	}
	for tli, term := range theirs {
		if tli > end {
			continue
		}
		if told, known := s.Timelines[tli]; known && told != term {
			s.Follow = nil
		}
		s.Timelines[tli] = term
	}
}
