package sim

import (
	"fmt"
	"slices"

	"theseus.dev/theseus/internal/quorum"
)

// check is what is known to the simulation alone, and what must always hold.
type check struct {
	violation string
	acked     *record   // the newest acknowledged commit; all acknowledged ones are in its log
	byTerm    []*record // the newest acknowledged commit of each term, in order
	ackCount  int
}

func (w *world) fail(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf(format, args...)
		w.trace("VIOLATION: %s", w.violation)
	}
}

// acknowledged: a client was told that its commit is safe. From now on every primary must have it; and it must be on one
// line with everything acknowledged before, or there were two primaries.
func (w *world) acknowledged(i *instance, r *record) {
	w.ackCount++
	w.ruleIsRecorded(i)
	switch {
	case r.contains(w.acked):
		if n := len(w.byTerm); n > 0 && w.byTerm[n-1].tl.term == r.tl.term {
			w.byTerm[n-1] = r
		} else {
			w.byTerm = append(w.byTerm, r)
		}
		w.acked = r
	case !w.acked.contains(r):
		w.fail("%s acknowledged commit %d of term %d (LSN %d) beside commit %d of term %d (LSN %d): two histories", i.name, r.id, r.tl.term, r.lsn, w.acked.id, w.acked.tl.term, w.acked.lsn)
	}
}

// ruleIsRecorded: what a primary acknowledges by is in the record, or whoever reads the record may leave out the only
// witness (docs/reparent.md §2.4). Of a term that a later one has replaced an acknowledgement may still be on its way: it is
// of something that its witnesses flushed before they left the term.
func (w *world) ruleIsRecorded(i *instance) {
	c := i.pg.loaded
	if c.Term >= w.api.record.Established && !slices.ContainsFunc(w.api.record.Cohorts, c.SameRule) {
		w.fail("%s acknowledged a commit by a cohort that is not recorded: %v; recorded are %v", i.name, c, w.api.record.Cohorts)
	}
}

// witnessed: whoever is counted for an acknowledged commit has it. PostgreSQL counts LSNs; a log that was glued on to another
// one reaches that LSN without the record. And it had it already when it promised a higher term, should it have.
func (w *world) witnessed(p *instance, r *record, counted []*session) {
	for _, s := range counted {
		d := s.down
		switch {
		case s.flushed < r.lsn:
		case d.whole() && !d.agent.rewinding && !d.pg.flushed.contains(r):
			w.fail("%s acknowledged commit %d of term %d (LSN %d) by the word of %s, which does not have it: its log ends at LSN %d of term %d", p.name, r.id, r.tl.term, r.lsn, d.name, d.pg.flushed.end(), d.pg.flushed.tl.term)
		case r.tl.term < d.promised && !d.promisedLog.contains(r):
			w.fail("%s acknowledged commit %d of term %d (LSN %d) by the word of %s, which had promised term %d at LSN %d", p.name, r.id, r.tl.term, r.lsn, d.name, d.promised, d.promisedLog.end())
		}
	}
}

// promised: an agent gave its word that it acknowledges nothing of a lower term beyond what it has now.
func (w *world) promised(i *instance, term uint64) {
	if term > i.promised {
		i.promised, i.promisedLog = term, i.pg.flushed
	}
	w.replied(i.agent, term)
}

// promoted: a new primary leaves recovery. It must have every commit acknowledged in an earlier term.
func (w *world) promoted(i *instance, tl *timeline) {
	w.trace("%s is promoted in term %d on timeline %d at %d", i.name, tl.term, tl.id, tl.start)
	w.count("promotion")
	w.event(eventPromoted, i)
	// Late, in a term that others have left long ago, it need only have what was acknowledged before that term.
	var must *record
	for _, r := range w.byTerm {
		if r.tl.term < tl.term {
			must = r
		}
	}
	if !i.pg.flushed.contains(must) {
		w.fail("%s is promoted in term %d without acknowledged commit %d of term %d (LSN %d); its log ends at LSN %d of term %d", i.name, tl.term, must.id, must.tl.term, must.lsn, i.pg.flushed.end(), i.pg.flushed.tl.term)
	}
}

// establishedAt: the agent says that the journal row r was acknowledged. It must have been: clients are let in now.
func (w *world) establishedAt(i *instance, r *record) {
	w.trace("%s is established in term %d", i.name, i.agent.mem.term)
	w.count("established")
	w.event(eventEstablished, i)
	switch {
	case w.acked.contains(r):
	case r.contains(w.acked):
		w.fail("%s is established in term %d before its row in the journal was acknowledged", i.name, i.agent.mem.term)
	default:
		w.fail("%s is established in term %d without acknowledged commit %d of term %d", i.name, i.agent.mem.term, w.acked.id, w.acked.tl.term)
	}
}

