//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/controller/replacement"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/ledger"
	rules "theseus.dev/theseus/internal/replacement"
)

// replace asks for the replacement of an instance.
func (b *bed) replace(instance string, change ...func(*v1alpha1.Replacement)) *v1alpha1.Replacement {
	b.t.Helper()
	rp := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "replace-" + instance},
		Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: instance, Message: "a test wants it"},
	}
	for _, c := range change {
		c(rp)
	}
	require.NoError(b.t, cluster.client.Create(b.ctx, rp))
	return rp
}

// ended waits for the end of a replacement.
func (b *bed) ended(rp *v1alpha1.Replacement) v1alpha1.ReplacementStatus {
	b.t.Helper()
	b.until(rp.Name+" has ended", func() bool { return b.look(rp).Status.Outcome != "" })
	return rp.Status
}

// look reads a replacement again.
func (b *bed) look(rp *v1alpha1.Replacement) *v1alpha1.Replacement {
	b.t.Helper()
	require.NoError(b.t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(rp), rp))
	return rp
}

// neverFewer has the copies of the shard watched until the test ends: at no moment may fewer than so many instances be
// the primary or stream from one.
func (b *bed) neverFewer(n int) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if have := b.fleet.copies(); have < n {
				b.fleet.mu.Lock()
				b.fleet.violated("%d copies, at least %d were promised", have, n)
				b.fleet.mu.Unlock()
				return
			}
		}
	})
	b.t.Cleanup(func() { close(done); wg.Wait() })
}

// copies counts the instances that have data and run, whatever primary they are between.
func (f *fleet) copies() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, a := range f.agents {
		if a.running && !a.frozen && a.st.Flushed != nil && a.seeding.Before(time.Now()) {
			n++
		}
	}
	return n
}

func TestEveryInstanceIsReplaced(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	b.neverFewer(3)
	before := b.pods()
	for name := range before {
		wasPrimary := b.shard().Status.Primary == name
		rp := b.replace(name)
		st := b.ended(rp)
		require.Equal(t, "Succeeded", st.Outcome, st.Message)
		require.Equal(t, v1alpha1.ReplacementPhase("Done"), st.Phase)
		require.EqualValues(t, 1, st.Attempt)
		var steps []string
		for _, s := range st.Steps {
			require.NotNil(t, s.FinishedAt, s.Phase)
			steps = append(steps, string(s.Phase))
		}
		require.Equal(t, wasPrimary, slices.Contains(steps, "Reparenting"), steps)
		require.Equal(t, metav1.ConditionTrue, st.Conditions[0].Status)
		require.Contains(t, b.shard().Status.Record.Retired, name, "recorded before its volume was deleted")
		if wasPrimary {
			require.Equal(t, st.Successor, b.shard().Status.Primary, "the youngest takes over")
		}
		b.until("the Pod of its successor keeps others off its node", func() bool {
			p := b.pods()[st.Successor]
			return p != nil && p.Labels[v1alpha1.LabelReplacement] == rp.Name
		})
		b.untilReady()
	}
	after := b.pods()
	require.Len(t, after, 3)
	require.Len(t, b.claims(), 3)
	for name := range before {
		require.NotContains(t, after, name)
	}
	require.Equal(t, 1, b.bootstraps())
}

func TestASingleInstanceIsReplaced(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database(func(db *v1alpha1.Database) { db.Spec.Instances = 1 })
	b.untilReady()
	b.neverFewer(1)
	old := b.shard().Status.Primary
	st := b.ended(b.replace(old))
	require.Equal(t, "Succeeded", st.Outcome, st.Message)
	b.untilReady()
	require.Len(t, b.pods(), 1)
	require.Equal(t, st.Successor, b.shard().Status.Primary)
}

func TestAReplacementOfNobodyFails(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	st := b.ended(b.replace("db-0-nobody"))
	require.Equal(t, "Failed", st.Outcome)
	require.Contains(t, st.Message, "no instance db-0-nobody")
	st = b.ended(b.replace("x", func(rp *v1alpha1.Replacement) { rp.Spec.Shard = "other-0" }))
	require.Equal(t, "Cancelled", st.Outcome)
	require.Len(t, b.pods(), 3)
}

