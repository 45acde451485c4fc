package robustness

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/test/faults"
)

func TestDrawIsRepeatable(t *testing.T) {
	require.Equal(t, Draw(7, 40), Draw(7, 40))
	require.Equal(t, Draw(7, 40).Steps[:10], Draw(7, 10).Steps, "more faults begin with the same ones")
	require.NotEqual(t, Draw(7, 40).Steps, Draw(8, 40).Steps)
}

func TestDrawDealsEveryFault(t *testing.T) {
	all := append(faults.All(), faults.Extra()...)
	seen, seconds := map[string]int{}, 0
	for _, step := range Draw(3, 2*len(all)).Steps {
		f, err := faults.Named(step.Fault)
		require.NoError(t, err)
		seen[f.Name]++
		require.GreaterOrEqual(t, time.Duration(step.After), minAfter)
		require.GreaterOrEqual(t, time.Duration(step.Holds), minHolds)
		if step.Second != nil {
			seconds++
			second, err := faults.Named(step.Second.Fault)
			require.NoError(t, err)
			require.False(t, f.Gone || second.Gone, "%+v: two at a time must not destroy data", step)
			require.Less(t, step.Second.After, step.Holds)
		}
		if f.Lasts > 0 {
			require.LessOrEqual(t, time.Duration(step.Holds), f.Lasts)
		}
	}
	require.Positive(t, seconds)
	require.Len(t, seen, len(all))
	for name, n := range seen {
		require.Equal(t, 2, n, name)
	}
}

func TestScheduleFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "schedule.json")
	want := Draw(11, 5)
	data, err := json.Marshal(want)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	got, err := ReadSchedule(path)
	require.NoError(t, err)
	require.Equal(t, want, got)

	require.NoError(t, os.WriteFile(path, []byte(`{"steps":[{"fault":"Sabotage","after":"1s","holds":"1s"}]}`), 0o600))
	_, err = ReadSchedule(path)
	require.ErrorContains(t, err, "Sabotage")
	require.NoError(t, os.WriteFile(path, []byte(`{"steps":[{"fault":"NodeCut","second":{"fault":"Sabotage"}}]}`), 0o600))
	_, err = ReadSchedule(path)
	require.ErrorContains(t, err, "Sabotage")
	require.NoError(t, os.WriteFile(path, []byte(`{"steps":[{"after":"soon"}]}`), 0o600))
	_, err = ReadSchedule(path)
	require.Error(t, err)
	_, err = ReadSchedule(path + ".gone")
	require.Error(t, err)
}
