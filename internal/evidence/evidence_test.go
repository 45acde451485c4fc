package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/memblob"
	_ "gocloud.dev/blob/s3blob"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/api/v1alpha1"
)

var (
	ctx     = context.Background()
	subject = Subject{
		Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p", Reason: v1alpha1.ReasonCondemned,
		DecidedAt: time.Date(2026, 11, 23, 10, 11, 12, 0, time.UTC),
	}
)

func memory(t *testing.T) Bucket {
	b := NewBucket(memblob.OpenBucket(nil), "/evidence/")
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// everywhere is a bucket of each kind that can be had here.
func everywhere(t *testing.T, prefix string) map[string]Bucket {
	onDisk, err := fileblob.OpenBucket(t.TempDir(), nil)
	require.NoError(t, err)
	return map[string]Bucket{"mem": memory(t), "file": NewBucket(onDisk, prefix), "s3": overS3(t, prefix)}
}

// overS3 is a bucket that is reached by its URL, as the operator does, over S3's own protocol.
func overS3(t *testing.T, prefix string) Bucket {
	store := s3mem.New()
	require.NoError(t, store.CreateBucket("evidence"))
	server := httptest.NewServer(gofakes3.New(store).Server())
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "nothing")
	b, err := Open("s3://evidence?region=eu-west-1&use_path_style=true&endpoint="+url.QueryEscape(server.URL), prefix)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func text(name, content string) Source {
	return Stream(name, func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil })
}

func read(t *testing.T, b Bucket, name, item string) string {
	r, err := b.Read(ctx, name, item)
	require.NoError(t, err)
	defer r.Close()
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(out)
}

func items(m Manifest) map[string]Item {
	out := map[string]Item{}
	for _, i := range m.Items {
		out[i.Name] = i
	}
	return out
}

func TestCollectAndRead(t *testing.T) {
	for name, b := range everywhere(t, "x/y") {
		t.Run(name, func(t *testing.T) {
			m, err := Collect(ctx, subject, []Source{
				text("postgres.log", "FATAL: it hurts\n"), Value("verdict", map[string]string{"verdict": "StandbyDead"}),
				Agent(func(context.Context, Subject) ([]Dump, error) {
					return []Dump{{Name: "pg_controldata.txt", Data: []byte("pg_control version number: 1700\n")}, {Name: "stacks.txt", Error: "not allowed to ptrace"}}, nil
				}),
			}, b, Limits{}, clock.RealClock{})
			require.NoError(t, err)
			require.False(t, m.Incomplete)
			found, err := b.Find(ctx, "db-0-k4x2p")
			require.NoError(t, err)
			require.Equal(t, "ns/db-0/20261123T101112Z-db-0-k4x2p", found)
			back, err := b.Manifest(ctx, found)
			require.NoError(t, err)
			require.Equal(t, m, back)
			require.Equal(t, "FATAL: it hurts\n", read(t, b, found, "postgres.log"))
			require.Contains(t, read(t, b, found, "verdict.json"), "StandbyDead")
			require.Contains(t, read(t, b, found, "pg_controldata.txt"), "1700")
			require.Contains(t, items(m)["agent"].Error, "ptrace", "what is missing is said")
			list, err := b.List(ctx, "ns")
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.True(t, list[0].Complete)
			_, err = b.Read(ctx, found, "nothing.log")
			require.ErrorIs(t, err, ErrNoBundle)
			_, err = b.Find(ctx, "nobody")
			require.ErrorIs(t, err, ErrNoBundle)
		})
	}
}

func TestNoSourceCanDelayOrBreakTheRest(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	late := make(chan error, 1)
	b := memory(t)
	began := time.Now()
	m, err := Collect(ctx, subject, []Source{
		text("good.log", "kept"),
		Func{"ignores-its-context", func(_ context.Context, _ Subject, put Put) error {
			<-release
			late <- put("late.log", "", strings.NewReader("too late"))
			return nil
		}},
		Func{"waits-for-its-context", func(ctx context.Context, _ Subject, _ Put) error { <-ctx.Done(); return ctx.Err() }},
		Func{"panics", func(context.Context, Subject, Put) error { panic("boom") }},
		Func{"fails", func(context.Context, Subject, Put) error { return errors.New("connection refused") }},
		Stream("half.log", func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("first half"), iotest.ErrReader(errors.New("cut")))), nil
		}),
		Func{"escapes", func(_ context.Context, _ Subject, put Put) error {
			return put("../../passwd", "", strings.NewReader("x"))
		}},
		Func{"overwrites", func(_ context.Context, _ Subject, put Put) error {
			return put(manifestName, "", strings.NewReader("x"))
		}},
	}, b, Limits{Deadline: 400 * time.Millisecond, PerSource: 100 * time.Millisecond}, clock.RealClock{})
	require.NoError(t, err)
	require.Less(t, time.Since(began), 2*time.Second)
	require.True(t, m.Incomplete)
	got := items(m)
	require.Empty(t, got["good.log"].Error)
	require.Equal(t, "kept", read(t, b, subject.Name(), "good.log"))
	require.Contains(t, got["ignores-its-context"].Error, "not answered")
	require.Contains(t, got["waits-for-its-context"].Error, "deadline")
	require.Contains(t, got["panics"].Error, "boom")
	require.Contains(t, got["fails"].Error, "connection refused")
	require.Equal(t, "first half", read(t, b, subject.Name(), "half.log"))
	require.Equal(t, "cut", got["half.log"].Error[strings.LastIndex(got["half.log"].Error, " ")+1:])
	require.Contains(t, got["escapes"].Error, "no name")
	require.Contains(t, got["overwrites"].Error, "no name")
	back, err := b.Manifest(ctx, subject.Name())
	require.NoError(t, err)
	require.Equal(t, m, back)

	release <- struct{}{}
	require.ErrorIs(t, <-late, errOver)
	_, err = b.Read(ctx, subject.Name(), "late.log")
	require.ErrorIs(t, err, ErrNoBundle)
}

