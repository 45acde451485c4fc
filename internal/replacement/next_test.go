package replacement

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/api/v1alpha1"
)

var everyReason = []v1alpha1.Reason{
	v1alpha1.ReasonExpired, v1alpha1.ReasonNodeExpiring, v1alpha1.ReasonDraining, v1alpha1.ReasonCondemned,
	v1alpha1.ReasonOutdated, v1alpha1.ReasonDrill, v1alpha1.ReasonRequested,
}

// A failure is to be read soon: what rapid spends on shrinking it, half a minute unless told otherwise, is bounded. This is
// before the command line is parsed, so -rapid.shrinktime still has the last word.
func init() { //nolint:gochecknoinits // the flags of a library have no other way in
	if err := flag.Set("rapid.shrinktime", "5s"); err != nil {
		panic(err)
	}
}

func requireSound(t require.TestingT, w *world) {
	if len(w.violations) > 0 {
		require.Fail(t, "violated", "%s\n\ntrace:\n%s", strings.Join(w.violations, "\n"), strings.Join(w.trace, "\n"))
	}
}

func TestEveryReasonEveryRole(t *testing.T) {
	for _, reason := range everyReason {
		for _, wanted := range []int{1, 2, 3, 5} {
			for target := range wanted {
				t.Run(fmt.Sprintf("%s/%d of %d", reason, target, wanted), func(t *testing.T) {
					w := newWorld(1, wanted, reason, target)
					copies := wanted
					w.run(time.Hour, func() { copies = min(copies, w.healthyWithout("")) })
					requireSound(t, w)
					require.Equal(t, Done, w.status.Phase, strings.Join(w.trace, "\n"))
					require.Equal(t, "Succeeded", w.status.Outcome)
					require.NotContains(t, w.living(), w.request.Instance)
					require.Len(t, w.living(), wanted)
					require.Nil(t, w.find(w.request.Instance), "its volume is gone as well")
					require.GreaterOrEqual(t, copies, wanted, "make before break")
					require.Less(t, w.now.Sub(t0), 4*time.Minute)
				})
			}
		}
	}
}

func TestTargetDeadBefore(t *testing.T) {
	for target := range 3 {
		w := newWorld(1, 3, v1alpha1.ReasonCondemned, target)
		w.find(w.request.Instance).Dead = true
		w.find(w.request.Instance).Healthy = false
		w.run(time.Hour, nil)
		requireSound(t, w)
		require.Equal(t, Done, w.status.Phase, strings.Join(w.trace, "\n"))
		require.Positive(t, w.evidence)
		require.True(t, w.status.EvidenceDone)
		require.Len(t, w.living(), 3)
		require.Empty(t, w.status.VolumeKept)
	}
}

func TestTargetGoneBefore(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 2)
	s := w.find("old-2")
	s.PodExists, s.VolumeExists, s.InRecord, s.Healthy, s.Running = false, false, false, false, false
	w.run(time.Hour, nil)
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase)
	require.Len(t, w.living(), 3, "the copy is restored all the same")

	again := newWorld(1, 3, v1alpha1.ReasonCondemned, 2)
	again.request.Instance = "never-was"
	again.run(time.Hour, nil)
	require.Equal(t, Done, again.status.Phase)
	require.Len(t, again.living(), 3, "nothing to do")
}

func TestTheLastCopyIsNotTouched(t *testing.T) {
	for _, wanted := range []int{1, 3} {
		w := newWorld(1, wanted, v1alpha1.ReasonCondemned, 0)
		for _, s := range w.servers {
			s.Dead, s.Healthy = true, false
		}
		w.run(25*time.Hour, nil)
		requireSound(t, w)
		require.Equal(t, Failed, w.status.Phase)
		require.Equal(t, LastCopy, w.status.LastFailure)
		require.True(t, w.find("old-0").PodExists)
		require.True(t, w.find("old-0").VolumeExists)
		require.Zero(t, w.names)
	}
}

