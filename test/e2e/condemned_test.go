//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// A standby is condemned under write load, and no client notices: the case holds what the agent, Kubernetes and the operator
// knew, and is there before it is gone.
func TestACondemnedStandbyLeavesACase(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.startLoad()
	sh := f.shard()
	standby := current(sh).Members[0]
	_, err := kit.Kubectl(f.ctx, "-n", f.namespace, "exec", standby, "--", "psql", "-h", "/run/theseus/sock", "-U", "postgres",
		"-c", "DO $$ BEGIN RAISE LOG 'a standby says farewell'; END $$")
	require.NoError(t, err)
	r := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: "condemned"},
		Spec:       v1alpha1.ReplacementSpec{Shard: sh.Name, Instance: standby, Reason: v1alpha1.ReasonCondemned, Message: "it looked at us strangely"},
	}
	require.NoError(t, kit.Client.Create(f.ctx, r))
	require.NoError(t, labkit.Poll(f.ctx, 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		err := kit.Client.Get(ctx, client.ObjectKeyFromObject(r), r)
		return r.Status.Outcome != "", string(r.Status.Phase) + " " + r.Status.Waiting, err
	}))
	require.Equal(t, "Succeeded", r.Status.Outcome, r.Status.Message)
	require.NotEmpty(t, r.Status.Evidence)
	require.NotContains(t, f.instances(), standby)
	for _, name := range []string{standby, "condemned", r.Status.Evidence} {
		dir := filepath.Join(t.TempDir(), "autopsy")
		out := f.autopsy(name, "--out", dir)
		require.Contains(t, out, "a standby says farewell")
		require.Contains(t, out, "it looked at us strangely")
		for _, file := range []string{
			"controldata.txt", "processes.txt", "postgres.log", "agent.log", "status.json", "trail.jsonl", "pod.json", "node.json", "events.json",
			"observations.json", "replacement.json", "shard.json", "container-postgres.log",
		} {
			require.FileExists(t, filepath.Join(dir, file))
		}
		data, err := os.ReadFile(filepath.Join(dir, "processes.txt"))
		require.NoError(t, err)
		require.Contains(t, string(data), "walreceiver", "what its processes were doing")
		if name == standby {
			t.Logf("what a person sees:\n%s", out)
		}
	}
	require.Contains(t, f.autopsy(""), standby, "it is listed")
	f.waitSettled()
	load.stopAndVerify(noErrors)
}

// A person condemns a primary that is well. It can take part in a planned reparent, so it leaves by one, which no client
// notices; an emergency, which ends what is under way, is only for one that cannot, or that a planned reparent has failed to move.
func TestACondemnedPrimaryThatIsWellIsReplaced(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	f.waitSettled()
	old, term := f.shard().Status.Primary, f.shard().Status.Record.EstablishedTerm
	load := f.startLoad()
	measured(t, "%s", f.theseus("replace", old, "-n", f.namespace, "--reason", "Condemned", "--message", "it is nobody's friend", "--wait", "3m"))
	rp := f.condemned(old)
	measured(t, "%s", steps(rp))
	require.NotEmpty(t, rp.Status.Evidence)
	require.Contains(t, f.autopsy(old), "it is nobody's friend")
	require.NotContains(t, f.instances(), old)
	moves := f.reparents(term)
	require.Len(t, moves, 1, "%+v", moves)
	r := &moves[0]
	measured(t, "%s reparent for %s: %s", r.Spec.Kind, r.Spec.Reason, phases(r))
	require.Equal(t, v1alpha1.ReparentPlanned, r.Spec.Kind)
	require.Equal(t, string(v1alpha1.ReasonCondemned), r.Spec.Reason)
	require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, r.Status.Message)
	require.Equal(t, old, r.Status.OldPrimary)
	f.waitSettled()
	load.stopAndVerify(noErrors)
}
