package verbs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/evidence"
)

var (
	noon    = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	victim  = evidence.Walker{Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p"}
	subject = evidence.Subject{
		Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p", Reason: v1alpha1.ReasonCondemned, Node: "n2", DecidedAt: noon,
		Replacement: "db-0-k4x2p-condemned", Verdict: "PrimaryDead", Why: "silent for 2s",
	}
)

func entry(after time.Duration, kind evidence.Kind, seq uint64, text string) evidence.Entry {
	return evidence.Entry{At: noon.Add(after), Kind: kind, Boot: "b", Sequence: seq, Text: text}
}

func statusEntry(t *testing.T, after time.Duration, seq uint64, s *agentpb.Status) evidence.Entry {
	e := entry(after, evidence.KindStatus, seq, "")
	text, err := protojson.Marshal(s)
	require.NoError(t, err)
	e.Status = text
	return e
}

// archive is a bucket with one case and the trails of the victim and of another instance.
func archive(t *testing.T) (BucketArchive, evidence.Bucket) {
	b := evidence.NewBucket(memblob.OpenBucket(nil), "p")
	trail := []evidence.Entry{
		statusEntry(t, -10*time.Second, 1, &agentpb.Status{Role: agentpb.Role_PRIMARY, Term: 3, Established: true}),
		statusEntry(t, -9*time.Second, 2, &agentpb.Status{Role: agentpb.Role_PRIMARY, Term: 3, Established: true}),
		entry(-8*time.Second, evidence.KindPostgres, 1, "LOG:  checkpoint starting"),
		entry(-7*time.Second, evidence.KindPostgres, 2, "LOG:  the last line"),
		statusEntry(t, -6*time.Second, 3, &agentpb.Status{Role: agentpb.Role_PRIMARY, Term: 3, Established: true, ReplayedLsn: 1}),
		{At: noon.Add(-4 * time.Second), Kind: evidence.KindStream, By: "op-1", Text: "the connection ended: agent silent"},
	}
	ctx := context.Background()
	_, err := b.Trails().Write(ctx, victim, "op-1", 0, noon, trail)
	require.NoError(t, err)
	_, err = b.Trails().Write(ctx, evidence.Walker{Namespace: "ns", Shard: "db-0", Instance: "db-0-zzzzz"}, "op-1", 0, noon, trail[2:4])
	require.NoError(t, err)
	reparents := []v1alpha1.Reparent{{
		ObjectMeta: metav1.ObjectMeta{Name: "db-0-4", UID: "r4", CreationTimestamp: metav1.NewTime(noon.Add(-3 * time.Second))},
		Spec:       v1alpha1.ReparentSpec{Shard: "db-0", Kind: v1alpha1.ReparentEmergency, Reason: "PrimaryDead"},
		Status: v1alpha1.ReparentStatus{
			Outcome: "Succeeded", OldPrimary: "db-0-k4x2p", NewPrimary: "db-0-zzzzz",
			FinishedAt: ptr.To(metav1.NewMicroTime(noon.Add(-2 * time.Second))), WriteUnavailable: &metav1.Duration{Duration: 350 * time.Millisecond},
		},
	}}
	_, err = evidence.Collect(ctx, subject, []evidence.Source{
		evidence.Value("reparents", reparents),
		evidence.Func{Called: "agent", Do: func(context.Context, evidence.Subject, evidence.Put) error { return errors.New("no route to host") }},
		evidence.Func{Called: "trail", Do: func(_ context.Context, _ evidence.Subject, put evidence.Put) error {
			var out bytes.Buffer
			if err := evidence.WriteEntries(&out, append(trail, entry(-5*time.Second, evidence.KindAgent, 9, "only in the case"))); err != nil {
				return err
			}
			return put(trailFile, "", &out)
		}},
	}, b.Cases(), evidence.Limits{}, clock.RealClock{})
	require.NoError(t, err)
	return BucketArchive{Bucket: b, Now: func() time.Time { return noon.Add(time.Hour) }}, b
}

func show(t *testing.T, v Autopsy) string {
	t.Helper()
	var out bytes.Buffer
	v.Out, v.Namespace = &out, "ns"
	if v.Lines == 0 {
		v.Lines = 40
	}
	require.NoError(t, v.Run(context.Background()))
	return out.String()
}

func TestAutopsyLists(t *testing.T) {
	a, _ := archive(t)
	out := show(t, Autopsy{Archive: a})
	require.Contains(t, out, "db-0-k4x2p")
	require.Contains(t, out, "PrimaryDead")
	require.Contains(t, out, "3 items, 1 missing")
	require.Contains(t, out, "There are trails of ns/db-0-zzzzz")
}

func TestAutopsyTellsTheStoryInOrder(t *testing.T) {
	a, _ := archive(t)
	for _, name := range []string{"db-0-k4x2p", "ns/db-0/20261123T120000Z-db-0-k4x2p", "db-0-k4x2p-condemned"} {
		out := show(t, Autopsy{Archive: a, Name: name})
		at := 0
		for _, next := range []string{
			"Verdict    PrimaryDead: silent for 2s", "MISSING: no route to host",
			"PRIMARY, term 3, established", "checkpoint starting", "the last line", "only in the case", "agent silent (op-1)",
			"db-0-4 asked for: Emergency, PrimaryDead", "db-0-k4x2p → db-0-zzzzz, no writes for 350ms", "condemned    Condemned",
		} {
			i := strings.Index(out[at:], next)
			require.GreaterOrEqual(t, i, 0, "%s after %q in\n%s", next, out[:at], out)
			at += i
		}
		require.Equal(t, 2, strings.Count(out, "PRIMARY, term 3"), "the first status and the last; the one between says nothing")
		require.Equal(t, 1, strings.Count(out, "the last line"), "known twice, told once")
	}
	require.NotContains(t, show(t, Autopsy{Archive: a, Name: "db-0-k4x2p", Lines: 1}), "checkpoint starting")
}

func TestAutopsyOfOneThatWasNotCondemnedShowsItsTrail(t *testing.T) {
	a, _ := archive(t)
	out := show(t, Autopsy{Archive: a, Name: "db-0-zzzzz"})
	require.Contains(t, out, "not condemned")
	require.Contains(t, out, "the last line")
	var v Autopsy
	v.Archive, v.Name, v.Namespace = a, "db-0-nobody", "ns"
	require.ErrorIs(t, v.Run(context.Background()), ErrNothingFound)
}

func TestAutopsyAsksTheClusterForWhatHappenedSince(t *testing.T) {
	a, _ := archive(t)
	c := fake.NewClientBuilder().WithScheme(controller.Scheme()).WithObjects(
		&v1alpha1.Replacement{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "some-replacement"},
			Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: "db-0-k4x2p", Reason: v1alpha1.ReasonCondemned},
			Status: v1alpha1.ReplacementStatus{
				Steps:   []v1alpha1.ReplacementStep{{Phase: "Surging", StartedAt: metav1.NewMicroTime(noon.Add(time.Second))}},
				Outcome: "Succeeded", Message: "db-0-new took over", FinishedAt: ptr.To(metav1.NewMicroTime(noon.Add(time.Minute))),
			},
		}).Build()
	out := show(t, Autopsy{Archive: a, Client: c, Name: "some-replacement"})
	require.Contains(t, out, "Surging")
	require.Contains(t, out, "Succeeded: db-0-new took over")
}