func TestTargetDisappearsMidway(t *testing.T) {
	for _, phase := range []Phase{Pending, Surging, Seeding, CatchingUp, Reparenting, Swapping, Retiring} {
		for target := range 3 {
			w := newWorld(1, 3, v1alpha1.ReasonExpired, target)
			gone := false
			w.run(2*time.Hour, func() {
				if !gone && w.status.Phase == phase {
					gone = true
					s := w.find(w.request.Instance)
					if s != nil && s.PodExists {
						s.PodExists, s.VolumeExists, s.Running, s.Healthy = false, false, false, false
					}
				}
			})
			requireSound(t, w)
			require.Equal(t, Done, w.status.Phase, "%s %d\n%s", phase, target, strings.Join(w.trace, "\n"))
			require.Len(t, w.living(), 3)
		}
	}
}

func TestSuccessorDiesMidway(t *testing.T) {
	for _, how := range []string{"dead", "deleted", "failed"} {
		for _, phase := range []Phase{Surging, Seeding, CatchingUp, Reparenting, Swapping, Retiring} {
			for target := range 3 {
				w := newWorld(1, 3, v1alpha1.ReasonExpired, target)
				hit := false
				w.run(3*time.Hour, func() {
					s := w.find(w.status.Successor)
					if hit || w.status.Phase != phase || s == nil || w.status.StopBegun {
						return
					}
					hit = true
					switch how {
					case "dead":
						s.Dead = true
					case "deleted":
						s.Terminating, s.goneAt = true, w.now
					case "failed":
						s.Failed = "crash loop: image cannot start"
						s.Healthy = false
					}
				})
				requireSound(t, w)
				require.Equal(t, Done, w.status.Phase, "%s in %s of %d\n%s", how, phase, target, strings.Join(w.trace, "\n"))
				if hit {
					require.GreaterOrEqual(t, w.status.Attempt, 2)
				}
				require.Len(t, w.living(), 3, strings.Join(w.trace, "\n"))
				require.NotContains(t, w.living(), w.request.Instance)
			}
		}
	}
}

func TestAPlannedReparentOfASickPrimaryBecomesAnEmergency(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 0)
	kinds := map[Kind]int{}
	never := func() bool { return false }
	for w.now.Before(t0.Add(time.Hour)) && !w.status.Phase.Finished() {
		d := w.turn(never, never)
		if w.reparent.kind == Planned {
			w.reparent.fail = true
		}
		if w.status.Phase == Reparenting {
			kinds[d.Action.Kind]++
		}
		w.pass(time.Second)
	}
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase)
	require.Positive(t, kinds[Planned], "planned first")
	require.Positive(t, kinds[Emergency], "then without asking it")
}

func TestAHealthyPrimaryThatCannotBeReparentedStaysAndTheSurgeGoes(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonExpired, 0)
	w.run(24*time.Hour, func() { w.reparent.fail = true })
	requireSound(t, w)
	require.Equal(t, Failed, w.status.Phase)
	require.Equal(t, ReparentFailed, w.status.LastFailure)
	require.Equal(t, []string{"old-0", "old-1", "old-2"}, w.living())
	require.Equal(t, 3, w.status.Attempt)
}

func TestNoCapacity(t *testing.T) {
	for reason, attempts := range map[v1alpha1.Reason]int{
		v1alpha1.ReasonExpired: 1, v1alpha1.ReasonDraining: 3, v1alpha1.ReasonCondemned: 6,
	} {
		w := newWorld(1, 3, reason, 1)
		w.capacity = false
		w.run(24*time.Hour, nil)
		requireSound(t, w)
		require.Equal(t, Failed, w.status.Phase, reason)
		require.Equal(t, NoCapacity, w.status.LastFailure)
		require.Equal(t, attempts, w.status.Attempt, reason)
		require.False(t, w.status.NoCapacityAt.IsZero(), "the ledger hears of it")
		require.Equal(t, []string{"old-0", "old-1", "old-2"}, w.living(), "nothing is lost")
	}
}

