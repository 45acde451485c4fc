package sim

import (
	"fmt"
	"strconv"
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// followOrder is the order to follow a primary.
type followOrder struct {
	term      uint64
	primary   string
	timelines []reparent.Timeline
	// rewind allows a diverged instance to be cut back. Only for primaries that are established.
	rewind bool
}

func (a *agent) follow(o followOrder) (any, error) {
	return a.command(o.term, func() (any, error) {
		m, pg := a.mem, a.i.pg
		switch {
		case m.broken:
			return nil, errNotWhole
		case m.term == o.term && (m.primary || m.intent == o.term):
			return nil, fmt.Errorf("%w: promoted in term %d", errRefused, o.term)
		}
		if pg.mode == pgPrimary {
			a.halted = true
			a.stopNow()
		}
		a.attribute()
		if !a.known() {
			a.learn()
		}
		if pg.upstream != o.primary || m.term < o.term {
			// Nothing more may come from the old upstream while its timelines are compared with the new one's.
			if pg.proc.frozen {
				a.stopNow()
			}
			pg.stopReceiver()
			a.settle()
		}
		m = a.mem
		// Records of a timeline nobody said the term of may be anybody's: the same number proves nothing.
		theirs, clash := map[uint32]uint64{}, !a.known() && !a.w.v.AdoptTimeline
		for _, t := range o.timelines {
			theirs[t.ID] = t.Term
			ours, known := m.timelines[t.ID]
			clash = clash || known && ours != t.Term && pg.flushed.tli() >= t.ID && a.holds(t.ID)
		}
		diverged := clash && !a.w.v.SkipTimelineMap
		a.w.trace("%s follows %s in term %d: its log ends at %v (timeline %d), its timelines %v, theirs %v, diverged %v, rewind %v", a.i.name, o.primary, o.term, a.position(), pg.flushed.tli(), m.timelines, o.timelines, diverged, o.rewind)
		a.persist(func(s *agentState) {
			s.term, s.follow, s.primary = o.term, o.primary, false
			if diverged {
				s.diverged = true
			} else {
				s.timelines = with(a.held(s.timelines), theirs)
			}
		})
		a.w.replied(a, o.term)
		a.established = 0
		if a.mem.diverged {
			pg.crash(false)
			return nil, reparent.ErrDiverged
		}
		return a.attach(o)
	})
}

// held is the part of the map about timelines that are in the log. What was only heard of others, from an earlier primary,
// must be forgotten: the next one may be promoted on the same number.
func (a *agent) held(m map[uint32]uint64) map[uint32]uint64 {
	out := map[uint32]uint64{}
	for id, term := range m {
		if a.holds(id) || a.w.v.KeepHearsay {
			out[id] = term
		}
	}
	return out
}

// holds reports whether the log has records of that timeline; a mere history file is forgotten.
func (a *agent) holds(id uint32) bool {
	_, _, ok := a.i.pg.flushed.history(id)
	return ok
}

// attach points PostgreSQL at its primary and checks whether it can go on from there.
func (a *agent) attach(o followOrder) (any, error) {
	pg := a.i.pg
	a.halted, a.fenced, a.exited = false, "", ""
	if pg.proc.frozen {
		a.stopNow()
	}
	if pg.mode == pgDown {
		a.w.s.sleep(a.w.s.uniform(20*time.Millisecond, 300*time.Millisecond))
		pg.start(pgStandby)
	}
	if pg.upstream != o.primary {
		pg.stopReceiver()
		a.settle()
		a.learnTimeline(o.timelines)
		pg.upstream = o.primary
		pg.reconnect()
	}
	a.changed()
	up := a.w.byName[o.primary]
	if up == nil || a.w.link(a.i.machine, up.machine).cut || up.pg.mode == pgDown || up.pg.proc.frozen {
		return nil, nil // it does not answer: nothing can be said
	}
	a.w.s.sleep(a.w.s.uniform(time.Millisecond, 5*time.Millisecond))
	if up.pg.flushed == nil || fits(pg.written, up.pg.flushed) || pg.receiver != nil {
		return nil, nil
	}
	if !o.rewind {
		pg.crash(false)
		a.persist(func(s *agentState) { s.diverged = true })
		return nil, reparent.ErrDiverged
	}
	return a.rewind(up)
}

// learnTimeline has the server hear of the new primary's timeline, if that begins exactly where its own log ends.
func (a *agent) learnTimeline(timelines []reparent.Timeline) {
	for _, t := range timelines {
		if start, err := strconv.ParseUint(t.History, 10, 64); err == nil && start == a.i.pg.flushed.end()+1 {
			a.i.pg.newest = max(a.i.pg.newest, t.ID)
		}
	}
}

// rewind is pg_rewind: it destroys before it repairs.
func (a *agent) rewind(up *instance) (any, error) {
	pg, s := a.i.pg, a.w.s
	pg.crash(false)
	a.rewinding = true
	defer func() { a.rewinding = false }()
	a.persist(func(st *agentState) { st.broken = true })
	epoch, began := up.pg.proc.epoch, uint64(0)
	if up.pg.flushed != nil && pg.flushed != nil {
		began = common(pg.flushed, up.pg.flushed)
	}
	s.sleep(s.uniform(50*time.Millisecond, 2*time.Second))
	if up.pg.proc.epoch != epoch || up.pg.mode == pgDown || a.w.link(a.i.machine, up.machine).cut || began == 0 {
		a.persist(func(st *agentState) { st.diverged = true })
		return nil, fmt.Errorf("%w: rewind failed", errRefused)
	}
	pg.flushed = appendFrom(pg.flushed.at(began), up.pg.flushed, up.pg.flushed.end())
	pg.newest = max(pg.newest, up.pg.newest)
	a.persist(func(st *agentState) { st.broken = false })
	pg.start(pgStandby)
	a.changed()
	return nil, nil
}

// boot is the agent's own start, after a restart of its container or machine: it goes on with what its disk says.
func (a *agent) boot() {
	a.proc.dead = false
	a.w.booted(a)
	a.mem = a.disk
	a.busy, a.established, a.draining, a.halted, a.resuming, a.rewinding, a.learning = nil, 0, false, false, false, false, false
	a.fenced, a.exited = "", ""
	a.downAt = a.w.s.now
	a.operatorHeard = a.w.s.clock(a.proc)
	a.tick()
}

// tick is the agent's supervision and heartbeat.
func (a *agent) tick() {
	now := a.w.s.clock(a.proc)
	if a.draining && now > a.drainUntil {
		a.draining = false
	}
	a.i.pg.receiverTimeout()
	a.fence(now)
	a.supervise()
	a.learnSoon()
	a.heartbeat()
	a.w.s.after(time.Duration(float64(heartbeat)/a.proc.rate), a.proc, a.tick)
}

const heartbeat = 500 * time.Millisecond

// supervise starts PostgreSQL when it ought to be up. A primary comes back only with its cohort's consent.
func (a *agent) supervise() {
	pg := a.i.pg
	if pg.mode != pgDown {
		a.downAt = a.w.s.now
	}
	if a.halted && !a.mem.primary && a.busy == nil && a.w.s.now-a.haltedAt > 5*time.Second {
		a.halted = false // nobody says what to be: be a standby of nobody, so that others can be seeded from here
	}
	down := func() bool {
		return pg.mode == pgDown && a.busy == nil && !a.halted && !a.mem.diverged && !a.mem.broken && !a.i.seeding && !pg.proc.frozen
	}
	if !down() || a.resuming {
		return
	}
	a.resuming = true
	a.w.s.spawn(a.proc, func() {
		defer func() { a.resuming = false }()
		if !a.mem.primary {
			a.w.s.sleep(a.w.s.uniform(50*time.Millisecond, 500*time.Millisecond))
			if down() && !a.mem.primary {
				pg.upstream = a.mem.follow
				pg.start(pgStandby)
				a.changed()
			}
			return
		}
		term := a.mem.term
		stands, higher := a.termStands()
		if higher && a.w.s.now-a.downAt > 5*time.Second && a.mem.term == term && a.busy == nil {
			// Others have left its term and nobody says whom to follow: it stands down, so that others can be seeded from it.
			a.persist(func(s *agentState) { s.primary = false })
		}
		if !stands {
			return
		}
		a.w.s.sleep(a.w.s.uniform(50*time.Millisecond, 300*time.Millisecond))
		if !down() || !a.mem.primary || a.mem.term != term {
			return
		}
		a.fenced, a.exited = "", ""
		pg.start(pgPrimary)
		pg.configure(a.mem.cohort)
		a.changed()
		_, _ = a.establish(term)
	})
}

// termStands asks the cohort: as long as Acks members have accepted nothing higher, nobody can have left the term. It also
// says whether any has.
func (a *agent) termStands() (stands, higher bool) {
	c, yes := a.mem.cohort, 0
	for _, name := range c.Members {
		m := a.w.byName[name]
		if m == nil || a.w.link(a.i.machine, m.machine).cut || a.w.link(m.machine, a.i.machine).cut || m.agent.proc.frozen || !m.up {
			continue
		}
		if m.agent.mem.term <= a.mem.term {
			yes++
		} else {
			higher = true
		}
	}
	a.w.s.sleep(a.w.s.uniform(time.Millisecond, 20*time.Millisecond))
	return yes >= c.Acks, higher
}

// fence stops a primary that hears nobody.
func (a *agent) fence(now time.Duration) {
	pg := a.i.pg
	if pg.mode != pgPrimary || a.busy != nil || now-a.operatorHeard < fenceAfter {
		return
	}
	heard := 0
	for _, s := range pg.senders {
		if a.w.s.now-s.reply < fenceAfter && a.mem.cohort.Has(s.down.name) {
			heard++
		}
	}
	if heard >= a.mem.cohort.Acks {
		return
	}
	pg.crash(false)
	a.fenced, a.established = "heard nobody", 0
}

// useless reports whether only a new instance can take this one's place.
func (a *agent) useless() bool {
	return a.mem.diverged || a.mem.broken && !a.i.seeding && !a.rewinding
}

// whole reports whether the instance's log can be counted upon.
func (i *instance) whole() bool {
	return !i.lost && !i.seeding && !i.agent.disk.broken && i.pg.flushed != nil
}

func cohortOf(a *agent) *quorum.InUse {
	pg := a.i.pg
	if pg.mode != pgPrimary || !a.mem.primary {
		return nil
	}
	use := &quorum.InUse{Cohort: pg.loaded, Since: pg.since, Flushed: map[string]uint64{}}
	for _, s := range pg.senders {
		use.Flushed[s.down.name] = s.flushed
	}
	return use
}