func TestOneReplacementAtATimeInAShard(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	b.neverFewer(3)
	var all []*v1alpha1.Replacement
	for name := range b.pods() {
		all = append(all, b.replace(name))
	}
	most := 0
	b.until("all three have ended", func() bool {
		begun, over := 0, 0
		for _, rp := range all {
			switch st := &b.look(rp).Status; {
			case st.Outcome != "":
				over++
			case st.AdmittedAt != nil:
				begun++
			case st.WaitingFor != "":
				require.Contains(t, []string{"ShardBusy", "ZoneBusy", "FleetBusy"}, st.WaitingFor)
				require.NotEmpty(t, st.Waiting)
			}
		}
		most = max(most, begun)
		return over == 3
	})
	require.Equal(t, 1, most)
	for _, rp := range all {
		require.Equal(t, "Succeeded", rp.Status.Outcome, rp.Status.Message)
	}
	b.untilReady()
}

func TestDeletingAReplacementTakesItBack(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	b.neverFewer(3)
	before := b.pods()
	b.fleet.mu.Lock()
	b.fleet.slowSeeds = true
	b.fleet.mu.Unlock()
	var name string
	for name = range before {
		break
	}
	rp := b.replace(name)
	b.until("its successor is being seeded", func() bool { return b.look(rp).Status.Phase == "Seeding" })
	successor := rp.Status.Successor
	b.delete(rp)
	b.until("nothing is left of it", func() bool {
		gone := client.IgnoreNotFound(cluster.client.Get(b.ctx, client.ObjectKeyFromObject(rp), rp)) == nil
		return gone && len(b.pods()) == 3 && b.claims()[successor] == nil && b.pods()[successor] == nil
	})
	require.Equal(t, before[name].UID, b.pods()[name].UID)
	b.untilReady()
}

func TestASurgeWhoseImageCannotStartIsGivenUp(t *testing.T) {
	b := newBed(t)
	b.operator("op", func(o *controller.Options) { o.Timeouts = rules.Timeouts{Backoff: 100 * time.Millisecond} })
	db := b.database()
	b.untilReady()
	b.neverFewer(3)
	good := b.shard().Spec.Image
	b.change(db, func() { db.Spec.Postgres.Image = "broken" })
	b.until("the shard has the image", func() bool { return b.shard().Spec.Image == "broken" })
	var name string
	for name = range b.pods() {
		break
	}
	st := b.ended(b.replace(name))
	require.Equal(t, "Failed", st.Outcome)
	require.EqualValues(t, 3, st.Attempt)
	require.Contains(t, st.Message, "it cannot start")
	b.until("the surges are gone", func() bool { return len(b.pods()) == 3 && len(b.claims()) == 3 })

	b.change(db, func() { db.Spec.Postgres.Image = good })
	b.until("the shard has the image", func() bool { return b.shard().Spec.Image == good })
	again := b.replace(name, func(rp *v1alpha1.Replacement) { rp.Name += "-2" })
	require.Equal(t, "Succeeded", b.ended(again).Outcome)
	b.untilReady()
}

func TestAnInstanceThatIsOutOfReachIsCondemnedAndReplaced(t *testing.T) {
	b := newBed(t)
	taken := &collector{}
	b.operator("op", func(o *controller.Options) { o.Evidence = taken })
	b.database()
	b.untilReady()
	var name string
	for n, p := range b.pods() {
		if p.Labels[v1alpha1.LabelRole] == v1alpha1.RoleStandby {
			name = n
		}
	}
	b.fleet.freeze(name, true)
	rp := &v1alpha1.Replacement{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name + "-condemned"}}
	b.until("it is condemned", func() bool {
		return cluster.client.Get(b.ctx, client.ObjectKeyFromObject(rp), rp) == nil
	})
	st := b.ended(rp)
	require.Equal(t, "Succeeded", st.Outcome, st.Message)
	require.Equal(t, "mem://evidence/"+name, st.Evidence)
	require.Equal(t, 1, taken.calls())
	b.untilReady()
	require.NotContains(t, b.pods(), name)
	require.NotContains(t, b.claims(), name)
}

