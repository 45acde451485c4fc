package result

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/load"
)

func TestMedianAndQuantile(t *testing.T) {
	for _, c := range []struct {
		name        string
		values      []float64
		median, p95 float64
	}{
		{"one", []float64{7}, 7, 7},
		{"two", []float64{9, 1}, 5, 9},
		{"odd", []float64{3, 1, 2}, 2, 3},
		{"ten: the p95 is the worst", []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 5.5, 10},
		{"twenty: the p95 is the second worst", seq(20), 10.5, 19},
		{"hundred", seq(100), 50.5, 95},
	} {
		require.Equal(t, c.median, Median(c.values), c.name)
		require.Equal(t, c.p95, Quantile(c.values, 0.95), c.name)
	}
	require.True(t, math.IsNaN(Median(nil)))
	require.True(t, math.IsNaN(Quantile(nil, 0.95)))
}

func seq(n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = float64(i + 1)
	}
	return out
}

// Whatever the values, a quantile is one of them, at least the share q is not above it, and nothing is reordered.
func TestQuantileProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 1e6), 1, 50).Draw(t, "values")
		q := rapid.Float64Range(0.01, 1).Draw(t, "q")
		before := slices.Clone(values)
		got := Quantile(values, q)
		require.Equal(t, before, values)
		require.Contains(t, values, got)
		notAbove := 0
		for _, v := range values {
			if v <= got {
				notAbove++
			}
		}
		require.GreaterOrEqual(t, float64(notAbove), q*float64(len(values))-1e-6)
		m := Median(values)
		require.GreaterOrEqual(t, m, slices.Min(values))
		require.LessOrEqual(t, m, slices.Max(values))
	})
}

var t0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

// summary makes a client's account of acknowledgements at these milliseconds, and of others.
func summary(seconds float64, acks []int, others ...load.Op) *load.Summary {
	s := &load.Summary{Started: t0, Seconds: seconds, Verified: true}
	for _, ms := range acks {
		s.Ops = append(s.Ops, load.Op{Start: at(ms - 1), End: at(ms), Outcome: load.Acked})
	}
	s.Ops = append(s.Ops, others...)
	slices.SortFunc(s.Ops, func(a, b load.Op) int { return a.End.Compare(b.End) })
	return s
}

func steady(from, to, every int) []int {
	var out []int
	for ms := from; ms <= to; ms += every {
		out = append(out, ms)
	}
	return out
}

func TestFill(t *testing.T) {
	acks := slices.Concat(steady(10, 3000, 10), steady(3400, 9000, 10), steady(9200, 12000, 10))
	s := summary(12, acks,
		load.Op{Start: at(2900), End: at(2905), Outcome: load.Failed, Code: "23505"},
		load.Op{Start: at(3001), End: at(3300), Outcome: load.Unknown, Code: "closed"},
		load.Op{Start: at(3301), End: at(3302), Outcome: load.Failed, Code: "connect"},
		load.Op{Start: at(8999), End: at(9150), Outcome: load.Failed, Code: "57P01"},
		load.Op{Start: at(9151), End: at(9152), Outcome: load.Unknown, Code: "closed"},
	)
	s.Lost, s.FailedPresent = 2, 1
	var r Run
	r.Fill(s, Moments{Fault: at(2950), Mend: at(9000)})
	require.InDelta(t, 400, r.StallMS, 0.01)
	require.InDelta(t, 200, r.RepairStallMS, 0.01)
	require.InDelta(t, 10, r.SteadyStallMS, 0.01)
	require.InDelta(t, 100, r.SteadyRate, 1)
	require.EqualValues(t, 2, r.Failed, "begun before the repair")
	require.EqualValues(t, 1, r.Unknown)
	require.EqualValues(t, 0, r.RepairFailed)
	require.EqualValues(t, 1, r.RepairUnknown)
	require.Equal(t, map[string]int64{"before the fault: 23505": 1, "closed": 2, "connect": 1, "57P01": 1}, r.Errors)
	require.EqualValues(t, 2, r.Lost)
	require.EqualValues(t, 1, r.FailedPresent)
	require.True(t, r.Verified)
	require.EqualValues(t, 3, r.ClientErrors())
}