func TestADeadInstanceMakesRoomForItsSuccessor(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 2)
	w.find("old-2").Dead, w.find("old-2").Healthy = true, false
	w.capacity = false
	w.run(2*time.Hour, func() {
		old := w.find("old-2")
		w.capacity = old == nil || !old.PodExists
	})
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase, strings.Join(w.trace, "\n"))
	require.Equal(t, 1, w.status.Attempt)
}

func TestLedger(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonExpired, 1)
	w.ledger = false
	d := Next(w.observe(), Timeouts{})
	require.Equal(t, Pending, d.Status.Phase)
	require.Equal(t, "the ledger says no", d.Waiting)
	require.True(t, d.Status.AdmittedAt.IsZero())
	o := w.observe()
	o.Ledger.Retry = w.now.Add(time.Minute)
	require.Equal(t, o.Ledger.Retry, Next(o, Timeouts{}).Recheck)

	w.run(25*time.Hour, nil)
	require.Equal(t, Failed, w.status.Phase)
	require.Equal(t, NotAdmitted, w.status.LastFailure)
	require.Contains(t, w.status.Message, "the ledger says no")

	// Once admitted, a ledger that changes its mind changes nothing: what has begun is finished.
	again := newWorld(1, 3, v1alpha1.ReasonExpired, 1)
	again.run(time.Hour, func() { again.ledger = again.status.Phase == Pending })
	require.Equal(t, Done, again.status.Phase)
}

func TestWhatWasCondemnedInAStormAndIsWellIsLetOff(t *testing.T) {
	pending := func(edit ...func(w *world, o *Observed)) Decision {
		w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
		w.ledger = false
		o := w.observe()
		o.Ledger.Storm = true
		for _, e := range edit {
			e(w, &o)
		}
		return Next(o, Timeouts{})
	}
	target := func(change func(*Instance)) func(*world, *Observed) {
		return func(w *world, o *Observed) {
			for i := range o.Instances {
				if o.Instances[i].Name == w.request.Instance {
					change(&o.Instances[i])
				}
			}
		}
	}
	d := pending()
	require.Equal(t, Cancelled, d.Status.Phase)
	require.Equal(t, "Cancelled", d.Status.Outcome)
	require.Contains(t, d.Status.Message, "old-1 was condemned in a storm")
	require.Equal(t, Cancelled, pending(func(_ *world, o *Observed) {
		o.Status.Phase, o.Status.PhaseStartedAt, o.Now = Pending, t0, t0.Add(25*time.Hour)
	}).Status.Phase, "it is never too late for that")

	for name, edit := range map[string]func(*world, *Observed){
		"it is dead":             target(func(in *Instance) { in.Dead = true }),
		"it is no copy":          target(func(in *Instance) { in.Healthy = false }),
		"something speaks on":    target(func(in *Instance) { in.Suspect = true }),
		"it is being deleted":    target(func(in *Instance) { in.Terminating = true }),
		"it has failed for good": target(func(in *Instance) { in.Failed = "its volume is lost" }),
		"it is gone":             target(func(in *Instance) { in.PodExists = false }),
		"there is no storm":      func(_ *world, o *Observed) { o.Ledger.Storm = false },
		"somebody wants it gone": func(_ *world, o *Observed) { o.Request.Reason = v1alpha1.ReasonRequested },
	} {
		require.Equal(t, Pending, pending(edit).Status.Phase, name)
	}
	// What has begun goes on.
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
	w.run(10*time.Second, nil)
	o := w.observe()
	o.Ledger = Ledger{Storm: true}
	require.False(t, o.Status.AdmittedAt.IsZero())
	require.False(t, Next(o, Timeouts{}).Status.Phase.Finished())
}

func TestEvidenceOfACondemnedInstanceIsTakenWhileItWaits(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
	w.ledger = false
	require.True(t, Next(w.observe(), Timeouts{}).Evidence)
	w.request.Reason = v1alpha1.ReasonExpired
	require.False(t, Next(w.observe(), Timeouts{}).Evidence)
	w.find("old-1").Dead = true
	require.True(t, Next(w.observe(), Timeouts{}).Evidence, "it fell sick after it was asked for")
}