func TestAutopsyFetches(t *testing.T) {
	a, b := archive(t)
	require.NoError(t, b.Cases().Write(context.Background(), subject.Name()+"/earlier.log", "", strings.NewReader("of a collector that died")))
	dir := filepath.Join(t.TempDir(), "new")
	show(t, Autopsy{Archive: a, Name: "db-0-k4x2p", Dir: dir})
	for _, name := range []string{"autopsy.txt", indexFile, trailFile, "reparents.json", "earlier.log"} {
		require.FileExists(t, filepath.Join(dir, name))
	}
	data, err := os.ReadFile(filepath.Join(dir, trailFile))
	require.NoError(t, err)
	require.Contains(t, string(data), "only in the case")
	v := Autopsy{Dir: dir}
	for _, name := range []string{"../x", "a/b", ".bashrc", ".."} {
		require.Error(t, v.write(name, nil), name)
	}
}

// replicas answers as the operator's Pods would.
func replicas(t *testing.T, run Run, names ...string) Replicas {
	b := fake.NewClientBuilder().WithScheme(controller.Scheme())
	for _, n := range names {
		b.WithObjects(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "theseus-system", Name: n, Labels: map[string]string{"app.kubernetes.io/name": "theseus", "app.kubernetes.io/component": "operator"}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning},
		})
	}
	return Replicas{Client: b.Build(), Namespace: "theseus-system", Run: run}
}

// answer does what `theseus evidence` does.
func answer(ctx context.Context, a Archive, args []string) ([]byte, error) {
	namespace := strings.TrimPrefix(args[3], "--namespace=")
	if args[2] == "list" {
		l, err := a.List(ctx, namespace)
		if err != nil {
			return nil, err
		}
		return json.Marshal(l)
	}
	f, err := a.Fetch(ctx, namespace, args[4])
	if err != nil && !errors.Is(err, ErrNothingFound) {
		return nil, err
	}
	var out bytes.Buffer
	err = f.Pack(&out)
	return out.Bytes(), err
}

