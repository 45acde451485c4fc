package sim

import (
	"context"
	"strconv"
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// api is the API server: one linearizable record, the journals, the list of instances. It can be slow, out of reach or hang.
type api struct {
	w       *world
	machine *machine
	proc    *proc
	record  quorum.Record
	version int
	journal []journal
	list    []*instance
}

// journal is a Reparent object.
type journal struct {
	term    uint64
	kind    reparent.Kind
	holder  string
	phase   reparent.PhaseName
	writes  int // changes so far: how observers notice that it moves
	outcome reparent.Outcome
}

// snapshot is what a watch delivers.
type snapshot struct {
	record  quorum.Record
	version int
	last    journal // of the highest term
	failed  int     // how many of the newest journals in a row ended without a primary
	list    []*instance
}

func (a *api) snapshot() snapshot {
	s := snapshot{record: a.record.Clone(), version: a.version, list: append([]*instance(nil), a.list...)}
	if n := len(a.journal); n > 0 {
		s.last = a.journal[n-1]
		for n--; n >= 0 && (a.journal[n].outcome == reparent.Failed || a.journal[n].outcome == reparent.Overtaken); n-- {
			s.failed++
		}
	}
	return s
}

// changed tells every operator.
func (a *api) changed() {
	s := a.snapshot()
	for _, o := range a.w.operators {
		a.w.send(a.machine, o.machine, o.proc, func() { o.learn(s) }, nil)
	}
}

func (a *api) store(at int, r quorum.Record) error {
	if at != a.version {
		return reparent.ErrConflict
	}
	a.w.recorded(a.record, r)
	a.record = r.Clone()
	a.version++
	a.changed()
	return nil
}

// retire marks an instance for deletion, which destroys its data soon after. It is a write of the record: refused when the
// record names the instance, and a change of the cohort that was decided without knowing of it finds another version.
// Deleting first and looking later would lose witnesses.
func (a *api) retire(i *instance) error {
	next, err := quorum.Retire(a.record, i.name)
	switch {
	case i.deleted:
		return reparent.ErrConflict
	case err == nil && !a.w.v.RetireUnrecorded:
		a.record = next
	case err != nil && !a.w.v.RetireBlindly:
		return err
	}
	i.deleted, i.retiring = true, true
	a.w.event(eventRetire, i)
	a.version++
	a.changed()
	a.w.s.after(a.w.s.uniform(time.Millisecond, 100*time.Millisecond), nil, func() { a.w.retired(i) })
	return nil
}

// box receives one answer.
type box struct {
	done  bool
	value any
	err   error
}

// ask runs serve at the API server for the current task of p on machine m, and returns its answer. It does not return
// while the server is out of reach.
func (w *world) ask(m *machine, p *proc, serve func() (any, error)) (any, error) {
	t, b := w.s.cur, &box{}
	w.send(m, w.api.machine, w.api.proc, func() {
		w.s.after(w.s.uniform(time.Millisecond, 15*time.Millisecond), w.api.proc, func() {
			v, err := serve()
			w.send(w.api.machine, m, p, func() { w.answer(t, b, v, err) }, nil)
		})
	}, nil)
	for !b.done {
		w.s.park()
	}
	return b.value, b.err
}

func (w *world) answer(t *task, b *box, v any, err error) {
	if b.done {
		return
	}
	b.done, b.value, b.err = true, v, err
	if !t.done {
		w.s.wake(t, 0)
	}
}

// call runs serve in a task of an instance's agent for the current task of p. It does not return while the agent is out
// of reach; a dead process on a living machine answers with an error. Now and then a call is carried out late, or twice.
func (w *world) call(m *machine, p *proc, target *instance, serve func() (any, error)) (any, error) {
	t, b := w.s.cur, &box{}
	if target == nil {
		return nil, errUnreachable
	}
	send := func() {
		agent := target.agent.proc
		w.send(m, target.machine, agent, func() {
			w.s.spawn(agent, func() {
				v, err := serve()
				w.send(target.machine, m, p, func() { w.answer(t, b, v, err) }, nil)
			})
		}, func() {
			if target.machineUp && !w.link(m, target.machine).cut {
				w.answer(t, b, nil, errUnreachable)
			}
		})
	}
	delay := time.Duration(0)
	if w.s.chance(w.late) {
		delay = w.s.uniform(0, 10*time.Second)
	}
	w.s.after(delay, nil, send)
	if w.s.chance(w.late) {
		w.s.after(w.s.uniform(0, 10*time.Second), nil, send)
	}
	for !b.done {
		w.s.park()
	}
	return b.value, b.err
}

// ports implements the ports of package reparent for one operator.
type ports struct{ o *operator }

func (p ports) Load(context.Context) (quorum.Record, reparent.Version, error) {
	v, err := p.o.w.ask(p.o.machine, p.o.proc, func() (any, error) { return p.o.w.api.snapshot(), nil })
	if err != nil {
		return quorum.Record{}, "", err
	}
	s := v.(snapshot)
	return s.record, reparent.Version(strconv.Itoa(s.version)), nil
}

func (p ports) Store(_ context.Context, at reparent.Version, r quorum.Record) (reparent.Version, error) {
	n, _ := strconv.Atoi(string(at))
	_, err := p.o.w.ask(p.o.machine, p.o.proc, func() (any, error) { return nil, p.o.w.api.store(n, r) })
	return reparent.Version(strconv.Itoa(n + 1)), err
}

func (p ports) Open(_ context.Context, o reparent.Opening) error {
	w, holder := p.o.w, p.o.name
	_, err := w.ask(p.o.machine, p.o.proc, func() (any, error) {
		for _, j := range w.api.journal {
			if j.term >= o.Term {
				return nil, reparent.ErrTermTaken
			}
		}
		w.api.journal = append(w.api.journal, journal{term: o.Term, kind: o.Kind, holder: holder, phase: reparent.PhaseCheck})
		w.api.changed()
		return nil, nil
	})
	return err
}

// note changes a journal at the API server, without waiting.
func (p ports) note(term uint64, change func(j *journal)) {
	w := p.o.w
	w.send(p.o.machine, w.api.machine, w.api.proc, func() {
		for i := range w.api.journal {
			if j := &w.api.journal[i]; j.term == term {
				change(j)
				j.writes++
				w.api.changed()
			}
		}
	}, nil)
}

func (p ports) Phase(ph reparent.Phase) {
	if ph.Finished.IsZero() {
		p.note(ph.Term, func(j *journal) { j.phase = ph.Name })
	}
}

func (p ports) Close(_ context.Context, r reparent.Result) error {
	p.o.w.count("reparent " + string(r.Outcome))
	p.o.w.trace("%s: reparent to term %d of %s: %s %s %s", p.o.name, r.Term, r.OldPrimary, r.Outcome, r.NewPrimary, r.Message)
	p.note(r.Term, func(j *journal) { j.outcome = r.Outcome })
	return nil
}

func (p ports) agent(name string, serve func(a *agent) (any, error)) (any, error) {
	i := p.o.w.byName[name]
	return p.o.w.call(p.o.machine, p.o.proc, i, func() (any, error) {
		i.agent.operatorHeard = p.o.w.s.clock(i.agent.proc)
		return serve(i.agent)
	})
}

func (p ports) Status(_ context.Context, name string) (reparent.Status, error) {
	v, err := p.agent(name, func(a *agent) (any, error) {
		if a.i.pg.proc.frozen {
			return nil, errUnreachable
		}
		return a.status(), nil
	})
	if err != nil {
		return reparent.Status{}, err
	}
	return v.(reparent.Status), nil
}

func (p ports) Promise(_ context.Context, name string, term uint64, after time.Duration) (quorum.Promise, error) {
	if p.o.w.v.SkipRevoke {
		return p.forged(name, term)
	}
	v, err := p.agent(name, func(a *agent) (any, error) { return a.promise(term, after) })
	if err != nil {
		p.o.w.trace("%s: %s does not promise term %d: %v", p.o.name, name, term, err)
		return quorum.Promise{}, err
	}
	p.o.w.trace("%s: %s promises term %d at %v", p.o.name, name, term, v.(quorum.Promise).Position)
	return v.(quorum.Promise), nil
}

// forged is the broken variant that takes silence for a promise.
func (p ports) forged(name string, term uint64) (quorum.Promise, error) {
	i := p.o.w.byName[name]
	if i == nil || !i.up || i.agent.proc.frozen || p.o.w.link(p.o.machine, i.machine).cut {
		return quorum.Promise{Instance: name, Term: term, Position: quorum.Position{WALTerm: 1, LSN: 1}}, nil
	}
	v, err := p.agent(name, func(a *agent) (any, error) { return a.promise(term, 0) })
	if err != nil {
		return quorum.Promise{Instance: name, Term: term, Position: quorum.Position{WALTerm: 1, LSN: 1}}, nil
	}
	return v.(quorum.Promise), nil
}

func (p ports) Demote(_ context.Context, name string, term uint64, candidate string, timeout time.Duration) (quorum.Promise, error) {
	v, err := p.agent(name, func(a *agent) (any, error) { return a.demote(term, candidate, timeout) })
	if err != nil {
		return quorum.Promise{}, err
	}
	return v.(quorum.Promise), nil
}

func (p ports) Promote(_ context.Context, name string, c quorum.Cohort) ([]reparent.Timeline, error) {
	v, err := p.agent(name, func(a *agent) (any, error) { return a.promote(c) })
	if err != nil {
		return nil, err
	}
	return v.([]reparent.Timeline), nil
}

func (p ports) Establish(_ context.Context, name string, term uint64, _ reparent.Kind, _ string) error {
	_, err := p.agent(name, func(a *agent) (any, error) { return a.establish(term) })
	return err
}

func (p ports) Follow(_ context.Context, name string, term uint64, primary string, timelines []reparent.Timeline) error {
	_, err := p.agent(name, func(a *agent) (any, error) {
		return a.follow(followOrder{term: term, primary: primary, timelines: timelines})
	})
	return err
}

func (p ports) Checkpoint(_ context.Context, name string, term uint64) error {
	_, err := p.agent(name, func(a *agent) (any, error) { return a.checkpoint(term) })
	return err
}

func (p ports) Await(_ context.Context, name string, term uint64, limit time.Duration) (int, time.Time, error) {
	_, err := p.agent(name, func(a *agent) (any, error) { return a.await(term, limit) })
	return 0, time.Time{}, err
}

func (p ports) Drain(_ context.Context, name string, term uint64, _ time.Duration, _ time.Time) (int, error) {
	_, err := p.agent(name, func(a *agent) (any, error) { return a.drain(term) })
	return 0, err
}

func (p ports) Undrain(_ context.Context, name string, term uint64) error {
	_, err := p.agent(name, func(a *agent) (any, error) { return a.undrain(term) })
	return err
}

// Runtime of package reparent, on the operator's own clock.

func (p ports) Now() time.Time {
	return time.Unix(0, 0).Add(p.o.w.s.clock(p.o.proc))
}

func (p ports) Sleep(_ context.Context, d time.Duration) error {
	p.o.w.s.sleep(p.o.w.real(p.o.proc, d))
	return nil
}

func (p ports) Each(ctx context.Context, timeout time.Duration, n int, call func(ctx context.Context, i int) any, take func(i int, result any) time.Duration) {
	s, parent := p.o.w.s, p.o.w.s.cur
	type answer struct {
		i      int
		result any
	}
	var answers []answer
	var kids []*task
	for i := range n {
		kids = append(kids, s.spawn(p.o.proc, func() {
			answers = append(answers, answer{i, call(ctx, i)})
			s.wake(parent, 0)
		}))
	}
	defer func() {
		for _, k := range kids {
			s.end(k)
		}
	}()
	end := s.clock(p.o.proc) + timeout
	for got := 0; got < n; {
		now := s.clock(p.o.proc)
		if len(answers) > 0 && now < end {
			a := answers[0]
			answers = answers[1:]
			got++
			if left := take(a.i, a.result); left != reparent.All {
				end = min(end, s.clock(p.o.proc)+left)
			}
			continue
		}
		if now >= end {
			return
		}
		s.wakeNext(parent, p.o.w.real(p.o.proc, end-now)+1)
		s.park()
	}
}
