package replacement

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
)

func TestSeedFor(t *testing.T) {
	require.Equal(t, 30*time.Minute, SeedFor(0))
	require.Equal(t, 30*time.Minute, SeedFor(5_000_000_000))
	require.Equal(t, 10*time.Minute+100_000*time.Second, SeedFor(1_000_000_000_000))
}

func TestACohortThatNeverLetsGoEndsInARollback(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonExpired, 1)
	w.keeperStuck = true
	w.run(24*time.Hour, nil)
	requireSound(t, w)
	require.Equal(t, Failed, w.status.Phase)
	require.Equal(t, SwapTimeout, w.status.LastFailure)
	require.Equal(t, []string{"old-0", "old-1", "old-2"}, w.living(), "the surges are gone, the old one stays")
}

func TestACohortThatNeverLetsGoOfADeadInstanceKeepsTheSurge(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
	w.keeperStuck = true
	w.find("old-1").Dead, w.find("old-1").Healthy = true, false
	w.run(24*time.Hour, nil)
	requireSound(t, w)
	require.Equal(t, Failed, w.status.Phase, "it ends")
	require.Len(t, w.living(), 3, "two old and the surge, which the shard needs")
}

func TestAVolumeIsKeptWhileTheShardCannotWrite(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
	w.find("old-1").Dead, w.find("old-1").Healthy = true, false
	w.run(time.Hour, func() { w.readOnly = w.status.Phase == Retiring })
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase, strings.Join(w.trace, "\n"))
	require.Contains(t, w.status.VolumeKept, "cannot acknowledge writes")
	require.True(t, w.find("old-1").VolumeExists)

	// A shard that recovers in time loses it after all.
	w = newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
	since := 0
	w.run(time.Hour, func() {
		if w.status.Phase == Retiring {
			since++
		}
		w.readOnly = since > 0 && since < 120
	})
	requireSound(t, w)
	require.Empty(t, w.status.VolumeKept)
	require.Nil(t, w.find("old-1"))
}

func TestPodsThatDoNotGo(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonExpired, 1)
	w.sticky = true
	forced := false
	never := func() bool { return false }
	for w.now.Before(t0.Add(2*time.Hour)) && !w.status.Phase.Finished() {
		d := w.turn(never, never)
		forced = forced || d.Action.Kind == Stop && d.Action.Force
		w.pass(time.Second)
	}
	requireSound(t, w)
	require.True(t, forced, "at half time it is deleted by force")
	require.Equal(t, TargetWontGo, w.status.LastFailure)

	w = newWorld(1, 3, v1alpha1.ReasonExpired, 1)
	w.sticky = true
	w.run(2*time.Hour, func() { w.cancel = w.cancel || w.status.Phase == CatchingUp })
	requireSound(t, w)
	require.Equal(t, Failed, w.status.Phase)
	require.Equal(t, SurgeWontGo, w.status.LastFailure)
}

// An emergency in the last moment may make the instance that goes the primary again, or name it in a cohort.
func TestTheTargetBecomesThePrimaryWhileItIsRetired(t *testing.T) {
	for _, phase := range []Phase{Swapping, Retiring} {
		w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
		w.timeouts.Evidence = 5 * time.Minute // retiring waits for it: time for something to happen
		hit := false
		w.run(time.Hour, func() {
			if !hit && w.status.Phase == phase && !w.status.StopBegun {
				hit = true
				old := w.find("old-0")
				old.Dead, old.Healthy = true, false
				for _, s := range w.servers {
					s.InRecord = s.Name == "old-1"
				}
				w.primary = "old-1"
			}
		})
		requireSound(t, w)
		require.True(t, hit)
		require.Equal(t, Done, w.status.Phase, strings.Join(w.trace, "\n"))
		require.NotEqual(t, "old-1", w.primary)
		require.NotContains(t, w.living(), "old-1")
	}
}

// The surge became the primary in an emergency, and then the replacement is to be undone: it must not be.
func TestASurgeThatBecameThePrimaryStays(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonDraining, 1)
	hit := false
	w.run(time.Hour, func() {
		if !hit && w.status.Phase == Swapping {
			hit, w.cancel = true, true
			for _, s := range w.servers {
				s.InRecord = false
			}
			w.primary = w.status.Successor
			w.find(w.primary).InRecord = true
			w.keep()
		}
	})
	requireSound(t, w)
	require.True(t, hit)
	require.Equal(t, Cancelled, w.status.Phase)
	require.Contains(t, w.living(), w.primary)
	require.Contains(t, w.status.Message, "stays")
}

func TestASickSurgeThatIsThePrimaryWaitsForTheEmergency(t *testing.T) {
	o := Observed{
		Now: t0, Request: Request{Instance: "old", Reason: v1alpha1.ReasonExpired}, Wanted: 1, Primary: "new",
		Status: Status{Phase: RollingBack, PhaseStartedAt: t0, Successor: "new", SuccessorSeen: true, Undo: Failed, Attempt: 1, RetryAt: t0},
		Instances: []Instance{
			{Name: "old", PodExists: true, VolumeExists: true, Healthy: true},
			{Name: "new", PodExists: true, VolumeExists: true, Dead: true, InRecord: true},
		},
	}
	d := Next(o, Timeouts{})
	require.Equal(t, Wait, d.Action.Kind)
	require.Equal(t, "new", d.Leaving)
	o.Primary = "old"
	require.Equal(t, Wait, Next(o, Timeouts{}).Action.Kind, "still named by the record")
	o.Instances[1].InRecord = false
	d = Next(o, Timeouts{})
	require.Equal(t, Action{Kind: RetireSurge, Instance: "new", Force: true}, d.Action)
}

