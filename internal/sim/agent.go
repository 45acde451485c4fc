package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// agentState is what an agent keeps on its disk.
type agentState struct {
	term      uint64
	promised  uint64
	intent    uint64 // promotion begun in this term
	follow    string
	primary   bool
	cohort    quorum.Cohort
	timelines map[uint32]uint64 // replaced, never changed, so that copies stay what they were
	diverged  bool              // cannot follow; its WAL is whole all the same
	broken    bool              // being seeded, or a rewind did not end: no data to speak of
}

// agent is a model of an agent: one command at a time, a higher term's interrupts a lower one's.
type agent struct {
	w    *world
	i    *instance
	proc *proc

	disk agentState // survives a power cut
	mem  agentState // what the process goes by

	busy     *task // command under way
	busyTerm uint64
	fenced   string
	exited   string
	halted   bool // PostgreSQL stays down until told what to be
	haltedAt time.Duration
	downAt   time.Duration // when PostgreSQL was last seen up
	resuming bool

	rewinding bool
	learning  bool

	established uint64
	draining    bool
	drainUntil  time.Duration

	operatorHeard time.Duration
}

var (
	errUnreachable = errors.New("unreachable")
	errRefused     = errors.New("refused")
	errNotWhole    = errors.New("the data directory is not whole")
)

// persist makes a change of the state durable, then current. It is called in a task of the agent.
func (a *agent) persist(change func(s *agentState)) {
	next := a.mem
	change(&next)
	a.i.wait(a.proc)
	a.disk = next
	a.mem = next
}

// forgetful is persist without the fsync: the broken variant.
func (a *agent) forgetful(change func(s *agentState)) { change(&a.mem) }

// command runs a command of a term in the current task, when its turn has come.
func (a *agent) command(term uint64, act func() (any, error)) (any, error) {
	s := a.w.s
	for a.busy != nil {
		if a.busyTerm < term {
			s.end(a.busy)
			a.busy = nil
			break
		}
		s.sleep(time.Millisecond)
	}
	if term < a.mem.term {
		return nil, &reparent.OvertakenError{Instance: a.i.name, Term: a.mem.term}
	}
	a.busy, a.busyTerm = s.cur, term
	me := s.cur
	defer func() {
		if a.busy == me {
			a.busy = nil
		}
	}()
	return act()
}

func (a *agent) promise(term uint64, after time.Duration) (any, error) {
	return a.command(term, func() (any, error) {
		a.awaitReceiver(after)
		if err := a.promisable(term); err != nil {
			return nil, err
		}
		a.acceptPromise(term)
		return a.revoke()
	})
}

// awaitReceiver lets the WAL receiver end by itself, for so long at most.
func (a *agent) awaitReceiver(within time.Duration) {
	receiver, until := a.i.pg.receiver, a.w.s.now+within
	for receiver != nil && a.i.pg.receiver == receiver && a.w.s.now < until {
		a.w.s.sleep(time.Millisecond)
	}
}

func (a *agent) promisable(term uint64) error {
	m := a.mem
	switch {
	case m.broken:
		return errNotWhole
	case term == m.term && (m.promised != term || m.follow != "" || m.primary || m.intent == term):
		return fmt.Errorf("%w: term %d has begun here", errRefused, term)
	}
	return nil
}

func (a *agent) acceptPromise(term uint64) {
	if a.mem.primary || a.i.pg.mode == pgPrimary {
		a.halted, a.haltedAt = true, a.w.s.now
	}
	change := func(s *agentState) {
		s.term, s.promised, s.follow, s.primary = term, term, "", false
		s.diverged = false // from a primary that may never be established; the next one may be another, or it itself
	}
	if a.w.v.ForgetPromise {
		a.forgetful(change)
	} else {
		a.persist(change)
	}
	a.established = 0
}

