package sim

import (
	"slices"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// pgMode is what the server process does.
type pgMode int

const (
	pgDown pgMode = iota
	pgStandby
	pgPrimary
)

// postgres is a model of one server with what matters about it here: a log that is written, flushed and replayed at
// different times; a WAL receiver that reconnects by itself; walsenders; backends that wait for standbys by the list of
// names that is loaded now; timelines known by number.
type postgres struct {
	w    *world
	i    *instance
	proc *proc
	mode pgMode

	// On disk. written may survive a crash of the process, or not; of a power cut only what was flushed is sure to.
	written, flushed *record
	newest           uint32 // highest timeline number it has ever heard of: history files

	replayed  uint64
	replaying bool
	flushing  bool
	accepting bool // takes writes; false while shutting down
	upstream  string
	receiver  *session
	senders   []*session
	retrying  bool

	loaded  quorum.Cohort // synchronous_standby_names in force
	since   uint64        // end of the WAL when it came into force
	waiting []*commit
	acked   uint64 // LSN up to which waiting commits have been released
}

// commit is one that waits in a backend.
type commit struct {
	rec   *record
	since time.Duration
}

// session is one streaming connection. Each end knows it until it closes it or learns that the other did: the upstream has it
// in its senders, the standby as its receiver.
type session struct {
	up, down *instance
	sent     uint64
	inFlight bool
	flushed  uint64        // acknowledged by the standby
	reply    time.Duration // when the primary last heard of the standby
	message  time.Duration // when the standby last heard of the primary
}

// start runs the server on what is on the disk.
func (pg *postgres) start(mode pgMode) {
	pg.proc.dead = false
	pg.mode = mode
	pg.accepting = mode == pgPrimary
	pg.flushing, pg.replaying, pg.retrying = false, false, false
	pg.senders, pg.receiver, pg.waiting = nil, nil, nil
	pg.written = pg.flushed
	pg.replayed, pg.acked = pg.flushed.end(), 0
	pg.since = pg.flushed.end()
	pg.newest = max(pg.newest, pg.flushed.tli())
	if mode == pgStandby {
		pg.reconnect()
	}
	pg.w.dirty = true
}

// crash ends the server. Records that were written but not flushed may be found again by recovery.
func (pg *postgres) crash(power bool) {
	if pg.mode == pgDown {
		return
	}
	if pg.written.end() > pg.flushed.end() {
		lo, hi := pg.flushed.end(), pg.written.end()
		keep := lo + pg.w.s.rng.Uint64N(hi-lo+1)
		if !power && pg.w.s.chance(0.5) {
			keep = hi // the page cache survives
		}
		pg.flushed = pg.written.at(keep)
		pg.written = pg.flushed
	}
	pg.w.s.kill(pg.proc)
	pg.mode, pg.accepting = pgDown, false
	pg.waiting = nil
	for _, s := range slices.Clone(pg.senders) {
		pg.w.close(s, pg.i)
	}
	if pg.receiver != nil {
		pg.w.close(pg.receiver, pg.i)
	}
	pg.senders, pg.receiver = nil, nil
	pg.w.dirty = true
}

// insert writes a record on a primary and has it flushed.
func (pg *postgres) insert(tl *timeline) *record {
	pg.w.nextID++
	pg.written = extend(pg.written, tl, pg.w.nextID)
	pg.flush()
	return pg.written
}

// flush makes what is written durable, after a while. One flush serves all that was written before it began.
func (pg *postgres) flush() {
	if pg.flushing || pg.written == pg.flushed {
		return
	}
	pg.flushing = true
	upTo := pg.written
	pg.i.sync(pg.proc, func() {
		pg.flushing = false
		pg.flushed = upTo
		if pg.mode == pgPrimary {
			pg.release()
		} else {
			pg.acknowledge()
			pg.replay()
		}
		for _, s := range pg.senders {
			pg.stream(s)
		}
		pg.flush()
	})
}

func (pg *postgres) replay() {
	if pg.replaying || pg.replayed >= pg.flushed.end() {
		return
	}
	pg.replaying = true
	upTo := pg.flushed.end()
	d := pg.w.s.uniform(0, 3*time.Millisecond)
	if pg.w.s.chance(0.002) {
		d = pg.w.s.uniform(0, time.Second) // a query on the standby is in the way
	}
	pg.w.s.after(d, pg.proc, func() {
		pg.replaying = false
		pg.replayed = max(pg.replayed, upTo)
		pg.replay()
	})
}

// release acknowledges waiting commits that enough standbys have flushed, by the rule that is loaded.
func (pg *postgres) release() {
	upTo := pg.flushed.end()
	var counted []*session
	if k := pg.loaded.Acks; k > 0 {
		var heard []uint64
		for _, s := range pg.senders {
			if pg.loaded.Has(s.down.name) || pg.w.v.CountLearners {
				counted, heard = append(counted, s), append(heard, s.flushed)
			}
		}
		if len(heard) < k {
			return
		}
		slices.Sort(heard)
		upTo = min(upTo, heard[len(heard)-k])
	}
	n := 0
	for _, c := range pg.waiting {
		if c.rec.lsn > upTo {
			break
		}
		n++
		pg.w.acknowledged(pg.i, c.rec)
		pg.w.witnessed(pg.i, c.rec, counted)
	}
	pg.waiting = pg.waiting[n:]
	pg.acked = max(pg.acked, upTo)
}

// reconnect is the WAL receiver's own persistence.
func (pg *postgres) reconnect() {
	if pg.retrying || pg.mode != pgStandby || pg.upstream == "" || pg.receiver != nil {
		return
	}
	pg.retrying = true
	pg.w.s.after(pg.w.s.uniform(time.Millisecond, 20*time.Millisecond), pg.proc, func() {
		up := pg.w.byName[pg.upstream]
		if up != nil && pg.mode == pgStandby && pg.receiver == nil {
			target := pg.upstream
			pg.w.deliver(pg.i, up, up.pg.proc, func() { up.pg.accept(pg.i, target) }, nil)
		}
		pg.w.s.after(100*time.Millisecond, pg.proc, func() { pg.retrying = false; pg.reconnect() })
	})
}

// accept is the server's side of START_REPLICATION.
func (pg *postgres) accept(down *instance, target string) {
	if pg.mode == pgDown || !pg.accepting && pg.mode == pgPrimary {
		return
	}
	d, epoch := down.pg, pg.proc.epoch
	pg.w.deliver(pg.i, down, d.proc, func() {
		if d.mode != pgStandby || d.receiver != nil || d.upstream != target || pg.proc.epoch != epoch {
			return
		}
		if !fits(d.written, pg.flushed) {
			return // the log says why, over and over
		}
		d.newest = max(d.newest, pg.newest)
		s := &session{up: pg.i, down: down, sent: d.written.end(), flushed: d.flushed.end(), reply: pg.w.s.now, message: pg.w.s.now}
		d.receiver = s
		pg.senders = slices.DeleteFunc(pg.senders, func(o *session) bool { return o.down == down })
		pg.w.trace("%s streams from %s at %d (timeline %d)", down.name, pg.i.name, d.written.end(), d.written.tli())
		pg.senders = append(pg.senders, s)
		pg.w.dirty = true
		pg.stream(s)
		pg.keepalive(s)
	}, nil)
}

func (pg *postgres) sends(s *session) bool { return slices.Contains(pg.senders, s) }

// stream sends what the standby does not have. One message is on its way at a time; a lost one is sent again, as TCP does.
func (pg *postgres) stream(s *session) {
	if s.inFlight || s.sent >= pg.flushed.end() || !pg.sends(s) {
		return
	}
	s.inFlight = true
	tip, lsn := pg.flushed, pg.flushed.end()
	pg.w.deliver(s.up, s.down, s.down.pg.proc, func() {
		s.inFlight = false
		d := s.down.pg
		if d.receiver != s {
			return
		}
		s.message = pg.w.s.now
		if d.written.end() < lsn {
			d.newest = max(d.newest, tip.tli())
			d.written = appendFrom(d.written, tip, lsn)
			d.flush()
			s.down.agent.learnSoon()
		}
		s.sent = max(s.sent, lsn)
		pg.stream(s)
	}, func() {
		s.inFlight = false
		if pg.sends(s) {
			pg.w.s.after(retransmit, pg.proc, func() { pg.stream(s) })
		}
	})
}

// walTimeout is wal_sender_timeout and wal_receiver_timeout; retransmit is TCP's.
const (
	walTimeout = 5 * time.Second
	retransmit = 200 * time.Millisecond
)

// keepalive keeps both ends informed, and ends a connection that has gone quiet.
func (pg *postgres) keepalive(s *session) {
	if !pg.sends(s) {
		return
	}
	if pg.w.s.now-s.reply > walTimeout {
		pg.w.close(s, s.up)
		return
	}
	d := s.down.pg
	pg.w.deliver(s.up, s.down, d.proc, func() {
		if d.receiver == s {
			s.message = pg.w.s.now
			d.acknowledge()
		}
	}, nil)
	pg.w.s.after(500*time.Millisecond, pg.proc, func() { pg.keepalive(s) })
}

// acknowledge tells the upstream how far this standby has flushed.
func (pg *postgres) acknowledge() {
	s := pg.receiver
	if s == nil || pg.mode != pgStandby {
		return
	}
	lsn, up := pg.flushed.end(), s.up.pg
	pg.w.deliver(pg.i, s.up, up.proc, func() {
		if !up.sends(s) {
			return
		}
		s.reply = pg.w.s.now
		s.flushed = max(s.flushed, lsn)
		if up.mode == pgPrimary {
			up.release()
		}
	}, nil)
}

// receiverTimeout drops a connection on which nothing has come for too long, and reports to the primary otherwise. It runs on
// the agent's tick, like wal_receiver_status_interval.
func (pg *postgres) receiverTimeout() {
	if !pg.proc.frozen {
		pg.acknowledge()
	}
	if s := pg.receiver; s != nil && pg.w.s.now-s.message > walTimeout {
		pg.w.close(s, pg.i)
	}
}

// stopReceiver ends streaming for good; what was received is flushed first.
func (pg *postgres) stopReceiver() {
	pg.upstream = ""
	if s := pg.receiver; s != nil {
		pg.w.close(s, pg.i)
	}
	pg.w.dirty = true
}

// configure loads a cohort. In PostgreSQL every walsender has to have read it; that is the agent's business and taken
// as done here.
func (pg *postgres) configure(c quorum.Cohort) {
	pg.loaded, pg.since = c, pg.written.end()
	pg.w.dirty = true
	pg.release()
}

// promote leaves recovery on a new timeline, one above all it has heard of.
func (pg *postgres) promote(term uint64, cohort quorum.Cohort) uint32 {
	tl := &timeline{id: pg.newest + 1, term: term, start: pg.flushed.end() + 1}
	if pg.flushed != nil {
		tl.parent = pg.flushed.tl
	}
	pg.newest = tl.id
	if pg.receiver != nil {
		pg.w.close(pg.receiver, pg.i)
	}
	pg.mode, pg.accepting, pg.upstream = pgPrimary, true, ""
	pg.written = pg.flushed
	pg.flushing, pg.replaying = false, false
	pg.configure(cohort)
	pg.since = 0
	pg.w.promoted(pg.i, tl)
	pg.insert(tl) // the end-of-recovery record
	return tl.id
}

// write is one client's commit on a primary; it waits until it is acknowledged or the server goes down.
func (pg *postgres) write() *commit {
	if pg.mode != pgPrimary || !pg.accepting || pg.proc.frozen {
		return nil
	}
	c := &commit{rec: pg.insert(pg.written.tl), since: pg.w.s.now}
	pg.waiting = append(pg.waiting, c)
	return c
}