// replied: an agent gave its word for a term. It never goes back.
func (w *world) replied(a *agent, term uint64) {
	if term < a.i.maxTerm {
		w.fail("%s went from term %d back to %d", a.i.name, a.i.maxTerm, term)
	}
	a.i.maxTerm = term
	w.dirty = true
}

// booted: what an agent answered before it died must be on its disk.
func (w *world) booted(a *agent) {
	w.dirty = true
	if a.disk.term < a.i.maxTerm && !w.v.ForgetPromise {
		w.fail("%s restarted in term %d after answering in term %d", a.i.name, a.disk.term, a.i.maxTerm)
	}
	if w.v.ForgetPromise {
		a.i.maxTerm = a.disk.term
	}
}

// recorded: the record was replaced.
func (w *world) recorded(old, next quorum.Record) {
	w.trace("record: %v established %d", next.Cohorts, next.Established)
	latest, _ := next.Latest()
	w.event(eventRecorded, w.byName[latest.Primary])
	if err := next.Validate(); err != nil {
		w.fail("an invalid record is stored: %v", err)
	}
	for _, name := range next.Names() {
		if gone := w.byName[name].retiring || next.IsRetired(name); gone && !w.v.RetireBlindly {
			w.fail("the record names %s, whose data may be gone: %v", name, next)
		}
	}
	if next.Established < old.Established {
		w.fail("established went from term %d back to %d", old.Established, next.Established)
	}
}

// retired: the operators throw an instance away. They must never throw away what the record may need.
func (w *world) retired(i *instance) {
	revocable := func() bool {
		var whole []string
		for _, o := range w.api.list {
			if o.whole() {
				whole = append(whole, o.name)
			}
		}
		return quorum.Revocable(w.api.record, whole) == nil
	}
	if slices.Contains(w.api.record.Names(), i.name) {
		w.fail("%s is thrown away, and the record names it: %v", i.name, w.api.record.Cohorts)
	}
	before := revocable()
	w.destroy(i)
	if before && !revocable() {
		w.fail("%s was thrown away, and without it nobody can tell what was acknowledged: %v", i.name, w.api.record.Cohorts)
	}
}

// atMostOne: no two primaries are able to acknowledge, even if all that is in their way now went away: a standby counts for
// the primary it is set to follow, until it has accepted a higher term.
func (w *world) atMostOne() {
	if !w.dirty {
		return
	}
	w.dirty = false
	var able *instance
	for _, p := range w.instances {
		if p.pg.mode != pgPrimary {
			continue
		}
		n := 0
		for _, name := range p.pg.loaded.Members {
			m := w.byName[name]
			follows := m.pg.upstream
			if m.pg.mode == pgDown {
				follows = m.agent.disk.follow
			}
			if m.whole() && follows == p.name && fits(m.pg.written, p.pg.written) {
				n++
			}
		}
		if n < p.pg.loaded.Acks {
			continue
		}
		if able != nil {
			w.fail("%s (%v) and %s (%v) are both able to acknowledge", able.name, able.pg.loaded, p.name, p.pg.loaded)
			return
		}
		able = p
	}
}

// healthy says what is missing for the shard to be in order; "" when it is.
func (w *world) healthy() string {
	rec := w.api.record
	if !rec.Settled() {
		return fmt.Sprintf("the record is not settled: %v, established %d", rec.Cohorts, rec.Established)
	}
	c := rec.Cohorts[0]
	p := w.byName[c.Primary]
	switch {
	case p.pg.mode != pgPrimary || p.agent.established != c.Term:
		return fmt.Sprintf("%s is not established in term %d", c.Primary, c.Term)
	case len(c.Members) < w.conf.Instances-1:
		return fmt.Sprintf("only %d members: %v", len(c.Members), c)
	case c.Acks != quorum.DefaultAcks(w.conf.Instances):
		return fmt.Sprintf("%d acknowledgements: %v", c.Acks, c)
	}
	for _, name := range c.Members {
		if m := w.byName[name]; m.pg.receiver == nil || m.pg.receiver.up != p {
			return fmt.Sprintf("%s does not stream from %s", name, p.name)
		}
	}
	return ""
}

// hopeless says why a shard cannot recover without people, "" when it can. These are the limits of the protocol, not
// violations of it; see docs/reparent.md, what is not promised.
func (w *world) hopeless() string {
	var whole []string
	for _, i := range w.api.list {
		if !i.whole() {
			continue
		}
		whole = append(whole, i.name)
		// It followed an instance by name that was promoted again without its knowing and was destroyed within milliseconds
		// of it. Such an instance promises nothing.
		if !i.agent.known() {
			return "a timeline nobody alive can attribute"
		}
	}
	// The schedule destroyed a member just before its admission to the cohort was stored.
	if quorum.Revocable(w.api.record, whole) != nil {
		return "too few whole instances"
	}
	return ""
}
