package condemned

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes/fake"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
)

var (
	ctx     = context.Background()
	subject = evidence.Subject{
		Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p", Reason: v1alpha1.ReasonCondemned, Replacement: "r",
		DecidedAt: time.Now().UTC().Truncate(time.Second), Verdict: "StandbyDead",
	}
)

type observed map[string]observer.Observation

func (o observed) Observations(types.NamespacedName) map[string]observer.Observation { return o }

type remembered []evidence.Entry

func (r remembered) Entries(evidence.Walker, time.Time) []evidence.Entry { return r }

// agent answers a dump.
type agent struct {
	agentpb.AgentClient
	files map[string][]byte
	hang  bool
}

func (a *agent) Dump(ctx context.Context, _ *agentpb.DumpRequest, _ ...grpc.CallOption) (*agentpb.DumpReply, error) {
	if a.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &agentpb.DumpReply{Files: a.files}, nil
}

func newCollector(t *testing.T, funcs interceptor.Funcs) (*Collector, *agent) {
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "db-0-k4x2p",
			Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: "noise"},
		},
		Spec:   corev1.PodSpec{NodeName: "n2"},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "instance", RestartCount: 1}}},
	}
	event := func(name, kind, about string) *corev1.Event {
		e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, InvolvedObject: corev1.ObjectReference{Kind: kind, Name: about}, Message: "about " + about}
		if kind == "Node" {
			e.Namespace = metav1.NamespaceDefault // where Kubernetes puts what is told about objects without a namespace
		}
		return e
	}
	by := func(field func(*corev1.Event) string) client.IndexerFunc {
		return func(o client.Object) []string { return []string{field(o.(*corev1.Event))} }
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(funcs).
		WithIndex(&corev1.Event{}, "involvedObject.name", by(func(e *corev1.Event) string { return e.InvolvedObject.Name })).
		WithIndex(&corev1.Event{}, "involvedObject.kind", by(func(e *corev1.Event) string { return e.InvolvedObject.Kind })).
		WithObjects(pod, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, event("a", "Pod", "db-0-k4x2p"), event("b", "Node", "n2"), event("c", "Pod", "another"),
			&v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0"}},
			&v1alpha1.Replacement{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r"}},
			&v1alpha1.Reparent{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0-4"}, Spec: v1alpha1.ReparentSpec{Shard: "db-0"}},
			&v1alpha1.Reparent{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-1-4"}, Spec: v1alpha1.ReparentSpec{Shard: "db-1"}},
			&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0-k4x2p"}}).Build()
	a := &agent{files: map[string][]byte{"controldata.txt": []byte("pg_control version number: 1700\n"), "processes.txt": []byte("3 processes\n")}}
	return &Collector{
		Live: c, Pods: clientset.NewClientset().CoreV1(),
		Observer: observed{"db-0-k4x2p": {
			Target: observer.Target{Instance: "db-0-k4x2p", Endpoint: &agentpb.Endpoint{Host: "10.0.0.1"}}, LastError: "agent silent",
			Status: &agentpb.Status{Term: 3},
		}},
		Agents: func(context.Context, types.NamespacedName, *agentpb.Endpoint) (agentpb.AgentClient, func(), error) {
			return a, func() {}, nil
		},
		Recorder: remembered{{At: subject.DecidedAt, Kind: evidence.KindPostgres, Boot: "b", Sequence: 2, Text: "remembered"}},
		Bucket:   evidence.NewBucket(memblob.OpenBucket(nil), ""), Clock: clock.RealClock{}, Log: logr.Discard(),
	}, a
}

func collected(t *testing.T, c *Collector) (evidence.Manifest, map[string]string, map[string]string) {
	t.Helper()
	name, err := c.Collect(ctx, subject)
	require.NoError(t, err)
	require.Equal(t, subject.Name(), name)
	m, err := c.Bucket.Cases().Manifest(ctx, name)
	require.NoError(t, err)
	files, missing := map[string]string{}, map[string]string{}
	for _, i := range m.Items {
		if i.Error != "" {
			missing[i.Name] = i.Error
		}
		if i.Size > 0 {
			r, err := c.Bucket.Cases().Read(ctx, name, i.Name)
			require.NoError(t, err)
			data, err := io.ReadAll(r)
			require.NoError(t, errors.Join(err, r.Close()))
			files[i.Name] = string(data)
		}
	}
	return m, files, missing
}

func TestEverythingThatCanBeHad(t *testing.T) {
	c, _ := newCollector(t, interceptor.Funcs{})
	_, err := c.Bucket.Trails().Write(ctx, evidence.Walker{Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p"}, "other", 0, time.Now(),
		[]evidence.Entry{{At: subject.DecidedAt.Add(-time.Second), Kind: evidence.KindPostgres, Boot: "b", Sequence: 1, Text: "stored"}})
	require.NoError(t, err)
	m, files, missing := collected(t, c)
	require.Empty(t, missing)
	require.False(t, m.Incomplete)
	require.Contains(t, m.Sources, "agent")
	for name, has := range map[string]string{
		"pod.json": "n2", "node.json": "n2", "claim.json": "db-0-k4x2p", "shard.json": "db-0", "replacement.json": "\"r\"",
		"reparents.json": "db-0-4", "events.json": "about db-0-k4x2p", "node-events.json": "about n2", "observations.json": "agent silent",
		"controldata.txt": "1700", "processes.txt": "3 processes", "container-instance.log": "fake", "container-instance.previous.log": "fake",
	} {
		require.Contains(t, files[name], has, name)
	}
	require.NotContains(t, files["pod.json"], "noise")
	require.NotContains(t, files["reparents.json"], "db-1")
	require.NotContains(t, files["events.json"], "another")
	entries, err := evidence.ReadEntries(strings.NewReader(files["trail.jsonl"]))
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, "stored", entries[0].Text, "what another replica stored and what this one remembers, in order")
}

// An operator that watches some namespaces may read events in those and, for its nodes, in default; nowhere else.
func TestEventsAreReadWhereTheOperatorMay(t *testing.T) {
	c, _ := newCollector(t, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
		o := client.ListOptions{}
		o.ApplyOptions(opts)
		if o.Namespace != "ns" && o.Namespace != metav1.NamespaceDefault {
			return fmt.Errorf("%T in %q is forbidden", l, o.Namespace)
		}
		return c.List(ctx, l, opts...)
	}})
	_, files, missing := collected(t, c)
	require.Empty(t, missing)
	require.Contains(t, files["node-events.json"], "about n2")
}

// A machine without power: the agent does not answer, the kubelet hangs, the Pod is gone. The rest is there, in time.
func TestOfADeadMachineTheTrailIsThere(t *testing.T) {
	c, a := newCollector(t, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if _, ok := o.(*corev1.Pod); ok {
			<-ctx.Done()
			return ctx.Err()
		}
		return c.Get(ctx, key, o, opts...)
	}})
	a.hang = true
	c.Limits = evidence.Limits{Deadline: 2 * time.Second, PerSource: 300 * time.Millisecond}
	began := time.Now()
	_, files, missing := collected(t, c)
	require.Less(t, time.Since(began), 5*time.Second)
	for _, name := range []string{"agent", "pod", "node", "container-logs", "node-events"} {
		require.Contains(t, missing[name], "deadline", name)
	}
	for _, name := range []string{"shard.json", "reparents.json", "events.json", "observations.json", "trail.jsonl"} {
		require.NotEmpty(t, files[name], name)
	}
}

