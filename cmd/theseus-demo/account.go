package main

import (
	"time"

	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/internal/story"
)

// account is what the lines of the load say, apart for each part of the story. What happened between two lines belongs to
// the part that was under way when the second one came. The zero value is empty and ready.
type account struct {
	parts []story.Part
	lines int
	last  load.Progress
	// before are the errors of the parts that are over.
	before int64
}

// begin another part.
func (a *account) begin(p story.Part) {
	a.before = a.last.Failed + a.last.Unknown
	a.parts = append(a.parts, p)
}

// line takes what the load says in.
func (a *account) line(p load.Progress) {
	a.last = p
	a.lines++
	a.count(p.Failed+p.Unknown, milliseconds(p.RecentStallMS))
}

func (a *account) count(errors int64, stall time.Duration) {
	if n := len(a.parts); n > 0 {
		part := &a.parts[n-1]
		part.Errors, part.LongestStall = errors-a.before, max(part.LongestStall, stall)
	}
}

// end adds what the load has seen after its last line. Only of a stall that is the longest of all is it known.
func (a *account) end(s *load.Summary) []story.Part {
	stall := time.Duration(0)
	if s.LongestStallMS > a.last.LongestStallMS {
		stall = milliseconds(s.LongestStallMS)
	}
	a.count(s.Failed+s.Unknown, stall)
	return a.parts
}

// clients is what is shown of it now.
func (a *account) clients() story.Clients {
	p := a.last
	return story.Clients{
		PerSecond: p.PerSecond, P50: milliseconds(p.P50MS), P99: milliseconds(p.P99MS), Failed: p.Failed, Unknown: p.Unknown,
		Stall: milliseconds(p.StallMS), Longest: milliseconds(p.LongestStallMS),
	}
}

func milliseconds(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
