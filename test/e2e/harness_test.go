//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// fixture is one test's Database in a namespace of its own.
type fixture struct {
	t         *testing.T
	ctx       context.Context
	namespace string
	database  string
}

// testDeadline bounds a test; no wait inside it needs a shorter one to be bounded.
const testDeadline = 5 * time.Minute

// cleanLimit bounds the removal of a test's Database. After an outage of the API server kubelets come back to it in their own
// time, up to a minute later, and a Pod's grace comes on top.
const cleanLimit = 4 * time.Minute

// newFixture makes a namespace under Pod Security "restricted" and applies a Database; it does not wait for it.
// When the test fails, what is needed to understand it is saved below build/e2e/<test>.
func newFixture(t *testing.T, change func(*v1alpha1.Database)) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	f := &fixture{t: t, ctx: ctx, database: "db"}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "e2e-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + "-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	require.NoError(t, kit.Client.Create(ctx, ns))
	f.namespace = ns.Name
	t.Cleanup(func() {
		defer cancel()
		// The test's own context may have ended; cleaning up has a bound of its own.
		clean, done := context.WithTimeout(context.Background(), cleanLimit)
		defer done()
		if t.Failed() {
			f.ctx = clean
			f.saveState(clean)
		}
		if os.Getenv("KEEP") != "" && t.Failed() {
			return
		}
		require.NoError(t, client.IgnoreNotFound(kit.Client.Delete(clean, &v1alpha1.Database{ObjectMeta: f.meta()})))
		require.NoError(t, f.waitDeleted(clean))
		require.NoError(t, kit.Client.Delete(clean, ns))
	})
	db := &v1alpha1.Database{ObjectMeta: f.meta(), Spec: v1alpha1.DatabaseSpec{
		Instances: 3,
		Storage:   v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
	}}
	if change != nil {
		change(db)
	}
	require.NoError(t, kit.Client.Create(ctx, db))
	return f
}

func (f *fixture) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: f.namespace, Name: f.database}
}

func (f *fixture) waitReady() {
	f.t.Helper()
	_, err := kit.WaitReady(f.ctx, f.namespace, f.database)
	require.NoError(f.t, err)
}

func (f *fixture) waitDeleted(ctx context.Context) error {
	return labkit.Poll(ctx, 500*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		err := kit.Client.Get(ctx, client.ObjectKey{Namespace: f.namespace, Name: f.database}, &v1alpha1.Database{})
		return client.IgnoreNotFound(err) == nil && err != nil, "the Database is still there", client.IgnoreNotFound(err)
	})
}

// shard returns the newest state of the only shard.
func (f *fixture) shard() *v1alpha1.Shard {
	f.t.Helper()
	shards, err := kit.Shards(f.ctx, f.namespace, f.database)
	require.NoError(f.t, err)
	require.Len(f.t, shards, 1)
	return &shards[0]
}

// eventually waits until ok says true of the shard; why is what it was waiting for, for the error.
func (f *fixture) eventually(why string, ok func(*v1alpha1.Shard) bool) time.Duration {
	f.t.Helper()
	start := time.Now()
	var last v1alpha1.ShardStatus
	err := labkit.Poll(f.ctx, 100*time.Millisecond, func(context.Context) (bool, string, error) {
		s := f.shard()
		last = s.Status
		return ok(s), why, nil
	})
	require.NoErrorf(f.t, err, "last status: %+v", last)
	return time.Since(start)
}

// current is the newest recorded cohort.
func current(s *v1alpha1.Shard) v1alpha1.CohortStatus {
	if n := len(s.Status.Record.Cohorts); n > 0 {
		return s.Status.Record.Cohorts[n-1]
	}
	return v1alpha1.CohortStatus{}
}

// settled says that exactly one cohort is recorded, with the given number of members.
func settled(s *v1alpha1.Shard, members int) bool {
	return len(s.Status.Record.Cohorts) == 1 && len(current(s).Members) == members
}

// instances lists the names of the instances' Pods that are not being deleted.
func (f *fixture) instances() []string {
	f.t.Helper()
	pods := &corev1.PodList{}
	require.NoError(f.t, kit.Client.List(f.ctx, pods, client.InNamespace(f.namespace),
		client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentInstance}))
	var names []string
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil {
			names = append(names, pods.Items[i].Name)
		}
	}
	return names
}

// nodeOf is the node an instance runs on.
func (f *fixture) nodeOf(instance string) string {
	f.t.Helper()
	pod := &corev1.Pod{}
	require.NoError(f.t, kit.Client.Get(f.ctx, client.ObjectKey{Namespace: f.namespace, Name: instance}, pod))
	return pod.Spec.NodeName
}

func (f *fixture) lab(args ...string) string {
	f.t.Helper()
	out, err := kit.Lab(f.ctx, args...)
	require.NoError(f.t, err)
	return out
}

// psql runs SQL as the application user through the read-write endpoint.
func (f *fixture) psql(sql string) string {
	f.t.Helper()
	out, err := kit.Psql(f.ctx, f.namespace, f.database, "-qtA", "-v", "ON_ERROR_STOP=1", "-c", sql)
	require.NoError(f.t, err)
	return strings.TrimSpace(out)
}

// saveState writes what a person would ask for first.
func (f *fixture) saveState(ctx context.Context) {
	dir := filepath.Join(kit.Root, "build", "e2e", f.t.Name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Log(err)
		return
	}
	save := func(name string, args ...string) {
		out, err := kit.Kubectl(ctx, args...)
		if err != nil {
			out += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644); err != nil {
			f.t.Log(err)
		}
	}
	save("objects.yaml", "-n", f.namespace, "get", "databases,shards,reparents,replacements,pods,pvc,services,pdb", "-o", "yaml")
	save("events.txt", "-n", f.namespace, "get", "events", "--sort-by=.lastTimestamp")
	save("nodes.txt", "get", "nodes", "-o", "wide")
	save("operator.log", "-n", labkit.OperatorNamespace, "logs", "-l", "app.kubernetes.io/name=theseus", "--tail=-1", "--prefix")
	for _, p := range f.instances() {
		save(p+".log", "-n", f.namespace, "logs", p, "--tail=-1")
		save(p+".previous.log", "-n", f.namespace, "logs", p, "--previous", "--tail=-1")
	}
	f.t.Logf("state saved in %s", dir)
}

// measured prints a figure for people and closing notes; figures are never asserted.
func measured(t *testing.T, format string, args ...any) {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, format, args...)
	t.Logf("MEASURED %s: %s", t.Name(), b.String())
}
