package replacement

import (
	"fmt"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

// machine is one decision while it is made.
type machine struct {
	o         Observed
	t         Timeouts
	s         Status // the next one
	target    Instance
	successor Instance
	without   int // healthy copies when the target is gone
}

// Next decides the next step.
func Next(o Observed, timeouts Timeouts) Decision {
	m := &machine{o: o, t: timeouts.withDefaults(), s: o.Status}
	if m.s.Phase == "" {
		m.enter(Pending)
	}
	m.target.Name, m.successor.Name = o.Request.Instance, o.Status.Successor
	for _, in := range o.Instances {
		switch in.Name {
		case o.Request.Instance:
			m.target = in
		case o.Status.Successor:
			m.successor = in
		}
	}
	m.without = m.copiesWithout(o.Request.Instance)
	if m.s.Phase.Finished() {
		return Decision{Status: m.s, Action: Action{Kind: Finish}}
	}
	m.evidence()
	return m.phase()
}

func (m *machine) phase() Decision {
	switch m.s.Phase {
	case Pending:
		return m.pending()
	case Surging:
		return m.surging()
	case Seeding:
		return m.seeding()
	case CatchingUp:
		return m.catchingUp()
	case Reparenting:
		return m.reparenting()
	case Swapping:
		return m.swapping()
	case Retiring:
		return m.retiring()
	default:
		return m.rollingBack()
	}
}

// evidence is begun once for every instance that is or turns out to be sick, whatever it was to be replaced for, as soon
// as that is known; and it is given up at its deadline.
func (m *machine) evidence() {
	if m.s.EvidenceAt.IsZero() && m.target.PodExists && m.dying() {
		m.s.EvidenceAt = m.o.Now
	}
	if !m.s.EvidenceAt.IsZero() && !m.o.Now.Before(m.s.EvidenceAt.Add(m.t.Evidence)) {
		m.s.EvidenceDone = true
	}
}

// dying is true when the target is no copy that counts.
func (m *machine) dying() bool {
	return m.target.Dead || m.o.Request.Reason == v1alpha1.ReasonCondemned
}

// copiesWithout counts the healthy copies that remain when one instance is gone: of the others only those that stay.
func (m *machine) copiesWithout(name string) int {
	n := 0
	for _, in := range m.o.Instances {
		if in.Name != name && in.Healthy && !in.Dead && !in.Leaving && !in.Terminating {
			n++
		}
	}
	return n
}

// source reports whether a new instance can get the data from anywhere. A backup alone is none: what was acknowledged
// since may be in the instance that goes and nowhere else.
func (m *machine) source() bool { return m.without > 0 || m.target.Healthy || m.o.Source }

func (m *machine) enter(p Phase) {
	m.s.Phase, m.s.PhaseStartedAt = p, m.o.Now
}

func (m *machine) deadline() time.Time { return m.s.PhaseStartedAt.Add(m.t.of(m.s.Phase)) }

func (m *machine) late() bool { return !m.o.Now.Before(m.deadline()) }

// do takes an action and looks again at the deadline of the phase.
func (m *machine) do(a Action, waiting string, args ...any) Decision {
	d := Decision{Status: m.s, Action: a, Waiting: fmt.Sprintf(waiting, args...), Recheck: m.deadline()}
	d.Leaving = m.s.Leaving(m.o.Request.Instance)
	if !m.s.EvidenceAt.IsZero() && !m.s.EvidenceDone {
		d.Evidence = true
		d.Recheck = earlier(d.Recheck, m.s.EvidenceAt.Add(m.t.Evidence))
	}
	if !d.Recheck.After(m.o.Now) {
		d.Recheck = m.o.Now.Add(settle)
	}
	return d
}

func (m *machine) wait(format string, args ...any) Decision {
	return m.do(Action{Kind: Wait}, format, args...)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (m *machine) finish(p Phase, format string, args ...any) Decision {
	m.enter(p)
	m.s.Outcome = map[Phase]string{Done: "Succeeded", Failed: "Failed", Cancelled: "Cancelled"}[p]
	m.s.Message = fmt.Sprintf(format, args...)
	m.s.FinishedAt = m.o.Now
	return Decision{Status: m.s, Action: Action{Kind: Finish}}
}

func (m *machine) fail(f Failure, format string, args ...any) Decision {
	m.s.LastFailure = f
	return m.finish(Failed, format, args...)
}

func (m *machine) pending() Decision {
	switch {
	case m.o.Request.Cancel:
		return m.finish(Cancelled, "nobody wants it any more; nothing was done")
	case m.acquitted():
		return m.finish(Cancelled, "%s was condemned in a storm of condemnations and is well: nothing was done (ask with reason Requested if it is to go all the same)", m.target.Name)
	case !m.target.PodExists && !m.target.VolumeExists && m.without >= m.o.Wanted:
		return m.finish(Done, "%s is gone already and the shard has all its copies", m.target.Name)
	case !m.source():
		return m.noSource()
	case !m.o.Ledger.Allowed && m.late():
		return m.fail(NotAdmitted, "not admitted within %s: %s", m.t.Pending, m.o.Ledger.Message)
	case !m.o.Ledger.Allowed:
		d := m.wait("%s", m.o.Ledger.Message)
		if !m.o.Ledger.Retry.IsZero() {
			d.Recheck = earlier(d.Recheck, m.o.Ledger.Retry)
		}
		return d
	}
	m.s.AdmittedAt = m.o.Now
	if m.without >= m.o.Wanted {
		// A spare is there already: an earlier replacement failed and left it.
		return m.forward()
	}
	return m.attempt()
}

// acquitted drops a verdict that was given in a storm, when the instance is well and nothing has begun. One that was not given in
// a storm stands: what healed by itself is replaced all the same. But when a zone comes back from an outage, what it held
// was condemned with it and is as good as before: as long as it stays condemned every shard is a copy short, and to replace
// all of it would be the harm that the storm breaker is there to prevent.
func (m *machine) acquitted() bool {
	return m.o.Request.Reason == v1alpha1.ReasonCondemned && m.o.Ledger.Storm &&
		m.target.PodExists && m.target.Healthy && !m.target.Dead && !m.target.Suspect && !m.target.Terminating && m.target.Failed == ""
}

// noSource is the one case in which an instance is not replaced: nothing else has the data. A single instance that is down
// is restarted by its kubelet and by the shard controller, on the volume it has.
func (m *machine) noSource() Decision {
	if m.late() {
		return m.fail(LastCopy, "%s may hold the only copy of the data: it is left as it is", m.target.Name)
	}
	return m.wait("%s may hold the only copy of the data: nothing is touched until another copy can be reached", m.target.Name)
}

// attempt begins the next attempt, under a name that is stored before anything is made.
func (m *machine) attempt() Decision {
	m.s.Attempt++
	m.s.Successor, m.s.SuccessorSeen = m.o.FreshName, false
	m.successor = Instance{Name: m.o.FreshName}
	m.enter(Surging)
	return m.surging()
}

// forward goes to whatever the world needs next for the target to go.
func (m *machine) forward() Decision {
	next := Retiring
	switch {
	case m.o.Primary == m.target.Name:
		next = Reparenting
	case m.target.InRecord:
		next = Swapping
	}
	if m.s.Phase != next {
		m.enter(next)
	}
	return m.phase()
}
