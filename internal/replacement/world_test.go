package replacement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// server is an instance of the model.
type server struct {
	Instance
	bornAt, runningAt, seededAt, goneAt, deadAt time.Time
}

// world is a model of a shard, of Kubernetes and of the other controllers: just enough to be dangerous.
type world struct {
	now      time.Time
	rng      *rand.Rand
	wanted   int
	primary  string
	servers  []*server
	leaving  string
	capacity bool
	ledger   bool
	cancel   bool
	// keeperStuck keeps the cohort as it is; sticky Pods do not go; wound up shards cannot write.
	keeperStuck, sticky, readOnly bool

	request  Request
	status   Status
	names    int
	reparent struct {
		until    time.Time
		kind     Kind
		to       string
		failures int
		fail     bool
	}
	timeouts Timeouts
	// violations of what must never happen; trace for reading them.
	violations []string
	trace      []string
	evidence   int
}

func newWorld(seed uint64, wanted int, reason v1alpha1.Reason, target int) *world {
	w := &world{now: t0, rng: rand.New(rand.NewPCG(seed, 1)), wanted: wanted, capacity: true, ledger: true}
	for i := range wanted {
		s := w.add(fmt.Sprintf("old-%d", i))
		s.PodExists, s.VolumeExists, s.Running, s.Seeded, s.Healthy, s.InRecord = true, true, true, true, true, true
	}
	w.primary = "old-0"
	w.request = Request{Instance: fmt.Sprintf("old-%d", target), Reason: reason, CreatedAt: t0}
	return w
}

func (w *world) add(name string) *server {
	s := &server{Instance: Instance{Name: name}, bornAt: w.now}
	w.servers = append(w.servers, s)
	return s
}

func (w *world) find(name string) *server {
	for _, s := range w.servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (w *world) healthyWithout(name string) int {
	n := 0
	for _, s := range w.servers {
		if s.Name != name && s.Healthy && !s.Dead && !s.Terminating {
			n++
		}
	}
	return n
}

func (w *world) writable() bool {
	p := w.find(w.primary)
	if p == nil || p.Dead || !p.PodExists || !w.reparent.until.IsZero() || w.readOnly {
		return false
	}
	acks := 0
	for _, s := range w.servers {
		if s.InRecord && s.Name != w.primary && s.PodExists && !s.Dead {
			acks++
		}
	}
	return acks >= min(1, w.wanted-1)
}

// source is true while there is somebody to copy from: a primary that is up. It need not acknowledge writes for that: a base
// backup waits for no standby, and a primary without any is exactly the one that needs the copy.
func (w *world) source() bool {
	p := w.find(w.primary)
	return p != nil && !p.Dead && p.PodExists && w.reparent.until.IsZero()
}

// pass lets time go by: Pods start, copy, catch up and vanish; the keeper keeps the cohort; emergencies are handled.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	kept := w.servers[:0]
	for _, s := range w.servers {
		w.live(s)
		if s.PodExists || s.VolumeExists || s.InRecord {
			kept = append(kept, s)
		}
	}
	w.servers = kept
	w.finishReparent()
	w.emergency()
	w.keep()
}

func (w *world) live(s *server) {
	switch {
	case s.Terminating && !w.sticky && w.now.After(s.goneAt):
		s.PodExists, s.Terminating, s.Running, s.Healthy = false, false, false, false
	case !s.PodExists || s.Dead:
	case !s.Running:
		s.Unschedulable = !w.capacity
		if w.capacity && w.now.Sub(s.bornAt) > 5*time.Second && s.Failed == "" {
			s.Running, s.runningAt = true, w.now
		}
	case !s.Seeded:
		if w.now.Sub(s.runningAt) > time.Minute && w.source() {
			s.Seeded, s.seededAt = true, w.now
		}
	case !s.Healthy && s.Failed == "": // what failed for good does not get well
		s.Healthy = w.now.Sub(s.seededAt) > 20*time.Second
	}
}

