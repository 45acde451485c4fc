package story

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"
)

// Part of the story, and what clients saw in it.
type Part struct {
	// When it was, as the table says it: "while everything was replaced".
	When string
	// Planned is true when all of it was planned, so that clients are to see no error.
	Planned      bool
	Errors       int64
	LongestStall time.Duration
}

// Ending is what is known once the load has ended and was read back.
type Ending struct {
	Acked, Lost int64
	// Parts in their order. What an error means depends on which it is of.
	Parts    []Part
	Verified bool
}

// Summary writes the table at the end: what was replaced, and what that cost.
func (c *Chronicle) Summary(w io.Writer, e Ending) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, k := range []Kind{Instance, Node} {
		oldest, gone, all := time.Duration(0), 0, c.Lifelines(k)
		for _, l := range all {
			oldest = max(oldest, l.Age(c.Last.At))
			if !l.Gone.IsZero() {
				gone++
			}
		}
		fmt.Fprintf(tw, "oldest %s ever seen\t%s\n", k, oldest.Round(time.Second))
		fmt.Fprintf(tw, "%ss seen, of them gone\t%d, %d\n", k, len(all), gone)
	}
	count(tw, "replacement", c.replacements, func(r Replacement) string { return r.Reason + " " + or(r.Outcome, "under way") })
	count(tw, "reparent", c.reparents, func(r Reparent) string { return r.Kind + " " + r.Reason + " " + r.Outcome })
	fmt.Fprintf(tw, "acknowledged writes\t%d\n", e.Acked)
	for _, p := range e.Parts {
		unexpected := ""
		if p.Planned && p.Errors > 0 {
			unexpected = ", and there should be none"
		}
		fmt.Fprintf(tw, "longest stall of writes %s\t%s\n", p.When, p.LongestStall.Round(time.Millisecond))
		fmt.Fprintf(tw, "errors clients saw %s\t%d%s\n", p.When, p.Errors, unexpected)
	}
	if e.Verified {
		fmt.Fprintf(tw, "acknowledged writes lost\t%d\n", e.Lost)
	} else {
		fmt.Fprint(tw, "acknowledged writes lost\tnot known: they could not be read back\n")
	}
	return tw.Flush()
}

func count[V any](w io.Writer, what string, all map[string]V, by func(V) string) {
	n := map[string]int{}
	for _, v := range all {
		n[by(v)]++
	}
	fmt.Fprintf(w, "%ss\t%d\n", what, len(all))
	for _, k := range slices.Sorted(maps.Keys(n)) {
		fmt.Fprintf(w, "  %s\t%d\n", k, n[k])
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
