package shard

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/quorum"
)

func metaTime(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

func cohortFromPB(c *agentpb.Cohort) *quorum.Cohort {
	have := agentapi.CohortFromPB(c)
	if have == nil {
		return nil
	}
	n := have.Normalize()
	return &n
}

// planFollowers makes every instance that answers follow the primary: seeds the empty and the diverged, points the
// others at it, stops one that still thinks it is primary in a term that was left.
func planFollowers(s *State, p Params) []Action {
	primary := s.primary(p)
	c, _ := s.Record.Latest()
	if primary == nil {
		return planOrphans(s, p, c)
	}
	begun := s.Record.Established == c.Term || s.Bootstrap != nil && !s.Bootstrap.Done || s.Record.Established == 0
	if s.Reparenting || !begun {
		return nil
	}
	var actions []Action
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.Name == primary.Name || !it.alive(p) || it.leaving() || it.Busy {
			continue
		}
		if a := follow(s, p, primary, c, it); a != nil {
			actions = append(actions, *a)
		}
	}
	return actions
}

func follow(s *State, p Params, primary *Instance, c quorum.Cohort, it *Instance) *Action {
	st := it.Status
	seed := &Action{Verb: AgentSeed, Instance: it.Name, Term: c.Term, Source: seedSource(s, p, primary, it.Name), Target: primary.Name}
	switch {
	case st.GetTerm() > c.Term:
		return nil // it promised a term that is about to be recorded: a reparent has begun that we do not see yet
	case st.GetRole() == agentpb.Role_EMPTY:
		seed.Why = "it is empty"
		return seed
	case st.GetRole() == agentpb.Role_SEEDING:
		return nil
	case st.GetRole() == agentpb.Role_PRIMARY:
		return &Action{Verb: AgentDemote, Instance: it.Name, Term: c.Term, Why: fmt.Sprintf("it is primary of term %d, the shard is in term %d under %s", st.GetTerm(), c.Term, primary.Name)}
	case st.GetDiverged():
		if slices.Contains(s.Record.Names(), it.Name) {
			return nil // first it must leave the record: its WAL may be what a revocation needs
		}
		seed.Why, seed.Discard = "its data has diverged", true
		return seed
	case st.GetTerm() < c.Term, st.GetReceiver().GetStreaming() && st.GetReceiver().GetSource() != primary.Name,
		!streaming(primary, it.Name) && (it.NotStreamingFor >= p.FollowAfter || it.Told != "" && it.Told != primary.IP):
		return &Action{Verb: AgentFollow, Instance: it.Name, Term: c.Term, Target: primary.Name, Why: fmt.Sprintf("%s is primary of term %d", primary.Name, c.Term)}
	}
	return nil
}

// planOrphans seeds what is empty from the survivor of a shard whose primary is lost for good, so that somebody can
// acknowledge what a new primary writes. The copy streams from the survivor; an emergency reparent does the rest.
func planOrphans(s *State, p Params, c quorum.Cohort) []Action {
	survivor := s.orphaned(p)
	if survivor == nil {
		return nil
	}
	var actions []Action
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.alive(p) && !it.leaving() && !it.Busy && it.Status.GetRole() == agentpb.Role_EMPTY && it.Status.GetTerm() <= c.Term {
			actions = append(actions, Action{
				Verb: AgentSeed, Instance: it.Name, Term: c.Term, Source: survivor.Name, Target: survivor.Name,
				Why: fmt.Sprintf("%s is lost and %s alone cannot take over", c.Primary, survivor.Name),
			})
		}
	}
	return actions
}

// seedSource is a standby that streams and is not far behind, so that the primary is not loaded; else the primary.
func seedSource(s *State, p Params, primary *Instance, not string) string {
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.Name == not || it.Name == primary.Name || !it.alive(p) || it.leaving() || !streaming(primary, it.Name) {
			continue
		}
		if st := it.Status; st.GetRole() == agentpb.Role_STANDBY && !st.GetDiverged() &&
			primary.Status.GetFlushed().GetLsn() <= st.GetReplayedLsn()+p.SeedLag {
			return it.Name
		}
	}
	return primary.Name
}

