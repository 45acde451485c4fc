//go:build integration

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller"
)

func (b *bed) reparent(term int64, change ...func(*v1alpha1.Reparent)) *v1alpha1.Reparent {
	b.t.Helper()
	rp := &v1alpha1.Reparent{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: fmt.Sprintf("db-0-%d", term)},
		Spec:       v1alpha1.ReparentSpec{Shard: "db-0", Term: term},
	}
	for _, c := range change {
		c(rp)
	}
	require.NoError(b.t, cluster.client.Create(b.ctx, rp))
	return rp
}

func (b *bed) outcome(rp *v1alpha1.Reparent) string {
	b.t.Helper()
	b.until("the Reparent has an outcome", func() bool {
		require.NoError(b.t, cluster.client.Get(b.ctx, client.ObjectKeyFromObject(rp), rp))
		return rp.Status.Outcome != ""
	})
	return rp.Status.Outcome
}

func TestAPlannedReparent(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	for term := int64(2); term <= 4; term++ {
		old := b.shard().Status.Primary
		rp := b.reparent(term)
		require.Equal(t, v1alpha1.OutcomeSucceeded, b.outcome(rp), rp.Status.Message)
		require.Equal(t, old, rp.Status.OldPrimary)
		require.NotEqual(t, old, rp.Status.NewPrimary)
		var phases []string
		for _, p := range rp.Status.Phases {
			require.NotNil(t, p.FinishedAt, p.Name)
			phases = append(phases, p.Name)
		}
		// The term is recorded before clients are held up, and again with what the candidate turned out to have. It has promised
		// while the old primary stopped, so that nobody else has to be asked (Revoke).
		require.Equal(t, []string{"Prepare", "Record", "Drain", "Demote", "Record", "Promote", "Establish"}, phases)
		b.untilReady()
		sh := b.shard()
		require.Equal(t, rp.Status.NewPrimary, sh.Status.Primary)
		require.Equal(t, term, sh.Status.Record.EstablishedTerm)
		require.NotNil(t, sh.Status.LastReparent)
		b.until("the label follows", func() bool { return b.pods()[sh.Status.Primary].Labels[v1alpha1.LabelRole] == v1alpha1.RolePrimary })
	}
}

func TestAReparentThatWouldBeUnsafeOrPointlessIsRefused(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	primary := b.shard().Status.Primary
	for name, c := range map[string]struct {
		term   int64
		change func(*v1alpha1.Reparent)
		want   string
	}{
		"another primary":  {2, func(r *v1alpha1.Reparent) { r.Spec.ExpectPrimary = "somebody" }, "the primary is " + primary + ", expected was somebody"},
		"no such instance": {3, func(r *v1alpha1.Reparent) { r.Spec.To = "nobody" }, "there is no instance nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			rp := b.reparent(c.term, c.change)
			require.Equal(t, v1alpha1.OutcomeRefused, b.outcome(rp))
			require.Contains(t, rp.Status.Message, c.want)
			require.Equal(t, primary, b.shard().Status.Primary)
		})
	}
	t.Run("a term that is spent", func(t *testing.T) {
		rp := b.reparent(9)
		require.Equal(t, v1alpha1.OutcomeSucceeded, b.outcome(rp), "a gap is no harm: %s", rp.Status.Message)
		late := b.reparent(8)
		require.Equal(t, v1alpha1.OutcomeRefused, b.outcome(late))
		require.Contains(t, late.Status.Message, "term 8 is spent")
	})
	t.Run("no such shard", func(t *testing.T) {
		rp := b.reparent(2, func(r *v1alpha1.Reparent) { r.Name, r.Spec.Shard = "other-0-2", "other-0" })
		require.Equal(t, v1alpha1.OutcomeRefused, b.outcome(rp))
	})
}

// emergency waits until another primary than old is established.
func (b *bed) emergency(old string) *v1alpha1.Shard {
	b.t.Helper()
	var sh *v1alpha1.Shard
	b.until("another primary is established", func() bool {
		sh = b.shard()
		return sh.Status.Primary != "" && sh.Status.Primary != old && isTrue(sh.Status.Conditions, v1alpha1.ConditionWritable)
	})
	return sh
}

func TestADeadPrimaryIsReplacedByAnyReplica(t *testing.T) {
	b := newBed(t)
	leader := b.operator("one")
	time.Sleep(time.Second)
	b.operator("two")
	b.database()
	b.untilReady()
	old := b.shard().Status.Primary

	// PostgreSQL ends, its agent says so, and the leader dies at the same moment: the other replica does it.
	go leader()
	b.fleet.mu.Lock()
	a := b.fleet.agents[old]
	a.st.Role, a.st.Established, a.st.PostgresExit = agentpb.Role_STOPPED, false, "signal: killed"
	b.fleet.mu.Unlock()
	sh := b.emergency(old)
	require.Greater(t, sh.Status.Record.EstablishedTerm, int64(1))
	b.fleet.mu.Lock()
	a.st.PostgresExit = ""
	b.fleet.mu.Unlock()
	b.untilReady()
	require.Equal(t, 1, b.bootstraps())
}

func TestAFrozenPrimaryIsReplacedAndRejoins(t *testing.T) {
	b := newBed(t)
	b.operator("op")
	b.database()
	b.untilReady()
	old := b.shard().Status.Primary
	b.fleet.freeze(old, true)
	b.emergency(old)
	b.fleet.freeze(old, false)
	b.untilReady()
	b.fleet.mu.Lock()
	defer b.fleet.mu.Unlock()
	if a := b.fleet.agents[old]; a != nil {
		require.NotEqual(t, agentpb.Role_PRIMARY, a.st.Role)
	}
}

func TestADeletedPrimaryPodIsReplaced(t *testing.T) {
	b := newBed(t)
	b.operator("op", func(o *controller.Options) { o.Params.RestartAfter = time.Minute })
	b.database()
	b.untilReady()
	old := b.shard().Status.Primary
	b.delete(b.pods()[old])
	b.emergency(old)
	b.untilReady()
	b.until("nothing is left of it", func() bool { return b.claims()[old] == nil && len(b.claims()) == 3 })
}

func TestTwoReplicasDoOneReparent(t *testing.T) {
	b := newBed(t)
	b.operator("one")
	b.operator("two")
	b.database()
	b.untilReady()
	for range 3 {
		old := b.shard().Status.Primary
		b.fleet.freeze(old, true)
		b.emergency(old)
		b.fleet.freeze(old, false)
		b.untilReady()
	}
	list := &v1alpha1.ReparentList{}
	require.NoError(t, cluster.client.List(b.ctx, list, client.InNamespace(b.namespace)))
	succeeded := 0
	for _, rp := range list.Items {
		if rp.Status.Outcome == v1alpha1.OutcomeSucceeded {
			succeeded++
		}
	}
	require.GreaterOrEqual(t, succeeded, 3)
}

func (f *fleet) freeze(name string, frozen bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.agents[name]; a != nil {
		a.frozen = frozen
	}
}
