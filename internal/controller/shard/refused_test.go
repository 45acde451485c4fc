package shard

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/quorum"
)

func refused(it *Instance) { podGone(it); it.Refused = "no room in the quota" }

// What was refused is made on the claim it has: neither another claim each time, nor a replacement, which would be refused too.
func TestARefusedInstanceIsTriedAgainOnItsClaim(t *testing.T) {
	w := newWorld(3).add("a", refused).add("b").add("c", refused)
	require.Equal(t, []string{"Store b", "RestartInstance a", "RestartInstance c"}, w.planned())

	first := cohortOf(1, "b", 0)
	w.Bootstrap, w.Record = &v1alpha1.BootstrapStatus{Instance: "b"}, quorum.Record{Cohorts: []quorum.Cohort{first}}
	w.edit("b", primaryOf(1, false, first))
	require.Equal(t, []string{"RestartInstance a", "RestartInstance c"}, w.planned(), "also when another one was chosen")

	w = healthy().add("d", refused)
	w.Wanted = 4
	require.Contains(t, w.planned(), "RestartInstance d", "of a shard that serves")
	require.NotContains(t, w.planned(), "CreateInstance")
	require.NotContains(t, w.planned(), "Condemn d")
	w.Wanted = 3
	require.Equal(t, []string{"DeleteClaim d"}, w.planned(), "the spec asks for it no more")
	w = healthy().add("d", refused, func(it *Instance) { it.ClaimTerminating = true })
	w.Wanted = 4
	require.Contains(t, w.planned(), "Condemn d", "its volume goes")
	require.Contains(t, healthy().edit("c", refused).unheard("c").planned(), "Condemn c", "one that was a member may have lost what it had")
}

func TestRefusalsAreForgotten(t *testing.T) {
	m := newMemory()
	f := failure{at: now, count: 1, err: errors.New("no")}
	for _, name := range []string{another, "a", "b", "gone"} {
		m.refused[name] = f
	}
	require.False(t, m.mayAsk("a", now))
	require.True(t, m.mayAsk("a", now.Add(firstPause)))
	require.True(t, m.mayAsk("c", now))
	w := newWorld(3).add("a", podGone).add("b")
	w.recallRefused(m)
	require.Equal(t, []string{"another instance: no", "a: no"}, w.refused())
	require.Len(t, m.refused, 2, "b has a Pod, the other one is not there any more")
	w.wanted(m, []Action{{Verb: CreateInstance}})
	require.Len(t, m.refused, 2)
	w.wanted(m, []Action{{Verb: RestartInstance}})
	require.Equal(t, []string{"a: no"}, w.refused())
	require.Len(t, m.refused, 1)
}
