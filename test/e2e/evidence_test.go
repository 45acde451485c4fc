//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// A machine loses power without a word: what its primary said last is there all the same.
func TestAPowerCutPrimaryLeavesItsTrail(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	old := f.shard().Status.Primary
	node := f.nodeOf(old)
	f.psql(`DO $$ BEGIN RAISE LOG 'these were my last words'; END $$`)
	time.Sleep(500 * time.Millisecond) // A line is on its way for a tenth of a second.
	f.lab("node", "kill", node)
	took := f.eventually("another primary is established", func(s *v1alpha1.Shard) bool {
		return s.Status.Primary != old && s.Status.Record.EstablishedTerm > 1
	})
	measured(t, "fault → status names the new primary: %.1f s", took.Seconds())
	// While the machine is gone, and before anybody may have condemned the instance. The reparent is quicker than the end of the
	// stream, which the operators hold to have ended after two seconds of silence.
	dir := filepath.Join(t.TempDir(), "autopsy")
	var out string
	begun := time.Now()
	require.NoError(t, labkit.Poll(f.ctx, 500*time.Millisecond, func(context.Context) (bool, string, error) {
		out = f.autopsy(old, "--out", dir)
		return strings.Contains(out, "the connection ended") || time.Since(begun) > 10*time.Second, "the end of the trail", nil
	}))
	measured(t, "the trail of a machine that is gone is whole after %.1f s", time.Since(begun).Seconds())
	requireOrder(t, out, "PRIMARY, term 1, established", "these were my last words", "the connection ended")
	require.Contains(t, out, "→ "+f.shard().Status.Primary, "the reparent that followed")
	trail, err := os.ReadFile(filepath.Join(dir, "trail.jsonl"))
	require.NoError(t, err)
	require.Contains(t, string(trail), "these were my last words")
	t.Logf("what a person sees:\n%s", out)

	f.lab("node", "remove", node)
	f.lab("node", "add")
	f.waitSettled()
	require.Contains(t, f.autopsy(old), "these were my last words", "and it stays")
}

// autopsy runs the verb as a person would.
func (f *fixture) autopsy(name string, flags ...string) string {
	f.t.Helper()
	args := []string{"autopsy", "-n", f.namespace}
	if name != "" {
		args = append(args, name)
	}
	out, err := kit.Run(f.ctx, kit.Bin("theseus"), append(args, flags...)...)
	require.NoError(f.t, err)
	return out
}

func requireOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	at := 0
	for _, p := range parts {
		i := strings.Index(text[at:], p)
		require.GreaterOrEqual(t, i, 0, "%q after position %d in\n%s", p, at, text)
		at += i
	}
}
