package simfleet

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// Print writes the table.
func (r *Report) Print(w io.Writer) {
	c := r.Config
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-44s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("fleet", "%d shards × %d instances, %d per node, %s expire; %d days, seed %d", c.Shards, zones, c.PerNode, c.Mode, c.Days, c.Seed)
	oldest, over, bad := r.Oldest()
	line("oldest thing ever seen", "%.2f days of %.0f", oldest.Hours()/24, c.MaxAge.Hours()/24)
	line("hours with something older", "%d, of which without an announced freeze: %d", over, bad)
	s := r.Steady()
	line("starts for age, steady state", "mean %.2f per hour, peak %d in %d h, peak/mean %.2f (%d hours)", s.Mean, s.Peak, s.Bin, s.PeakOverMean, s.Hours)
	for _, t := range c.Troubles {
		u := r.CatchUp(t)
		if t.End() > time.Duration(c.Days)*day {
			continue
		}
		line("  after "+t.Name, "peak %d, %.2f of the mean", u.Peak, u.PeakOverMean)
	}
	line("life of replaced instances", "median %.1f days", quantile(r.lives, 0.5)/24)
	if len(r.nodeLives) > 0 {
		line("life of rotated nodes", "median %.1f days, 5 %% %.1f, 95 %% %.1f (%d nodes)", quantile(r.nodeLives, 0.5)/24,
			quantile(r.nodeLives, 0.05)/24, quantile(r.nodeLives, 0.95)/24, r.NodesRotated)
	}
	line("failures", "%d nodes, %d instances; %d times a shard lost its majority to them", r.NodeFailures, r.Sicknesses, r.BelowQuorum)
	for _, reason := range slices.Sorted(maps.Keys(r.ByReason)) {
		n := r.ByReason[reason]
		line("replacements for "+string(reason), "%d succeeded, %d failed, %d cancelled; median %s, 99 %% %s", n.Succeeded, n.Failed, n.Cancelled,
			seconds(quantile(n.took, 0.5)), seconds(quantile(n.took, 0.99)))
	}
	for _, f := range slices.Sorted(maps.Keys(r.Failures)) {
		line("  failed: "+string(f), "%d", r.Failures[f])
	}
	line("reparents", "%d", r.Reparents)
	for _, why := range slices.Sorted(maps.Keys(r.Refusals)) {
		line("refused by the ledger: "+string(why), "%d", r.Refusals[why])
	}
	line("nodes given back because they would not empty", "%d", r.GivenBack)
	line("decisions of the replacement machine", "%d", r.Decisions)
	fmt.Fprintln(w, "what the plan said:")
	for i, a := range r.announcement {
		if i == 12 {
			fmt.Fprintf(w, "  … and %d more\n", len(r.announcement)-i)
			break
		}
		fmt.Fprintf(w, "  day %6.2f  %-16s %s\n", float64(a.at)/86400, a.reason, a.text)
	}
	problems := r.Problems()
	for _, p := range problems {
		fmt.Fprintln(w, "PROBLEM:", p)
	}
	if len(problems) == 0 {
		fmt.Fprintln(w, "no problems")
	}
}

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