// revoke stops what could acknowledge and answers where the log ends.
func (a *agent) revoke() (any, error) {
	pg := a.i.pg
	was := a.halted
	a.learn()
	switch {
	case pg.mode == pgPrimary:
		was = true
		a.stopNow()
	case pg.proc.frozen:
		a.stopNow() // SIGKILL ends a stopped process too
	case !a.w.v.KeepReceiver:
		pg.stopReceiver()
		a.settle()
	}
	a.w.s.sleep(a.w.s.uniform(0, 5*time.Millisecond))
	a.draining = false
	a.attribute()
	if a.position() == (quorum.Position{}) {
		return nil, fmt.Errorf("%w: nobody said in which term timeline %d began", errRefused, a.i.pg.flushed.tli())
	}
	p := quorum.Promise{Instance: a.i.name, Term: a.mem.term, Position: a.position(), WasPrimary: was}
	a.w.promised(a.i, p.Term)
	a.changed()
	return p, nil
}

// learn asks the agent of the upstream in which term the timeline began that is being streamed, when nobody said. It happens
// to a standby that goes on following an instance by name which was promoted again without its knowing.
func (a *agent) learn() {
	s := a.i.pg.receiver
	if s == nil || a.known() {
		return
	}
	up, tli := s.up, a.i.pg.written.tli()
	a.w.s.sleep(a.w.s.uniform(time.Millisecond, 5*time.Millisecond))
	if !up.up || up.agent.proc.frozen || a.w.link(a.i.machine, up.machine).cut || a.w.link(up.machine, a.i.machine).cut || a.i.pg.receiver != s {
		return
	}
	if term, ok := up.agent.mem.timelines[tli]; ok && up.agent.mem.intent == 0 {
		a.persist(func(st *agentState) { st.timelines = with(st.timelines, map[uint32]uint64{tli: term}) })
	}
}

// learnSoon learns when the WAL receiver has come to an unknown timeline.
func (a *agent) learnSoon() {
	if a.learning || a.known() || a.proc.dead {
		return
	}
	a.learning = true
	a.w.s.spawn(a.proc, func() {
		defer func() { a.learning = false }()
		_, _ = a.command(a.mem.term, func() (any, error) { a.learn(); return nil, nil })
	})
}

func (a *agent) known() bool {
	_, ok := a.mem.timelines[a.i.pg.written.tli()]
	return ok || a.mem.intent != 0 || a.i.pg.written == nil
}

// settle is the WAL receiver's last act: what it wrote is flushed.
func (a *agent) settle() {
	pg := a.i.pg
	if pg.mode == pgStandby && pg.written != pg.flushed {
		a.i.wait(a.proc)
		pg.flushed = pg.written
	}
}

// attribute ends an interrupted promotion: a timeline nobody told of was begun by it.
func (a *agent) attribute() {
	if a.mem.intent == 0 {
		return
	}
	tli := a.i.pg.flushed.tli()
	a.persist(func(s *agentState) {
		if _, known := s.timelines[tli]; !known {
			s.timelines = with(s.timelines, map[uint32]uint64{tli: s.intent})
		}
		s.intent = 0
	})
}

func with(m, more map[uint32]uint64) map[uint32]uint64 {
	out := maps.Clone(m)
	if out == nil {
		out = map[uint32]uint64{}
	}
	maps.Copy(out, more)
	return out
}

// position is the end of the flushed log, in terms.
func (a *agent) position() quorum.Position {
	r := a.i.pg.flushed
	if r == nil {
		return quorum.Position{}
	}
	switch {
	case a.w.v.LSNOnly:
		return quorum.Position{WALTerm: 1, LSN: r.lsn}
	case a.w.v.SkipTimelineMap:
		return quorum.Position{WALTerm: uint64(r.tli()), LSN: r.lsn}
	}
	term, ok := a.mem.timelines[r.tli()]
	switch {
	case ok:
	case a.mem.intent != 0:
		term = a.mem.intent
	case a.mem.follow != "":
		term = a.mem.term
	default:
		return quorum.Position{} // unknown
	}
	return quorum.Position{WALTerm: term, LSN: r.lsn}
}

// stopNow stops PostgreSQL at once.
func (a *agent) stopNow() {
	pg := a.i.pg
	a.w.s.sleep(a.w.s.uniform(time.Millisecond, 20*time.Millisecond))
	pg.crash(false)
	a.changed()
}

