package shard

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/quorum"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// world builds a State: instances a, b, c … of ages a > b > c.
type world struct{ State }

func newWorld(wanted int) *world {
	return &world{State{Now: now, Wanted: wanted}}
}

func (w *world) add(name string, edit ...func(*Instance)) *world {
	it := Instance{
		Name: name, HasPod: true, HasClaim: true, UID: types.UID("uid-" + name), IP: "10.0.0." + fmt.Sprint(len(w.Instances)+1),
		CreatedAt: now.Add(-time.Hour).Add(time.Duration(len(w.Instances)) * time.Minute), Connected: true,
		Status: &agentpb.Status{Instance: name, Role: agentpb.Role_EMPTY},
	}
	for _, e := range edit {
		e(&it)
	}
	w.Instances = append(w.Instances, it)
	return w
}

func primaryOf(term uint64, established bool, c quorum.Cohort, peers ...string) func(*Instance) {
	return func(it *Instance) {
		it.Status.Role, it.Status.Term, it.Status.Established = agentpb.Role_PRIMARY, term, established
		it.Status.Cohort = agentapi.CohortToPB(&c)
		it.Status.Flushed, it.Status.CohortSinceLsn = &agentpb.Position{WalTerm: term, Lsn: 1000}, 1000
		for _, p := range peers {
			it.Status.Peers = append(it.Status.Peers, &agentpb.ReplicationPeer{Instance: p, State: "streaming", FlushedLsn: 1000, ReplayedLsn: 1000})
		}
	}
}

func standbyOf(term uint64, primary string) func(*Instance) {
	return func(it *Instance) {
		it.Status.Role, it.Status.Term = agentpb.Role_STANDBY, term
		it.Status.Receiver = &agentpb.Receiver{Streaming: true, Source: primary}
		it.Status.ReplayedLsn = 1000
	}
}

func role(r agentpb.Role) func(*Instance) { return func(it *Instance) { it.Status.Role = r } }
func labelled(r string) func(*Instance)   { return func(it *Instance) { it.Role = r } }
func podGone(it *Instance) {
	it.HasPod, it.Status, it.Connected, it.IP, it.UID = false, nil, false, "", ""
}
func terminating(it *Instance) { it.Terminating = true }
func silentFor(d time.Duration) func(*Instance) {
	return func(it *Instance) { it.Connected, it.FailingFor, it.HeardAgo = false, d, d }
}

func cohortOf(term uint64, primary string, acks int, members ...string) quorum.Cohort {
	return quorum.Cohort{Term: term, Primary: primary, Members: members, Acks: acks}.Normalize()
}

// healthy is a shard of three: a is primary, b and c its cohort.
func healthy() *world {
	c := cohortOf(3, "a", 1, "b", "c")
	w := newWorld(3)
	w.Bootstrap = &v1alpha1.BootstrapStatus{Instance: "z", Done: true}
	w.Record = quorum.Record{Cohorts: []quorum.Cohort{c}, Established: 3}
	return w.add("a", primaryOf(3, true, c, "b", "c"), labelled("primary")).
		add("b", standbyOf(3, "a"), labelled("standby")).
		add("c", standbyOf(3, "a"), labelled("standby"))
}

func (w *world) edit(name string, edits ...func(*Instance)) *world {
	for _, e := range edits {
		e(w.instance(name))
	}
	return w
}

// unheard takes a standby off the primary's list.
func (w *world) unheard(names ...string) *world {
	st := w.instance("a").Status
	st.Peers = slices.DeleteFunc(st.Peers, func(p *agentpb.ReplicationPeer) bool { return slices.Contains(names, p.GetInstance()) })
	return w
}

// without removes an instance altogether.
func (w *world) without(name string) *world {
	w.Instances = slices.DeleteFunc(w.Instances, func(i Instance) bool { return i.Name == name })
	return w
}

// planned is the plan as words: "Verb instance".
func (w *world) planned() []string {
	out := []string{}
	for _, a := range Plan(&w.State, DefaultParams()) {
		s := string(a.Verb)
		if a.Instance != "" {
			s += " " + a.Instance
		}
		switch {
		case a.Verb == SetRole:
			s += "=" + a.Role
		case a.Verb == AgentSeed:
			s += " from " + a.Source
		case a.Force:
			s += " by force"
		}
		out = append(out, s)
	}
	return out
}

