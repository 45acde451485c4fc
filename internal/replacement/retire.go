package replacement

// reparenting moves the primary away from the target. Planned is tried first as long as the target is able to take part;
// an emergency is for targets that are not, or that are sick and defeated a planned one. A healthy primary is never
// taken by an emergency only because it is old.
func (m *machine) reparenting() Decision {
	if d, done := m.beforeStop(); done {
		return d
	}
	switch {
	case m.o.Reparent.InFlight:
		return m.wait("a reparent is under way")
	case m.o.Primary != m.target.Name:
		return m.forward()
	}
	failures := m.o.Reparent.Failures - m.s.ReparentFailures
	if m.late() || failures >= m.t.Reparents {
		m.s.ReparentFailures = m.o.Reparent.Failures
		return m.again(ReparentFailed, "%s is still the primary after %d reparents", m.target.Name, failures)
	}
	kind := Planned
	if m.target.Dead || !m.target.PodExists || m.dying() && failures > 0 {
		kind = Emergency
	}
	a := Action{Kind: kind, Instance: m.target.Name}
	if m.successor.Healthy {
		a.To = m.successor.Name
	}
	return m.do(a, "the primary moves away from %s", m.target.Name)
}

// swapping waits for the cohort keeper, who sees that the target is leaving.
func (m *machine) swapping() Decision {
	if d, done := m.beforeStop(); done {
		return d
	}
	switch {
	case m.o.Primary == m.target.Name:
		return m.forward()
	case !m.target.InRecord:
		return m.forward()
	case m.needed():
		return m.redundancy()
	case m.late():
		return m.again(SwapTimeout, "the cohort still names %s after %s", m.target.Name, m.t.Swap)
	}
	return m.do(Action{Kind: Swap, Instance: m.target.Name}, "waiting for the cohort to go on without %s", m.target.Name)
}

// beforeStop handles what may happen at any time before the target begins to stop: nobody wants it any more, or the
// successor is lost.
func (m *machine) beforeStop() (Decision, bool) {
	if m.s.StopBegun {
		return Decision{}, false
	}
	if m.o.Request.Cancel {
		return m.cancel(), true
	}
	if why, lost := m.lost(); lost {
		return m.again(SuccessorLost, "successor %s: %s", m.successor.Name, why), true
	}
	return Decision{}, false
}

// mayStop is rule 1 of the package comment.
func (m *machine) mayStop() bool {
	return m.o.Primary != m.target.Name && !m.target.InRecord
}

func (m *machine) retiring() Decision {
	if d, done := m.beforeStop(); done {
		return d
	}
	if !m.mayStop() {
		return m.forward()
	}
	if m.target.PodExists && !m.target.Terminating {
		if d, done := m.mustWait(); done {
			return d
		}
	}
	if !m.s.StopBegun {
		m.s.StopBegun = true
		m.enter(Retiring) // what it waited for before does not shorten the time to stop
	}
	if m.target.PodExists {
		return m.stop()
	}
	return m.volume()
}

// needed is rule 2 of the package comment: the target is a copy the shard cannot do without. One that is condemned counts
// for nothing once the shard acknowledges writes without it; waiting for another repair, which waits for this one, would
// only leave the shard with two sick copies for longer.
func (m *machine) needed() bool {
	return !m.target.Dead && m.without < m.o.Wanted && !(m.dying() && m.o.Writable)
}

// mustWait is rule 2, and the bounded wait for evidence.
func (m *machine) mustWait() (Decision, bool) {
	if m.needed() {
		return m.redundancy(), true
	}
	if !m.s.EvidenceAt.IsZero() && !m.s.EvidenceDone {
		return m.wait("evidence of %s is being taken", m.target.Name), true
	}
	return Decision{}, false
}

// redundancy waits, within bounds, until another repair of the shard has restored what is missing besides the target.
func (m *machine) redundancy() Decision {
	until := m.s.PhaseStartedAt.Add(m.t.Redundancy)
	if !m.o.Now.Before(until) {
		return m.fail(RedundancyMissing, "without %s the shard would have %d of %d copies: both it and its successor stay", m.target.Name, m.without, m.o.Wanted)
	}
	d := m.wait("without %s the shard would have %d of %d copies: waiting for another", m.target.Name, m.without, m.o.Wanted)
	if !d.Evidence {
		d.Recheck = until
	}
	return d
}

func (m *machine) stop() Decision {
	force := m.dying() || m.o.Now.After(m.s.PhaseStartedAt.Add(m.t.Retire/2))
	if m.late() && m.target.Terminating {
		return m.fail(TargetWontGo, "the Pod of %s is not gone after %s", m.target.Name, m.t.Retire)
	}
	return m.do(Action{Kind: Stop, Instance: m.target.Name, Force: force}, "%s is being stopped", m.target.Name)
}

// volume is rule 3. A volume that was left is found and removed by the shard controller once the shard is writable.
func (m *machine) volume() Decision {
	if m.target.VolumeExists {
		unsafe := ""
		switch {
		case !m.o.Writable:
			unsafe = "the shard cannot acknowledge writes"
		case m.target.InRecord:
			unsafe = "a recorded cohort names it"
		case m.without < 1:
			unsafe = "there is no other healthy copy"
		}
		switch {
		case unsafe == "" && !m.late():
			return m.do(Action{Kind: DeleteVolume, Instance: m.target.Name}, "the volume of %s is being deleted", m.target.Name)
		case !m.late():
			return m.wait("the volume of %s is kept for now: %s", m.target.Name, unsafe)
		case unsafe == "":
			unsafe = "it could not be deleted in time"
		}
		m.s.VolumeKept = unsafe
	}
	m.s.LastFailure = ""
	if m.successor.Name == "" {
		return m.finish(Done, "%s is gone; the shard had a spare", m.target.Name)
	}
	return m.finish(Done, "%s took over from %s", m.successor.Name, m.target.Name)
}
