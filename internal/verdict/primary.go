package verdict

import (
	"fmt"
	"slices"

	"theseus.dev/theseus/internal/quorum"
)

func (s shard) judgePrimary(c quorum.Cohort, p *Instance) *Judgement {
	if !s.fresh(*p) {
		return s.silentPrimary(c, p)
	}
	if s.dated(c, *p) {
		return &Judgement{Unknown, p.Name, None, fmt.Sprintf("term %d was established %v ago and %s was last heard %v ago, when it was not yet", c.Term, round(s.o.EstablishedFor), p.Name, round(p.Age))}
	}
	for _, rule := range []func(quorum.Cohort, *Instance) *Judgement{s.downPrimary, s.passedPrimary, s.stalledPrimary, s.cutOffPrimary, s.sickPrimary} {
		if j := rule(c, p); j != nil {
			return j
		}
	}
	return nil
}

// dated reports whether the primary's last status contradicts the record because it is older. Whoever coordinates a reparent
// hears that the term is established in the answer to a command; statuses come by another way, and one that was sent
// before may arrive after, or be the newest there is for one more heartbeat. An emergency made of it would take a primary
// away that has served for milliseconds. What an old status says of an end, a fence or a higher term is true all the same.
func (s shard) dated(c quorum.Cohort, p Instance) bool {
	behind := p.Exited == "" && p.Fenced == "" && p.Term <= c.Term && !p.Established && !s.left(c)
	return behind && s.o.Record.Established == c.Term && s.o.EstablishedFor < p.Age+s.p.Settle
}

// vouch counts the members that hear from the primary's PostgreSQL now, and says of each heard one what it testifies.
func (s shard) vouch(c quorum.Cohort, p *Instance) (n int, stuck bool, testimony string) {
	stuck = true
	for _, i := range s.o.Instances {
		if !s.fresh(i) || !c.Has(i.Name) {
			continue
		}
		r := i.Receiver
		streams := r.Streaming && r.Source == p.Name
		switch age := r.MessageAge + i.Age; {
		case !streams:
			testimony += fmt.Sprintf("; %s has lost it", i.Name)
		case age >= s.p.LostAfter:
			testimony += fmt.Sprintf("; %s has not heard from it for %v", i.Name, round(age))
		default:
			n++
			testimony += fmt.Sprintf("; %s streams from it", i.Name)
			stuck = stuck && r.AdvanceAge >= s.p.StuckAfter && i.PrimaryPostgres == NotReached
		}
	}
	return n, stuck && n > 0, testimony
}

// silentPrimary: the agent is not heard, so the standbys decide.
func (s shard) silentPrimary(c quorum.Cohort, p *Instance) *Judgement {
	why := fmt.Sprintf("%s was not heard for %v", p.Name, round(p.Age))
	if !p.Heard {
		why = fmt.Sprintf("%s was never heard in %v", p.Name, round(p.Age))
	}
	if p.PodGone {
		// Whatever still runs there, nobody will ever manage it again; and usually nothing does.
		return s.emergency(PrimaryDead, p.Name, why+" and its Pod is gone")
	}
	n, stuck, testimony := s.vouch(c, p)
	why += testimony
	switch {
	case n < max(1, c.Acks):
		return s.emergency(PrimaryDead, p.Name, why)
	case stuck:
		// Living walsenders keep receivers connected for ever on a machine whose disk is dead.
		return s.emergency(PrimaryStalled, p.Name, fmt.Sprintf("%s, but nothing came for %v and its PostgreSQL cannot be reached", why, s.p.StuckAfter))
	}
	return &Judgement{AgentDead, p.Name, Alert, why + ": it serves, so nothing is done"}
}

// downPrimary: the agent itself says that PostgreSQL does not run.
func (s shard) downPrimary(_ quorum.Cohort, p *Instance) *Judgement {
	switch {
	case p.Fenced != "":
		return s.emergency(PrimaryDead, p.Name, fmt.Sprintf("%s has fenced itself: %s", p.Name, p.Fenced))
	case p.Exited != "":
		return s.emergency(PrimaryDead, p.Name, fmt.Sprintf("PostgreSQL of %s ended: %s", p.Name, p.Exited))
	case p.Role == RoleStopped:
		return s.emergency(PrimaryDead, p.Name, fmt.Sprintf("PostgreSQL of %s is down", p.Name))
	case p.Role != RolePrimary:
		return s.emergency(NoPrimary, p.Name, fmt.Sprintf("%s is recorded as primary and reports to be %s", p.Name, p.Role))
	}
	return nil
}

// passedPrimary: somebody began a higher term and did not finish.
func (s shard) passedPrimary(c quorum.Cohort, p *Instance) *Judgement {
	switch {
	case p.Term > c.Term:
		return s.emergency(NoPrimary, p.Name, fmt.Sprintf("%s has promised term %d, nobody is established in it", p.Name, p.Term))
	case s.left(c):
		return s.emergency(NoPrimary, p.Name, fmt.Sprintf("the members of term %d have promised a higher one, in which nobody is established", c.Term))
	case !p.Established:
		return s.emergency(NoPrimary, p.Name, fmt.Sprintf("%s is up in term %d and not established", p.Name, p.Term))
	}
	return nil
}