func (a *agent) demote(term uint64, candidate string, timeout time.Duration) (any, error) {
	return a.command(term, func() (any, error) {
		if err := a.promisable(term); err != nil {
			return nil, err
		}
		if a.w.v.RelaxBeforeKill {
			a.i.pg.configure(quorum.Cohort{Term: a.mem.term, Primary: a.i.name})
		}
		a.acceptPromise(term)
		if a.i.pg.mode == pgPrimary {
			a.stopInOrder(candidate, timeout)
		}
		return a.revoke()
	})
}

// stopInOrder is a fast shutdown: no more writes, a last record, all of it shipped to the candidate. The other standbys are
// disconnected, at once or when they have had a moment, and get what is under way.
func (a *agent) stopInOrder(candidate string, timeout time.Duration) {
	pg, s := a.i.pg, a.w.s
	until := s.now + timeout
	pg.accepting = false
	pg.waiting = nil
	epoch := pg.proc.epoch
	last := pg.insert(pg.written.tl)
	moment := s.now
	if s.chance(0.5) {
		moment += 60 * time.Millisecond
	}
	for pg.proc.epoch == epoch && s.now < until {
		for _, c := range slices.Clone(pg.senders) {
			if candidate != "" && c.down.name != candidate && s.now >= moment {
				a.w.close(c, a.i)
			}
		}
		shipped := pg.flushed.end() >= last.lsn
		for _, c := range pg.senders {
			shipped = shipped && c.flushed >= last.lsn
		}
		if shipped {
			s.sleep(s.uniform(time.Millisecond, 10*time.Millisecond))
			break
		}
		s.sleep(time.Millisecond)
	}
	pg.crash(false)
	a.changed()
}

func (a *agent) promote(c quorum.Cohort) (any, error) {
	return a.command(c.Term, func() (any, error) {
		m, pg := a.mem, a.i.pg
		switch {
		case m.broken || m.diverged:
			return nil, errNotWhole
		case m.term == c.Term && m.primary && pg.mode == pgPrimary:
			return a.timelines(), nil
		case m.primary:
			// A late order to a primary that went down since must not begin another timeline in the same term.
			return nil, fmt.Errorf("%w: it leads term %d already", errRefused, m.term)
		}
		a.attribute() // an earlier order of the same term may have begun a timeline
		a.persist(func(s *agentState) {
			s.term, s.intent, s.follow, s.primary = c.Term, c.Term, "", false
			s.timelines = a.held(s.timelines) // the number it will pick may be one it has heard of
		})
		a.w.replied(a, c.Term)
		if pg.mode == pgDown {
			a.w.s.sleep(a.w.s.uniform(20*time.Millisecond, 300*time.Millisecond))
			pg.start(pgStandby)
		}
		if pg.proc.frozen {
			return nil, errRefused
		}
		a.halted, a.fenced, a.exited = false, "", ""
		pg.stopReceiver()
		a.settle()
		epoch := pg.proc.epoch
		for pg.replayed < pg.flushed.end() {
			pg.replay()
			a.w.s.sleep(time.Millisecond)
			if pg.proc.epoch != epoch {
				return nil, errRefused
			}
		}
		a.w.s.sleep(a.w.s.uniform(5*time.Millisecond, 30*time.Millisecond))
		if pg.proc.epoch != epoch || pg.mode != pgStandby || pg.proc.frozen {
			return nil, errRefused
		}
		tli := pg.promote(c.Term, c)
		begun := pg.written
		for pg.flushed.end() < begun.lsn {
			a.w.s.sleep(time.Millisecond)
			if pg.proc.epoch != epoch {
				return nil, errRefused
			}
		}
		a.persist(func(s *agentState) {
			s.timelines = with(s.timelines, map[uint32]uint64{tli: c.Term})
			s.intent, s.primary, s.cohort = 0, true, c
		})
		a.changed()
		timelines := a.timelines()
		for i := range timelines {
			if timelines[i].ID == tli {
				timelines[i].History = strconv.FormatUint(begun.tl.start, 10)
			}
		}
		return timelines, nil
	})
}

