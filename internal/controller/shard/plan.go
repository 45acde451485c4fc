package shard

import (
	"fmt"
	"math"
	"slices"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/cohort"
	"theseus.dev/theseus/internal/quorum"
)

// Verb is what an Action does.
type Verb string

// The verbs. Those that call an agent run in the background, one of a kind per instance at a time.
const (
	// CreateInstance makes a claim and a Pod of a new name.
	CreateInstance Verb = "CreateInstance"
	// RestartInstance makes a Pod on the claim a Pod left behind.
	RestartInstance Verb = "RestartInstance"
	// DeletePod deletes the Pod, at once and by force when Force is set.
	DeletePod Verb = "DeletePod"
	// DeleteClaim deletes the claim, and with it the volume.
	DeleteClaim Verb = "DeleteClaim"
	// Condemn asks for the replacement of the instance.
	Condemn Verb = "Condemn"
	// Settle has the instance keep others of the shard off its node.
	Settle Verb = "Settle"
	// SetRole writes the role label on the Pod; an empty Role removes it.
	SetRole Verb = "SetRole"
	// Store writes Record and Bootstrap, by compare-and-swap against those observed.
	Store Verb = "Store"
	// AgentBootstrap has the instance run initdb and promotes it with Cohort.
	AgentBootstrap Verb = "Bootstrap"
	// AgentEstablish has the primary write its row of the journal.
	AgentEstablish Verb = "Establish"
	// AgentConfigure has the primary use Cohort.
	AgentConfigure Verb = "Configure"
	// AgentSeed has the instance copy Source and follow Target.
	AgentSeed Verb = "Seed"
	// AgentFollow has the instance follow Target.
	AgentFollow Verb = "Follow"
	// AgentDemote stops PostgreSQL of a primary that the shard has left behind.
	AgentDemote Verb = "Demote"
)

// Action is one decision.
type Action struct {
	Verb     Verb
	Instance string
	// Why is for people; it becomes the event.
	Why string

	Force     bool                      // DeletePod
	Role      string                    // SetRole
	Record    quorum.Record             // Store
	Bootstrap *v1alpha1.BootstrapStatus // Store
	Cohort    quorum.Cohort             // AgentBootstrap, AgentConfigure
	Term      uint64                    // agent commands
	Source    string                    // AgentSeed
	Target    string                    // AgentSeed, AgentFollow
	Discard   bool                      // AgentSeed
}

// Plan decides what to do about the state now.
func Plan(s *State, p Params) []Action {
	var actions []Action
	actions = append(actions, planBootstrap(s, p)...)
	actions = append(actions, planCohort(s, p)...)
	actions = append(actions, planFollowers(s, p)...)
	actions = append(actions, planInstances(s, p)...)
	actions = append(actions, planRoles(s, p)...)
	actions = append(actions, planSettled(s)...)
	return actions
}

// planBootstrap brings a shard to its first established primary.
func planBootstrap(s *State, p Params) []Action {
	switch {
	case s.Bootstrap == nil:
		return chooseFirst(s, p, 1)
	case s.Bootstrap.Done:
		return planFirstEstablish(s, p)
	}
	c, ok := s.Record.Latest()
	first := s.instance(s.Bootstrap.Instance)
	if !ok || first == nil || first.lost(p) {
		// The one chosen is gone, volume and all, or out of reach, before any client was let in: nothing was
		// acknowledged. What was copied from it is worth nothing; the next one begins a term of its own.
		return chooseAgain(s, p, c.Term+1)
	}
	if !first.alive(p) || first.Busy {
		return nil
	}
	switch first.Status.GetRole() {
	case agentpb.Role_EMPTY:
		return []Action{{Verb: AgentBootstrap, Instance: first.Name, Term: c.Term, Cohort: c, Why: "it was chosen to create the database system"}}
	case agentpb.Role_PRIMARY:
		if first.Status.GetTerm() == c.Term {
			return completeFirstCohort(s, p, first, c)
		}
	}
	return nil
}

// chooseFirst records who is to run initdb: the oldest instance that is empty. If anybody has data the record was lost,
// and nobody may.
func chooseFirst(s *State, p Params, term uint64) []Action {
	if len(s.Record.Cohorts) > 0 || s.Record.Established > 0 || slices.ContainsFunc(s.Instances, func(i Instance) bool { return i.hasData() }) {
		return nil
	}
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.alive(p) && !it.leaving() && it.Status.GetRole() == agentpb.Role_EMPTY {
			return []Action{chosen(s, it.Name, term)}
		}
	}
	return nil
}

func chosen(s *State, instance string, term uint64) Action {
	return Action{
		Verb: Store, Instance: instance,
		Why:       fmt.Sprintf("%s is chosen to create the database system", instance),
		Record:    quorum.Record{Cohorts: []quorum.Cohort{{Term: term, Primary: instance}}, Retired: s.Record.Retired},
		Bootstrap: &v1alpha1.BootstrapStatus{Instance: instance, At: metaTime(s.Now)},
	}
}

// chooseAgain starts over: everything that was copied from the first choice goes, then an empty instance is chosen.
func chooseAgain(s *State, p Params, term uint64) []Action {
	var actions []Action
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.HasPod && !it.leaving() && it.hasData() {
			actions = append(actions, Action{Verb: DeletePod, Instance: it.Name, Why: "it was seeded from an instance that was lost before the shard was established"})
		}
	}
	if len(actions) > 0 {
		return actions
	}
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.alive(p) && !it.leaving() && it.Status.GetRole() == agentpb.Role_EMPTY {
			return []Action{chosen(s, it.Name, term)}
		}
	}
	return nil
}