func (w *world) action(t *testing.T, verb Verb) Action {
	t.Helper()
	for _, a := range Plan(&w.State, DefaultParams()) {
		if a.Verb == verb {
			return a
		}
	}
	t.Fatalf("no %s in %v", verb, w.planned())
	return Action{}
}

func TestAHealthyShardIsLeftAlone(t *testing.T) {
	require.Empty(t, healthy().planned())
}

func TestBootstrapStepByStep(t *testing.T) {
	w := newWorld(3)
	require.Equal(t, []string{"CreateInstance", "CreateInstance", "CreateInstance"}, w.planned())

	w.add("a").add("b").add("c")
	require.Equal(t, []string{"Store a"}, w.planned(), "the choice is recorded before anybody is told")
	a := w.action(t, Store)
	require.False(t, a.Bootstrap.Done)
	require.Equal(t, quorum.Record{Cohorts: []quorum.Cohort{cohortOf(1, "a", 0)}}, a.Record)

	w.Bootstrap, w.Record = a.Bootstrap, a.Record
	require.Equal(t, []string{"Bootstrap a"}, w.planned())

	first := a.Record.Cohorts[0]
	w.edit("a", primaryOf(1, false, first))
	require.Equal(t, []string{"Seed b from a", "Seed c from a"}, w.planned(), "no client is let in yet: no Establish, no role")

	w.edit("b", standbyOf(1, "a")).edit("c", role(agentpb.Role_SEEDING)).edit("a", primaryOf(1, false, first, "b"))
	require.Equal(t, []string{"Store a"}, w.planned())
	a = w.action(t, Store)
	require.False(t, a.Bootstrap.Done)
	next := a.Record.Cohorts[0]
	require.Equal(t, []string{"b"}, next.Members)
	require.Equal(t, 1, next.Acks)
	require.Equal(t, uint64(1), next.Revision)

	w.Record = a.Record
	require.Equal(t, []string{"Configure a"}, w.planned())
	w.edit("a", primaryOf(1, false, next))
	require.Equal(t, []string{"Store a"}, w.planned())
	a = w.action(t, Store)
	require.True(t, a.Bootstrap.Done, "recorded as done before clients may be let in")
	require.Equal(t, uint64(0), a.Record.Established)

	w.Bootstrap, w.Record = a.Bootstrap, a.Record
	require.Equal(t, []string{"Establish a"}, w.planned())
	w.instance("a").Status.Established = true
	require.Equal(t, []string{"Store a"}, w.planned())
	a = w.action(t, Store)
	require.Equal(t, uint64(1), a.Record.Established)
	w.Record = a.Record
	require.Equal(t, []string{"SetRole a=primary", "SetRole b=standby"}, w.planned())
}

func TestBootstrapOfOne(t *testing.T) {
	w := newWorld(1).add("a")
	a := w.action(t, Store)
	w.Bootstrap, w.Record = a.Bootstrap, a.Record
	w.edit("a", primaryOf(1, false, a.Record.Cohorts[0]))
	a = w.action(t, Store)
	require.True(t, a.Bootstrap.Done)
	w.Bootstrap = a.Bootstrap
	require.Equal(t, []string{"Establish a"}, w.planned())
}

func TestNothingIsEstablishedWithoutTheAcknowledgementsOfTheSpec(t *testing.T) {
	// Five instances need two acknowledgements; one standby is not enough, however long it takes.
	w := newWorld(5).add("a").add("b").add("c").add("d").add("e")
	first := cohortOf(1, "a", 0)
	w.Bootstrap, w.Record = &v1alpha1.BootstrapStatus{Instance: "a"}, quorum.Record{Cohorts: []quorum.Cohort{first}}
	w.edit("a", primaryOf(1, false, first, "b")).edit("b", standbyOf(1, "a"))
	for _, name := range []string{"c", "d", "e"} {
		w.edit(name, role(agentpb.Role_SEEDING))
	}
	require.Empty(t, w.planned())

	// And when the standby of a complete first cohort goes silent before Establish, it waits.
	c := cohortOf(1, "a", 1, "b")
	w = newWorld(3).add("a", primaryOf(1, false, c)).add("b", standbyOf(1, "a")).add("c", role(agentpb.Role_SEEDING))
	w.Bootstrap, w.Record = &v1alpha1.BootstrapStatus{Instance: "a"}, quorum.Record{Cohorts: []quorum.Cohort{c}}
	require.Empty(t, w.planned())
}

