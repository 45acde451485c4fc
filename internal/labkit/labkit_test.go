package labkit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPoll(t *testing.T) {
	n := 0
	require.NoError(t, Poll(t.Context(), time.Millisecond, func(context.Context) (bool, string, error) { n++; return n == 3, "not yet", nil }))
	require.Equal(t, 3, n)

	broken := errors.New("broken")
	require.ErrorIs(t, Poll(t.Context(), time.Millisecond, func(context.Context) (bool, string, error) { return false, "", broken }), broken)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := Poll(ctx, time.Millisecond, func(context.Context) (bool, string, error) { return false, "the moon is not full", nil })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "the moon is not full", "the last reason is in the error")
}

func TestRun(t *testing.T) {
	k := &Kit{Kubeconfig: "/some/where"}
	out, err := k.Run(t.Context(), "sh", "-c", "echo $KUBECONFIG")
	require.NoError(t, err)
	require.Equal(t, "/some/where\n", out)
	out, err = k.RunInput(t.Context(), "text", "cat")
	require.NoError(t, err)
	require.Equal(t, "text", out)
	out, err = k.Run(t.Context(), "sh", "-c", "echo before; echo why >&2; exit 3")
	require.ErrorContains(t, err, "why", "what it said is in the error")
	require.Equal(t, "before\n", out)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = k.Run(ctx, "sleep", "60")
	require.Error(t, err)
	require.Less(t, time.Since(start), 30*time.Second, "it does not outlive its context")
}

func TestOnlyALabHasVerbs(t *testing.T) {
	_, err := (&Kit{}).Lab(t.Context(), "down")
	require.ErrorContains(t, err, "not a lab")
}

func TestTheRepositorysProgramsComeFirst(t *testing.T) {
	k := &Kit{Root: t.TempDir()}
	require.Equal(t, "kubectl", k.kubectl())
	require.Equal(t, "helm", k.helm())
	require.NoError(t, os.Mkdir(filepath.Join(k.Root, "bin"), 0o755))
	for _, name := range []string{"kubectl", "helm"} {
		require.NoError(t, os.WriteFile(k.Bin(name), nil, 0o755))
	}
	require.Equal(t, k.Bin("kubectl"), k.kubectl())
	require.Equal(t, k.Bin("helm"), k.helm())
}

func TestSteps(t *testing.T) {
	var said []string
	k := &Kit{Out: func(s string) { said = append(said, s) }}
	require.NoError(t, k.Step("one", func() error { return nil }))
	require.ErrorContains(t, k.Step("two", func() error { return errors.New("no") }), "two: no")
	require.Len(t, said, 4)
	require.Contains(t, said[3], "two failed")
}
