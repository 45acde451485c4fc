package verdict

import (
	"fmt"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// judgeStandbys returns the first finding that asks for an action, else the first finding.
func (s shard) judgeStandbys(c quorum.Cohort, p *Instance) *Judgement {
	var waiting *Judgement
	for _, i := range s.o.Instances {
		if i.Name == p.Name || i.Leaving || s.awaited(i) {
			continue
		}
		j := s.judgeStandby(c, p, i)
		if j != nil && j.Action != None {
			return j
		}
		if waiting == nil {
			waiting = j
		}
	}
	return waiting
}

// Suspects are the standbys that should not be in the cohort although they may stream, and why: their disks are full or
// hang. Those that are silent or diverged are told apart by the cohort's keeper itself.
func Suspects(o Observed, p Params) map[string]string {
	s := shard{o: o, p: p}
	latest, ok := o.Record.Latest()
	if !ok || o.Record.Established == 0 || o.Record.Validate() != nil {
		return nil
	}
	c, primary, j := s.findPrimary(latest)
	if j != nil || primary == nil {
		return nil
	}
	out := map[string]string{}
	for _, i := range o.Instances {
		if i.Name == primary.Name || s.awaited(i) || !s.fresh(i) {
			continue
		}
		if j := s.judgeStandby(c, primary, i); j != nil && (j.Verdict == StandbyStuck || j.Verdict == DiskFull) {
			out[i.Name] = j.Why
		}
	}
	return out
}

// Misbehaves reports whether the instance's probes fail or are slow, or its volume alone is full: whoever is the primary, it
// is to be replaced.
func (p Params) Misbehaves(o Observed, i Instance) bool {
	s := shard{o: o, p: p}
	if s.full(i) {
		return s.roomElsewhere(i.Name)
	}
	for _, pr := range []Probe{i.WriteProbe, i.DiskProbe, i.ConnectProbe} {
		if pr.Failures >= p.SickAfter || pr.SlowFor >= p.SlowAfter {
			return true
		}
	}
	return false
}

func (s shard) judgeStandby(c quorum.Cohort, p *Instance, i Instance) *Judgement {
	connected := false
	if peer, ok := p.Peers[i.Name]; ok {
		connected = peer.Streaming && peer.ReplyAge+p.Age < s.p.LostAfter
	}
	switch {
	case !s.fresh(i) && i.PodGone:
		return s.repair(c, StandbyDead, i.Name, s.p.ReplaceAfter, fmt.Sprintf("the Pod of %s is gone", i.Name))
	case !s.fresh(i) && connected:
		return s.wait(AgentDead, i.Name, i.Age, fmt.Sprintf("the agent of %s was not heard for %v, its PostgreSQL streams", i.Name, round(i.Age)))
	case !s.fresh(i):
		return s.repair(c, StandbyDead, i.Name, i.Age, fmt.Sprintf("%s was not heard for %v and does not stream", i.Name, round(i.Age)))
	case i.Diverged:
		return s.repair(c, StandbyDiverged, i.Name, s.p.ReplaceAfter, fmt.Sprintf("the data of %s went another way at %v", i.Name, i.Position))
	case s.full(i) && s.roomElsewhere(i.Name):
		return s.repair(c, DiskFull, i.Name, s.p.ReplaceAfter, fmt.Sprintf("the volume of %s is %.1f %% full", i.Name, 100*i.DiskUsed))
	case i.DiskProbe.Pending > 0 && i.DiskProbe.Pending+i.Age >= s.p.StallAfter:
		hung := i.DiskProbe.Pending + i.Age
		return s.repair(c, StandbyStuck, i.Name, hung, fmt.Sprintf("a file write and fsync on %s has hung for %v", i.Name, round(hung)))
	case i.Role == RoleEmpty || i.Role == RoleSeeding:
		return nil // on its way
	case !connected && i.Receiver.AdvanceAge >= s.p.StuckAfter:
		return s.repair(c, StandbyStuck, i.Name, i.Receiver.AdvanceAge, fmt.Sprintf("%s (%s) has received nothing for %v", i.Name, i.Role, round(i.Receiver.AdvanceAge)))
	case i.NodeNotReadyFor >= s.p.NodeAfter:
		return &Judgement{NodeNotReady, i.Name, Replace, fmt.Sprintf("the node of %s has not been ready for %v", i.Name, round(i.NodeNotReadyFor))}
	}
	return nil
}

// repair takes a bad standby out of the cohort first, when the cohort can spare it, and then has it replaced once it has
// been bad for long enough. When the cohort cannot spare it, its substitute must be seeded first: Replace.
func (s shard) repair(c quorum.Cohort, v Verdict, name string, since time.Duration, why string) *Judgement {
	switch {
	case c.Has(name) && len(c.Members) > c.Acks:
		return &Judgement{v, name, Shrink, why + "; the cohort can do without it"}
	case c.Has(name):
		return &Judgement{v, name, Replace, why + "; the cohort cannot do without a substitute"}
	}
	return s.wait(v, name, since, why)
}

// wait gives an instance outside the cohort ReplaceAfter to come back by itself.
func (s shard) wait(v Verdict, name string, since time.Duration, why string) *Judgement {
	if since < s.p.ReplaceAfter {
		return &Judgement{v, name, None, fmt.Sprintf("%s; it has until %v to come back", why, s.p.ReplaceAfter)}
	}
	return &Judgement{v, name, Replace, why}
}
