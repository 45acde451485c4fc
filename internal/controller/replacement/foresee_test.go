package replacement

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
)

func TestOnlyWhatMakesRoomWakesThoseThatWait(t *testing.T) {
	waits, runs := wanted("r", "b", v1alpha1.ReasonExpired), wanted("r", "b", v1alpha1.ReasonExpired, begun)
	done := wanted("r", "b", v1alpha1.ReasonExpired, over("Done", 0))
	update := func(before, after client.Object) bool {
		return madeRoom.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after})
	}
	require.True(t, update(runs, done), "it has just ended")
	require.True(t, update(waits, done))
	require.False(t, update(done, done), "where its evidence is, is nobody's business")
	require.False(t, update(waits, runs))
	for _, rp := range []*v1alpha1.Replacement{waits, runs, done} {
		require.False(t, madeRoom.Create(event.CreateEvent{Object: rp}), "a new leader is told of all there are")
		require.False(t, madeRoom.Generic(event.GenericEvent{Object: rp}))
	}
	require.True(t, madeRoom.Delete(event.DeleteEvent{Object: runs}), "somebody took its finalizer")
	require.False(t, madeRoom.Delete(event.DeleteEvent{Object: done}))
}

// crowd is a shard in which one is being replaced and many wait for that.
func crowd(t *testing.T, n int) *desk {
	objects := []client.Object{aShard(), wanted("runs", "c", v1alpha1.ReasonRequested, begun)}
	for i := range n {
		objects = append(objects, wanted(fmt.Sprint("r", i), "b", v1alpha1.ReasonRequested))
	}
	return newDesk(t, objects...)
}

// foretold is what one that waits is told.
func (d *desk) foretold(name string) string {
	d.t.Helper()
	w := d.world(name)
	require.NoError(d.t, d.foresee(context.Background(), w, d.get(name)))
	return w.why
}

func TestThoseThatWaitShareTheLedgersVerdicts(t *testing.T) {
	d := crowd(t, 30)
	for i := range 30 {
		require.Equal(t, string(ledger.ZoneBusy), d.foretold(fmt.Sprint("r", i)))
	}
	require.Equal(t, 1, d.lists, "one reads for all")
	d.clock.Step(foreseenFor)
	d.foretold("r7")
	require.Equal(t, 2, d.lists, "for a second")
}

func TestWhatEndsIsHeardOfAtOnce(t *testing.T) {
	d := crowd(t, 3)
	require.Equal(t, string(ledger.ZoneBusy), d.foretold("r1"))
	runs := d.get("runs")
	over("Done", 0)(runs)
	require.NoError(t, d.Client.Status().Update(context.Background(), runs))
	require.Len(t, d.waiting(context.Background(), runs), 3)
	require.Empty(t, d.foretold("r0"), "the first may begin")
	require.Equal(t, string(ledger.InstanceBusy), d.foretold("r1"), "as if the first had begun")
}

func TestWhoIsNewOrDegradedIsJudgedByItself(t *testing.T) {
	d := crowd(t, 3)
	d.foretold("r0")
	require.NoError(t, d.Client.Create(context.Background(), wanted("new", "b", v1alpha1.ReasonCondemned)))
	require.Empty(t, d.foretold("new"), "a repair waits for repairs only")
	require.Equal(t, 2, d.lists)

	// The status says that a copy is missing; what is seen now counts.
	d = newDesk(t, aShard(func(sh *v1alpha1.Shard) { sh.Status.Instances[2].Ready = false }), wanted("r", "b", v1alpha1.ReasonExpired))
	w := d.world("r")
	for i := range w.observed.Instances {
		w.observed.Instances[i].Healthy = true
	}
	w.observed.Wanted = 0
	require.NoError(t, d.foresee(context.Background(), w, d.get("r")))
	require.True(t, w.observed.Ledger.Allowed, w.observed.Ledger.Message)
}

func TestAVerdictWhoseTimeHasComeIsAskedForAgain(t *testing.T) {
	d := newDesk(t, aShard(), wanted("r", "b", v1alpha1.ReasonExpired), wanted("ran", "c", v1alpha1.ReasonExpired, over("Done", time.Minute), begunBefore(time.Hour-time.Millisecond)))
	d.PerHour = func() map[string]float64 { return map[string]float64{"": 0.1} }
	require.Equal(t, string(ledger.TooFast), d.foretold("r"))
	d.clock.Step(time.Millisecond)
	require.Empty(t, d.foretold("r"), "it does not wait out a verdict that says when it ends")
}

func begunBefore(ago time.Duration) func(*v1alpha1.Replacement) {
	return func(rp *v1alpha1.Replacement) {
		at := metav1.NewMicroTime(now.Add(-ago))
		rp.Status.AdmittedAt = &at
	}
}