// planInstances makes the instances that are missing and removes what is left of those that are not needed. What is broken
// is replaced, by a Replacement; only while the shard has never been let to its clients it is simply made again.
func planInstances(s *State, p Params) []Action {
	if s.Bootstrap == nil || !s.Bootstrap.Done {
		return planFirstInstances(s, p)
	}
	var actions []Action
	var broken []*Instance
	have := s.places()
	for i := range s.Instances {
		switch it := &s.Instances[i]; {
		case s.replaced(it):
			if a := planRestart(s, p, it); a != nil {
				actions = append(actions, *a)
			}
		case it.counts(p):
			have++
		default:
			broken = append(broken, it)
		}
	}
	// Without a primary there is nothing to seed from: what is missing then is not another empty instance.
	writable := s.established(p) != nil
	replace := writable || s.orphaned(p) != nil
	for _, it := range broken {
		needed := have < s.Wanted
		if a := planBroken(s, p, it, needed && replace); a != nil {
			actions = append(actions, *a)
		}
		if needed {
			have++
		}
	}
	if writable {
		for range s.Wanted - have {
			actions = append(actions, Action{Verb: CreateInstance, Why: fmt.Sprintf("%d of %d instances are there", have, s.Wanted)})
		}
	}
	if have > s.Wanted {
		actions = append(actions, planSurplus(s, p, have-s.Wanted)...)
	}
	return actions
}

// planBroken has an instance replaced that is one of those the spec asks for, and removes one that is not.
func planBroken(s *State, p Params, it *Instance, replace bool) *Action {
	if a := planRestart(s, p, it); a != nil {
		return a
	}
	if !replace {
		return planLeftover(s, p, it)
	}
	if it.Refused != "" && !it.ClaimTerminating && !slices.Contains(s.Record.Names(), it.Name) {
		// Nothing is wrong with it: it never was, and another in its place would be refused as well.
		return &Action{Verb: RestartInstance, Instance: it.Name, Why: "the API server had refused its Pod"}
	}
	return &Action{Verb: Condemn, Instance: it.Name, Why: it.broken(p)}
}

// broken says what is wrong with an instance that does not count.
func (i *Instance) broken(p Params) string {
	switch {
	case i.gone():
		return "its Pod is gone"
	case i.Failed:
		return "its Pod has ended: " + i.PodMessage
	case i.Terminating:
		return "its Pod is being deleted"
	case i.ClaimTerminating:
		return "its claim was deleted"
	case i.StrandedFor >= p.LostAfter:
		return "its Pod cannot run where its volume is: " + i.PodMessage
	}
	return fmt.Sprintf("it has been out of reach for %v: %s", i.FailingFor.Round(time.Second), i.LastError)
}

// planRestart starts an instance again on the volume it has, when without it nobody could serve.
func planRestart(s *State, p Params, it *Instance) *Action {
	named := slices.Contains(s.Record.Names(), it.Name)
	primary := s.established(p)
	c, _ := s.Record.Latest()
	switch {
	case it.Terminating && it.StuckFor >= p.StuckAfter && s.NoPrimaryFor >= p.RestartAfter && named:
		return stuck(it)
	case !it.gone() && (!it.Failed || it.Terminating) || it.ClaimTerminating || !named:
		return nil
	case primary == nil && (s.Wanted == 1 || s.NoPrimaryFor >= p.RestartAfter) && !s.Reparenting:
		return restart(it, "there is no primary and its volume may be needed")
	case primary != nil && c.Has(it.Name) && s.CannotCommitFor >= p.CannotCommitAfter:
		return restart(it, "the primary cannot commit without it")
	}
	return nil
}

// restart makes the Pod again. One that has ended (evicted, refused by its kubelet) is in the way until it is deleted.
func restart(it *Instance, why string) *Action {
	if !it.gone() {
		return &Action{Verb: DeletePod, Instance: it.Name, Why: "its Pod has ended, and " + why}
	}
	return &Action{Verb: RestartInstance, Instance: it.Name, Why: why}
}

// stuck removes a Pod by force. That is safe where it is done: what might still run there is out of the cohort, or there is
// no other way to start the volume again. An instance is held back by its term, never by its Pod being gone.
func stuck(it *Instance) *Action {
	return &Action{Verb: DeletePod, Instance: it.Name, Force: true, Why: fmt.Sprintf("its Pod has been terminating for %s past its grace", it.StuckFor.Round(time.Second))}
}