// completeFirstCohort makes the first cohort what the spec asks for, from the standbys that stream, and only then marks
// the bootstrap done, which lets planFirstEstablish go on. Until then no client was let in, nothing can have been
// acknowledged to anybody, and the record may be replaced in one step.
func completeFirstCohort(s *State, p Params, first *Instance, c quorum.Cohort) []Action {
	acks := quorum.DefaultAcks(s.Wanted)
	var members []string
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.Name != first.Name && it.alive(p) && !it.leaving() && streaming(first, it.Name) && it.Status.GetTerm() == c.Term {
			members = append(members, it.Name)
		}
	}
	members = members[:min(len(members), max(s.Wanted-1, 0))]
	next := quorum.Cohort{Term: c.Term, Primary: c.Primary, Members: members, Acks: acks, Revision: c.Revision + 1}.Normalize()
	ready := canCommit(c, first) && c.Acks == acks
	switch {
	case ready && usesCohort(first, c):
		done := s.Bootstrap.DeepCopy()
		done.Done = true
		return []Action{{Verb: Store, Instance: first.Name, Record: s.Record, Bootstrap: done, Why: "the first cohort is complete"}}
	case ready:
		return []Action{{Verb: AgentConfigure, Instance: first.Name, Term: c.Term, Cohort: c, Why: "it is the first cohort"}}
	case len(members) >= acks:
		return []Action{{
			Verb: Store, Instance: first.Name, Bootstrap: s.Bootstrap.DeepCopy(),
			Record: quorum.Record{Cohorts: []quorum.Cohort{next}, Retired: s.Record.Retired}, Why: fmt.Sprintf("the first cohort: %v", next),
		}}
	}
	return nil
}

// planFirstEstablish establishes the first primary, when that is still to be done.
func planFirstEstablish(s *State, p Params) []Action {
	c, _ := s.Record.Latest()
	primary := s.primary(p)
	if primary == nil || s.Record.Established > 0 || s.Reparenting || primary.Name != s.Bootstrap.Instance || primary.Status.GetEstablished() {
		return nil
	}
	if !usesCohort(primary, c) {
		return []Action{{Verb: AgentConfigure, Instance: primary.Name, Term: c.Term, Cohort: c, Why: "it is the first cohort"}}
	}
	return []Action{{Verb: AgentEstablish, Instance: primary.Name, Term: c.Term, Why: "the first cohort is complete"}}
}

// usesCohort reports whether the primary says that it uses exactly c.
func usesCohort(primary *Instance, c quorum.Cohort) bool {
	have := cohortFromPB(primary.Status.GetCohort())
	return have != nil && have.Equal(c)
}

// planCohort keeps the cohort of an established shard, one step at a time.
func planCohort(s *State, p Params) []Action {
	if s.Bootstrap == nil || !s.Bootstrap.Done || s.Reparenting {
		return nil
	}
	params := cohort.DefaultParams(s.Wanted)
	step := cohort.Next(observe(s, p), params)
	latest, _ := s.Record.Latest()
	switch step.Kind {
	case cohort.Store:
		return []Action{{Verb: Store, Instance: latest.Primary, Record: step.Record, Bootstrap: s.Bootstrap.DeepCopy(), Why: step.Why}}
	case cohort.Apply:
		return []Action{{Verb: AgentConfigure, Instance: latest.Primary, Term: step.Cohort.Term, Cohort: step.Cohort, Why: step.Why}}
	}
	return nil
}

// observe translates what the primary and the standbys say for the cohort's keeper.
func observe(s *State, p Params) cohort.Observed {
	o := cohort.Observed{Record: s.Record}
	primary := s.primary(p)
	if primary == nil {
		return o
	}
	use := &quorum.InUse{Since: primary.Status.GetCohortSinceLsn(), Flushed: map[string]uint64{}}
	if use.Since == 0 {
		use.Since = math.MaxUint64 // nobody can say yet what was acknowledged under the cohort before
	}
	if c := cohortFromPB(primary.Status.GetCohort()); c != nil {
		use.Cohort = *c
	}
	for _, peer := range primary.Status.GetPeers() {
		use.Flushed[peer.GetInstance()] = peer.GetFlushedLsn()
	}
	o.Use, o.Established = use, primary.Status.GetEstablished()
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.Name != primary.Name {
			o.Standbys = append(o.Standbys, standby(primary, it))
		}
	}
	// The youngest first: of two that caught up the one with the longer life ahead is let in.
	slices.Reverse(o.Standbys)
	return o
}

func standby(primary, it *Instance) cohort.Standby {
	st := cohort.Standby{Name: it.Name, Term: it.Status.GetTerm(), Streaming: streaming(primary, it.Name), Leaving: it.Retiring}
	switch {
	case it.Unfit != "":
		st.Unfit = it.Unfit
	case it.gone() || it.Failed:
		st.Unfit = "its Pod is gone"
	case it.Terminating || it.ClaimTerminating:
		// It may live on for its grace, or for ever on a node that is cut off: a substitute should be found now.
		st.Leaving = true
	case it.Status.GetDiverged():
		st.Unfit = "its data has diverged"
	}
	peer := peer(primary, it.Name)
	if have, flushed := primary.Status.GetFlushed().GetLsn(), peer.GetFlushedLsn(); have > flushed {
		st.Lag = have - flushed
	}
	if !st.Streaming {
		st.GoneFor = it.FailingFor
		if peer != nil {
			st.GoneFor = max(st.GoneFor, time.Duration(peer.GetReplyAgeMs())*time.Millisecond)
		} else {
			st.GoneFor = max(st.GoneFor, it.NotStreamingFor)
		}
	}
	return st
}