func TestEvidenceDelaysNothingForLong(t *testing.T) {
	took := func(prepare func(*world)) time.Duration {
		w := newWorld(1, 3, v1alpha1.ReasonCondemned, 1)
		w.timeouts.Evidence = 5 * time.Minute
		prepare(w)
		w.run(time.Hour, nil)
		require.Equal(t, Done, w.status.Phase)
		return w.now.Sub(t0)
	}
	never := took(func(*world) {})
	atOnce := took(func(w *world) { w.status.EvidenceAt, w.status.EvidenceDone = w.now, true })
	require.Less(t, atOnce, 2*time.Minute)
	require.Less(t, never, 6*time.Minute, "at its deadline the end comes, evidence or not")
}

func TestASpareIsUsedInsteadOfASurge(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonCondemned, 2)
	w.find("old-2").Dead, w.find("old-2").Healthy = true, false
	s := w.add("spare")
	s.PodExists, s.VolumeExists, s.Running, s.Seeded, s.Healthy = true, true, true, true, true
	w.run(time.Hour, nil)
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase)
	require.Zero(t, w.names, "no surge was made")
	require.Equal(t, []string{"old-0", "old-1", "spare"}, w.living())
}

func TestCancelAtEveryPhase(t *testing.T) {
	for _, phase := range []Phase{Pending, Surging, Seeding, CatchingUp, Reparenting, Swapping, Retiring} {
		for target := range 3 {
			w := newWorld(1, 3, v1alpha1.ReasonDraining, target)
			w.ledger = phase != Pending
			begun := false
			w.run(time.Hour, func() {
				if w.status.Phase == phase && !w.cancel {
					w.cancel, begun = true, w.status.StopBegun
				}
			})
			requireSound(t, w)
			if begun || !w.cancel {
				require.Equal(t, Done, w.status.Phase)
				continue
			}
			require.Equal(t, Cancelled, w.status.Phase, "%s %d\n%s", phase, target, strings.Join(w.trace, "\n"))
			require.Contains(t, w.living(), w.request.Instance, "it stays")
			require.LessOrEqual(t, len(w.living()), 4)
			if w.primary == w.request.Instance {
				require.Len(t, w.living(), 3, "the surge is gone")
			}
		}
	}
}

func TestAnotherCopyDiesWhileRetiring(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonExpired, 2)
	w.run(3*time.Hour, func() {
		if w.status.Phase == Swapping || w.status.Phase == CatchingUp {
			s := w.find("old-1")
			s.Dead, s.Healthy = true, false
		}
	})
	requireSound(t, w)
	require.Equal(t, Failed, w.status.Phase)
	require.Equal(t, RedundancyMissing, w.status.LastFailure)
	require.Len(t, w.living(), 3, "both stay")
	require.Contains(t, w.living(), "old-2")

	// The repair of the other one finds the spare and needs no surge; nothing is left over in the end.
	w.request = Request{Instance: "old-1", Reason: v1alpha1.ReasonCondemned, CreatedAt: w.now}
	w.status = Status{}
	w.run(time.Hour, nil)
	requireSound(t, w)
	require.Equal(t, Done, w.status.Phase)
	require.Equal(t, 1, w.names)
	require.Len(t, w.living(), 3)
}

func TestAFinishedReplacementDoesNothing(t *testing.T) {
	for _, p := range []Phase{Done, Failed, Cancelled} {
		w := newWorld(1, 3, v1alpha1.ReasonExpired, 1)
		w.status = Status{Phase: p, Message: "over"}
		d := Next(w.observe(), Timeouts{})
		require.Equal(t, w.status, d.Status)
		require.Equal(t, Finish, d.Action.Kind)
	}
}