func (w *world) finishReparent() {
	r := &w.reparent
	if r.until.IsZero() || w.now.Before(r.until) {
		return
	}
	r.until = time.Time{}
	if r.fail {
		r.failures++
		return
	}
	w.promote(r.to)
}

// promote a healthy instance, preferably the one named, never one that leaves if there is another.
func (w *world) promote(to string) {
	var best *server
	for _, s := range w.servers {
		if !s.Healthy || s.Dead || !s.PodExists || s.Name == w.primary || s.Terminating {
			continue
		}
		if best == nil || s.Name == to || best.Name == w.leaving {
			best = s
		}
	}
	if best == nil {
		w.reparent.failures++
		return
	}
	for _, s := range w.servers {
		s.InRecord = false
	}
	w.primary, best.InRecord = best.Name, true
	w.keep()
}

func (w *world) emergency() {
	p := w.find(w.primary)
	if w.wanted > 1 && w.reparent.until.IsZero() && (p == nil || p.Dead || !p.PodExists) && w.rng.IntN(3) == 0 {
		w.reparent.until, w.reparent.to, w.reparent.fail = w.now.Add(time.Second), "", false
	}
}

// keep is the cohort keeper: dead members out, the leaving one out when a substitute is there, learners in.
func (w *world) keep() {
	p := w.find(w.primary)
	if p == nil || p.Dead || !p.PodExists || !w.reparent.until.IsZero() || w.keeperStuck {
		return
	}
	var learners []*server
	for _, s := range w.servers {
		if s.Name == w.primary {
			s.InRecord = true
			continue
		}
		if s.InRecord && (s.Dead || !s.PodExists) {
			s.InRecord = false
		}
		if !s.InRecord && s.Healthy && !s.Dead && s.PodExists && !s.Terminating && s.Name != w.leaving {
			learners = append(learners, s)
		}
	}
	members := 0
	for _, s := range w.servers {
		if s.InRecord && s.Name != w.primary {
			members++
		}
	}
	for _, l := range learners {
		if members < w.wanted-1 {
			l.InRecord = true
			members++
		} else if out := w.find(w.leaving); out != nil && out.InRecord && out.Name != w.primary {
			out.InRecord, l.InRecord = false, true
		}
	}
	if out := w.find(w.leaving); out != nil && out.InRecord && out.Name != w.primary && members > w.wanted-1 {
		out.InRecord = false
	}
}

func (w *world) observe() Observed {
	o := Observed{
		Now: w.now, Request: w.request, Status: w.status, Wanted: w.wanted, Primary: w.primary, Writable: w.writable(),
		Reparent:  Reparent{InFlight: !w.reparent.until.IsZero(), Failures: w.reparent.failures},
		Ledger:    Ledger{Allowed: w.ledger, Message: "the ledger says no"},
		FreshName: fmt.Sprintf("new-%d", w.names+1),
	}
	o.Request.Cancel = w.cancel
	if p := w.find(w.primary); p == nil || !p.PodExists {
		o.Primary = w.primary
	}
	for _, s := range w.servers {
		in := s.Instance
		in.Healthy = in.Healthy && !in.Dead
		o.Instances = append(o.Instances, in)
	}
	return o
}

// turn is one round of the controller. A crash loses what comes after it.
func (w *world) turn(crash func() bool, repeat func() bool) Decision {
	d := Next(w.observe(), w.timeouts)
	if crash() {
		return d
	}
	if d.Status.Successor != w.status.Successor && d.Status.Successor != "" {
		w.names++
	}
	if d.Status.Phase != w.status.Phase {
		w.trace = append(w.trace, fmt.Sprintf("%s %s→%s %s %s", w.now.Sub(t0), w.status.Phase, d.Status.Phase, d.Action.Kind, d.Status.Message))
	}
	w.status, w.leaving = d.Status, d.Leaving
	if d.Evidence {
		w.evidence++
	}
	if crash() {
		return d
	}
	w.act(d.Action)
	if repeat() {
		w.act(d.Action)
	}
	return d
}