// The operator dies at every fault point of a replacement of the primary: before each action, and after it.
func TestTheOperatorDiesAtEveryStepOfAReplacement(t *testing.T) {
	b := newBed(t)
	stop := b.operator("first")
	b.database()
	b.untilReady()
	b.neverFewer(3)
	stop()
	old := b.shard().Status.Primary
	rp := b.replace(old)
	visited := map[string]bool{}
	for n := 0; ; n++ {
		died, buried := make(chan string, 1), make(chan struct{})
		var mu sync.Mutex
		stop = b.operator(fmt.Sprintf("op-%d", n), func(o *controller.Options) {
			o.ReplacementPoint = func(rp *v1alpha1.Replacement, point string) error {
				mu.Lock()
				defer mu.Unlock()
				where := fmt.Sprintf("%s %s", rp.Status.Phase, point)
				if visited[where] {
					return nil
				}
				visited[where] = true
				died <- where
				<-buried // the dead do nothing, while the test looks
				return errors.New("the operator dies here")
			}
		})
		var where string
		b.until("the operator dies or the replacement ends", func() bool {
			select {
			case where = <-died:
				return true
			default:
				return b.look(rp).Status.Outcome != ""
			}
		})
		if where == "" {
			select {
			case where = <-died: // the outcome is seen before the operator that stored it gets to its point
			case <-time.After(time.Second):
			}
		}
		close(buried)
		if where == "" {
			break
		}
		stop()
		require.Less(t, n, 40)
	}
	t.Logf("died at %d points: %v", len(visited), visited)
	require.Greater(t, len(visited), 8)
	for _, point := range []string{
		"Surging stored", "Surging acted on Surge", "Reparenting stored", "Reparenting acted on Planned",
		"Retiring stored", "Retiring acted on Stop", "Retiring acted on DeleteVolume",
	} {
		require.Contains(t, visited, point)
	}
	require.Equal(t, "Succeeded", rp.Status.Outcome, rp.Status.Message)
	require.EqualValues(t, 1, rp.Status.Attempt)
	b.untilReady()
	require.Len(t, b.pods(), 3)
	require.Len(t, b.claims(), 3)
	require.NotContains(t, b.pods(), old)
}

// collector is where evidence goes in these tests.
type collector struct {
	mu sync.Mutex
	n  int
}

func (c *collector) calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

var _ replacement.EvidenceCollector = (*collector)(nil)

// Collect implements replacement.EvidenceCollector.
func (c *collector) Collect(_ context.Context, s evidence.Subject) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return "mem://evidence/" + s.Instance, nil
}

func TestInstancesGoBeforeTheyAreTooOld(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database(func(db *v1alpha1.Database) { db.Spec.Lifetime.MaxAge = metav1.Duration{Duration: time.Minute} })
	b.untilReady()
	b.neverFewer(3)
	before := b.pods()
	oldest := time.Duration(0)
	b.until("all of the beginning are gone", func() bool {
		left := 0
		for name, p := range b.pods() {
			oldest = max(oldest, time.Since(p.CreationTimestamp.Time))
			if before[name] != nil {
				left++
			}
		}
		return left == 0
	})
	t.Logf("the oldest was %v old", oldest.Round(time.Second))
	require.Less(t, oldest, time.Minute)
	c := meta.FindStatusCondition(b.shard().Status.Conditions, v1alpha1.ConditionPlanHolds)
	require.NotNil(t, c)
	require.Equal(t, metav1.ConditionTrue, c.Status, c.Message)
	list := &v1alpha1.ReplacementList{}
	require.NoError(t, cluster.client.List(b.ctx, list, client.InNamespace(b.namespace)))
	for _, rp := range list.Items {
		require.Equal(t, v1alpha1.ReasonExpired, rp.Spec.Reason)
		require.NotNil(t, rp.Spec.Deadline)
	}
}