// An operator that dies between storing and acting, after acting, or that acts twice, at any of its steps: the end is the
// one that an undisturbed operator reaches, and nothing forbidden happens on the way.
func TestReplayOfEveryPrefix(t *testing.T) {
	never := func() bool { return false }
	for _, reason := range []v1alpha1.Reason{v1alpha1.ReasonExpired, v1alpha1.ReasonCondemned, v1alpha1.ReasonOutdated} {
		for target := range 3 {
			straight := newWorld(1, 3, reason, target)
			straight.run(time.Hour, nil)
			steps := int(straight.now.Sub(t0)/time.Second) + 5
			for at := range steps {
				for _, point := range []string{"before storing", "before acting", "acts twice"} {
					w := newWorld(1, 3, reason, target)
					for i := 0; w.now.Before(t0.Add(time.Hour)) && !w.status.Phase.Finished(); i++ {
						crash, repeat, n := never, never, 0
						if i == at {
							switch point {
							case "before storing":
								crash = func() bool { n++; return n == 1 }
							case "before acting":
								crash = func() bool { n++; return n == 2 }
							default:
								repeat = func() bool { return true }
							}
						}
						w.turn(crash, repeat)
						w.pass(time.Second)
					}
					requireSound(t, w)
					require.Equal(t, straight.status.Phase, w.status.Phase, "%s %d %s at %d", reason, target, point, at)
					require.Equal(t, straight.living(), w.living())
					require.Equal(t, straight.primary, w.primary)
				}
			}
		}
	}
}

// Whatever happens — instances die, surges fail, machines are missing, reparents fail, the operator crashes and repeats
// itself, people change their minds — nothing forbidden is done, and once the trouble is over every replacement ends.
func TestTrouble(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wanted := rapid.SampledFrom([]int{1, 2, 3, 3, 3, 5}).Draw(t, "wanted")
		w := newWorld(rapid.Uint64().Draw(t, "seed"), wanted, rapid.SampledFrom(everyReason).Draw(t, "reason"), rapid.IntRange(0, wanted-1).Draw(t, "target"))
		if rapid.Bool().Draw(t, "spare") {
			s := w.add("spare")
			s.PodExists, s.VolumeExists, s.Running, s.Seeded, s.Healthy = true, true, true, true, true
		}
		rate := rapid.SampledFrom([]int{10, 30, 100, 300}).Draw(t, "one fault in so many seconds")
		chance := func(n int) func() bool { return func() bool { return w.rng.IntN(n) == 0 } }
		trouble := time.Duration(rapid.IntRange(1, 60).Draw(t, "minutes of trouble")) * time.Minute
		for w.now.Before(t0.Add(trouble)) && !w.status.Phase.Finished() {
			w.turn(chance(5), chance(5))
			if w.rng.IntN(rate) == 0 {
				w.fault()
			}
			w.pass(time.Second)
		}
		w.capacity, w.ledger, w.reparent.fail = true, true, false
		w.run(100*time.Hour, func() { w.reparent.fail = false })
		requireSound(t, w)
		require.True(t, w.status.Phase.Finished(), "%+v\n%s", w.status, strings.Join(w.trace, "\n"))
		if w.status.Phase == Done {
			require.NotContains(t, w.living(), w.request.Instance)
		}
	})
}

// fault breaks something, but never more than one copy at a time: with more, nature and not we would lose the shard.
func (w *world) fault() {
	switch w.rng.IntN(7) {
	case 0, 1:
		s := w.servers[w.rng.IntN(len(w.servers))]
		for _, other := range w.servers {
			if other.Dead {
				return
			}
		}
		if w.healthyWithout(s.Name) > 0 && w.writable() {
			s.Dead, s.Healthy, s.deadAt = true, false, w.now
		}
	case 2:
		for _, s := range w.servers {
			if s.Dead && s.PodExists {
				s.Dead, s.Healthy = false, s.Seeded
			}
		}
	case 3:
		w.capacity = !w.capacity
	case 4:
		w.ledger = !w.ledger
	case 5:
		w.reparent.fail = !w.reparent.until.IsZero()
	case 6:
		if s := w.find(w.status.Successor); s != nil && s.Name != w.primary && !s.InRecord {
			if w.rng.IntN(2) == 0 {
				s.Failed, s.Healthy = "cannot start", false
			} else if s.PodExists && !s.Terminating {
				s.Terminating, s.goneAt = true, w.now.Add(time.Second)
			}
		} else if w.rng.IntN(10) == 0 {
			w.cancel = true
		}
	}
}