func TestInitdbRunsOnce(t *testing.T) {
	for name, w := range map[string]*world{
		"all gone after the first establish": func() *world { w := healthy(); w.Instances = nil; return w }(),
		"only empty instances are there": func() *world {
			w := healthy()
			w.Instances = nil
			return w.add("x").add("y").add("z")
		}(),
		"the chosen one is empty again": func() *world {
			w := healthy()
			w.Bootstrap.Instance = "a"
			return w.edit("a", func(it *Instance) { it.Status = &agentpb.Status{Role: agentpb.Role_EMPTY} })
		}(),
		"done but not yet established": func() *world {
			w := healthy()
			w.Record.Established = 0
			w.Instances = nil
			return w.add("x")
		}(),
		"the record was lost and somebody has data": newWorld(3).add("a", standbyOf(1, "z")).add("b").add("c"),
		"the bootstrap was lost, the record not": func() *world {
			w := newWorld(3).add("a").add("b").add("c")
			w.Record = quorum.Record{Cohorts: []quorum.Cohort{cohortOf(3, "z", 0)}, Established: 3}
			return w
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			w.NoPrimaryFor = time.Hour
			for _, a := range Plan(&w.State, DefaultParams()) {
				require.NotContains(t, []Verb{AgentBootstrap, Store, AgentSeed, DeleteClaim}, a.Verb, "%v", a)
			}
		})
	}
}

func TestALostBootstrapIsStartedOverOnlyBeforeAnybodyWasLetIn(t *testing.T) {
	first := cohortOf(1, "z", 0)
	w := newWorld(3).add("a", standbyOf(1, "z")).add("b").add("c")
	w.Bootstrap, w.Record = &v1alpha1.BootstrapStatus{Instance: "z"}, quorum.Record{Cohorts: []quorum.Cohort{first}}
	require.Equal(t, []string{"DeletePod a"}, w.planned(), "what was copied from it goes first")
	w.edit("a", podGone)
	require.Contains(t, w.planned(), "DeleteClaim a")
	w.without("a")
	a := w.action(t, Store)
	require.Equal(t, "b", a.Bootstrap.Instance)
	require.Equal(t, uint64(2), a.Record.Cohorts[0].Term, "a term has one primary for ever")

	w.Bootstrap.Done = true
	for _, a := range Plan(&w.State, DefaultParams()) {
		require.NotEqual(t, Store, a.Verb)
	}
}

func TestTheChosenInstanceIsStartedAgainOnItsVolume(t *testing.T) {
	w := newWorld(3).add("a", podGone).add("b").add("c")
	w.Bootstrap, w.Record = &v1alpha1.BootstrapStatus{Instance: "a"}, quorum.Record{Cohorts: []quorum.Cohort{cohortOf(1, "a", 0)}}
	require.Equal(t, []string{"RestartInstance a"}, w.planned())
}

func TestADeletedPodComesBackAsANewInstance(t *testing.T) {
	w := healthy().edit("c", terminating).unheard("c")
	require.Contains(t, w.planned(), "Condemn c", "at once, while the old one still terminates")
	require.NotContains(t, w.planned(), "CreateInstance", "the replacement makes the successor")
	require.NotContains(t, w.planned(), "DeleteClaim c")

	w = healthy().edit("c", podGone).unheard("c")
	got := w.planned()
	require.Contains(t, got, "Condemn c")
	require.NotContains(t, got, "CreateInstance")
	require.NotContains(t, got, "DeleteClaim c", "not while the cohort names it")
	require.NotContains(t, got, "RestartInstance c")
	require.Equal(t, []string{"b"}, w.action(t, Store).Record.Cohorts[1].Members, "it is taken out of the cohort")

	// Out of the cohort, its successor seeding: what is left of it is the replacement's, and so is the place.
	c := cohortOf(3, "a", 1, "b")
	w = healthy().edit("c", podGone).edit("a", primaryOf(3, true, c)).unheard("c").add("d")
	w.Record.Cohorts = []quorum.Cohort{c}
	w.replace("c", "d")
	require.Equal(t, []string{"Seed d from b"}, w.planned(), "from the standby, not the primary")
	// The successor has joined, the replacement has ended and left the volume: now it goes.
	c = cohortOf(3, "a", 1, "b", "d")
	w.edit("a", primaryOf(3, true, c, "d")).edit("d", standbyOf(3, "a"), labelled("standby"))
	w.Record.Cohorts = []quorum.Cohort{c}
	require.Empty(t, w.planned())
	w.Replacements = nil
	require.Equal(t, []string{"DeleteClaim c"}, w.planned())
}

