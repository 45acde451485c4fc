package sim

import (
	"context"
	"slices"
	"time"

	"theseus.dev/theseus/internal/cohort"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

// operator is one replica of the operator: what it has heard, and the real verdict, keeper and coordinator at work on it.
// Every replica runs emergencies; whoever thinks to be the leader runs the rest, and two may think so.
type operator struct {
	w       *world
	name    string
	machine *machine
	proc    *proc
	leader  bool

	api           snapshot
	heard         []*heard // by instance id
	watching      time.Duration
	movedAt       time.Duration // when the journal last moved, by this observer's clock
	establishedAt time.Duration // when the record last got another established term, likewise
	reparents     bool          // a reparent of ours is under way
	keeping       bool
	told          []time.Duration // when an instance was last told to follow
	last          verdict.Judgement
	seededAt      time.Duration
}

type heard struct {
	report
	at           time.Duration
	streaming    time.Duration // when the primary last listed it
	disconnected bool
	advanced     time.Duration // when its position last moved
}

func (o *operator) now() time.Duration { return o.w.s.clock(o.proc) }

// boot starts a replica that knows nothing.
func (o *operator) boot() {
	o.proc.dead = false
	o.api, o.heard, o.told = o.w.api.snapshot(), nil, nil
	o.reparents, o.keeping = false, false
	o.watching, o.movedAt, o.establishedAt = o.now(), o.now(), o.now()
	o.tick()
}

func (o *operator) learn(s snapshot) {
	if s.version < o.api.version {
		return
	}
	if s.last.term != o.api.last.term || s.last.writes != o.api.last.writes {
		o.movedAt = o.now()
	}
	if s.record.Established != o.api.record.Established {
		o.establishedAt = o.now()
	}
	o.api = s
}

func (o *operator) of(i *instance) *heard {
	for len(o.heard) <= i.id {
		o.heard = append(o.heard, nil)
		o.told = append(o.told, 0)
	}
	if o.heard[i.id] == nil {
		o.heard[i.id] = &heard{at: o.now(), streaming: o.now(), advanced: o.now()}
	}
	return o.heard[i.id]
}

func (o *operator) hear(i *instance, r report) {
	h := o.of(i)
	before := h.Role
	if r.Position != h.Position {
		h.advanced = o.now()
	}
	h.report, h.at, h.disconnected = r, o.now(), false
	for name, peer := range r.Peers {
		if d := o.w.byName[name]; d != nil && peer.ReplyAge < time.Second {
			o.of(d).streaming = o.now()
		}
	}
	if before != r.Role {
		o.consider()
	}
}

// tick looks at the shard four times a second.
func (o *operator) tick() {
	if o.w.s.chance(0.1) {
		m := o.machine
		o.w.send(m, o.w.api.machine, o.w.api.proc, func() {
			s := o.w.api.snapshot()
			o.w.send(o.w.api.machine, m, o.proc, func() { o.learn(s) }, nil)
		}, nil)
	}
	o.consider()
	o.w.s.after(o.w.real(o.proc, 250*time.Millisecond), o.proc, o.tick)
}

// observed is the shard in the words of package verdict.
func (o *operator) observed() verdict.Observed {
	obs := verdict.Observed{Record: o.api.record, EstablishedFor: o.now() - o.establishedAt}
	for _, i := range o.api.list {
		h := o.of(i)
		v := h.Instance
		v.Name, v.Age, v.Disconnected, v.Leaving = i.name, o.now()-h.at, h.disconnected, i.leaving
		v.PodGone = i.deleted
		v.Receiver.AdvanceAge = o.now() - h.advanced
		obs.Instances = append(obs.Instances, v)
	}
	if j := o.api.last; j.term > 0 && (j.outcome == "" || o.api.failed > 0) {
		obs.Reparent = &verdict.InFlight{Term: j.term, Phase: string(j.phase), Planned: j.kind == reparent.Planned, PhaseAge: o.now() - o.movedAt, PhaseLimit: reparent.Limits{}.Phase(j.phase), Failures: o.api.failed}
	}
	return obs
}

func (o *operator) consider() {
	j := verdict.Judge(o.observed(), verdict.DefaultParams())
	if j.Verdict != o.last.Verdict {
		o.w.count("verdict " + string(j.Verdict))
	}
	o.last = j
	switch {
	case j.Action == verdict.ERS:
		o.reparent(reparent.Request{Kind: reparent.Emergency, ExpectPrimary: o.api.record.Primary(), AwayFrom: o.api.record.Primary()})
	case j.Action == verdict.Replace && o.leader:
		o.w.byName[j.Subject].leaving = true
		if o.w.byName[j.Subject] != o.w.byName[o.api.record.Primary()] {
			o.w.byName[j.Subject].condemned = true
		}
	case j.Action == verdict.PRS && o.leader:
		o.reparent(reparent.Request{Kind: reparent.Planned, AwayFrom: j.Subject})
	}
	if o.leader {
		o.keep()
		o.repoint()
		o.replace()
	}
}

// reparent runs one in a task, unless one is running.
func (o *operator) reparent(req reparent.Request) {
	if o.reparents {
		return
	}
	o.reparents = true
	req.CatchUp = o.w.conf.Seed/2%2 == 0 // the operator does not ask for it; the rules must hold with it too
	req.Coordinator, req.Spent, req.Size, req.Reason = o.name, o.api.last.term, o.w.conf.Instances-1, "Sim"
	for _, i := range o.api.list {
		h := o.of(i)
		in := reparent.Instance{
			Name: i.name, Zone: i.zone, Reachable: h.Heard && o.now()-h.at < verdict.DefaultParams().SilentAfter, Term: h.Term,
			Leaving: i.leaving, Diverged: h.Diverged, Current: true, TimeLeft: time.Duration(i.id) * 24 * time.Hour, ReplayLag: h.flushed - min(h.flushed, h.status.Replayed),
		}
		if i.deleted {
			in.Unfit = "deleted"
		}
		req.Instances = append(req.Instances, in)
	}
	o.w.s.spawn(o.proc, func() {
		defer func() { o.reparents = false }()
		p := ports{o}
		reparent.Coordinator{Records: p, Agents: p, Journal: p, Runtime: p}.Run(context.Background(), req)
	})
}

// keep runs the keeper of the cohort, one step at a time.
func (o *operator) keep() {
	latest, ok := o.api.record.Latest()
	if o.keeping || !ok {
		return
	}
	obs := cohort.Observed{Record: o.api.record}
	p := o.w.byName[latest.Primary]
	if p == nil {
		return
	}
	h := o.of(p)
	if h.Heard && o.now()-h.at < verdict.DefaultParams().SilentAfter && h.use != nil {
		use := *h.use
		if o.w.v.NoWitness {
			use.Since = 0
		}
		obs.Use, obs.Established = &use, h.Established
	}
	for _, i := range o.api.list {
		if i == p {
			continue
		}
		st := cohort.Standby{Name: i.name, Term: o.of(i).Term, Leaving: i.leaving, GoneFor: o.now() - o.of(i).streaming}
		if peer, ok := h.Peers[i.name]; ok && obs.Use != nil && peer.ReplyAge < 1500*time.Millisecond {
			st.Streaming, st.Lag = true, h.flushed-min(h.flushed, obs.Use.Flushed[i.name])
		}
		if i.deleted || i.condemned || o.of(i).Diverged {
			st.Unfit = "unfit"
		}
		obs.Standbys = append(obs.Standbys, st)
	}
	params := cohort.DefaultParams(o.w.conf.Instances)
	params.MaxLag = 50
	if step := cohort.Next(obs, params); step.Kind != cohort.Nothing {
		o.carryOut(step, p)
	}
}

func (o *operator) carryOut(step cohort.Step, p *instance) {
	o.keeping = true
	at := o.api.version
	o.w.s.after(o.w.real(o.proc, 3*time.Second), o.proc, func() { o.keeping = false }) // an unanswered step is given up
	o.w.s.spawn(o.proc, func() {
		if step.Kind == cohort.Apply {
			_, _ = ports{o}.agent(p.name, func(a *agent) (any, error) { return a.configure(step.Cohort) })
			o.keeping = false
			return
		}
		r := step.Record
		if latest, _ := r.Latest(); o.w.v.SinglePhase {
			r.Cohorts = []quorum.Cohort{latest}
		}
		if latest, _ := r.Latest(); o.w.v.ApplyFirst && len(r.Cohorts) > 1 {
			_, _ = ports{o}.agent(p.name, func(a *agent) (any, error) { return a.configure(latest) })
		}
		_, err := o.w.ask(o.machine, o.proc, func() (any, error) { return nil, o.w.api.store(at, r) })
		if err == nil {
			o.w.count("cohort change")
		}
		o.keeping = false
	})
}

// repoint has everybody follow the established primary. Diverged instances may be rewound now: nothing of theirs is
// needed any more.
func (o *operator) repoint() {
	rec := o.api.record
	p := o.w.byName[rec.Primary()]
	if p == nil || !rec.InTerm() {
		return
	}
	h := o.of(p)
	if !h.Established || h.Term != rec.Established || o.now()-h.at > time.Second {
		return
	}
	for _, i := range o.api.list {
		ih := o.of(i)
		if i == p || !ih.Heard || o.now()-ih.at > time.Second || ih.Diverged || ih.Role == verdict.RoleSeeding {
			continue
		}
		if (ih.status.Source == p.name && ih.Term == h.Term) || ih.Term > h.Term || o.now()-o.told[i.id] < 2*time.Second {
			continue
		}
		o.told[i.id] = o.now()
		order := followOrder{term: h.Term, primary: p.name, timelines: h.timelines, rewind: true}
		o.w.s.spawn(o.proc, func() {
			_, _ = ports{o}.agent(i.name, func(a *agent) (any, error) { return a.follow(order) })
		})
	}
}

// replace retires instances that are of no use, once the record does not name them, and seeds new ones.
func (o *operator) replace() {
	rec := o.api.record
	named := rec.Names()
	if o.w.v.RetireBlindly {
		named = nil
	}
	var living []*instance
	for _, i := range o.api.list {
		h := o.of(i)
		silent := o.now()-h.at > 10*time.Second
		bad := i.deleted || h.Diverged || silent || i.condemned || i.leaving && o.covered(i)
		if bad && !slices.Contains(named, i.name) && rec.InTerm() {
			o.w.trace("%s retires %s: diverged %v, silent %v, condemned %v, leaving %v", o.name, i.name, h.Diverged, silent, i.condemned, i.leaving)
			o.w.s.spawn(o.proc, func() {
				_, _ = o.w.ask(o.machine, o.proc, func() (any, error) { return nil, o.w.api.retire(i) })
			})
			continue
		}
		if !i.leaving && !bad {
			living = append(living, i)
		}
	}
	p := o.w.byName[rec.Primary()]
	if len(living) < o.w.conf.Instances && p != nil && len(o.api.list) < 3*o.w.conf.Instances {
		switch h := o.of(p); {
		case h.Established && o.now()-h.at < time.Second:
			o.w.seed(p)
		case o.now()-o.seededAt > 10*time.Second:
			// No primary, and perhaps none possible until somebody can follow it: copy whoever has most.
			if src := o.furthest(); src != nil {
				o.seededAt = o.now()
				o.w.seed(src)
			}
		}
	}
	if p != nil && p.leaving && rec.Settled() && !o.reparents && o.w.s.chance(0.2) {
		o.reparent(reparent.Request{Kind: reparent.Planned, AwayFrom: p.name})
	}
}

// furthest is the instance whose log is the highest of those heard, if it runs so that it can be copied.
func (o *operator) furthest() *instance {
	var best *instance
	for _, i := range o.api.list {
		if h := o.of(i); h.Role != verdict.RoleSeeding && o.now()-h.at < time.Second && (best == nil || h.Position.Compare(o.of(best).Position) > 0) {
			best = i
		}
	}
	if best == nil || o.of(best).Role != verdict.RoleStandby && o.of(best).Role != verdict.RolePrimary {
		return nil
	}
	return best
}

// covered reports whether there are instances enough without the one that leaves.
func (o *operator) covered(leaving *instance) bool {
	n := 0
	for _, i := range o.api.list {
		h := o.of(i)
		if i != leaving && !i.leaving && (h.Role == verdict.RoleStandby || h.Role == verdict.RolePrimary) && o.now()-h.at < time.Second {
			n++
		}
	}
	return n >= o.w.conf.Instances
}
