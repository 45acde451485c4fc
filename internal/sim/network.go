package sim

import (
	"slices"
	"time"
)

// Every message between two machines takes a delay, longer when TCP has to send it again, and is lost when the way is cut.
// What its sender does about that (the failed callback) is up to the caller. Messages to a process are dropped when it dies
// and wait while it is frozen, like data in a socket's buffer.

type link struct {
	cut   bool
	loss  float64
	delay time.Duration // on top of the usual
}

// machine is an end of links: an instance's node, an operator's, the API server's.
type machine struct {
	id   int
	name string
}

func (w *world) link(from, to *machine) *link { return &w.links[from.id*len(w.machines)+to.id] }

// deliver sends fn from one instance's PostgreSQL or agent to a process on another.
func (w *world) deliver(from, to *instance, target *proc, fn, failed func()) {
	w.send(from.machine, to.machine, target, fn, failed)
}

// send is one message. failed runs at the sender's side when the message did not arrive; it may be nil.
func (w *world) send(from, to *machine, target *proc, fn, failed func()) {
	l := w.link(from, to)
	d := w.s.uniform(50*time.Microsecond, 400*time.Microsecond) + l.delay
	if w.s.chance(0.01) {
		d += w.s.uniform(0, 30*time.Millisecond)
	}
	for w.s.chance(l.loss) {
		d += retransmit
	}
	epoch := target.epoch
	if l.cut {
		if failed != nil {
			w.s.after(d, nil, failed)
		}
		return
	}
	w.s.after(d, nil, func() {
		switch {
		case w.link(from, to).cut || target.epoch != epoch || target.dead:
			if failed != nil {
				failed()
			}
		case target.frozen:
			target.queue = append(target.queue, event{owner: target, epoch: target.epoch, fn: fn})
		default:
			fn()
		}
	})
}

// close ends a streaming connection from one side. The other side learns of it when it can be told.
func (w *world) close(s *session, by *instance) {
	by.pg.drop(s)
	other := s.up
	if by == s.up {
		other = s.down
	}
	tell := func() { other.pg.drop(s) }
	w.send(by.machine, other.machine, other.pg.proc, tell, func() {
		// Nobody told it: it finds out when it has heard nothing for long.
		w.s.after(walTimeout, other.pg.proc, tell)
	})
}

func (pg *postgres) drop(s *session) {
	pg.w.dirty = true
	if pg.receiver == s {
		pg.receiver = nil
		pg.reconnect()
	}
	if n := slices.Index(pg.senders, s); n >= 0 {
		pg.senders = slices.Delete(pg.senders, n, n+1)
	}
}