func TestWhatAReplacementLooksAfterCountsOnce(t *testing.T) {
	w := healthy().add("d", standbyOf(3, "a"), labelled("standby"))
	w.edit("a", func(it *Instance) {
		it.Status.Peers = append(it.Status.Peers, &agentpb.ReplicationPeer{Instance: "d", State: "streaming", FlushedLsn: 1000})
	})
	w.replace("c", "d")
	require.Empty(t, w.planned(), "both are there, and neither is one too many")
	w.Replacements[0].Successor = ""
	w.instance("d").Surge = w.Replacements[0].Name
	require.Empty(t, w.planned(), "its label says whose surge it is before the cache shows the status")
	w.without("d")
	require.Empty(t, w.planned(), "the replacement makes the next surge")
	w.without("c").unheard("c")
	require.NotContains(t, w.planned(), "CreateInstance", "nor when nothing is left of either")
	w.Wanted = 4
	require.Contains(t, w.planned(), "CreateInstance", "the spec asks for one more")
}

func TestTheCohortGoesOnWithoutTheCondemned(t *testing.T) {
	w := healthy().edit("c", func(it *Instance) { it.Unfit = "it is condemned" })
	require.Equal(t, []string{"b"}, w.action(t, Store).Record.Cohorts[1].Members)
	w = healthy().edit("c", func(it *Instance) { it.Retiring = true })
	require.Empty(t, w.planned(), "one that is only to go stays until its substitute has caught up")
	w.add("d", standbyOf(3, "a"), labelled("standby"))
	w.replace("c", "d")
	w.edit("a", func(it *Instance) {
		it.Status.Peers = append(it.Status.Peers, &agentpb.ReplicationPeer{Instance: "d", State: "streaming", FlushedLsn: 1000})
	})
	require.Equal(t, []string{"b", "d"}, w.action(t, Store).Record.Cohorts[1].Members)
}

func TestASurgeKeepsOthersOffItsNodeOnceItHasOne(t *testing.T) {
	w := healthy().add("d", standbyOf(3, "a"), labelled("standby"))
	w.replace("c", "d")
	w.edit("d", func(it *Instance) { it.Node = "n4" })
	require.Contains(t, w.planned(), "Settle d")
	w.edit("d", func(it *Instance) { it.Settled = true })
	require.NotContains(t, w.planned(), "Settle d")
}

// replace has a replacement of one by another under way.
func (w *world) replace(instance, successor string) *world {
	w.Replacements = append(w.Replacements, Replacement{
		Name: instance + "-requested", Instance: instance, Successor: successor, Reason: v1alpha1.ReasonRequested, Admitted: true,
	})
	return w
}

func TestNoVolumeIsDeletedWhileItMayBeNeeded(t *testing.T) {
	for name, w := range map[string]*world{
		"no primary":            healthy().edit("a", podGone).edit("c", podGone),
		"primary silent":        healthy().edit("a", silentFor(time.Hour)).edit("c", podGone),
		"primary in other term": healthy().edit("a", func(it *Instance) { it.Status.Term = 2 }).edit("c", podGone),
		"not established": healthy().edit("c", podGone).edit("a", func(it *Instance) {
			it.Status.Established = false
		}),
		"named by a cohort of a begun term": func() *world {
			w := healthy().edit("c", podGone)
			w.Record.Cohorts = append(w.Record.Cohorts, cohortOf(4, "b", 1, "c"))
			return w
		}(),
		"named by the old half of a change": func() *world {
			w := healthy().edit("c", podGone).unheard("c").add("d", standbyOf(3, "a"))
			next := cohortOf(3, "a", 1, "b", "d")
			next.Revision = 1
			w.Record.Cohorts = append(w.Record.Cohorts, next)
			w.edit("a", primaryOf(3, true, next, "d"))
			// The primary uses next, but d has not flushed what was written before.
			w.edit("a", func(it *Instance) { it.Status.CohortSinceLsn = 5000 })
			return w
		}(),
		"named by the old half of a change that has just come into force": func() *world {
			w := healthy().edit("c", podGone).unheard("c").add("d", standbyOf(3, "a"))
			next := cohortOf(3, "a", 1, "b", "d")
			next.Revision = 1
			w.Record.Cohorts = append(w.Record.Cohorts, next)
			w.edit("a", primaryOf(3, true, next, "d"))
			// What it says of positions may be from before: commits since then may be on c alone.
			w.edit("a", func(it *Instance) { it.Status.CohortSinceLsn = 0 })
			return w
		}(),
		"not redundant": func() *world {
			w := healthy().add("x", podGone).unheard("b")
			return w
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			for _, ago := range []time.Duration{0, time.Hour} {
				w.NoPrimaryFor = ago
				for _, a := range Plan(&w.State, DefaultParams()) {
					require.NotEqual(t, DeleteClaim, a.Verb, "%v", a)
				}
			}
		})
	}
}

