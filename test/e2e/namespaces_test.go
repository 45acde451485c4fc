//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// An operator that may act in some namespaces only makes, reparents, replaces and deletes in those, under load and without
// an error, and leaves the others alone until it is told to watch them.
func TestSomeNamespacesAreWatched(t *testing.T) {
	watched, ignored := newFixture(t, nil), newFixture(t, nil)
	install := func(ctx context.Context, set ...string) {
		require.NoError(t, kit.Install(ctx, labkit.LabImages(), set...))
	}
	t.Cleanup(func() { // before the fixtures are removed, which takes an operator, too
		ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
		defer cancel()
		install(ctx)
	})
	watched.waitReady()
	ignored.waitReady()
	install(watched.ctx, "watchNamespaces={"+watched.namespace+"}")

	load, other := watched.startLoad(), ignored.startLoad()
	r := watched.reparent(nil)
	require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, r.Status.Message)
	watched.waitSettled()
	old := watched.shard().Status.Primary
	measured(t, "%s", watched.theseus("replace", old, "-n", watched.namespace, "--wait", "3m"))
	watched.waitSettled()
	require.NotContains(t, watched.instances(), old)
	load.stopAndVerify(noErrors)

	late := *watched
	late.database = "late"
	require.NoError(t, kit.Client.Create(late.ctx, &v1alpha1.Database{ObjectMeta: late.meta(), Spec: v1alpha1.DatabaseSpec{
		Instances: 1, Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
	}}))
	late.waitReady()
	require.NoError(t, kit.Client.Delete(late.ctx, &v1alpha1.Database{ObjectMeta: late.meta()}))
	require.NoError(t, late.waitDeleted(late.ctx))

	// The other one serves on, and what is asked for there waits.
	asked := ignored.ask(nil)
	time.Sleep(5 * time.Second)
	require.Empty(t, ignored.reload(asked).Status.Outcome)
	install(watched.ctx)
	asked = ignored.ended(asked)
	require.Equal(t, v1alpha1.OutcomeSucceeded, asked.Status.Outcome, asked.Status.Message)
	other.stopAndVerify(noErrors)
}
