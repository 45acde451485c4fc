package sim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func chain(parent *record, tl *timeline, n int) *record {
	for range n {
		id := uint64(1)
		if parent != nil {
			id = parent.id + 1
		}
		parent = extend(parent, tl, id+tl.term*1000)
	}
	return parent
}

func TestWAL(t *testing.T) {
	one := &timeline{id: 1, term: 1, start: 1}
	base := chain(nil, one, 100)
	for lsn := uint64(1); lsn <= 100; lsn++ {
		require.Equal(t, lsn, base.at(lsn).lsn)
		require.True(t, base.contains(base.at(lsn)))
	}
	require.Nil(t, base.at(0))
	two := &timeline{id: 2, term: 2, start: 81, parent: one}
	fork := chain(base.at(80), two, 50)
	require.False(t, fork.contains(base.at(81)))
	require.True(t, fork.contains(base.at(80)))
	require.True(t, fits(base.at(80), fork))
	require.True(t, fits(base.at(40), fork))
	require.False(t, fits(base.at(81), fork), "beyond the fork")
	require.False(t, fits(fork, base), "on a newer timeline")
	require.Equal(t, uint64(80), common(base, fork))

	// Two failed promotions pick the same number: PostgreSQL sees no difference as long as the lengths allow.
	other := &timeline{id: 2, term: 3, start: 71, parent: one}
	clash := chain(base.at(70), other, 60)
	require.True(t, fits(fork.at(100), clash), "the numbers fit")
	require.False(t, clash.contains(fork.at(100)), "the logs do not")
	glued := appendFrom(fork.at(100), clash, clash.end())
	require.Equal(t, clash.end(), glued.end())
	require.False(t, glued.contains(clash.at(90)), "records are missing though every LSN is there")
	require.Equal(t, base.at(90), appendFrom(base.at(70), base, 90), "a real beginning shares the records")
	require.Equal(t, base.at(10), appendFrom(nil, base, 10))
}

func TestScheduler(t *testing.T) {
	s := newSched(1)
	var got []string
	say := func(what string) func() { return func() { got = append(got, what) } }
	p, q := newProc("p"), newProc("q")
	s.after(2*time.Second, nil, say("two"))
	s.after(time.Second, p, say("one"))
	s.after(time.Second, q, say("never"))
	s.kill(q)
	s.freeze(p)
	s.after(3*time.Second, nil, func() { s.thaw(p) })
	s.spawn(p, func() {
		say("a")()
		s.sleep(5 * time.Second)
		say("b")()
	})
	var unwound bool
	s.spawn(p, func() {
		defer func() { unwound = true }()
		s.sleep(time.Hour)
		say("not reached")()
	})
	for s.next(time.Minute) {
	}
	require.Equal(t, []string{"two", "a", "one", "b"}, got)
	require.Equal(t, 8*time.Second, s.now)
	s.shutdown()
	require.True(t, unwound, "tasks that wait are unwound at the end")
}

func TestClocks(t *testing.T) {
	s, p := newSched(1), newProc("p")
	w := &world{s: s}
	s.now = 10 * time.Second
	w.setRate(p, 2)
	require.Equal(t, 10*time.Second, s.clock(p), "no jump")
	s.now = 11 * time.Second
	require.Equal(t, 12*time.Second, s.clock(p))
	require.Equal(t, time.Second, w.real(p, 2*time.Second))
}

// A fault that waits strikes at its event, as many times as it takes and not before it was armed, and may mean the instance
// of the event.
func TestFaultsWaitForEvents(t *testing.T) {
	w := newWorld(Config{Instances: 3})
	defer w.s.shutdown()
	standby, primary := w.instances[1], w.instances[0]
	w.event(eventPromoted, standby)
	w.arm(on(eventPromoted, 2, 10*time.Millisecond, 0, at(0, HangAgent, 8, 0, time.Hour)))
	w.event(eventPromoted, primary)
	w.event(eventRetire, primary)
	w.advance(20 * time.Millisecond)
	require.False(t, primary.agent.proc.frozen, "not yet")
	w.event(eventPromoted, standby)
	w.advance(25 * time.Millisecond)
	require.False(t, standby.agent.proc.frozen, "a little later")
	w.advance(35 * time.Millisecond)
	require.True(t, standby.agent.proc.frozen)
	require.False(t, primary.agent.proc.frozen)
	require.Empty(t, w.armed)

	w.arm(on(eventRetire, 1, 0, 0, at(0, HangAgent, 7, 0, time.Hour)))
	w.heal()
	w.event(eventRetire, standby)
	w.advance(40 * time.Millisecond)
	require.False(t, primary.agent.proc.frozen, "the faults are over")
}

func TestDrawnFaultsHaveTheirTimes(t *testing.T) {
	f := on(eventPromoted, 2, time.Millisecond, time.Second, at(0, KillPod, 8, 0, 0))
	require.Equal(t, "0s kill-pod target=8 other=0 for=0s on=promoted#2+1ms", f.String())
	waiting := 0
	for seed := range uint64(30) {
		for _, f := range draw(seed, 40*time.Second, "") {
			require.Zero(t, f.On.Jitter, "a schedule can be shrunk only if nothing in it is left to chance: %v", f)
			if f.On.Event != "" {
				waiting++
				require.Positive(t, f.On.Nth)
			}
		}
	}
	require.Positive(t, waiting)
}

// A checkpoint is as good as the disk and the server it is for.
func TestCheckpointHangs(t *testing.T) {
	checkpoint := func(prepare func(w *world, i *instance), wait time.Duration) (done bool, err error) {
		w := newWorld(Config{Instances: 3})
		defer w.s.shutdown()
		i := w.instances[0]
		prepare(w, i)
		w.s.spawn(i.agent.proc, func() {
			_, err = i.agent.checkpoint(1)
			done = true
		})
		w.advance(wait)
		return done, err
	}
	nothing := func(*world, *instance) {}
	done, err := checkpoint(nothing, 1500*time.Millisecond)
	require.True(t, done)
	require.NoError(t, err)
	done, _ = checkpoint(func(w *world, i *instance) { w.stall(i) }, 1500*time.Millisecond)
	require.False(t, done, "the disk is stalled")
	done, _ = checkpoint(func(w *world, i *instance) { w.freezePostgres(i) }, 1500*time.Millisecond) // before an emergency ends it
	require.False(t, done, "the server is stopped")
	done, err = checkpoint(func(w *world, i *instance) {
		w.stall(i)
		w.s.after(time.Second, nil, func() { i.pg.crash(false) })
	}, 4*time.Second)
	require.True(t, done)
	require.Error(t, err, "the server went down")
	done, err = checkpoint(func(_ *world, i *instance) { i.agent.mem.primary = false }, time.Second)
	require.True(t, done)
	require.Error(t, err, "not the primary")
}