func TestWithAllPodsGoneTheyAreStartedAgainOnTheirVolumes(t *testing.T) {
	w := healthy().edit("a", podGone).edit("b", podGone).edit("c", podGone)
	require.Empty(t, w.planned(), "an emergency reparent is given time first")
	w.NoPrimaryFor = 11 * time.Second
	require.Equal(t, []string{"RestartInstance a", "RestartInstance b", "RestartInstance c"}, w.planned())
	w.Reparenting = true
	require.Empty(t, w.planned())
}

// Evicted by the kubelet, or refused by it after a reboot: such a Pod never runs again, and is in the way of one that does.
func TestAPodThatHasEndedIsMadeAgainWhenItsVolumeIsNeeded(t *testing.T) {
	ended := func(it *Instance) { podGone(it); it.HasPod, it.Failed, it.PodMessage = true, true, "Evicted" }
	w := healthy().edit("a", ended).edit("b", ended).edit("c", ended)
	w.NoPrimaryFor = 11 * time.Second
	require.Equal(t, []string{"DeletePod a", "DeletePod b", "DeletePod c"}, w.planned())
	w.edit("a", terminating)
	require.Equal(t, []string{"DeletePod b", "DeletePod c"}, w.planned())
}

func TestASinglePrimaryIsStartedAgainAtOnce(t *testing.T) {
	c := cohortOf(1, "a", 0)
	w := newWorld(1).add("a", podGone)
	w.Bootstrap = &v1alpha1.BootstrapStatus{Instance: "a", Done: true}
	w.Record = quorum.Record{Cohorts: []quorum.Cohort{c}, Established: 1}
	require.Equal(t, []string{"RestartInstance a"}, w.planned())
}

func TestAMemberWithoutWhichNothingCommitsIsStartedAgain(t *testing.T) {
	c := cohortOf(2, "a", 1, "b")
	w := newWorld(2).add("a", primaryOf(2, true, c), labelled("primary")).add("b", podGone)
	w.Bootstrap = &v1alpha1.BootstrapStatus{Instance: "a", Done: true}
	w.Record = quorum.Record{Cohorts: []quorum.Cohort{c}, Established: 2}
	require.Equal(t, []string{"Condemn b"}, w.planned(), "what is heard may be behind what is")
	w.replace("b", "")
	require.Empty(t, w.planned())
	w.CannotCommitFor = 3 * time.Second
	require.Equal(t, []string{"RestartInstance b"}, w.planned())
}

func TestALostInstanceIsReplacedAndThenRemoved(t *testing.T) {
	w := healthy().edit("c", silentFor(20*time.Second)).unheard("c")
	require.NotContains(t, w.planned(), "CreateInstance", "patience first")
	require.Contains(t, w.planned(), "Store a", "but out of the cohort at once")

	w = healthy().edit("c", silentFor(31*time.Second)).unheard("c")
	require.Contains(t, w.planned(), "Condemn c")
	require.NotContains(t, w.planned(), "DeletePod c by force")

	// A failed replacement left it beside its successor: nobody needs it.
	c := cohortOf(3, "a", 1, "b", "d")
	w.add("d", standbyOf(3, "a"), labelled("standby")).edit("a", primaryOf(3, true, c, "d"))
	w.Record.Cohorts = []quorum.Cohort{c}
	require.Equal(t, []string{"DeletePod c by force", "SetRole c="}, w.planned())
}

func TestAStrandedPodIsLost(t *testing.T) {
	w := healthy().edit("c", func(it *Instance) { it.StrandedFor, it.Connected, it.Status, it.IP = time.Minute, false, nil, "" }).unheard("c")
	require.Contains(t, w.planned(), "Condemn c")
}

