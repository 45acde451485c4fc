package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
	"theseus.dev/theseus/internal/quorum"
)

// fence stops a primary that nobody hears any more. It protects readers, not commits: without k standbys no commit is
// acknowledged whether PostgreSQL runs or not, but reads would go on being answered from a past that another primary has
// left behind.
//
// One sign of life in FenceAfter is enough, from the operator or from as many members as a commit needs. A primary whose
// operator is down keeps serving as long as it can commit, and one whose standbys are gone keeps serving (reads) as
// long as the operator, who alone could make another primary, sees it. With FenceAfter at 2 s: standbys reply at
// least every second (wal_receiver_status_interval) and at every commit, of which the commit probe is one every
// 500 ms; the operator's kernel acknowledges a heartbeat every 500 ms. So three to four signs in a row must be missed.
//
// An agent that was itself frozen or starved looks once more before it acts: what it missed may be waiting.
func (a *Agent) fence(ctx context.Context, observer *postgres.Observer) {
	if !a.silent() {
		return
	}
	a.look(ctx, observer)
	if !a.silent() {
		return
	}
	limit, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	term := a.snapshot().Term
	limit, done, err := a.commands.begin(limit, term, "fence")
	if err != nil {
		return
	}
	defer done()
	if !a.silent() {
		return
	}
	why := fmt.Sprintf("heard neither the operator nor enough standbys for %v", a.conf.FenceAfter)
	a.log.Error("fencing", "term", term, "why", why)
	a.mu.Lock()
	a.live.established, a.live.message = false, "fenced: "+why
	a.mu.Unlock()
	if err := a.stop(limit, postgres.Immediate, 0); err != nil {
		a.log.Error("fencing", "error", err)
	}
	if err := a.update(limit, func(s *State) error { s.Fenced = why; return nil }); err != nil {
		a.log.Error("fence not remembered", "error", err)
	}
	a.publish()
}

// silent says whether this is a running primary that has heard nobody for FenceAfter.
func (a *Agent) silent() bool {
	now := a.now()
	operator := a.operators.heard(now)
	started := a.pg.Life().Started
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.live.role != agentpb.Role_PRIMARY || a.live.cohort == nil {
		return false
	}
	last := started
	for _, t := range []time.Time{operator, quorumHeard(*a.live.cohort, a.live.heard, now), a.live.started} {
		if t.After(last) {
			last = t
		}
	}
	patience := a.conf.FenceAfter
	if !a.live.established {
		patience *= 3 // nobody is let in yet; its standbys may still be on their way
	}
	return now.Sub(last) > patience
}

// quorumHeard is the latest time by which at least Acks members had been heard: the Acks-th latest of their times. A
// cohort that needs nobody has always heard enough.
func quorumHeard(c quorum.Cohort, signs map[string]heard, now time.Time) time.Time {
	if c.Acks <= 0 {
		return now
	}
	var times []time.Time
	for _, m := range c.Members {
		if h, ok := signs[m]; ok {
			times = append(times, h.at)
		}
	}
	if len(times) < c.Acks {
		return time.Time{}
	}
	slices.SortFunc(times, func(x, y time.Time) int { return y.Compare(x) })
	return times[c.Acks-1]
}
