package main

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// A terminal that is gone, or whatever the output went to, ends the demo in order.
func TestNobodyLooksAnyMore(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
		ctx, stop := untilToldToEnd(t.Context())
		require.NoError(t, syscall.Kill(os.Getpid(), s))
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
			t.Errorf("%v does not end the demo", s)
		}
		stop()
	}
}

// An earlier tale was killed: its lifetimes of minutes and its NodePolicy are still there.
func TestARunRepairsWhatAnEarlierOneLeft(t *testing.T) {
	db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: database}}
	db.Spec.Lifetime.MaxAge = metav1.Duration{Duration: 4 * time.Minute}
	kit := &labkit.Kit{Root: t.TempDir(), Out: func(string) {}, Client: fake.NewClientBuilder().WithScheme(labkit.Scheme()).WithObjects(db).Build()}
	require.NoError(t, os.Mkdir(kit.Bin(""), 0o755))
	require.NoError(t, os.WriteFile(kit.Bin("kubectl"), []byte("#!/bin/sh\necho \"$@\" >> \"$0.said\"\n"), 0o755))
	age := func() time.Duration {
		require.NoError(t, kit.Client.Get(t.Context(), client.ObjectKeyFromObject(db), db))
		return db.Spec.Lifetime.MaxAge.Duration
	}

	require.NoError(t, repair(t.Context(), kit))
	require.Equal(t, 4*time.Minute, age(), "on a user's cluster that is the user's wish")
	require.NoFileExists(t, kit.Bin("kubectl.said"))

	kit.LabName = "theseus"
	require.NoError(t, repair(t.Context(), kit))
	require.Equal(t, 696*time.Hour, age())
	said, err := os.ReadFile(kit.Bin("kubectl.said"))
	require.NoError(t, err)
	require.Contains(t, string(said), "delete nodepolicy demo")
}

func TestHints(t *testing.T) {
	current := strings.Join(hints(&labkit.Kit{}, "shop-0-abcde"), "\n")
	require.Contains(t, current, "kubectl -n quickstart exec -it shop-0-abcde -- psql \"$(kubectl -n quickstart get secret shop-app -o go-template='{{.data.uri | base64decode}}')\"")
	require.Contains(t, current, "bin/helm -n theseus-system uninstall theseus", "make demo has built it; there may be no other")
	require.NotContains(t, current, "lab")
	docs, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	for line := range strings.SplitSeq(current, "\n") {
		if strings.Contains(line, "psql") {
			require.Contains(t, string(docs), strings.ReplaceAll(line, "shop-0-abcde", "INSTANCE")+"\n", "the line that the documentation has")
		}
	}

	lab := strings.Join(hints(&labkit.Kit{LabName: "other", Kubeconfig: "/k"}, ""), "\n")
	require.Contains(t, lab, "export KUBECONFIG=/k")
	require.Contains(t, lab, "export THESEUS_LAB=other")
	require.Contains(t, lab, "bin/lab client -- psql")
	require.NotContains(t, lab, "helm")
}

// The instance that is named is one that is there.
func TestHintsNameThePrimary(t *testing.T) {
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop-0", Labels: map[string]string{v1alpha1.LabelDatabase: database}}}
	sh.Status.Primary = "shop-0-abcde"
	kit := &labkit.Kit{Client: fake.NewClientBuilder().WithScheme(labkit.Scheme()).WithObjects(sh).Build()}
	require.Equal(t, "shop-0-abcde", anInstance(context.Background(), kit))
	require.Equal(t, "INSTANCE", anInstance(context.Background(), &labkit.Kit{Client: fake.NewClientBuilder().WithScheme(labkit.Scheme()).Build()}))
}