func TestAFreezeIsSaidOutLoud(t *testing.T) {
	b := newBed(t)
	b.operator("op", func(o *controller.Options) {
		o.Limits = ledger.Limits{Freeze: ledger.FreezePlanned, FreezeWhy: "an inventory is taken"}
	})
	b.database(func(db *v1alpha1.Database) {
		db.Spec.Lifetime.MaxAge = metav1.Duration{Duration: time.Minute}
		db.Spec.Instances = 1
	})
	b.untilReady()
	name := b.shard().Status.Primary
	b.until("the Database says that it is frozen, and later that it is too late", func() bool {
		db := &v1alpha1.Database{}
		require.NoError(t, cluster.client.Get(b.ctx, client.ObjectKey{Namespace: b.namespace, Name: "db"}, db))
		frozen := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionFrozen)
		holds := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionPlanHolds)
		if frozen == nil || frozen.Status != metav1.ConditionTrue || holds.Reason != "DeadlineMissed" {
			return false
		}
		require.Contains(t, frozen.Message, "an inventory is taken")
		require.Equal(t, metav1.ConditionFalse, holds.Status)
		return true
	})
	require.Contains(t, b.pods(), name)
	// What somebody waits for goes on.
	require.Equal(t, "Succeeded", b.ended(b.replace(name)).Outcome)
}

func TestAlwaysFailingOver(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database(func(db *v1alpha1.Database) {
		db.Spec.Lifetime.AlwaysFailover = &metav1.Duration{Duration: 20 * time.Second}
	})
	b.untilReady()
	b.neverFewer(3)
	b.until("it has failed over twice", func() bool { return b.shard().Status.Record.EstablishedTerm >= 3 })
	list := &v1alpha1.ReparentList{}
	require.NoError(t, cluster.client.List(b.ctx, list, client.InNamespace(b.namespace)))
	for _, rp := range list.Items {
		require.Equal(t, "AlwaysFailover", rp.Spec.Reason)
	}
}

// The primary of two is lost for good: the standby has everything that was acknowledged but nobody to acknowledge its
// own writes, so first it gets a standby.
func TestTheSurvivorOfTwoGetsAStandbyAndTakesOver(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database(func(db *v1alpha1.Database) { db.Spec.Instances = 2 })
	b.untilReady()
	old := b.shard().Status.Primary
	b.fleet.freeze(old, true)
	b.emergency(old)
	b.until("the lost one is gone", func() bool { _, there := b.pods()[old]; return !there })
	b.untilReady()
	require.Equal(t, 1, b.bootstraps())
	rp := &v1alpha1.Replacement{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: old + "-condemned"}}
	require.Equal(t, "Succeeded", b.ended(rp).Outcome)
}

// The disk of a standby hangs while it goes on streaming: it leaves the cohort at once, and is replaced when it does not
// come back.
func TestAStandbyWhoseDiskHangsLeavesTheCohortAndIsReplaced(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	name := b.shard().Status.Record.Cohorts[0].Members[0]
	b.fleet.mu.Lock()
	b.fleet.agents[name].st.DiskProbe = &agentpb.Probe{PendingSinceUnixMs: time.Now().Add(-3 * time.Second).UnixMilli()}
	b.fleet.mu.Unlock()
	start := time.Now()
	b.until("the cohort goes on without it", func() bool {
		cohorts := b.shard().Status.Record.Cohorts
		return len(cohorts) == 1 && !slices.Contains(cohorts[0].Members, name)
	})
	require.Less(t, time.Since(start), 5*time.Second)
	rp := &v1alpha1.Replacement{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name + "-condemned"}}
	b.until("it is condemned", func() bool {
		return cluster.client.Get(b.ctx, client.ObjectKeyFromObject(rp), rp) == nil
	})
	require.Contains(t, rp.Spec.Message, "StandbyStuck")
	require.Equal(t, "Succeeded", b.ended(rp).Outcome)
	b.untilReady()
	require.NotContains(t, b.pods(), name)
}
