package load

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFollower(t *testing.T) {
	var f Follower
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	say := func(text string, at time.Time) {
		n, err := f.write([]byte(text), at)
		require.NoError(t, err)
		require.Equal(t, len(text), n)
	}
	wrote := func(second int, writes int64) string {
		return Progress{Seconds: float64(second), PerSecond: writes, StallMS: 2, LongestStallMS: 5}.String() + "\n"
	}
	at := func(second int) time.Time { return now.Add(time.Duration(second) * time.Second) }

	require.Empty(t, f.String())
	say("theseus-load: something else\n", now)
	require.False(t, f.Writing(1, now), "nothing was said of writes yet")
	for i := 1; i <= 5; i++ {
		say(wrote(i, 400), at(i))
	}
	require.True(t, f.Writing(3, now))
	require.True(t, f.Writing(3, at(2)))
	require.False(t, f.Writing(3, at(3)), "a second that began before the moment does not count")
	require.False(t, f.Writing(6, time.Time{}), "it told of five")
	say(wrote(6, 0)+wrote(7, 300), at(7))
	require.False(t, f.Writing(3, now), "a second without writes")
	require.True(t, f.Writing(1, now))
	say(wrote(8, 300), at(8))
	say(wrote(9, 300), at(9))
	require.True(t, f.Writing(3, now))

	line := wrote(10, 0)
	say(line[:20], at(10))
	require.True(t, f.Writing(1, now), "half a line says nothing of writes")
	require.True(t, strings.HasSuffix(f.String(), "\n"+line[:20]), "but it may be the last that was said")
	say(line[20:], at(10))
	require.False(t, f.Writing(1, now))
	require.True(t, strings.HasSuffix(f.String(), line))

	for i := range 100 {
		say(wrote(11+i, 1), at(11+i))
	}
	require.True(t, f.Writing(10, at(100)))
	require.Len(t, f.recent, 10)
	require.Len(t, f.tail, 20)
	require.Len(t, strings.Split(strings.TrimSpace(f.String()), "\n"), 20)
}