func TestAPendingPodIsNotMultiplied(t *testing.T) {
	w := healthy().without("c").unheard("c").add("d", func(it *Instance) {
		it.Status, it.Connected, it.IP, it.FailingFor = nil, false, "", time.Hour
	})
	require.NotContains(t, w.planned(), "CreateInstance")
}

func TestFailedAndStuckPods(t *testing.T) {
	w := healthy().edit("c", func(it *Instance) { it.Failed = true }).unheard("c")
	require.Contains(t, w.planned(), "Condemn c")

	c := cohortOf(3, "a", 1, "b", "d")
	w = healthy().edit("c", terminating, func(it *Instance) { it.StuckFor = time.Minute }).unheard("c")
	require.Contains(t, w.planned(), "Condemn c")
	require.NotContains(t, w.planned(), "DeletePod c by force", "still in the cohort")
	w.add("d", standbyOf(3, "a"), labelled("standby")).edit("a", primaryOf(3, true, c, "d"))
	w.Record.Cohorts = []quorum.Cohort{c}
	require.Contains(t, w.planned(), "DeletePod c by force")
}

func TestADeletedClaimRetiresItsInstanceOnceASubstituteIsIn(t *testing.T) {
	w := healthy().edit("c", func(it *Instance) { it.ClaimTerminating = true })
	require.Equal(t, []string{"Condemn c"}, w.planned())
}

func TestNobodyIsCondemnedWithoutAPrimary(t *testing.T) {
	w := healthy().edit("a", podGone).edit("c", podGone)
	for _, ago := range []time.Duration{0, time.Hour} {
		w.NoPrimaryFor = ago
		for _, a := range Plan(&w.State, DefaultParams()) {
			require.NotEqual(t, Condemn, a.Verb, "there is nothing to seed a successor from")
		}
	}
}

func TestSurplusGoesWhenTheCohortIsCompleteWithoutIt(t *testing.T) {
	w := healthy().add("d", standbyOf(3, "a"), labelled("standby"))
	w.edit("a", func(it *Instance) {
		it.Status.Peers = append(it.Status.Peers, &agentpb.ReplicationPeer{Instance: "d", State: "streaming", FlushedLsn: 1000})
	})
	require.Equal(t, []string{"DeletePod d"}, w.planned())
	w.LastFailed = w.Now.Add(-time.Minute)
	require.Empty(t, w.planned(), "what a failed replacement left is for the next")
	w.LastFailed = w.Now.Add(-time.Hour)
	require.Equal(t, []string{"DeletePod d"}, w.planned())
	w.unheard("c")
	require.NotContains(t, w.planned(), "DeletePod d")
}

func TestFollowers(t *testing.T) {
	for name, c := range map[string]struct {
		w    *world
		want string
		not  string
	}{
		"points a standby of another primary at this one": {w: healthy().edit("c", standbyOf(2, "x")), want: "Follow c"},
		"an old primary is stopped":                       {w: healthy().edit("c", primaryOf(2, true, cohortOf(2, "c", 1, "a", "b"))), want: "Demote c"},
		"a stopped one is told whom to follow":            {w: healthy().unheard("c").edit("c", role(agentpb.Role_STOPPED), func(it *Instance) { it.Status.Receiver, it.NotStreamingFor = nil, 4*time.Second }), want: "Follow c"},
		"one that is just starting is left to itself":     {w: healthy().unheard("c").edit("c", func(it *Instance) { it.Status.Receiver, it.NotStreamingFor = nil, time.Second }), not: "Follow c"},
		"one told an address the primary has no more":     {w: healthy().unheard("c").edit("c", func(it *Instance) { it.Told = "10.9.9.9" }), want: "Follow c"},
		"an empty one is seeded from a standby":           {w: healthy().add("d"), want: "Seed d from b"},
		"a diverged member is left in peace":              {w: healthy().edit("c", func(it *Instance) { it.Status.Diverged = true }), not: "Seed c from b"},
		"a diverged outsider is seeded again":             {w: healthy().add("d", func(it *Instance) { it.Status.Role, it.Status.Diverged = agentpb.Role_STOPPED, true }), want: "Seed d from b"},
		"one that promised a higher term is left alone":   {w: healthy().edit("c", standbyOf(9, "x")), not: "Follow c"},
		"one that is leaving is left alone":               {w: healthy().edit("c", standbyOf(2, "x"), terminating), not: "Follow c"},
		"nobody is touched during a reparent": {w: func() *world {
			w := healthy().edit("c", standbyOf(2, "x"))
			w.Reparenting = true
			return w
		}(), not: "Follow c"},
		"nobody is touched in a term that is not established": {w: func() *world {
			w := healthy().edit("c", standbyOf(2, "x"))
			w.Record.Cohorts = append(w.Record.Cohorts, cohortOf(4, "a", 1, "b", "c"))
			return w.edit("a", primaryOf(4, false, cohortOf(4, "a", 1, "b", "c")))
		}(), not: "Follow c"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.w.planned()
			if c.want != "" {
				require.Contains(t, got, c.want)
			}
			if c.not != "" {
				require.NotContains(t, got, c.not)
			}
			for _, a := range Plan(&c.w.State, DefaultParams()) {
				if a.Verb == AgentSeed {
					require.Equal(t, c.w.instance(a.Instance).Status.GetDiverged(), a.Discard, "only what has diverged is thrown away")
				}
			}
		})
	}
}

