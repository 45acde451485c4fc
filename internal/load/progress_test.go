package load

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestProgressIsReadAsItIsWritten(t *testing.T) {
	for _, p := range []Progress{
		{},
		{
			Seconds: 12.5, PerSecond: 1234, P50MS: 1.2, P99MS: 1234567.8, Failed: 5, Unknown: 67,
			StallMS: 0.5, RecentStallMS: 7654321, LongestStallMS: 1234567.9,
		},
		{
			Seconds: 100000.1, PerSecond: 9999999, P50MS: 99999.9, P99MS: 0.1, Failed: 123456,
			StallMS: 99999.9, RecentStallMS: 0.1, LongestStallMS: 99999.9,
		},
	} {
		got, ok := ParseProgress(p.String())
		require.True(t, ok, p.String())
		require.Equal(t, p, got)
	}
	for _, line := range []string{"", "theseus-load: no route to host", "12.5s nonsense", "  1.0s  5 writes/s"} {
		_, ok := ParseProgress(line)
		require.False(t, ok, line)
	}
}

// A line tells of the time since the line before: neither latencies nor stalls of earlier ones are in it.
func TestALineIsAboutTheTimeSinceTheLineBefore(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	start := clk.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	r := newRecorder(Config{Writers: 1, Clock: clk})
	seq := int64(0)
	ack := func(from, to int) {
		seq++
		r.ended(Op{Seq: seq, Start: at(from), End: at(to), Outcome: Acked})
	}
	for i := range 90 {
		ack(10*i, 10*i+2)
	}
	ack(900, 998) // 106 ms after the one before
	clk.SetTime(at(1000))
	require.Equal(t, Progress{
		Seconds: 1, PerSecond: 91, P50MS: 2, P99MS: 98, StallMS: 2, RecentStallMS: 106, LongestStallMS: 106,
	}, r.progress())

	seq++
	r.ended(Op{Seq: seq, Start: at(1000), End: at(1001), Outcome: Unknown, Code: "57P01"})
	ack(1010, 1020)
	ack(1020, 1070)
	clk.SetTime(at(2000))
	require.Equal(t, Progress{
		Seconds: 2, PerSecond: 2, P50MS: 50, P99MS: 50, Unknown: 1, StallMS: 930, RecentStallMS: 930, LongestStallMS: 930,
	}, r.progress(), "the stall that goes on counts")

	clk.SetTime(at(3000))
	require.Equal(t, Progress{
		Seconds: 3, Unknown: 1, StallMS: 1930, RecentStallMS: 1930, LongestStallMS: 1930,
	}, r.progress(), "no write, no latency")

	ack(1070, 3010)
	clk.SetTime(at(4000))
	require.Equal(t, Progress{
		Seconds: 4, PerSecond: 1, P50MS: 1940, P99MS: 1940, Unknown: 1, StallMS: 990, RecentStallMS: 1940, LongestStallMS: 1940,
	}, r.progress(), "it ended since the line before")
	require.Equal(t, Latency{P50: 2, P99: 1940, Max: 1940}, r.summary().LatencyMS, "of the whole run")
}

// A line is written each second until the run ends.
func TestLinesAreWritten(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	lines := make(chan string)
	r := newRecorder(Config{Writers: 1, Clock: clk, Live: liveFunc(func(b []byte) (int, error) { lines <- string(b); return len(b), nil })})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.report(ctx); close(done) }()
	for range 3 {
		require.Eventually(t, clk.HasWaiters, 10*time.Second, time.Millisecond)
		clk.Step(time.Second)
		_, ok := ParseProgress(<-lines)
		require.True(t, ok)
	}
	cancel()
	<-done
}

type liveFunc func([]byte) (int, error)

func (f liveFunc) Write(b []byte) (int, error) { return f(b) }
