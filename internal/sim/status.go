package sim

import (
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

// report is one status of an agent as pushed to the operators.
type report struct {
	verdict.Instance
	status    reparent.Status
	use       *quorum.InUse
	flushed   uint64
	timelines []reparent.Timeline
}

func (a *agent) status() reparent.Status {
	pg := a.i.pg
	st := reparent.Status{
		Role: reparent.RoleStopped, Term: a.mem.term, Diverged: a.useless(), Position: a.position(), Replayed: pg.replayed,
	}
	switch {
	case a.mem.broken || a.i.seeding:
		st.Role = reparent.RoleOther
	case pg.mode == pgPrimary:
		st.Role, st.Established = reparent.RolePrimary, a.established == a.mem.term && a.mem.primary
	case pg.mode == pgStandby:
		st.Role = reparent.RoleStandby
		if pg.receiver != nil {
			st.Source = pg.receiver.up.name
		}
	}
	return st
}

// report takes a status with everything the verdict wants to know.
func (a *agent) report() report {
	pg, i, now := a.i.pg, a.i, a.w.s.now
	st := a.status()
	r := report{status: st, flushed: pg.flushed.end(), timelines: a.timelines(), use: cohortOf(a)}
	r.Instance = verdict.Instance{
		Name: i.name, Heard: true, Term: st.Term, Established: st.Established, Draining: a.draining, Fenced: a.fenced, Exited: a.exited,
		Diverged: a.useless(), Position: st.Position, Role: map[reparent.Role]verdict.Role{
			reparent.RoleOther: verdict.RoleSeeding, reparent.RolePrimary: verdict.RolePrimary, reparent.RoleStandby: verdict.RoleStandby, reparent.RoleStopped: verdict.RoleStopped,
		}[st.Role],
	}
	if s := pg.receiver; s != nil {
		r.Receiver = verdict.Receiver{Streaming: true, Source: s.up.name, MessageAge: now - s.message}
	}
	if pg.mode == pgPrimary {
		r.Peers = map[string]verdict.Peer{}
		for _, s := range pg.senders {
			r.Peers[s.down.name] = verdict.Peer{Streaming: true, ReplyAge: now - s.reply}
		}
		if len(pg.waiting) > 0 {
			r.CommitProbe.Pending = now - pg.waiting[0].since
		}
	}
	if pg.proc.frozen {
		r.ConnectProbe.Pending = now - i.pgFrozenAt
		r.WriteProbe.Pending = r.ConnectProbe.Pending
	}
	if i.stalled {
		r.DiskProbe.Pending = now - i.stalledAt
	}
	return r
}

// changed pushes a status soon; heartbeat pushes one now. Operators answer, so that the agent knows it is heard.
func (a *agent) changed() {
	a.w.s.after(time.Millisecond, a.proc, a.heartbeat)
}

func (a *agent) heartbeat() {
	r := a.report()
	for _, o := range a.w.operators {
		a.w.send(a.i.machine, o.machine, o.proc, func() {
			o.hear(a.i, r)
			a.w.send(o.machine, a.i.machine, a.proc, func() { a.operatorHeard = a.w.s.clock(a.proc) }, nil)
		}, nil)
	}
	// The agent's own commit probe.
	if pg := a.i.pg; pg.mode == pgPrimary && len(pg.waiting) == 0 && a.mem.primary {
		pg.write()
	}
}