func (w *world) violate(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf("%s [%s] ", w.now.Sub(t0), w.status.Phase)+fmt.Sprintf(format, args...))
}

func (w *world) act(a Action) {
	s := w.find(a.Instance)
	switch a.Kind {
	case Surge:
		if s == nil {
			if a.Instance != w.status.Successor {
				w.violate("surge under a name that is not stored: %s", a.Instance)
			}
			s = w.add(a.Instance)
			s.PodExists, s.VolumeExists = true, true
		}
	case Planned, Emergency:
		w.beginReparent(a)
	case Stop:
		w.stop(a, s)
	case DeleteVolume:
		if s != nil && s.VolumeExists {
			if s.PodExists || !w.writable() || s.InRecord || w.healthyWithout(a.Instance) < 1 {
				w.violate("volume of %s deleted: pod %v writable %v record %v", a.Instance, s.PodExists, w.writable(), s.InRecord)
			}
			s.VolumeExists = false
		}
	case RetireSurge:
		w.retireSurge(a, s)
	}
}

func (w *world) beginReparent(a Action) {
	p := w.find(w.primary)
	if !w.reparent.until.IsZero() || w.primary != a.Instance {
		return
	}
	if a.Kind == Emergency && p != nil && !p.Dead && p.PodExists && w.request.Reason != v1alpha1.ReasonCondemned {
		w.violate("emergency reparent away from a healthy primary")
	}
	r := &w.reparent
	r.until, r.kind, r.to = w.now.Add(2*time.Second), a.Kind, a.To
	r.fail = a.Kind == Planned && (p == nil || p.Dead || !p.PodExists)
}

func (w *world) stop(a Action, s *server) {
	if s == nil || !s.PodExists {
		return
	}
	if s.Terminating {
		if a.Force {
			s.goneAt = w.now
		}
		return
	}
	switch {
	case a.Instance != w.request.Instance:
		w.violate("stopped %s, which is not to go", a.Instance)
	case a.Instance == w.primary:
		w.violate("stopped the primary")
	case s.InRecord:
		w.violate("stopped %s, named by the record", a.Instance)
	case !s.Dead && s.Healthy && w.healthyWithout(a.Instance) < w.wanted && (w.request.Reason != v1alpha1.ReasonCondemned || !w.writable()):
		w.violate("stopped %s: %d of %d copies left", a.Instance, w.healthyWithout(a.Instance), w.wanted)
	}
	s.Terminating, s.goneAt = true, w.now.Add(3*time.Second)
}

func (w *world) retireSurge(a Action, s *server) {
	if s == nil {
		return
	}
	sound := s.Healthy && !s.Dead && !s.Terminating && s.Failed == ""
	switch {
	case a.Instance != w.status.Successor:
		w.violate("took %s away, which is no surge", a.Instance)
	case a.Instance == w.primary:
		w.violate("took the primary away")
	case s.InRecord:
		w.violate("took %s away, named by the record", a.Instance)
	case sound && w.healthyWithout(a.Instance) < w.wanted:
		w.violate("took the surge away: %d of %d copies left", w.healthyWithout(a.Instance), w.wanted)
	}
	if s.PodExists && !s.Terminating {
		s.Terminating, s.goneAt = true, w.now.Add(2*time.Second)
	}
	s.VolumeExists = false
}

// run turns until the replacement is finished or the time is over.
func (w *world) run(limit time.Duration, each func()) {
	never := func() bool { return false }
	for end := w.now.Add(limit); w.now.Before(end) && !w.status.Phase.Finished(); {
		w.turn(never, never)
		if each != nil {
			each()
		}
		step := time.Second
		if w.now.Sub(t0) > 3*time.Hour {
			step = 20 * time.Second
		}
		w.pass(step)
	}
}

func (w *world) living() []string {
	var out []string
	for _, s := range w.servers {
		if s.PodExists && !s.Dead {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}
