//go:build e2e

package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/replacement"
)

// The operator's leader dies as soon as a step of a replacement of the primary is stored, at each step. A step that was not
// stored, because the world was further when somebody led again, or at which nobody was left to kill, is met in the next
// replacement, in which the leader lives until then.
func TestOperatorKilledDuringAReplacement(t *testing.T) {
	f := newFixture(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	f.ctx = ctx
	f.waitReady()
	load := f.startLoad()
	missing := []replacement.Phase{
		replacement.Pending, replacement.Surging, replacement.Seeding, replacement.CatchingUp, replacement.Reparenting, replacement.Swapping, replacement.Retiring,
	}
	for len(missing) > 0 {
		f.whole(2)
		missing = f.killedAt(missing)
	}
	f.whole(2)
	load.stopAndVerify(noErrors)
}

// killedAt has the primary replaced, kills the operator's leader once at each of the steps, and returns those that were not met.
func (f *fixture) killedAt(missing []replacement.Phase) []replacement.Phase {
	f.t.Helper()
	cohort, target := current(f.shard()), f.target()
	old := cohort.Primary
	if slices.Contains(missing, replacement.Pending) {
		// Of a shard one goes at a time: so the primary has to wait.
		f.theseus("replace", cohort.Members[0], "-n", f.namespace, "--wait", "0s")
		f.eventually("a standby is being replaced", func(*v1alpha1.Shard) bool {
			under := f.replacing()
			return len(under) == 1 && under[0].Status.AdmittedAt != nil
		})
	}
	versions, stop := f.watchReplacement(old + "-requested")
	defer stop()
	f.theseus("replace", old, "-n", f.namespace, "--wait", "0s")
	var killed []replacement.Phase
	for event := range versions {
		rp, ok := event.Object.(*v1alpha1.Replacement)
		require.Truef(f.t, ok, "%+v", event.Object)
		if rp.Status.Outcome != "" {
			require.Equal(f.t, "Succeeded", rp.Status.Outcome, rp.Status.Message)
			measured(f.t, "the leader was killed at %v: %s", killed, steps(rp))
			require.NotContains(f.t, f.instances(), old)
			return missing
		}
		i := slices.Index(missing, replacement.Phase(rp.Status.Phase))
		if i < 0 {
			continue
		}
		died, err := target.KillLeader(f.ctx)
		require.NoError(f.t, err)
		if died {
			killed, missing = append(killed, missing[i]), slices.Delete(slices.Clone(missing), i, i+1)
		}
	}
	f.t.Fatalf("the replacement of %s did not end; the leader was killed at %v, not at %v", old, killed, missing)
	return nil
}

// watchReplacement hears of each version of a Replacement as it is stored: some steps are too short to be found by looking.
func (f *fixture) watchReplacement(name string) (<-chan watch.Event, func()) {
	f.t.Helper()
	c, err := client.NewWithWatch(kit.REST, client.Options{Scheme: labkit.Scheme()})
	require.NoError(f.t, err)
	w, err := c.Watch(f.ctx, &v1alpha1.ReplacementList{}, client.InNamespace(f.namespace), client.MatchingFields{"metadata.name": name})
	require.NoError(f.t, err)
	return w.ResultChan(), w.Stop
}