// planFirstInstances makes the instances of a shard that has not been let to clients: whatever is lost is made again.
func planFirstInstances(s *State, p Params) []Action {
	var actions []Action
	have := 0
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.counts(p) {
			have++
			continue
		}
		chosen := s.Bootstrap != nil && s.Bootstrap.Instance == it.Name || slices.Contains(s.Record.Names(), it.Name)
		switch {
		case it.gone() && !it.ClaimTerminating && (s.Bootstrap == nil || chosen || it.Refused != ""):
			have++
			actions = append(actions, Action{Verb: RestartInstance, Instance: it.Name, Why: "its Pod is missing"})
		case it.gone() && s.Bootstrap != nil && !chosen && it.Refused == "":
			actions = append(actions, Action{Verb: DeleteClaim, Instance: it.Name, Why: "its Pod is gone and the shard was not established yet"})
		case it.Failed && !it.Terminating:
			actions = append(actions, Action{Verb: DeletePod, Instance: it.Name, Why: "its Pod has ended: " + it.PodMessage})
		case it.Terminating && it.StuckFor >= p.StuckAfter && chosen:
			actions = append(actions, *stuck(it))
		}
	}
	for range s.Wanted - have {
		actions = append(actions, Action{Verb: CreateInstance, Why: fmt.Sprintf("%d of %d instances are there", have, s.Wanted)})
	}
	return actions
}

// planLeftover removes what is left of an instance that nobody needs: a replacement that ended left it, or the spec asks for
// fewer. Its volume goes when it is certain that nothing acknowledged depends on it.
func planLeftover(s *State, p Params, it *Instance) *Action {
	if slices.Contains(s.Record.Names(), it.Name) || !s.redundant(p) {
		return nil
	}
	switch {
	case it.gone():
		return &Action{Verb: DeleteClaim, Instance: it.Name, Why: "its Pod is gone and the shard is redundant without it"}
	case it.Terminating && it.StuckFor >= p.StuckAfter:
		return stuck(it)
	case it.Terminating:
		return nil
	}
	return &Action{Verb: DeletePod, Instance: it.Name, Force: it.lost(p), Why: it.broken(p)}
}

// keepSpare is how long what a failed replacement left is kept: the next one makes use of it.
const keepSpare = 10 * time.Minute

// planSurplus removes up to n instances that the spec does not ask for, once the cohort is complete without them and no
// replacement could have a use for them: those that are worst off first, then the oldest.
func planSurplus(s *State, p Params, n int) []Action {
	if !s.redundant(p) || len(s.Replacements) > 0 || s.Now.Sub(s.LastFailed) < keepSpare {
		return nil
	}
	primary := s.established(p)
	named := s.Record.Names()
	var victims []*Instance
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.counts(p) && !slices.Contains(named, it.Name) {
			victims = append(victims, it)
		}
	}
	slices.SortStableFunc(victims, func(a, b *Instance) int {
		sa, sb := streaming(primary, a.Name), streaming(primary, b.Name)
		switch {
		case sa == sb:
			return a.CreatedAt.Compare(b.CreatedAt)
		case sb:
			return -1
		}
		return 1
	})
	var actions []Action
	for _, it := range victims[:min(n, len(victims))] {
		actions = append(actions, Action{Verb: DeletePod, Instance: it.Name, Why: "the spec asks for fewer instances"})
	}
	return actions
}

// planRoles writes the role labels, which Services select by, after the truth: the established primary, and whom it
// hears. While there is no such primary nothing is known better than before, and a label goes only when its own instance
// says otherwise: neither a restarted operator nor one that is cut off may empty a Service.
func planRoles(s *State, p Params) []Action {
	primary := s.established(p)
	var actions []Action
	for i := range s.Instances {
		it := &s.Instances[i]
		if !it.HasPod {
			continue
		}
		if role := roleOf(it, primary, p); role != it.Role {
			actions = append(actions, Action{Verb: SetRole, Instance: it.Name, Role: role})
		}
	}
	return actions
}

func roleOf(it, primary *Instance, p Params) string {
	says := it.Status.GetRole()
	switch {
	case it == primary:
		return v1alpha1.RolePrimary
	case primary != nil && streaming(primary, it.Name) && !it.Terminating && !it.Status.GetDiverged():
		return v1alpha1.RoleStandby
	case primary != nil:
		return ""
	case it.Role == v1alpha1.RolePrimary && it.alive(p) && says != agentpb.Role_PRIMARY:
		return ""
	case it.Role == v1alpha1.RoleStandby && it.alive(p) && says != agentpb.Role_STANDBY:
		return ""
	}
	return it.Role
}

// planSettled has surges that got a node keep the others off it.
func planSettled(s *State) []Action {
	var actions []Action
	for i := range s.Instances {
		if it := &s.Instances[i]; it.HasPod && it.Node != "" && !it.Settled && !it.Terminating {
			actions = append(actions, Action{Verb: Settle, Instance: it.Name})
		}
	}
	return actions
}
