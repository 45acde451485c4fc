package machine

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestTheUsualWay(t *testing.T) {
	s := Seen{Now: t0, NodeExists: true, Instances: 3, Wanted: true}
	step := func() Step {
		st := Next(s, Limits{})
		s.Rotation = st.Rotation
		s.Now = s.Now.Add(time.Minute)
		return st
	}
	st := step()
	require.Equal(t, CallHold, st.Call)
	require.False(t, st.Cordon, "nothing is done to the node before its machine is held")
	s.Held = true
	st = step()
	require.Equal(t, CallSurge, st.Call)
	require.True(t, st.Cordon)
	require.False(t, st.MoveOff, "nothing moves before there is room")
	s.Surge = Progress{Done: true}
	st = step()
	require.Equal(t, Moving, st.Rotation.Phase)
	require.True(t, st.MoveOff)
	s.Instances, s.Moving = 2, 1
	require.Equal(t, CallNone, step().Call)
	s.Instances, s.Moving = 0, 0
	require.Equal(t, CallReplace, step().Call)
	s.Replace = Progress{Done: true, Message: "going"}
	require.Equal(t, CallReplace, step().Call, "asked again until it is gone")
	s.Gone = true
	require.Equal(t, Replacing, step().Rotation.Phase, "the node is still there")
	s.NodeExists = false
	st = step()
	require.Equal(t, RotDone, st.Rotation.Phase)
	require.False(t, st.Cordon)
}

func TestWaysOut(t *testing.T) {
	at := func(p Phase, ago time.Duration) Rotation {
		return Rotation{Phase: p, StartedAt: t0.Add(-ago), PhaseStartedAt: t0.Add(-ago)}
	}
	for name, tc := range map[string]struct {
		seen  Seen
		phase Phase
		call  Call
	}{
		"no room in time":                          {Seen{Rotation: at(Surging, time.Hour), NodeExists: true, Wanted: true, Surge: Progress{Message: "x"}}, GivingBack, CallGiveBack},
		"not empty in time":                        {Seen{Rotation: at(Moving, 13*time.Hour), NodeExists: true, Wanted: true, Instances: 1}, GivingBack, CallGiveBack},
		"not empty, but one is just moving":        {Seen{Rotation: at(Moving, 13*time.Hour), NodeExists: true, Wanted: true, Instances: 1, Moving: 1}, Moving, CallNone},
		"not empty, but the machine goes anyway":   {Seen{Rotation: at(Moving, 13*time.Hour), NodeExists: true, Wanted: true, Instances: 1, Removing: true}, Moving, CallNone},
		"no room, but the machine goes anyway":     {Seen{Rotation: at(Surging, time.Hour), NodeExists: true, Wanted: true, Removing: true, Instances: 1}, Moving, CallNone},
		"not wanted any more":                      {Seen{Rotation: at(Moving, time.Hour), NodeExists: true, Instances: 2}, GivingBack, CallGiveBack},
		"not wanted, but somebody else removes it": {Seen{Rotation: at(Moving, time.Hour), NodeExists: true, Instances: 2, Removing: true}, Moving, CallNone},
		"not wanted, but one is on its way":        {Seen{Rotation: at(Moving, time.Hour), NodeExists: true, Instances: 2, Moving: 1}, Moving, CallNone},
		"given back is released":                   {Seen{Rotation: at(GivingBack, time.Minute), NodeExists: true, Wanted: true}, RotFailed, CallRelease},
		"the machine does not go":                  {Seen{Rotation: at(Replacing, 2*time.Hour), NodeExists: true, Wanted: true}, RotFailed, CallNone},
		"an instance slipped in":                   {Seen{Rotation: at(Replacing, time.Minute), NodeExists: true, Wanted: true, Instances: 1}, Moving, CallNone},
		"left to people":                           {Seen{Rotation: at(Replacing, time.Minute), NodeExists: true, Wanted: true, Replace: Progress{Done: true, Left: true}}, RotDone, CallRelease},
		"a node that vanished is done":             {Seen{Rotation: at(Moving, time.Minute), Wanted: true, Gone: true, Instances: 2}, RotDone, CallNone},
		"finished stays finished":                  {Seen{Rotation: at(RotFailed, time.Minute), NodeExists: true, Wanted: true}, RotFailed, CallNone},
	} {
		t.Run(name, func(t *testing.T) {
			tc.seen.Now = t0
			st := Next(tc.seen, Limits{})
			require.Equal(t, tc.phase, st.Rotation.Phase, st.Rotation.Message)
			require.Equal(t, tc.call, st.Call)
		})
	}
}

// What a rotation failed at is remembered through GivingBack. Only a machine that was told to go keeps its cordon.
func TestWhatAFailureLeavesBehind(t *testing.T) {
	for phase, want := range map[Phase]struct {
		failedIn Phase
		cordon   bool
	}{
		Holding: {Holding, false}, Surging: {Surging, false}, Moving: {Moving, false}, Replacing: {Replacing, true},
	} {
		s := Seen{Now: t0, NodeExists: true, Wanted: true, Rotation: Rotation{Phase: phase, PhaseStartedAt: t0.Add(-13 * time.Hour)}}
		if phase == Moving {
			s.Instances = 1
		}
		st := Next(s, Limits{})
		for !st.Rotation.Phase.Finished() {
			s.Rotation = st.Rotation
			st = Next(s, Limits{})
		}
		require.Equal(t, RotFailed, st.Rotation.Phase, phase)
		require.Equal(t, want.failedIn, st.Rotation.FailedIn, phase)
		require.Equal(t, want.cordon, st.Cordon, phase)
		require.False(t, st.MoveOff, phase)
	}
	for _, phase := range []Phase{Holding, Surging, Moving} {
		st := Next(Seen{Now: t0, NodeExists: true, Instances: 1, Rotation: Rotation{Phase: phase, PhaseStartedAt: t0}}, Limits{})
		require.Empty(t, st.Rotation.FailedIn, "it is only not wanted any more in %s", phase)
	}
	st := Next(Seen{Now: t0, Gone: true, Wanted: true, Rotation: Rotation{Phase: GivingBack, PhaseStartedAt: t0, FailedIn: Moving}}, Limits{})
	require.Equal(t, RotDone, st.Rotation.Phase)
	require.Empty(t, st.Rotation.FailedIn)
}

// Replace is never called while an instance is on the node, whatever happens; and no step is looked at again in the past.
func TestNeverUnderAnInstance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Seen{Now: t0, NodeExists: true, Wanted: true}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			flip := func(name string, v *bool) {
				if rapid.IntRange(0, 9).Draw(t, name) == 0 {
					*v = !*v
				}
			}
			flip("held", &s.Held)
			flip("removing", &s.Removing)
			flip("wanted", &s.Wanted)
			flip("surge", &s.Surge.Done)
			s.Instances = rapid.IntRange(0, 2).Draw(t, "instances")
			s.Moving = rapid.IntRange(0, s.Instances).Draw(t, "moving")
			st := Next(s, Limits{})
			if st.Call == CallReplace {
				require.Zero(t, s.Instances)
			}
			require.True(t, st.Recheck.After(s.Now))
			if st.MoveOff {
				require.True(t, st.Cordon)
			}
			s.Rotation = st.Rotation
			s.Now = s.Now.Add(time.Duration(rapid.IntRange(1, 7200).Draw(t, "seconds")) * time.Second)
		}
	})
}