// stalledPrimary: the agent lives, something under it hangs. Sessions that are open may go on (a stopped postmaster) and
// standbys may be connected; a shard that takes no new session, or syncs no write, is down all the same.
func (s shard) stalledPrimary(_ quorum.Cohort, p *Instance) *Judgement {
	if what := s.hangs(*p); what != "" {
		return s.emergency(PrimaryStalled, p.Name, fmt.Sprintf("on %s %s", p.Name, what))
	}
	return nil
}

// cutOffPrimary: the primary lives and its commits hang. The observer sees both sides: when the standbys are well and can
// do without it, they must; when they are not, no other primary could commit either.
func (s shard) cutOffPrimary(c quorum.Cohort, p *Instance) *Judgement {
	connected := 0
	for _, m := range c.Members {
		if peer, ok := p.Peers[m]; ok && peer.Streaming && peer.ReplyAge+p.Age < s.p.LostAfter {
			connected++
		}
	}
	hung := p.CommitProbe.Pending
	if connected >= c.Acks || hung == 0 || hung+p.Age < s.p.IsolatedAfter {
		return nil
	}
	if max(p.DiskProbe.Pending, p.WriteProbe.Pending) >= s.p.WriteAfter {
		// A commit is written here before it is sent: when that hangs as well it may be all that hangs, and then the standbys are quiet
		// because there is nothing to send them. It ends, or is a stall soon.
		return nil
	}
	why := fmt.Sprintf("a commit on %s has hung for %v with %d of %d members connected", p.Name, round(hung+p.Age), connected, c.Acks)
	var lost []string
	for _, name := range s.without(s.able(), p.Name) {
		i := s.instance(name)
		if r := i.Receiver; i.Role == RoleStandby && (!r.Streaming || r.Source != p.Name || r.MessageAge+i.Age >= s.p.LostAfter) {
			lost = append(lost, name)
		}
	}
	if len(lost) > c.Acks && quorum.Revocable(s.o.Record, append(lost, p.Name)) == nil {
		return s.emergency(PrimaryIsolated, p.Name, why)
	}
	return &Judgement{CannotCommit, p.Name, Alert, fmt.Sprintf("%s; %d standbys are well, a new primary would need %d: durability is not relaxed", why, len(lost), c.Acks+1)}
}

// sickPrimary: it answers, but should not be the primary for long.
func (s shard) sickPrimary(c quorum.Cohort, p *Instance) *Judgement {
	full := s.full(*p)
	if full && s.roomElsewhere(p.Name) { // before the writes that fail because of it: a full volume is moved away from in another way
		return s.planned(DiskFull, p, fmt.Sprintf("the volume of %s is %.1f %% full", p.Name, 100*p.DiskUsed))
	}
	for _, pr := range []struct {
		what string
		Probe
	}{{"write", p.WriteProbe}, {"file write and fsync", p.DiskProbe}, {"new session", p.ConnectProbe}} {
		switch {
		case full: // its writes fail, as they would anywhere
		case pr.Failures >= s.p.SickAfter:
			return s.planned(PrimarySick, p, fmt.Sprintf("a %s on %s failed %d times: %s", pr.what, p.Name, pr.Failures, pr.Error))
		case pr.SlowFor >= s.p.SlowAfter:
			return s.planned(PrimarySick, p, fmt.Sprintf("a %s on %s has been slow for %v", pr.what, p.Name, round(pr.SlowFor)))
		}
	}
	switch {
	case p.PodGone && p.PodGoneFor >= s.p.SilentAfter:
		return s.planned(PrimarySick, p, fmt.Sprintf("the Pod of %s has been gone for %v, yet it serves", p.Name, round(p.PodGoneFor)))
	case c.Term < s.o.Record.Term():
		return s.planned(PrimarySick, p, fmt.Sprintf("term %d was begun and given up; %s serves in term %d until a new one settles the record", s.o.Record.Term(), p.Name, p.Term))
	case p.NodeNotReadyFor >= s.p.NodeAfter && !p.Leaving:
		return &Judgement{NodeNotReady, p.Name, Replace, fmt.Sprintf("the node of %s has not been ready for %v", p.Name, round(p.NodeNotReadyFor))}
	}
	return nil
}

func (s shard) full(i Instance) bool { return s.p.Full(i.DiskUsed) }

// roomElsewhere reports whether a copy of the data fits into another volume of the shard. Where it does not, the data has
// grown: a new instance would be as full as this one, and a new primary as well.
func (s shard) roomElsewhere(name string) bool {
	return slices.ContainsFunc(s.o.Instances, func(o Instance) bool {
		copied := o.Role == RolePrimary || o.Role == RoleStandby && !o.Diverged
		return o.Name != name && copied && s.fresh(o) && o.DiskUsed > 0 && o.DiskUsed < s.p.MaxUsed-s.p.Room
	})
}

// outgrown is the verdict on a shard whose data has grown too large for its volumes, when there is no worse one.
func (s shard) outgrown() *Judgement {
	for _, i := range s.o.Instances {
		if s.fresh(i) && s.full(i) && !s.roomElsewhere(i.Name) {
			return &Judgement{DiskFull, i.Name, Alert, fmt.Sprintf("the volume of %s is %.1f %% full, and no other of the shard has more room: the data needs larger ones (spec.storage.size)", i.Name, 100*i.DiskUsed)}
		}
	}
	return nil
}