func TestAnInstanceNobodyKnowsAnyMore(t *testing.T) {
	c, _ := newCollector(t, interceptor.Funcs{})
	c.Observer, c.Recorder = observed{}, remembered{}
	_, _, missing := collected(t, c)
	require.Contains(t, missing["agent"], "address is not known")
	require.Contains(t, missing["trail"], "no trail")
}

func TestABucketThatFailsIsTheOnlyError(t *testing.T) {
	c, _ := newCollector(t, interceptor.Funcs{})
	b := memblob.OpenBucket(nil)
	require.NoError(t, b.Close())
	c.Bucket = evidence.NewBucket(b, "")
	name, err := c.Collect(ctx, subject)
	require.Error(t, err)
	require.Equal(t, subject.Name(), name)
}

func TestOldEvidenceIsDeleted(t *testing.T) {
	c, _ := newCollector(t, interceptor.Funcs{})
	old := subject
	old.DecidedAt = old.DecidedAt.Add(-100 * 24 * time.Hour)
	for _, s := range []evidence.Subject{old, subject} {
		_, err := c.Collect(ctx, s)
		require.NoError(t, err)
	}
	j := &Janitor{Bucket: c.Bucket, KeepCases: 90 * 24 * time.Hour, KeepTrails: time.Hour, MostTrails: 1, Clock: clock.RealClock{}, Log: logr.Discard()}
	j.Prune(ctx)
	list, err := c.Bucket.Cases().List(ctx, "")
	require.NoError(t, err)
	require.Len(t, list, 1)
	j.KeepCases = 0
	j.Prune(ctx)
	list, err = c.Bucket.Cases().List(ctx, "")
	require.NoError(t, err)
	require.Len(t, list, 1, "0 keeps for ever")
}

func TestAStormIsBounded(t *testing.T) {
	c, _ := newCollector(t, interceptor.Funcs{Get: func(ctx context.Context, _ client.WithWatch, _ client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	c.Limits = evidence.Limits{Deadline: 20 * time.Second, PerSource: 500 * time.Millisecond}
	storm, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	stored, refused := 0, 0
	for i := range 100 {
		all.Go(func() {
			s := subject
			s.Instance = fmt.Sprint(subject.Instance, i)
			_, err := c.Collect(storm, s)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				stored++
			} else {
				refused++
			}
		})
	}
	all.Wait()
	require.Greater(t, stored, casesAtOnce, "one round after the other")
	require.Positive(t, refused, "and whoever waited for too long is told")
	list, err := c.Bucket.Cases().List(ctx, "")
	require.NoError(t, err)
	require.LessOrEqual(t, len(list), stored+casesAtOnce)
}