// When writes come back only because the fault was undone, the stall is what lies before that, and when they never come
// back it ends with the measurement.
func TestFillUnrecovered(t *testing.T) {
	var r Run
	r.Fill(summary(20, slices.Concat(steady(10, 1000, 10), steady(15000, 20000, 10))), Moments{Fault: at(1005), Mend: at(11000)})
	require.InDelta(t, 10000, r.StallMS, 0.01)
	r = Run{}
	r.Fill(summary(20, steady(10, 1000, 10)), Moments{Fault: at(1005), Mend: at(11000)})
	require.InDelta(t, 10000, r.StallMS, 0.01)
	r = Run{}
	r.Fill(summary(20, nil), Moments{Fault: at(1000), Mend: at(11000)})
	require.InDelta(t, 11000, r.StallMS, 0.01, "no write was ever acknowledged")
}

// Two writers record their acknowledgements a little out of order; that must not make a negative or a lost gap.
func TestGapsOutOfOrder(t *testing.T) {
	got := gaps([]time.Time{at(10), at(30), at(29), at(40)}, at(0), at(50))
	require.Equal(t, []gap{{at(0), at(10)}, {at(10), at(30)}, {at(30), at(40)}, {at(40), at(50)}}, got)
}

// Gaps cover the whole time exactly once, whatever the acknowledgements.
func TestGapsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var acks []time.Time
		for _, ms := range rapid.SliceOf(rapid.IntRange(0, 1000)).Draw(t, "acks") {
			acks = append(acks, at(ms))
		}
		last := at(0)
		for _, g := range gaps(acks, at(0), at(1000)) {
			require.Equal(t, last, g.start)
			require.True(t, g.end.After(g.start))
			last = g.end
		}
		require.Equal(t, at(1000), last)
	})
}

func TestAppendAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs.jsonl")
	none, err := Load(path)
	require.NoError(t, err)
	require.Empty(t, none)
	a := Run{System: "a", Fault: "kill", Rep: 1, At: t0, Measured: true, Recovered: true, StallMS: 12.5, Errors: map[string]int64{"closed": 1}}
	b := Run{System: "b", Fault: "kill", Rep: 1, At: t0, Note: "the lab did not come up"}
	require.NoError(t, Append(path, a))
	require.NoError(t, Append(path, b))
	got, err := Load(path)
	require.NoError(t, err)
	require.Equal(t, []Run{a, b}, got)
	require.Equal(t, 1, Count(got, "a", "kill"))
	require.Zero(t, Count(got, "b", "kill"), "what was not measured does not count")
	require.Zero(t, Count(got, "a", "cut"))
}

func TestReadToleratesATornLastLine(t *testing.T) {
	got, err := Read(strings.NewReader(`{"system":"a","fault":"kill"}` + "\n" + `{"system":"b","fa`))
	require.NoError(t, err)
	require.Len(t, got, 1)
	_, err = Read(strings.NewReader("nonsense\n"))
	require.ErrorContains(t, err, "line 1")
}

func example() *Report {
	run := func(system, fault string, rep int, stall float64) Run {
		return Run{System: system, Fault: fault, Rep: rep, At: t0, Measured: true, Recovered: true, Verified: true, StallMS: stall, Failed: 3, Unknown: 1, HealthyMS: 4000}
	}
	slow := run("other", "power", 1, 120000)
	slow.Recovered = false
	losing := run("other", "kill", 2, 9900)
	losing.Lost = 5
	blind := run("other", "kill", 1, 9700)
	blind.Verified, blind.Lost = false, 99
	shut := run("theseus", "kill", 2, 500)
	shut.Closed = true
	phased := run("theseus", "kill", 1, 300)
	phased.Phases = []Phase{{Name: "revoke", StartMS: 120, EndMS: 140}, {Name: "establish", StartMS: 140, EndMS: 240}}
	r := &Report{
		Generated: t0, Machine: "2 cores.", Client: "4 writers.", Wanted: 2, Versions: []string{"PostgreSQL 17"}, Setup: []string{"Same volumes."},
		Faults:   []Named{{"kill", "kill -9 <postmaster>", "the postmaster is killed"}, {"power", "Power cut", "the node is gone"}},
		Systems:  []Named{{"theseus", "Theseus", "ours"}, {"other", "Other & sons", "theirs"}},
		Settings: []Setting{{"fsync", []string{"on", "on"}}},
		Runs: []Run{
			phased, shut, blind, losing, run("theseus", "power", 1, 1500), slow,
			{System: "theseus", Fault: "power", Rep: 2, Note: "the lab did not come up\nand more"},
		},
	}
	r.Complete()
	return r
}

