package sim

import (
	"fmt"
	"slices"
	"time"

	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/verdict"
)

const fenceAfter = verdict.FenceAfter

// Config of a run.
type Config struct {
	Seed uint64
	// Instances of the shard. Default 3.
	Instances int
	// Faults to inject, in order of time. Nil draws them from the seed.
	Faults []Fault
	// Plot to repeat instead of all kinds of faults; see plots. "" for all.
	Plot string
	// Variant breaks a rule.
	Variant Variant
	// Trouble is how long faults go on. Default 40 s. Quiet is how long the shard then has to recover. Default 90 s.
	Trouble, Quiet time.Duration
	// Trace receives a line for everything of note; nil for none.
	Trace func(at time.Duration, line string)
}

// Result of a run.
type Result struct {
	Seed      uint64
	Violation string // "" when nothing was violated
	At        time.Duration
	Steps     int
	Acked     int
	Faults    []Fault
	Counts    map[string]int
}

// instance is a machine with a volume, an agent and a PostgreSQL.
type instance struct {
	w       *world
	id      int
	name    string
	zone    string
	machine *machine
	agent   *agent
	pg      *postgres

	machineUp  bool
	up         bool // the agent's process runs
	lost       bool // the volume is gone for good
	deleted    bool // at the API server
	retiring   bool // its data is about to be destroyed
	leaving    bool
	condemned  bool
	seeding    bool
	stalled    bool
	stalledAt  time.Duration
	slow       time.Duration
	waiters    []func()
	pgFrozenAt time.Duration
	maxTerm    uint64 // highest term it ever answered with

	promised    uint64 // the highest term it ever promised, and its log then
	promisedLog *record
}

// world is a shard, its network, its API server and its operators.
type world struct {
	s         *sched
	conf      Config
	v         Variant
	machines  []*machine
	links     []link
	instances []*instance // everybody ever made
	byName    map[string]*instance
	operators []*operator
	api       *api
	nextID    uint64
	armed     []Fault // wait for an event
	late      float64 // share of calls that are carried out late, and of those carried out twice
	dirty     bool    // something that decides who can acknowledge has changed
	check
	counts map[string]int
}

// maxMachines bounds how many machines a run can ever have.
const maxMachines = 40

func (w *world) count(what string) { w.counts[what]++ }

func (w *world) trace(format string, args ...any) {
	if w.conf.Trace != nil {
		w.conf.Trace(w.s.now, fmt.Sprintf(format, args...))
	}
}

// real is how long d on the clock of p takes.
func (w *world) real(p *proc, d time.Duration) time.Duration {
	return time.Duration(float64(d) / p.rate)
}

func (w *world) newMachine(name string) *machine {
	m := &machine{id: len(w.machines), name: name}
	if m.id >= maxMachines {
		panic("sim: too many machines")
	}
	w.machines = append(w.machines[:m.id:maxMachines], m)
	return m
}

func (w *world) newInstance() *instance {
	id := len(w.instances)
	i := &instance{w: w, id: id, name: fmt.Sprintf("i%02d", id), zone: string(rune('a' + id%3)), machineUp: true}
	i.machine = w.newMachine(i.name)
	i.pg = &postgres{w: w, i: i, proc: newProc("pg " + i.name)}
	i.agent = &agent{w: w, i: i, proc: newProc("agent " + i.name)}
	w.instances = append(w.instances, i)
	w.byName[i.name] = i
	w.api.list = append(w.api.list, i)
	return i
}

func newWorld(conf Config) *world {
	w := &world{s: newSched(conf.Seed), conf: conf, v: conf.Variant, byName: map[string]*instance{}, counts: map[string]int{}}
	w.late = []float64{0.002, 0.01, 0.1}[conf.Seed%3]
	w.links = make([]link, maxMachines*maxMachines)
	w.machines = make([]*machine, 0, maxMachines)
	w.api = &api{w: w}
	w.api.machine, w.api.proc = w.newMachine("api"), newProc("api")
	for n := range 2 {
		o := &operator{w: w, name: fmt.Sprintf("op%d", n), leader: n == 0}
		o.machine, o.proc = w.newMachine(o.name), newProc(o.name)
		w.operators = append(w.operators, o)
	}
	w.bootstrap()
	return w
}