func TestRolesFollowTheTruth(t *testing.T) {
	for name, c := range map[string]struct {
		w    *world
		want []string
	}{
		"operator just started, nothing heard yet": {healthy().edit("a", silentFor(0)).edit("b", silentFor(0)).edit("c", silentFor(0)), nil},
		"primary out of our reach only":            {healthy().edit("a", silentFor(5*time.Second)), nil},
		"a standby out of our reach, not of the primary's": {
			healthy().edit("c", silentFor(5*time.Second)), nil,
		},
		"a primary that says it is none": {
			healthy().edit("a", role(agentpb.Role_STOPPED)), []string{"SetRole a="},
		},
		"the label is on the wrong one": {
			healthy().edit("b", labelled("primary")), []string{"SetRole b=standby"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, a := range planRoles(&c.w.State, DefaultParams()) {
				got = append(got, "SetRole "+a.Instance+"="+a.Role)
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestACohortChangeIsRecordedThenAppliedThenDropped(t *testing.T) {
	w := healthy().edit("c", silentFor(3*time.Second)).unheard("c")
	a := w.action(t, Store)
	require.Len(t, a.Record.Cohorts, 2)
	next := a.Record.Cohorts[1]
	require.Equal(t, []string{"b"}, next.Members)
	w.Record = a.Record
	require.Equal(t, next, w.action(t, AgentConfigure).Cohort)
	w.edit("a", func(it *Instance) { it.Status.Cohort = agentapi.CohortToPB(&next) })
	require.Len(t, w.action(t, Store).Record.Cohorts, 1)
	w.Reparenting = true
	for _, a := range Plan(&w.State, DefaultParams()) {
		require.NotEqual(t, Store, a.Verb, "a reparent owns the record")
	}
}

// While the primary is changed the shard is left alone, for a second at most.
func TestStandBack(t *testing.T) {
	at := time.Unix(1000, 0)
	record := func(established uint64, terms ...uint64) quorum.Record {
		r := quorum.Record{Established: established}
		for _, term := range terms {
			r.Cohorts = append(r.Cohorts, quorum.Cohort{Term: term, Primary: "a", Members: []string{"b"}, Acks: 1})
		}
		return r
	}
	m := newMemory()
	require.Zero(t, m.standBack(record(0, 1), at), "the first primary is made here")
	require.Zero(t, m.standBack(record(1, 1), at))
	require.Equal(t, standingBack, m.standBack(record(1, 1, 2), at))
	require.Equal(t, standingBack-300*time.Millisecond, m.standBack(record(1, 1, 2), at.Add(300*time.Millisecond)))
	require.Zero(t, m.standBack(record(2, 2), at.Add(400*time.Millisecond)), "established")
	require.Equal(t, standingBack, m.standBack(record(2, 2, 3), at.Add(time.Second)))
	require.Zero(t, m.standBack(record(2, 2, 3), at.Add(3*time.Second)), "nobody is established, and instances may have to be made")
	require.Equal(t, standingBack, m.standBack(record(2, 2, 3, 4), at.Add(4*time.Second)), "the next one begins")
	require.Zero(t, m.standBack(record(2, 2), at.Add(5*time.Second)), "undone")
	require.Equal(t, standingBack, m.standBack(record(2, 2, 4), at.Add(6*time.Second)), "and begun again")
}