func TestCells(t *testing.T) {
	r := example()
	require.Len(t, r.Cells, 4)
	ours, theirs := r.Cells[0], r.Cells[1]
	require.Equal(t, "theseus", ours.System)
	require.EqualValues(t, 400, ours.StallMedianMS)
	require.EqualValues(t, 500, ours.StallP95MS)
	require.EqualValues(t, 4, ours.ErrorsMedian)
	require.EqualValues(t, 5, theirs.Lost, "what nobody could read back is not counted as lost")
	require.Equal(t, 1, theirs.Unverified)
	require.Equal(t, 1, r.Cells[2].Invalid)
	require.Equal(t, 1, r.Cells[2].N)
	require.Equal(t, 1, r.Cells[3].Unrecovered)
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, example().Markdown(&b, "failover.svg"))
	text := b.String()
	for _, want := range []string{
		"| kill -9 <postmaster> | Theseus | 2 | **400 ms**, but no new client in 1 of 2 | 500 ms | 300 ms – 500 ms | 4 (4) | 0 |",
		"|  | Other & sons | 2 | **9.80 s** | 9.90 s | 9.70 s – 9.90 s | 4 (4) | 5 (1 of 2 could not be read back) |",
		"**≥ 120.0 s**",
		"**Incomplete**: 2 repetitions of each were asked for, of some there are only 1.",
		"| kill -9 <postmaster> | Theseus | revoke | 120 ms | 20 ms |",
		"| fsync | on | on |",
		"Theseus, Power cut, repetition 2 (not counted): the lab did not come up\n",
		"![Longest write stall of each repetition](failover.svg)",
		"- PostgreSQL 17\n",
	} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "and more", "a note is cut to its first line")
	require.NotContains(t, text, "NaN")
}

func TestMarkdownWithoutRuns(t *testing.T) {
	r := example()
	r.Runs = nil
	r.Complete()
	require.NoError(t, r.Markdown(io.Discard, "x.svg"))
	require.NoError(t, r.Plot(io.Discard))
	require.NoError(t, r.JSON(io.Discard))
}

func TestPlotIsWellFormed(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, example().Plot(&b))
	text := b.String()
	require.Equal(t, 6, strings.Count(text, "<circle"), "a dot for each measured repetition")
	require.Contains(t, text, "Other &amp; sons")
	require.Contains(t, text, "5 lost")
	d := xml.NewDecoder(&b)
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, example().JSON(&b))
	var back Report
	require.NoError(t, json.Unmarshal(b.Bytes(), &back))
	require.Equal(t, *example(), back)
}

func TestHuman(t *testing.T) {
	for ms, want := range map[float64]string{0.4: "0.4 ms", 9.96: "10 ms", 240.2: "240 ms", 999.6: "1.00 s", 1450: "1.45 s", 30500: "30.5 s"} {
		require.Equal(t, want, Human(ms))
	}
	require.Equal(t, "–", Human(math.NaN()))
}

func TestCodes(t *testing.T) {
	require.Empty(t, codes(nil))
	require.Equal(t, "timeout 9, 57P01 3, closed 3", codes(map[string]int64{"closed": 3, "57P01": 3, "timeout": 9}))
	require.Equal(t, "a 1, b 1, c 1, d 1, e 1, f 1, …", codes(map[string]int64{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}))
}
