package replacement

import "time"

func (m *machine) rollBack(why string) Decision {
	m.enter(RollingBack)
	m.s.Message = why
	return m.rollingBack()
}

// rollingBack takes the surge away, and then begins the next attempt or ends. It turns round and goes forward when the
// surge has become one that must not be taken away: the primary, or a copy the shard needs because another has died.
func (m *machine) rollingBack() Decision {
	sound := m.successor.Healthy && !m.successor.Dead && !m.successor.Terminating && m.successor.Failed == ""
	switch {
	case m.s.Successor == "":
		return m.rolledBack()
	case m.o.Primary == m.s.Successor && sound:
		return m.turn("the successor is the primary by now")
	case sound && m.successor.PodExists && m.copiesWithout(m.s.Successor) < m.o.Wanted:
		return m.turn("the shard needs the successor by now")
	case !m.successor.PodExists && !m.successor.VolumeExists && (m.s.SuccessorSeen || m.settled()):
		return m.rolledBack()
	case m.late() && !m.s.StopBegun:
		return m.fail(SurgeWontGo, "%s could not be taken away within %s", m.s.Successor, m.t.RollBack)
	case m.s.StopBegun && (m.successor.InRecord || m.o.Primary == m.s.Successor) && !m.o.Now.Before(m.s.PhaseStartedAt.Add(m.t.Swap)):
		// Of two instances it may be the only one that could acknowledge: only a substitute gets it out of the cohort, and
		// while we hold on to it nobody makes one.
		return m.fail(SurgeWontGo, "%s took the place of %s and failed, and the shard cannot go on without a substitute: it is to be replaced itself", m.s.Successor, m.target.Name)
	case m.o.Primary == m.s.Successor:
		return m.taking("%s is the primary and sick: an emergency comes first", m.s.Successor)
	case m.successor.InRecord:
		return m.taking("waiting for the cohort to go on without %s", m.s.Successor)
	}
	d := m.do(Action{
		Kind: RetireSurge, Instance: m.s.Successor,
		Force: m.successor.Dead || m.successor.Failed != "",
	}, "%s is being taken away", m.s.Successor)
	if !m.settled() {
		d.Recheck = earlier(d.Recheck, m.s.PhaseStartedAt.Add(settle))
	}
	return d
}

// taking waits for others to take the surge out.
func (m *machine) taking(format string, args ...any) Decision {
	d := m.wait(format, args...)
	if m.s.StopBegun {
		d.Recheck = earlier(d.Recheck, m.s.PhaseStartedAt.Add(m.t.Swap))
	}
	return d
}

// settle is how long after the last try to make something it is visible, or does not exist. A surge that was asked for and
// never seen is asked to go for this long before its name is forgotten.
const settle = 5 * time.Second

func (m *machine) settled() bool { return !m.o.Now.Before(m.s.PhaseStartedAt.Add(settle)) }

// turn ends a way back that became wrong. When it was the target that could not leave, the way forward is closed as well:
// then both stay. The shard has a copy more than it asked for, or just as many, and the next replacement makes use of it.
func (m *machine) turn(why string) Decision {
	switch {
	case m.s.Undo == Cancelled:
		return m.finish(Cancelled, "cancelled; %s: it stays, too", why)
	case m.s.RetryAt.IsZero(), !m.dying() && (m.s.LastFailure == ReparentFailed || m.s.LastFailure == SwapTimeout):
		return m.finish(Failed, "%s; %s: it stays, too", m.s.Message, why)
	}
	m.s.Attempt++
	m.s.Undo, m.s.Message, m.s.RetryAt = "", "", time.Time{}
	return m.forward()
}

func (m *machine) rolledBack() Decision {
	if m.s.Undo == Cancelled {
		return m.finish(Cancelled, "nobody wants it any more; what was begun is undone")
	}
	if m.o.Request.Cancel && !m.s.StopBegun {
		return m.finish(Cancelled, "nobody wants it any more; what was begun is undone")
	}
	if m.s.RetryAt.IsZero() {
		return m.finish(Failed, "given up after %d attempts: %s", m.s.Attempt, m.s.Message)
	}
	if m.o.Now.Before(m.s.RetryAt) {
		d := m.wait("attempt %d failed (%s); the next begins at %s", m.s.Attempt, m.s.LastFailure, m.s.RetryAt.UTC().Format(time.TimeOnly))
		d.Recheck = m.s.RetryAt
		return d
	}
	m.s.Undo, m.s.Message, m.s.RetryAt = "", "", time.Time{}
	if m.without >= m.o.Wanted {
		m.s.Attempt++
		m.s.Successor, m.s.SuccessorSeen = "", false
		m.successor = Instance{}
		return m.forward()
	}
	return m.attempt()
}
