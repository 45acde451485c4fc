//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
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
	// While the machine is gone; at once is also before anybody may have condemned the instance.
	begun := time.Now()
	dir := filepath.Join(t.TempDir(), "autopsy")
	out := f.autopsy(old, "--out", dir)
	measured(t, "autopsy of a machine that is gone took %.1f s", time.Since(begun).Seconds())
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