func (a *agent) timelines() []reparent.Timeline {
	var out []reparent.Timeline
	for id := uint32(1); id <= a.i.pg.newest; id++ {
		if term, ok := a.mem.timelines[id]; ok {
			out = append(out, reparent.Timeline{ID: id, Term: term})
		}
	}
	return out
}

// establish writes the row of the journal and waits for its acknowledgement. It does not hold up other commands.
func (a *agent) establish(term uint64) (any, error) {
	for {
		if a.mem.term > term {
			return nil, &reparent.OvertakenError{Instance: a.i.name, Term: a.mem.term}
		}
		pg := a.i.pg
		if !a.mem.primary || a.mem.term != term || pg.mode != pgPrimary {
			return nil, fmt.Errorf("%w: not the primary of term %d", errRefused, term)
		}
		if a.established == term {
			return nil, nil
		}
		c := pg.write()
		if c == nil {
			return nil, errRefused
		}
		epoch := pg.proc.epoch
		for pg.proc.epoch == epoch && a.mem.term == term && (pg.acked < c.rec.lsn && !a.w.v.SkipJournal) {
			a.w.s.sleep(time.Millisecond)
		}
		if pg.proc.epoch == epoch && a.mem.term == term {
			a.established, a.draining = term, false
			a.w.establishedAt(a.i, c.rec)
			a.changed()
			return nil, nil
		}
	}
}

func (a *agent) configure(c quorum.Cohort) (any, error) {
	return a.command(c.Term, func() (any, error) {
		m, pg := a.mem, a.i.pg
		switch {
		case !m.primary || m.term != c.Term:
			return nil, fmt.Errorf("%w: not the primary of term %d", errRefused, c.Term)
		case c.Revision < m.cohort.Revision && !a.w.v.AnyRevision:
			return nil, fmt.Errorf("%w: revision %d is older than %d", errRefused, c.Revision, m.cohort.Revision)
		}
		a.persist(func(s *agentState) { s.cohort = c })
		if pg.mode != pgPrimary || pg.proc.frozen {
			return nil, errRefused
		}
		a.w.s.sleep(a.w.s.uniform(0, 5*time.Millisecond))
		if pg.mode == pgPrimary && a.mem.cohort.Equal(c) && !pg.loaded.Equal(c) {
			pg.configure(c)
			a.changed()
		}
		return nil, nil
	})
}

// checkpoint takes as long as the disk does, now and then as long as there is much to write; it hangs with the disk and with
// the server.
func (a *agent) checkpoint(term uint64) (any, error) {
	pg, s := a.i.pg, a.w.s
	if a.mem.term != term || !a.mem.primary || pg.mode != pgPrimary {
		return nil, fmt.Errorf("%w: not the primary of term %d", errRefused, term)
	}
	epoch, done, much := pg.proc.epoch, false, time.Duration(0)
	if s.chance(0.1) {
		much = s.uniform(0, 3*time.Second)
	}
	s.after(much, pg.proc, func() { a.i.sync(pg.proc, func() { done = true }) })
	for !done && pg.proc.epoch == epoch {
		s.sleep(2 * time.Millisecond)
	}
	if !done {
		return nil, fmt.Errorf("%w: PostgreSQL went down", errRefused)
	}
	return nil, nil
}

// await lasts for as long as a client may sit in a transaction: mostly not at all.
func (a *agent) await(term uint64, limit time.Duration) (any, error) {
	if a.mem.term != term || !a.mem.primary {
		return nil, errRefused
	}
	if a.w.s.chance(0.1) {
		a.w.s.sleep(a.w.s.uniform(0, limit))
	}
	return 0, nil
}

func (a *agent) drain(term uint64) (any, error) {
	if a.mem.term != term || !a.mem.primary {
		return nil, errRefused
	}
	a.draining, a.drainUntil = true, a.w.s.clock(a.proc)+5*time.Second
	a.changed()
	a.w.s.sleep(a.w.s.uniform(time.Millisecond, 50*time.Millisecond))
	return 0, nil
}

func (a *agent) undrain(term uint64) (any, error) {
	if a.mem.term != term {
		return nil, &reparent.OvertakenError{Instance: a.i.name, Term: a.mem.term}
	}
	a.draining = false
	return nil, nil
}
