package evidence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var (
	walker = Walker{Namespace: "ns", Shard: "db-0", Instance: "db-0-k4x2p"}
	noon   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

func line(n int) Entry {
	return Entry{At: noon.Add(time.Duration(n) * time.Second), Kind: KindPostgres, Boot: "b", Sequence: uint64(n), Text: fmt.Sprint("line ", n)}
}

func some(from, to int) (out []Entry) {
	for i := from; i < to; i++ {
		out = append(out, line(i))
	}
	return out
}

func TestATrailOfTwoReplicasIsReadOnce(t *testing.T) {
	for name, b := range everywhere(t, "") {
		t.Run(name, func(t *testing.T) {
			trails := b.Trails()
			for i, w := range []struct {
				replica  string
				from, to int
			}{{"op-b", 5, 15}, {"op-a", 0, 10}, {"op-a", 10, 20}} {
				_, err := trails.Write(ctx, walker, w.replica, uint64(i), noon.Add(time.Minute), some(w.from, w.to))
				require.NoError(t, err)
			}
			_, err := trails.Write(ctx, Walker{"ns", "db-0", "db-0-other"}, "op-a", 0, noon.Add(time.Minute), some(0, 3))
			require.NoError(t, err)
			got, problems, err := trails.Read(ctx, walker, noon, noon.Add(time.Hour))
			require.NoError(t, err)
			require.Empty(t, problems)
			require.Equal(t, some(0, 20), got)
			got, _, err = trails.Read(ctx, walker, noon.Add(5*time.Second), noon.Add(8*time.Second))
			require.NoError(t, err)
			require.Equal(t, some(5, 9), got)
			walkers, err := trails.Walkers(ctx, "ns")
			require.NoError(t, err)
			require.Len(t, walkers, 2)
			walkers, err = trails.Walkers(ctx, "n")
			require.NoError(t, err)
			require.Empty(t, walkers)
		})
	}
}

func TestATrailGoesOnPastMidnight(t *testing.T) {
	trails := memory(t).Trails()
	late := time.Date(2026, 11, 23, 23, 59, 30, 0, time.UTC)
	for i, at := range []time.Time{late, late.Add(time.Minute)} {
		_, err := trails.Write(ctx, walker, "op", uint64(i), at, []Entry{{At: at.Add(-time.Second), Kind: KindAgent, Boot: "b", Sequence: uint64(i)}})
		require.NoError(t, err)
	}
	got, _, err := trails.Read(ctx, walker, late.Add(-time.Minute), late.Add(2*time.Minute))
	require.NoError(t, err)
	require.Len(t, got, 2)
}

func TestADamagedSegmentCostsNoMoreThanItself(t *testing.T) {
	dir := t.TempDir()
	b, err := Open("file://"+dir, "")
	require.NoError(t, err)
	trails := b.Trails()
	for i := range 3 {
		_, err := trails.Write(ctx, walker, "op", uint64(i), noon.Add(time.Minute), some(1000*i, 1000*i+1000))
		require.NoError(t, err)
	}
	var files []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if !d.IsDir() {
			files = append(files, path)
		}
		return err
	}))
	require.Len(t, files, 3)
	whole, err := os.ReadFile(files[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(files[0], whole[:len(whole)/2], 0o600), "cut short")
	require.NoError(t, os.WriteFile(files[1], []byte("no gzip at all"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(files[0]), "stray"), []byte("x"), 0o600))
	got, problems, err := trails.Read(ctx, walker, noon, noon.Add(2*time.Hour))
	require.NoError(t, err)
	require.Len(t, problems, 2)
	require.Greater(t, len(got), 1000, "the whole one and the beginning of the cut one")
	require.Less(t, len(got), 2000)
}

func TestADamagedLineCostsNoMoreThanItself(t *testing.T) {
	got, err := ReadEntries(strings.NewReader("{\"at\":\"2026-11-23T12:00:00Z\",\"kind\":\"agent\",\"text\":\"a\"}\n{half\n\x00\n{\"at\":\"2026-11-23T12:00:01Z\",\"kind\":\"agent\",\"text\":\"b\"}\n{\"at\":"))
	require.ErrorContains(t, err, "damaged")
	require.Len(t, got, 2)
	_, err = ReadEntries(strings.NewReader(strings.Repeat("x", lineMost+1)))
	require.Error(t, err)
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []Entry
		for i := range rapid.IntRange(0, 20).Draw(t, "n") {
			in = append(in, Entry{At: noon.Add(time.Duration(i)), Kind: KindAgent, Sequence: uint64(i), Text: strings.ToValidUTF8(rapid.String().Draw(t, "text"), "")})
		}
		var out bytes.Buffer
		require.NoError(t, WriteEntries(&out, in))
		back, err := ReadEntries(&out)
		require.NoError(t, err)
		require.Equal(t, in, back)
	})
}

func TestPruneAndShrink(t *testing.T) {
	for name, b := range everywhere(t, "") {
		t.Run(name, func(t *testing.T) {
			trails := b.Trails()
			for day := range 4 {
				_, err := trails.Write(ctx, walker, "op", 0, noon.Add(time.Duration(day)*24*time.Hour), some(0, 10))
				require.NoError(t, err)
			}
			require.NoError(t, b.Cases().Write(ctx, "ns/db-0/20261101T000000Z-x/a.log", "", strings.NewReader("of another kind")))
			n, err := trails.Prune(ctx, noon.Add(3*24*time.Hour), 24*time.Hour)
			require.NoError(t, err)
			require.Equal(t, 2, n, "days that ended more than a day ago")
			size := int64(0)
			require.NoError(t, trails.bucket.each(ctx, "", func(_ string, s int64) error { size += s; return nil }))
			n, err = trails.Shrink(ctx, size)
			require.NoError(t, err)
			require.Zero(t, n)
			n, err = trails.Shrink(ctx, size-1)
			require.NoError(t, err)
			require.Equal(t, 1, n)
			got, _, err := trails.Read(ctx, walker, noon, noon.Add(4*24*time.Hour))
			require.NoError(t, err)
			require.Len(t, got, 10, "the newest segment is left")
			walkers, err := trails.Walkers(ctx, "ns")
			require.NoError(t, err)
			require.Len(t, walkers, 1)
			list, err := b.Cases().List(ctx, "")
			require.NoError(t, err)
			require.Len(t, list, 1, "cases are not trails")
		})
	}
}

func TestReadingABucketThatFailsIsAnError(t *testing.T) {
	b, err := Open("file:///proc/nowhere", "")
	require.NoError(t, err)
	_, _, err = b.Trails().Read(ctx, walker, noon, noon)
	require.Error(t, err)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	m := memory(t).Trails()
	_, err = m.Write(ctx, walker, "op", 0, noon, some(0, 1))
	require.NoError(t, err)
	_, _, err = m.Read(canceled, walker, noon, noon)
	require.True(t, err != nil && (errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "cancel")), "%v", err)
}