func TestItemsAreBounded(t *testing.T) {
	b := memory(t)
	m, err := Collect(ctx, subject, []Source{
		text("long.log", strings.Repeat("x", 1000)), text("exact.log", strings.Repeat("y", 100)),
	}, b, Limits{ItemBytes: 100}, clock.RealClock{})
	require.NoError(t, err)
	got := items(m)
	require.True(t, got["long.log"].Truncated)
	require.EqualValues(t, 100, got["long.log"].Size)
	require.Len(t, read(t, b, subject.Name(), "long.log"), 100)
	require.False(t, got["exact.log"].Truncated)
}

// broken stores nothing, or nothing but items.
type broken struct {
	mu       sync.Mutex
	manifest bool
}

func (s *broken) Write(ctx context.Context, key, _ string, _ io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manifest && strings.HasSuffix(key, manifestName) {
		return nil
	}
	return errors.New("access denied")
}

func TestAStoreThatFailsIsSaid(t *testing.T) {
	_, err := Collect(ctx, subject, []Source{text("a.log", "x")}, &broken{}, Limits{}, clock.RealClock{})
	require.ErrorContains(t, err, "access denied")
	m, err := Collect(ctx, subject, []Source{text("a.log", "x")}, &broken{manifest: true}, Limits{}, clock.RealClock{})
	require.NoError(t, err)
	for _, i := range m.Items {
		require.Contains(t, i.Error, "access denied")
	}
}

func TestABundleWhoseCollectorDiedCanBeRead(t *testing.T) {
	b := memory(t)
	require.NoError(t, b.Write(ctx, subject.Name()+"/postgres.log", "text/plain", strings.NewReader("last words")))
	m, err := b.Manifest(ctx, subject.Name())
	require.NoError(t, err)
	require.True(t, m.Incomplete)
	require.Equal(t, "postgres.log", m.Items[0].Name)
	require.NoError(t, b.Write(ctx, subject.Name()+"/subject.json", "", strings.NewReader(`{"instance":"db-0-k4x2p","why":"it was silent"}`)))
	m, err = b.Manifest(ctx, subject.Name())
	require.NoError(t, err)
	require.Equal(t, "it was silent", m.Subject.Why, "whom it is about is known from the beginning")
	list, err := b.List(ctx, "")
	require.NoError(t, err)
	require.False(t, list[0].Complete)
	_, err = b.Manifest(ctx, "ns/db-0/nothing")
	require.ErrorIs(t, err, ErrNoBundle)
	require.NoError(t, b.Write(ctx, subject.Name()+"/"+manifestName, "", strings.NewReader("{half")))
	_, err = b.Manifest(ctx, subject.Name())
	require.ErrorContains(t, err, "damaged")
}

func TestListAndPrune(t *testing.T) {
	b := memory(t)
	for i := range 5 {
		s := subject
		s.DecidedAt = s.DecidedAt.Add(time.Duration(i) * 24 * time.Hour)
		s.Instance = fmt.Sprintf("db-%d-x", i%2)
		_, err := Collect(ctx, s, []Source{text("a.log", fmt.Sprint(i))}, b, Limits{}, clock.RealClock{})
		require.NoError(t, err)
	}
	list, err := b.List(ctx, "ns/db-0")
	require.NoError(t, err)
	require.Len(t, list, 5)
	require.True(t, list[0].At.After(list[4].At), "newest first")
	newest, err := b.Find(ctx, "db-0-x")
	require.NoError(t, err)
	require.Equal(t, "4", read(t, b, newest, "a.log"), "the newest of an instance")
	other, err := b.List(ctx, "ns/db-00")
	require.NoError(t, err)
	require.Empty(t, other)
	n, err := b.Prune(ctx, subject.DecidedAt.Add(4*24*time.Hour), 48*time.Hour)
	require.NoError(t, err)
	require.Equal(t, 3, n)
	list, err = b.List(ctx, "")
	require.NoError(t, err)
	require.Len(t, list, 2)
}

func TestOpen(t *testing.T) {
	b, err := Open("mem://", "p")
	require.NoError(t, err)
	require.NoError(t, b.Write(ctx, "x", "", strings.NewReader("y")))
	require.NoError(t, b.Close())
	_, err = Open("nosuch://bucket", "")
	require.ErrorContains(t, err, "nosuch")
	_, err = Open("://", "")
	require.Error(t, err)
	dir := t.TempDir() + "/made/when/needed"
	b, err = Open("file://"+dir, "")
	require.NoError(t, err)
	require.NoError(t, b.Close(), "never used")
	require.NoDirExists(t, dir)
	require.NoError(t, b.Write(ctx, "a/b", "", strings.NewReader("y")))
	require.FileExists(t, dir+"/a/b")
	require.NoFileExists(t, dir+"/a/b.attrs")
}

func TestABucketThatCannotBeOpenedIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/later", nil, 0o600), "a file where the directory should be")
	b, err := Open("file://"+dir+"/later", "")
	require.NoError(t, err, "a program must start without its bucket")
	require.Error(t, b.Write(ctx, "a", "", strings.NewReader("y")))
	_, err = b.List(ctx, "")
	require.Error(t, err)
	require.NoError(t, os.Remove(dir+"/later"))
	require.NoError(t, b.Write(ctx, "a", "", strings.NewReader("y")))
}
