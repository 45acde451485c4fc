package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// Judge gives the one verdict on a shard. It first finds the primary and judges it, then looks for a second one, then at
// the standbys; the first finding wins. A reparent whose coordinator is alive turns every reparenting action into None, but
// for an emergency while a planned one only prepares.
func Judge(o Observed, p Params) Judgement {
	s := shard{o: o, p: p}
	j := s.judge()
	if r := o.Reparent; r != nil && (j.Action == ERS || j.Action == PRS) {
		switch wait := p.RetryAfter << min(max(r.Failures-1, 0), 4); {
		case r.Failures > 0 && r.PhaseAge < wait:
			j.Action = None
			j.Why += fmt.Sprintf("; the last %d reparents failed, the next one may begin %v after the last", r.Failures, wait)
		case r.Failures == 0 && j.Action == ERS && s.prepares(*r):
			j.Why += fmt.Sprintf("; a planned reparent to term %d has disturbed nothing yet and is overtaken", r.Term)
		case r.Failures == 0 && r.PhaseAge <= r.PhaseLimit+p.Overdue:
			j.Action = None
			j.Why += fmt.Sprintf("; a reparent to term %d is under way (%s for %v)", r.Term, r.Phase, round(r.PhaseAge))
		}
	}
	return j
}

type shard struct {
	o Observed
	p Params
}

// prepares reports whether a reparent is a planned one that has disturbed nothing yet: neither is its term in the record, which
// comes before clients are paused, nor has any agent accepted it. It may go on like that for half a minute (it waits for a
// checkpoint of the primary), and for ever when its coordinator is frozen; an emergency is no less one meanwhile. The
// journal's phase is no witness, since it is written a moment later than things happen.
//
// That its coordinator may be just about to go on does no harm. The emergency opens a higher term and collects promises
// of it; agents that gave theirs refuse whatever comes of the lower one, its Drain and its Demote among them. Should the planned
// one still get its term into the record, the emergency's own store fails on the record it has not seen, and it decides again
// with that cohort to be revoked, too; should it come too late, its store fails, and it is overtaken. It is the case of two
// coordinators at once, as ever.
func (s shard) prepares(r InFlight) bool {
	return r.Planned && s.o.Record.Term() < r.Term && !slices.ContainsFunc(s.o.Instances, func(i Instance) bool { return i.Term >= r.Term })
}

func (s shard) judge() Judgement {
	latest, ok := s.o.Record.Latest()
	if !ok || s.o.Record.Established == 0 {
		return Judgement{Verdict: Unknown, Action: None, Why: "the shard is not bootstrapped yet"}
	}
	if err := s.o.Record.Validate(); err != nil {
		return Judgement{Verdict: Unknown, Action: Alert, Why: fmt.Sprintf("the record cannot be trusted: %v", err)}
	}
	if !slices.ContainsFunc(s.o.Instances, func(i Instance) bool { return s.fresh(i) || s.awaited(i) }) && len(s.o.Instances) > 1 {
		return Judgement{Verdict: Unknown, Action: Alert, Why: fmt.Sprintf("no agent of %d was heard for %v: the observer is cut off, or everything is down", len(s.o.Instances), s.p.SilentAfter)}
	}
	c, p, j := s.findPrimary(latest)
	if p != nil && s.awaited(*p) {
		return Judgement{Verdict: Unknown, Subject: p.Name, Action: None, Why: fmt.Sprintf("this observer has watched for %v and waits to hear from %s", round(p.Age), p.Name)}
	}
	if j == nil {
		j = s.judgePrimary(c, p)
	}
	if j == nil {
		j = s.secondPrimary(p)
	}
	if j == nil {
		j = s.judgeStandbys(c, p)
	}
	if j == nil {
		j = s.outgrown()
	}
	if j == nil {
		j = &Judgement{Verdict: Healthy, Subject: p.Name, Action: None, Why: fmt.Sprintf("%s serves in term %d", p.Name, p.Term)}
	}
	return *j
}

// findPrimary says which cohort and instance to judge, or that there is nobody. With a term begun and not recorded as
// established it is the begun term's primary when that one reports to be established (its coordinator died just before
// saying so), else the established term's when that one still can be.
func (s shard) findPrimary(latest quorum.Cohort) (quorum.Cohort, *Instance, *Judgement) {
	if s.o.Record.InTerm() {
		p := s.instance(latest.Primary)
		if p == nil {
			return latest, nil, s.emergency(PrimaryDead, latest.Primary, latest.Primary+" does not exist any more")
		}
		return latest, p, nil
	}
	if p := s.instance(latest.Primary); p != nil && s.fresh(*p) && p.Role == RolePrimary && p.Established && p.Term == latest.Term {
		return latest, p, nil
	}
	i := slices.IndexFunc(s.o.Record.Cohorts, func(c quorum.Cohort) bool { return c.Term > s.o.Record.Established })
	old := s.o.Record.Cohorts[i-1]
	if p := s.instance(old.Primary); p != nil && s.fresh(*p) && p.Role == RolePrimary && p.Established && p.Term == old.Term && !s.left(old) {
		return old, p, nil
	}
	if slices.ContainsFunc(s.o.Instances, s.awaited) {
		return latest, nil, &Judgement{Unknown, "", None, "this observer has only begun to watch"}
	}
	return latest, nil, s.emergency(NoPrimary, "", fmt.Sprintf("term %d was begun with %s and is not established", latest.Term, latest.Primary))
}

