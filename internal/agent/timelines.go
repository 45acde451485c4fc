package agent

import (
	"context"
	"fmt"
	"maps"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// A standby follows an instance by name. Should that one be promoted again without the standby's agent hearing of it, WAL
// of a timeline arrives whose term nobody told, and the standby could not promise any more: it may hold what was
// acknowledged, and cannot say in which term. So it asks the agent it streams from.

// unattributed says that nobody told the term of timeline tli, 0 being none.
func (s *State) unattributed(tli uint32) bool {
	_, known := s.Timelines[tli]
	return tli > 1 && !known && s.Intent == 0
}

// attributeUpstream asks for the term of the timeline seen last, should that be unknown. It gives up without an error:
// the next heartbeat tries again, and a promise that is asked for meanwhile fails.
func (a *Agent) attributeUpstream(ctx context.Context) {
	st := a.snapshot()
	if st.Follow == nil || !st.unattributed(a.lastTimeline()) {
		return
	}
	// As a command, so that nobody makes this instance follow another one between the question and the note.
	ctx, cancel := context.WithTimeout(ctx, 2*reachTimeout)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, st.Term, "attribute")
	if err != nil {
		return
	}
	defer done()
	if up := a.snapshot().Follow; up != nil {
		a.askTimeline(ctx, *up)
	}
}

// askTimeline is to be called in a command, while the WAL receiver still streams from up: what up says of a timeline
// is said of its own, and another instance may have begun one of the same number.
func (a *Agent) askTimeline(ctx context.Context, up Target) {
	tli := a.lastTimeline()
	if st := a.snapshot(); !st.unattributed(tli) {
		return
	}
	theirs, err := a.askStatus(ctx, up)
	if err != nil {
		return
	}
	term, ok := agentapi.TimelineTermsFromPB(theirs.GetTimelineTerms())[tli]
	if !ok {
		return
	}
	err = a.update(ctx, func(s *State) error {
		if s.unattributed(tli) {
			if s.Timelines == nil {
				s.Timelines = map[uint32]uint64{}
			}
			s.Timelines[tli] = term
		}
		return nil
	})
	a.log.Info("a timeline nobody told of", "timeline", tli, "term", term, "says", up.Instance, "error", err)
}

// askStatus asks another instance's agent what it is. Whoever else answers at its address is an error.
func (a *Agent) askStatus(ctx context.Context, whom Target) (*agentpb.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	client, err := agentapi.Dial(ctx, endpoint(whom), a.conf.Shard, a.id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	st, err := client.GetStatus(ctx, &agentpb.GetStatusRequest{})
	if err == nil && st.GetInstance() != whom.Instance {
		err = fmt.Errorf("%s answers for %s", st.GetInstance(), whom.Instance)
	}
	return st, err
}

// lastTimeline is the timeline of the WAL as last observed, 0 when nothing was.
func (a *Agent) lastTimeline() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live.lastFlushed.Timeline
}

// forgetHearsay removes what was only heard of timelines that never came here: own is the timeline of the last record.
// A promotion may pick the same number as a failed one of another instance; were it interrupted then, its timeline would
// be taken for the other's.
func (s *State) forgetHearsay(own uint32) {
	maps.DeleteFunc(s.Timelines, func(tli uint32, _ uint64) bool { return tli > own })
}