// No decision may ask to be looked at again in the past: the controller would spin.
func TestRecheckIsInTheFuture(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 0)
	w.sticky, w.keeperStuck = true, true
	never := func() bool { return false }
	for w.now.Before(t0.Add(10*time.Hour)) && !w.status.Phase.Finished() {
		if d := w.turn(never, never); d.Action.Kind != Finish {
			require.True(t, d.Recheck.After(w.now), "%+v", d)
		}
		w.pass(30 * time.Second)
	}
}

// A surge that was asked for a moment ago may become visible after somebody cancelled: it must not be forgotten.
func TestACancelledSurgeThatIsNotVisibleYetIsStillTakenAway(t *testing.T) {
	o := Observed{
		Now: t0, Request: Request{Instance: "old", Reason: v1alpha1.ReasonDraining, Cancel: true}, Wanted: 1, Primary: "old",
		Status:    Status{Phase: Surging, PhaseStartedAt: t0, Successor: "new", Attempt: 1},
		Instances: []Instance{{Name: "old", PodExists: true, VolumeExists: true, Healthy: true, InRecord: true}},
	}
	d := Next(o, Timeouts{})
	require.Equal(t, RetireSurge, d.Action.Kind)
	require.Equal(t, RollingBack, d.Status.Phase)
	require.True(t, d.Recheck.Before(t0.Add(10*time.Second)))
	o.Status, o.Now = d.Status, t0.Add(settle)
	require.Equal(t, Cancelled, Next(o, Timeouts{}).Status.Phase)
}

// Found by the fleet simulation: a dead instance made room, no machine came for hours, and the shard was left with a copy
// too few for ever.
func TestWhoMadeRoomIsReplacedHoweverLongItTakes(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 2)
	w.find("old-2").Dead, w.find("old-2").Healthy = true, false
	w.run(72*time.Hour, func() { w.capacity = w.now.Sub(t0) > 48*time.Hour })
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase, strings.Join(w.trace, "\n"))
	require.Greater(t, w.status.Attempt, 6)
	require.Less(t, w.now.Sub(t0), 49*time.Hour)
	require.Len(t, w.living(), 3)
}

// Of two instances one is dead: the other is left without anybody to acknowledge its writes, and still is what the successor
// is seeded from. However long it takes, and whoever is the primary, the replacement ends with two copies.
func TestAShardOfTwoIsRepairedThoughItCannotWrite(t *testing.T) {
	for target := range 2 {
		for _, reason := range []v1alpha1.Reason{v1alpha1.ReasonCondemned, v1alpha1.ReasonExpired, v1alpha1.ReasonOutdated} {
			for _, makesRoom := range []bool{false, true} {
				w := newWorld(1, 2, reason, target)
				w.find(w.request.Instance).Dead, w.find(w.request.Instance).Healthy = true, false
				stuck, stopped := false, false
				w.run(24*time.Hour, func() {
					old := w.find(w.request.Instance)
					w.capacity = !makesRoom || old == nil || !old.PodExists
					stuck = stuck || w.status.Phase == Seeding && !w.writable()
					stopped = stopped || w.status.Phase == Surging && w.status.StopBegun
				})
				requireSound(t, w)
				require.True(t, stuck, "the primary was alone while it was copied")
				require.Equal(t, makesRoom, stopped)
				require.Equal(t, Done, w.status.Phase, "%s %d\n%s", reason, target, strings.Join(w.trace, "\n"))
				require.Equal(t, 1, w.status.Attempt)
				require.Len(t, w.living(), 2)
				require.NotContains(t, w.living(), w.request.Instance)
				require.True(t, w.writable())
			}
		}
	}
}

// Of two instances the successor of one that is gone fails when it is a member already: the cohort cannot do without it
// before it has a substitute, and nobody makes one while this replacement looks after the place.
func TestASuccessorThatFailedAsTheOnlyMemberIsLeftToItsOwnReplacement(t *testing.T) {
	for name, primary := range map[string]string{"as a member": "other", "as the primary": "new"} {
		t.Run(name, func(t *testing.T) {
			o := Observed{
				Now: t0, Request: Request{Instance: "old", Reason: v1alpha1.ReasonExpired}, Wanted: 2, Primary: primary,
				Status: Status{
					Phase: Retiring, PhaseStartedAt: t0, AdmittedAt: t0, Successor: "new", SuccessorSeen: true, Attempt: 1, StopBegun: true,
				},
				Instances: []Instance{
					{Name: "other", PodExists: true, VolumeExists: true, Healthy: primary == "other", InRecord: true},
					{Name: "new", PodExists: true, VolumeExists: true, Dead: true, InRecord: true},
				},
			}
			o.Status.Phase, o.Status.Undo, o.Status.RetryAt = RollingBack, Failed, t0.Add(time.Minute)
			d := Next(o, Timeouts{})
			require.Equal(t, Wait, d.Action.Kind)
			require.Equal(t, "new", d.Leaving)
			require.LessOrEqual(t, d.Recheck.Sub(t0), 2*time.Minute)
			o.Status, o.Now = d.Status, t0.Add(2*time.Minute)
			d = Next(o, Timeouts{})
			require.Equal(t, Failed, d.Status.Phase)
			require.Equal(t, SurgeWontGo, d.Status.LastFailure)
			require.Empty(t, d.Leaving)
		})
	}
}