// left reports whether the accepted terms of the instances heard mean that the cohort is revoked.
func (s shard) left(c quorum.Cohort) bool {
	var promises []quorum.Promise
	for _, i := range s.o.Instances {
		if i.Heard {
			promises = append(promises, quorum.Promise{Instance: i.Name, Term: i.Term})
		}
	}
	return quorum.Revoked(quorum.Record{Cohorts: []quorum.Cohort{c}}, promises) == nil
}

func (s shard) instance(name string) *Instance {
	for i := range s.o.Instances {
		if s.o.Instances[i].Name == name {
			return &s.o.Instances[i]
		}
	}
	return nil
}

func (s shard) fresh(i Instance) bool {
	return i.Heard && i.Age < s.p.SilentAfter && !(i.PodGone && i.Disconnected)
}

// awaited: this observer has only begun to watch it.
func (s shard) awaited(i Instance) bool {
	return !i.Heard && i.Age < s.p.SilentAfter && !i.PodGone
}

// hangs returns which of the agent's probes has hung for too long, "" for none.
func (s shard) hangs(i Instance) string {
	for _, p := range []struct {
		what string
		Probe
	}{{"file write and fsync", i.DiskProbe}, {"write", i.WriteProbe}, {"new session", i.ConnectProbe}} {
		if p.Pending > 0 && p.Pending+i.Age >= s.p.StallAfter {
			return fmt.Sprintf("a %s has hung for %v", p.what, round(p.Pending+i.Age))
		}
	}
	return ""
}

// promisers lists the instances that could promise a new term: heard, with a data directory and a disk that answers. One
// that has diverged is among them: it cannot follow anybody, but its log says what was acknowledged.
func (s shard) promisers() []string {
	var out []string
	for _, i := range s.o.Instances {
		if s.fresh(i) && (i.Role == RoleStandby || i.Role == RolePrimary || i.Role == RoleStopped) && s.hangs(i) == "" {
			out = append(out, i.Name)
		}
	}
	return out
}

// able lists the promisers that could serve in a new term.
func (s shard) able() []string {
	return slices.DeleteFunc(s.promisers(), func(n string) bool { return s.instance(n).Diverged })
}

// emergency proposes an ERS when those heard can revoke the record and establish a new primary, else an alert.
//
// One exception: when too few could serve because the others are lost for good, new ones must be seeded, from whoever has
// most. When that one does not run (a stopped primary waits to be told what to be), the ERS is proposed all the same: it
// will fail, but the promises turn what is left into standbys.
func (s shard) emergency(v Verdict, subject, why string) *Judgement {
	able := s.able()
	promisers := s.promisers()
	if err := quorum.Revocable(s.o.Record, promisers); err != nil {
		return &Judgement{v, subject, Alert, fmt.Sprintf("%s; no emergency reparent can be safe now: %v", why, err)}
	}
	latest, _ := s.o.Record.Latest()
	if len(able)-1 < latest.Acks && s.furthestStopped(promisers) {
		return &Judgement{v, subject, ERS, fmt.Sprintf("%s; only {%s} could serve: promising makes {%s} standbys to seed others from", why, strings.Join(able, ", "), strings.Join(promisers, ", "))}
	}
	if len(able)-1 < latest.Acks {
		return &Judgement{v, subject, Alert, fmt.Sprintf("%s; only {%s} could serve, a new primary needs %d acknowledgements", why, strings.Join(able, ", "), latest.Acks)}
	}
	return &Judgement{v, subject, ERS, fmt.Sprintf("%s; {%s} can revoke and serve", why, strings.Join(able, ", "))}
}

// furthestStopped reports whether the one with the highest log among those named does not run.
func (s shard) furthestStopped(names []string) bool {
	if len(names) == 0 {
		return false
	}
	best := slices.MaxFunc(names, func(a, b string) int { return s.instance(a).Position.Compare(s.instance(b).Position) })
	return s.instance(best).Role == RoleStopped
}

// planned proposes a PRS when a standby could take over and be acknowledged, else an alert.
func (s shard) planned(v Verdict, p *Instance, why string) *Judgement {
	latest, _ := s.o.Record.Latest()
	others := s.without(s.able(), p.Name)
	if len(others) < max(1, latest.Acks) {
		return &Judgement{v, p.Name, Alert, fmt.Sprintf("%s; but no standby could take over: {%s} are able", why, strings.Join(others, ", "))}
	}
	return &Judgement{v, p.Name, PRS, why}
}

func (shard) without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

// secondPrimary finds a primary of a lower term that is still up.
func (s shard) secondPrimary(p *Instance) *Judgement {
	for _, i := range s.o.Instances {
		if i.Name == p.Name || !s.fresh(i) || i.Role != RolePrimary {
			continue
		}
		why := fmt.Sprintf("%s is up as a primary of term %d beside %s of term %d", i.Name, i.Term, p.Name, p.Term)
		if i.Term >= p.Term {
			return &Judgement{TwoPrimaries, i.Name, Alert, why + ": this must not happen"}
		}
		return &Judgement{TwoPrimaries, i.Name, Replace, why + " and cannot acknowledge anything"}
	}
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
