package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/internal/story"
)

// What clients saw is counted in the part it happened in: an error or a stall of the power cut is none of the replacements,
// also when the longest stall of all was before it.
func TestPartsAreCountedApart(t *testing.T) {
	var a account
	a.begin(story.Part{When: "first", Planned: true})
	a.line(load.Progress{PerSecond: 400, RecentStallMS: 12, LongestStallMS: 12})
	a.line(load.Progress{PerSecond: 100, RecentStallMS: 900, LongestStallMS: 900, Failed: 1})
	a.line(load.Progress{PerSecond: 400, RecentStallMS: 12, LongestStallMS: 900, Failed: 1, Unknown: 1})
	a.begin(story.Part{When: "second"})
	a.line(load.Progress{PerSecond: 50, RecentStallMS: 700, LongestStallMS: 900, Failed: 2, Unknown: 4})
	a.line(load.Progress{PerSecond: 400, RecentStallMS: 12, LongestStallMS: 900, Failed: 2, Unknown: 4})
	require.Equal(t, 5, a.lines)
	require.Equal(t, []story.Part{
		{When: "first", Planned: true, Errors: 2, LongestStall: 900 * time.Millisecond},
		{When: "second", Errors: 5, LongestStall: 700 * time.Millisecond},
	}, a.end(&load.Summary{Failed: 2, Unknown: 5, LongestStallMS: 900}), "and one error after the last line")
}

func TestTheEndIsOfTheLastPart(t *testing.T) {
	var a account
	a.line(load.Progress{RecentStallMS: 30, LongestStallMS: 30, Failed: 1})
	a.begin(story.Part{When: "all"})
	a.line(load.Progress{RecentStallMS: 10, LongestStallMS: 30, Failed: 1})
	require.Equal(t, []story.Part{{When: "all", Errors: 2, LongestStall: 40 * time.Millisecond}},
		a.end(&load.Summary{Failed: 3, LongestStallMS: 40}), "what was before the first part is in none")
}

func TestWhatIsShownIsTheLastLine(t *testing.T) {
	var a account
	require.Zero(t, a.clients())
	a.line(load.Progress{PerSecond: 7, P50MS: 1.2, P99MS: 34, Failed: 1, Unknown: 2, StallMS: 3, RecentStallMS: 5, LongestStallMS: 400})
	require.Equal(t, story.Clients{
		PerSecond: 7, P50: 1200 * time.Microsecond, P99: 34 * time.Millisecond, Failed: 1, Unknown: 2,
		Stall: 3 * time.Millisecond, Longest: 400 * time.Millisecond,
	}, a.clients())
}