// bootstrap begins with a shard in order: one primary, established in term 1, and standbys that have its first records.
func (w *world) bootstrap() {
	tl := &timeline{id: 1, term: 1, start: 1}
	var first *record
	for range 3 {
		w.nextID++
		first = extend(first, tl, w.nextID)
	}
	var names []string
	for range w.conf.Instances {
		names = append(names, w.newInstance().name)
	}
	c := quorum.Cohort{Term: 1, Primary: names[0], Members: names[1:], Acks: quorum.DefaultAcks(w.conf.Instances)}
	w.api.record = quorum.Record{Established: 1, Cohorts: []quorum.Cohort{c}}
	for n, i := range w.instances {
		i.agent.established = uint64(max(0, 1-n))
		st := agentState{term: 1, timelines: map[uint32]uint64{1: 1}, follow: names[0]}
		i.pg.flushed, i.pg.written = first, first
		if n == 0 {
			st.follow, st.primary, st.cohort = "", true, c
		}
		i.agent.disk, i.agent.mem = st, st
		i.up = true
		if n == 0 {
			i.pg.start(pgPrimary)
			i.pg.configure(c)
		} else {
			i.pg.upstream = names[0]
			i.pg.start(pgStandby)
		}
		i.agent.tick()
	}
	for _, o := range w.operators {
		o.boot()
	}
}

// sync runs done for p when a write is on the device.
func (i *instance) sync(p *proc, done func()) {
	s := i.w.s
	s.after(s.uniform(200*time.Microsecond, 2*time.Millisecond)+i.slow, p, func() {
		if i.stalled {
			epoch := p.epoch
			i.waiters = append(i.waiters, func() {
				if p.epoch == epoch {
					s.after(0, p, done)
				}
			})
			return
		}
		done()
	})
}

// wait is sync for the current task.
func (i *instance) wait(p *proc) {
	t, ok := i.w.s.cur, false
	i.sync(p, func() {
		ok = true
		if !t.done {
			i.w.s.wake(t, 0)
		}
	})
	for !ok {
		i.w.s.park()
	}
}

// client writes to whoever lets it, at a random pace. Clients here are worse than real ones: they do not ask whether a
// primary is established, and they reach everybody.
func (w *world) client() {
	i := w.instances[w.s.rng.IntN(len(w.instances))]
	if i.pg.mode == pgPrimary && len(i.pg.waiting) < 50 {
		i.pg.write()
	}
	w.s.after(w.s.uniform(time.Millisecond, 20*time.Millisecond), nil, w.client)
}

// killProcess ends the agent's process and what runs under it; the container starts again after a while.
func (w *world) killProcess(i *instance, power bool, restart time.Duration) {
	w.s.kill(i.agent.proc)
	i.up = false
	i.pg.crash(power)
	i.pg.proc.frozen = false
	i.waiters = nil
	i.seeding = false
	if power {
		i.machineUp = false
	} else {
		for _, o := range w.operators {
			w.send(i.machine, o.machine, o.proc, func() { o.of(i).disconnected = true }, nil)
		}
	}
	if !power && w.s.chance(0.5) {
		i.agent.disk = i.agent.mem // the page cache survives
	}
	w.dirty = true
	if restart > 0 {
		w.s.after(restart, nil, func() { w.restart(i) })
	}
}

func (w *world) restart(i *instance) {
	if i.up || i.lost || i.deleted {
		return
	}
	i.machineUp, i.up = true, true
	i.agent.boot()
}

// destroy takes an instance away with its volume.
func (w *world) destroy(i *instance) {
	if i.lost {
		return
	}
	w.trace("%s is destroyed", i.name)
	w.killProcess(i, true, 0)
	i.lost = true
	i.pg.flushed, i.pg.written = nil, nil
	w.api.list = slices.DeleteFunc(w.api.list, func(o *instance) bool { return o == i })
	w.api.changed()
}

// seed makes a new instance from a copy of a living standby, or of the primary.
func (w *world) seed(p *instance) {
	if len(w.machines) >= maxMachines-1 {
		return
	}
	src := p
	for _, i := range w.api.list {
		if i.pg.mode == pgStandby && i.up && i.pg.receiver != nil && i.pg.receiver.up == p && !i.agent.proc.frozen {
			src = i
		}
	}
	if src.pg.mode == pgDown || src.pg.proc.frozen {
		return
	}
	i := w.newInstance()
	i.seeding, i.up = true, true
	i.agent.disk.broken, i.agent.mem.broken = true, true
	i.agent.boot()
	w.api.changed()
	w.trace("%s is seeded from %s", i.name, src.name)
	epoch := src.pg.proc.epoch
	w.s.after(w.s.uniform(500*time.Millisecond, 3*time.Second), i.agent.proc, func() {
		if src.pg.proc.epoch != epoch || src.pg.mode == pgDown || w.link(src.machine, i.machine).cut {
			i.deleted = true
			w.destroy(i)
			return
		}
		i.seeding = false
		i.pg.flushed, i.pg.written, i.pg.newest = src.pg.flushed, src.pg.flushed, src.pg.newest
		// It follows nobody until it is told, since the source may have been promoted or pointed elsewhere meanwhile.
		st := agentState{term: src.agent.mem.term, timelines: src.agent.mem.timelines}
		if src.agent.mem.intent != 0 {
			st.timelines = with(st.timelines, map[uint32]uint64{src.pg.flushed.tli(): src.agent.mem.intent})
		}
		i.agent.disk, i.agent.mem = st, st
	})
}
