package replacement

import (
	"fmt"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

// lost reports that the successor was there and cannot be counted on any more.
func (m *machine) lost() (string, bool) {
	switch {
	case m.s.Successor == "":
		return "", false
	case m.successor.Failed != "":
		return m.successor.Failed, true
	case m.s.SuccessorSeen && (!m.successor.PodExists || m.successor.Terminating):
		return "its Pod was deleted", true
	case m.s.SuccessorSeen && m.successor.Dead:
		return "it stopped answering", true
	}
	return "", false
}

// surging makes the successor and waits for its first word.
func (m *machine) surging() Decision {
	if m.o.Request.Cancel && !m.s.StopBegun {
		return m.cancel()
	}
	m.s.SuccessorSeen = m.s.SuccessorSeen || m.successor.PodExists
	if why, lost := m.lost(); lost {
		return m.again(SuccessorLost, "successor %s: %s", m.successor.Name, why)
	}
	if m.successor.Running {
		m.s.GotMachineAt = m.o.Now
		m.enter(Seeding)
		return m.seeding()
	}
	if m.late() {
		if m.successor.Unschedulable {
			m.s.NoCapacityAt = m.o.Now
			return m.again(NoCapacity, "no machine had room for %s within %s", m.successor.Name, m.t.Surge)
		}
		return m.again(SurgeTimeout, "%s did not start within %s", m.successor.Name, m.t.Surge)
	}
	if m.successor.Unschedulable {
		if d, ok := m.makeRoom(); ok {
			return d
		}
		return m.wait("no machine has room for %s", m.successor.Name)
	}
	return m.do(Action{Kind: Surge, Instance: m.successor.Name}, "waiting for %s to start", m.successor.Name)
}

// makeRoom stops a dead target early when its place may be the one the successor needs.
func (m *machine) makeRoom() (Decision, bool) {
	if !m.target.PodExists || !m.target.Dead || !m.mayStop() || !m.s.EvidenceDone {
		return Decision{}, false
	}
	m.s.StopBegun = true
	return m.do(Action{Kind: Stop, Instance: m.target.Name, Force: true}, "no machine has room for %s: %s makes room", m.successor.Name, m.target.Name), true
}

func (m *machine) seeding() Decision {
	if m.o.Request.Cancel && !m.s.StopBegun {
		return m.cancel()
	}
	if why, lost := m.lost(); lost {
		return m.again(SuccessorLost, "successor %s: %s", m.successor.Name, why)
	}
	if m.successor.Seeded {
		m.enter(CatchingUp)
		return m.catchingUp()
	}
	if m.late() {
		return m.again(SeedTimeout, "%s was not seeded within %s", m.successor.Name, m.t.Seed)
	}
	return m.wait("%s is being seeded", m.successor.Name)
}

func (m *machine) catchingUp() Decision {
	if m.o.Request.Cancel && !m.s.StopBegun {
		return m.cancel()
	}
	if why, lost := m.lost(); lost {
		return m.again(SuccessorLost, "successor %s: %s", m.successor.Name, why)
	}
	if m.successor.Healthy {
		return m.forward()
	}
	if m.late() {
		return m.again(CatchUpTimeout, "%s did not catch up within %s", m.successor.Name, m.t.CatchUp)
	}
	return m.wait("%s is catching up", m.successor.Name)
}

// again gives this attempt up: the surge is taken away, and another is tried if any attempts are left. What is planned does
// not try again for want of machines: it fails, and the ledger lets one through now and then to see whether there are any.
// Once the target was told to stop there is no giving up: nobody else restores its copy.
func (m *machine) again(f Failure, format string, args ...any) Decision {
	limit := m.t.Attempts
	if m.dying() {
		limit *= 2
	} else if f == NoCapacity && m.isPlanned() {
		limit = 0
	}
	m.s.LastFailure, m.s.Undo = f, Failed
	m.s.RetryAt = time.Time{}
	if m.s.Attempt < limit || m.s.StopBegun {
		m.s.RetryAt = m.o.Now.Add(min(m.t.Backoff<<min(max(m.s.Attempt-1, 0), 10), backoffMost))
	}
	return m.rollBack(fmt.Sprintf(format, args...))
}

// backoffMost bounds the wait between two attempts.
const backoffMost = 15 * time.Minute

func (m *machine) isPlanned() bool {
	switch m.o.Request.Reason {
	case v1alpha1.ReasonCondemned, v1alpha1.ReasonDraining, v1alpha1.ReasonRequested:
		return false
	default:
		return true
	}
}

func (m *machine) cancel() Decision {
	m.s.RetryAt = time.Time{}
	m.s.Undo = Cancelled
	return m.rollBack("nobody wants it any more")
}
