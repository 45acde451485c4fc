package agent

import (
	"context"
	"strings"
	"time"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

const (
	// observeTimeout bounds one look at PostgreSQL.
	observeTimeout = 2 * time.Second
	// observeApart is the least time between two looks, so that a flood of log lines is no flood of queries.
	observeApart = 20 * time.Millisecond
)

// heard is the last sign of life of a standby, noticed by its clock having moved on. Its clock's value means nothing here.
type heard struct {
	reply time.Time
	at    time.Time
}

// observe looks at PostgreSQL at every heartbeat and whenever asked to.
func (a *Agent) observe(ctx context.Context) {
	observer := postgres.NewObserver(a.pg)
	defer observer.Close()
	ticker := a.clock.NewTicker(a.conf.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
			a.attributeUpstream(ctx)
		case <-a.kick:
		}
		apart := observeApart
		if !a.look(ctx, observer) {
			apart = a.conf.Heartbeat / 4 // a look that fails is logged by PostgreSQL, which asks for the next one
		}
		a.fence(ctx, observer)
		select {
		case <-ctx.Done():
			return
		case <-time.After(apart):
		}
	}
}

func (a *Agent) look(ctx context.Context, observer *postgres.Observer) (seen bool) {
	a.mu.Lock()
	halting := a.live.halting
	a.mu.Unlock()
	if halting || !a.pg.Running() {
		observer.Close()
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	begun := a.now()
	obs, err := observer.Observe(ctx)
	if err != nil {
		return false // the probes say what is wrong
	}
	if a.digest(obs, begun) {
		a.publish()
	}
	return true
}

// digest takes an observation in that was begun at some time, and says whether watchers should hear of it at once.
func (a *Agent) digest(obs postgres.Observation, begun time.Time) (news bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, now := &a.live, a.now()
	before := l.obs
	l.obs, l.obsAt = obs, now
	l.lastFlushed = obs.Position
	for _, p := range obs.Peers {
		if h, ok := l.heard[p.Instance]; !ok || !h.reply.Equal(p.Reply) {
			l.heard[p.Instance] = heard{reply: p.Reply, at: now}
		}
	}
	if l.role == agentpb.Role_STOPPED && obs.InRecovery && a.pg.Running() && !l.stopping {
		l.role, news = agentpb.Role_STANDBY, true // a start that took longer than somebody wanted to wait
	}
	if l.cohort != nil && l.cohortSince == 0 && !obs.InRecovery && begun.After(l.cohortAt) {
		l.cohortSince, news = obs.Position.LSN, true
	}
	return news || before.Receiver.Streaming != obs.Receiver.Streaming || len(before.Peers) != len(obs.Peers) ||
		before.Position.Timeline != obs.Position.Timeline
}

// logLine is told of every line of PostgreSQL's log. A lost connection shows there first.
func (a *Agent) logLine(line string) {
	if strings.Contains(line, postgres.PausedForSettings) {
		a.outgrown.Store(true)
		a.reconsider()
	}
	for _, word := range []string{"FATAL:", "PANIC:", "WARNING:", "started streaming", "terminat"} {
		if strings.Contains(line, word) {
			a.lookAgain()
			return
		}
	}
}