func TestWhatAnyReplicaHasIsFound(t *testing.T) {
	full, _ := archive(t)
	other := evidence.NewBucket(memblob.OpenBucket(nil), "")
	_, err := other.Trails().Write(context.Background(), victim, "op-2", 0, noon, []evidence.Entry{entry(-time.Second, evidence.KindAgent, 99, "heard by the second alone")})
	require.NoError(t, err)
	partial := BucketArchive{Bucket: other, Now: full.Now}
	r := replicas(t, func(ctx context.Context, p *corev1.Pod, args []string) ([]byte, error) {
		switch p.Name {
		case "op-1":
			return answer(ctx, full, args)
		case "op-2":
			return answer(ctx, partial, args)
		}
		return nil, errors.New("connection refused")
	}, "op-1", "op-2", "op-3")
	out := show(t, Autopsy{Archive: r, Name: "db-0-k4x2p"})
	require.Contains(t, out, "heard by the second alone")
	require.Contains(t, out, "the last line")
	require.Contains(t, out, "Verdict    PrimaryDead")
	require.Contains(t, out, "! op-3 could not be asked: connection refused")
	require.Contains(t, show(t, Autopsy{Archive: r}), "op-3 could not be asked")
}

func TestReplicasThatDoNotAnswer(t *testing.T) {
	_, err := replicas(t, nil).List(context.Background(), "ns")
	require.ErrorContains(t, err, "no operator runs")
	silent := replicas(t, func(context.Context, *corev1.Pod, []string) ([]byte, error) { return nil, errors.New("forbidden") }, "op-1")
	_, err = silent.Fetch(context.Background(), "ns", "x")
	require.ErrorContains(t, err, "forbidden")
	garbage := replicas(t, func(context.Context, *corev1.Pod, []string) ([]byte, error) { return []byte("garbage"), nil }, "op-1")
	_, err = garbage.Fetch(context.Background(), "ns", "x")
	require.Error(t, err)
	empty := replicas(t, func(context.Context, *corev1.Pod, []string) ([]byte, error) {
		var out bytes.Buffer
		err := (&Found{}).Pack(&out)
		return out.Bytes(), err
	}, "op-1")
	_, err = empty.Fetch(context.Background(), "ns", "x")
	require.ErrorIs(t, err, ErrNothingFound)
}

func TestTheMachineThatIsGoneIsNotWaitedFor(t *testing.T) {
	full, _ := archive(t)
	r := replicas(t, func(ctx context.Context, p *corev1.Pod, args []string) ([]byte, error) {
		if p.Name == "op-1" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return answer(ctx, full, args)
	}, "op-1", "op-2")
	r.Grace = 50 * time.Millisecond
	begun := time.Now()
	out := show(t, Autopsy{Archive: r, Name: "db-0-k4x2p"})
	require.Less(t, time.Since(begun), 10*time.Second)
	require.Contains(t, out, "the last line")
	require.Contains(t, out, "1 of 2 replicas of the operator did not answer in time")
}

func TestAnAnswerThatIsCutShortGivesWhatCame(t *testing.T) {
	a, _ := archive(t)
	f, err := a.Fetch(context.Background(), "ns", "db-0-k4x2p")
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, f.Pack(&out))
	whole := out.Bytes()
	for n := range len(whole) / 100 {
		got, err := Unpack(bytes.NewReader(whole[:n*100]))
		if err != nil {
			require.Nil(t, got)
			continue
		}
		require.Equal(t, f.Case, got.Case)
	}
	back, err := Unpack(bytes.NewReader(whole))
	require.NoError(t, err)
	require.Equal(t, f.Trail, back.Trail)
	require.Equal(t, len(f.Files), len(back.Files))
}

func TestFilesCannotLeadOutOfTheDirectory(t *testing.T) {
	f := &Found{Files: map[string][]byte{"../../evil": []byte("x"), "a/b": []byte("y"), "good.log": []byte("z")}}
	var out bytes.Buffer
	require.NoError(t, f.Pack(&out))
	back, err := Unpack(&out)
	require.NoError(t, err)
	require.Len(t, back.Files, 1)
}

func TestShardOf(t *testing.T) {
	for in, want := range map[string]string{"db-0-k4x2p": "db-0", "x": "x", "": "", "-a": "-a"} {
		require.Equal(t, want, ShardOf(in), fmt.Sprint(in))
	}
}

func TestLogLinesAreReadable(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-23 16:21:41.347 UTC [60] app@app/psql LOG:  words": "[60] app@app/psql LOG:  words",
		"no time at all": "no time at all",
		"":               "",
	} {
		require.Equal(t, want, logLine(evidence.Entry{Kind: evidence.KindPostgres, Text: in}))
	}
	for in, want := range map[string]string{
		`{"time":"2026-11-23T16:21:38Z","level":"INFO","msg":"established","term":1,"instance":"a","kind":"bootstrap"}`: "INFO: established, kind bootstrap, term 1",
		"panic: not JSON": "panic: not JSON",
		"null":            "null",
	} {
		require.Equal(t, want, logLine(evidence.Entry{Kind: evidence.KindAgent, Text: in}))
	}
}
