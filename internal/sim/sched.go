package sim

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime/debug"
	"time"
)

// sched is the single-threaded heart of a simulation: a clock, a queue of events and the coroutines ("tasks") in which
// blocking code runs. One event runs at a time; a task runs until it parks. Everything random comes from one generator,
// so a seed determines the whole run.
type sched struct {
	now   time.Duration // since the beginning
	seq   uint64
	queue []event // a binary heap by (at, seq)
	rng   *rand.Rand
	steps int
	cur   *task
	tasks []*task // not finished, to be ended with the simulation
}

// proc is something that can die, freeze and come back: an agent, a PostgreSQL, an operator. Events and tasks belong to one;
// they are dropped when it dies and wait while it is frozen.
type proc struct {
	name   string
	epoch  uint32
	frozen bool
	dead   bool    // until it is started again
	queue  []event // arrived while frozen
	tasks  []*task
	// rate of its clock against the simulation's, and its offset: what Now says in it.
	rate   float64
	offset time.Duration
}

type event struct {
	at    time.Duration
	seq   uint64
	owner *proc
	epoch uint32
	fn    func()
}

func newSched(seed uint64) *sched {
	return &sched{rng: rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))}
}

func (s *sched) before(i, j int) bool {
	a, b := &s.queue[i], &s.queue[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

// after schedules fn for owner; a nil owner is the world itself, which neither dies nor freezes.
func (s *sched) after(d time.Duration, owner *proc, fn func()) {
	s.seq++
	e := event{at: s.now + max(d, 0), seq: s.seq, owner: owner, fn: fn}
	if owner != nil {
		e.epoch = owner.epoch
	}
	s.queue = append(s.queue, e)
	for i := len(s.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.before(i, up) {
			break
		}
		s.queue[i], s.queue[up] = s.queue[up], s.queue[i]
		i = up
	}
}

// next runs one event; false when there is none before end.
func (s *sched) next(end time.Duration) bool {
	if len(s.queue) == 0 || s.queue[0].at > end {
		return false
	}
	e := s.queue[0]
	last := len(s.queue) - 1
	s.queue[0] = s.queue[last]
	s.queue[last] = event{}
	s.queue = s.queue[:last]
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			break
		}
		if r := l + 1; r < last && s.before(r, l) {
			l = r
		}
		if !s.before(l, i) {
			break
		}
		s.queue[i], s.queue[l] = s.queue[l], s.queue[i]
		i = l
	}
	s.now = e.at
	s.steps++
	s.run(e)
	return true
}

func (s *sched) run(e event) {
	if p := e.owner; p != nil {
		if p.epoch != e.epoch {
			return
		}
		if p.frozen {
			p.queue = append(p.queue, e)
			return
		}
	}
	e.fn()
}

// newProc makes a process with an exact clock.
func newProc(name string) *proc { return &proc{name: name, rate: 1} }

// clock is the time in p.
func (s *sched) clock(p *proc) time.Duration {
	return time.Duration(float64(s.now)*p.rate) + p.offset
}

// kill ends everything p was doing. It may live again, as a new process, when dead is reset.
func (s *sched) kill(p *proc) {
	p.dead = true
	p.epoch++
	p.queue, p.frozen = nil, false
	tasks := p.tasks
	p.tasks = nil
	for _, t := range tasks {
		s.end(t)
	}
}

func (s *sched) freeze(p *proc) { p.frozen = true }

// thaw lets p go on with what arrived meanwhile, in order.
func (s *sched) thaw(p *proc) {
	p.frozen = false
	queue := p.queue
	p.queue = nil
	for _, e := range queue {
		s.after(0, p, e.fn)
	}
}

// task is a coroutine of a process.
type task struct {
	proc   *proc
	yield  func(struct{}) bool
	next   func() (struct{}, bool)
	stop   func()
	parked uint64 // counts the times it parked; a wake-up is for one of them
	done   bool
	ending bool
}

// killed unwinds the stack of a task that is ended from outside.
type killed struct{}

// spawn runs fn in a new task of p, from the next event on.
func (s *sched) spawn(p *proc, fn func()) *task {
	t := &task{proc: p}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		defer func() {
			if e := recover(); e != nil {
				if _, ok := e.(killed); !ok {
					panic(fmt.Sprintf("%v\n%s", e, debug.Stack())) // the stack is lost otherwise
				}
			}
		}()
		fn()
	})
	p.tasks = append(p.tasks, t)
	s.tasks = append(s.tasks, t)
	s.wake(t, 0)
	return t
}

// wake resumes a task that is parked now, after d.
func (s *sched) wake(t *task, d time.Duration) {
	at := t.parked
	s.after(d, t.proc, func() {
		if !t.done && t.parked == at {
			s.resume(t)
		}
	})
}

func (s *sched) resume(t *task) {
	prev := s.cur
	s.cur = t
	_, alive := t.next()
	s.cur = prev
	if !alive {
		s.forget(t)
	}
}

func (s *sched) forget(t *task) {
	t.done = true
	for i, o := range t.proc.tasks {
		if o == t {
			t.proc.tasks = append(t.proc.tasks[:i], t.proc.tasks[i+1:]...)
			break
		}
	}
	if len(s.tasks) > 64 {
		live := s.tasks[:0]
		for _, o := range s.tasks {
			if !o.done {
				live = append(live, o)
			}
		}
		clear(s.tasks[len(live):])
		s.tasks = live
	}
}

// end unwinds a task from outside. A task that ends itself is unwound when it parks next.
func (s *sched) end(t *task) {
	if t.done {
		return
	}
	t.ending = true
	if t == s.cur {
		return
	}
	t.stop()
	s.forget(t)
}

// park gives control back until the task is woken.
func (s *sched) park() {
	t := s.cur
	if t.ending {
		panic(killed{})
	}
	t.parked++
	if !t.yield(struct{}{}) || t.ending {
		panic(killed{})
	}
}

// wakeNext resumes a task after d, if it is still in the park that it is about to begin.
func (s *sched) wakeNext(t *task, d time.Duration) {
	at := t.parked + 1
	s.after(d, t.proc, func() {
		if !t.done && t.parked == at {
			s.resume(t)
		}
	})
}

// sleep parks the current task for d.
func (s *sched) sleep(d time.Duration) {
	s.wakeNext(s.cur, d)
	s.park()
}

// shutdown ends all tasks.
func (s *sched) shutdown() {
	tasks := s.tasks
	s.tasks, s.queue = nil, nil
	for _, t := range tasks {
		s.end(t)
	}
}

// uniform is a random duration in [lo, hi).
func (s *sched) uniform(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(s.rng.Int64N(int64(hi-lo)))
}

// chance is true with probability p.
func (s *sched) chance(p float64) bool { return p > 0 && s.rng.Float64() < p }
