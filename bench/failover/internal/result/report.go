package result

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Named is an identifier with the words people read.
type Named struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	// About is a sentence on what it is.
	About string `json:"about,omitempty"`
}

// Report is everything the documents are made of.
type Report struct {
	Generated time.Time `json:"generated"`
	// Machine, Client and Versions describe what it was measured on and with.
	Machine  string   `json:"machine"`
	Client   string   `json:"client"`
	Versions []string `json:"versions"`
	// Setup says what else a reader must know to judge or repeat it.
	Setup []string `json:"setup"`
	// Wanted is the number of repetitions that was asked for.
	Wanted   int       `json:"wanted"`
	Faults   []Named   `json:"faults"`
	Systems  []Named   `json:"systems"`
	Settings []Setting `json:"settings,omitempty"`
	Cells    []Cell    `json:"cells"`
	Runs     []Run     `json:"runs"`
}

// Setting is one PostgreSQL parameter as each system ran with it, in the order of Report.Systems.
type Setting struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Complete computes what follows from the runs.
func (r *Report) Complete() {
	r.Cells = Cells(r.Runs, ids(r.Faults), ids(r.Systems))
}

func ids(n []Named) []string {
	out := make([]string, 0, len(n))
	for _, x := range n {
		out = append(out, x.ID)
	}
	return out
}

func title(n []Named, id string) string {
	for _, x := range n {
		if x.ID == id {
			return x.Title
		}
	}
	return id
}

// JSON writes the report for programs.
func (r *Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(r)
}

// Markdown writes the report for people. plot is the file name of the plot beside it.
func (r *Report) Markdown(w io.Writer, plot string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Failover, compared\n\nMade by `make bench-failover` on %s. %s\n\n", r.Generated.UTC().Format("2 January 2006, 15:04 UTC"), r.Machine)
	if short := r.short(); short != "" {
		b.WriteString("> " + short + "\n\n")
	}
	fmt.Fprintf(&b, "![Longest write stall of each repetition](%s)\n\n", plot)
	r.table(&b)
	r.details(&b)
	r.phases(&b)
	r.list(&b, "Systems", named(r.Systems))
	r.list(&b, "Faults", named(r.Faults))
	r.list(&b, "How it was measured", append([]string{r.Client}, append(r.Setup, r.Versions...)...))
	r.settings(&b)
	r.invalid(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// short warns of figures that rest on too little.
func (r *Report) short() string {
	least := -1
	for _, f := range r.Faults {
		for _, s := range r.Systems {
			if n := Count(r.Runs, s.ID, f.ID); least < 0 || n < least {
				least = n
			}
		}
	}
	if least >= 0 && least < r.Wanted {
		return fmt.Sprintf("**Incomplete**: %d repetitions of each were asked for, of some there are only %d.", r.Wanted, least)
	}
	return ""
}

func (r *Report) table(b *strings.Builder) {
	b.WriteString("| fault | system | n | longest write stall: median | p95 | best – worst | client errors: median (most) | acknowledged writes lost |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|\n")
	last := ""
	for _, c := range r.Cells {
		fault := ""
		if c.Fault != last {
			fault, last = title(r.Faults, c.Fault), c.Fault
		}
		if c.N == 0 {
			fmt.Fprintf(b, "| %s | %s | 0 | | | | | |\n", fault, title(r.Systems, c.System))
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %d | **%s**%s | %s | %s – %s | %.0f (%.0f) | %s |\n", fault, title(r.Systems, c.System), c.N,
			atLeast(c, c.StallMedianMS, 2*c.Unrecovered >= c.N), closed(c), atLeast(c, c.StallP95MS, c.Unrecovered > 0), Human(c.StallMinMS),
			atLeast(c, c.StallMaxMS, c.Unrecovered > 0), c.ErrorsMedian, c.ErrorsMax, lost(c))
	}
	b.WriteString("\nThe p95 is the nearest rank: with ten repetitions it is the worst one. A stall is the longest time in which none of the writers got an acknowledgement.\n")
}

// atLeast marks a figure that is a lower bound, because the harness stopped waiting.
func atLeast(c Cell, ms float64, bound bool) string {
	if bound && c.Unrecovered > 0 {
		return "≥ " + Human(ms)
	}
	return Human(ms)
}

// closed adds that those who came later were worse off than the stall of the others says.
func closed(c Cell) string {
	if c.Closed == 0 {
		return ""
	}
	return fmt.Sprintf(", but no new client in %d of %d", c.Closed, c.N)
}

func lost(c Cell) string {
	if c.Unverified > 0 {
		return fmt.Sprintf("%d (%d of %d could not be read back)", c.Lost, c.Unverified, c.N)
	}
	return fmt.Sprint(c.Lost)
}

func (r *Report) details(b *strings.Builder) {
	b.WriteString("\n## More figures\n\n")
	b.WriteString("| fault | system | of the errors: outcome unknown (median) | worst stall during the repair | repair → three healthy members (median) | writes/s before (median) | longest gap before (median) | never recovered | invalid runs | errors by code, all repetitions |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n")
	for _, c := range r.Cells {
		fmt.Fprintf(b, "| %s | %s | %.0f | %s | %s | %.0f | %s | %d | %d | %s |\n", title(r.Faults, c.Fault), title(r.Systems, c.System), c.UnknownMedian,
			Human(c.RepairStallMaxMS), Human(c.HealthyMedianMS), c.SteadyRate, Human(c.SteadyStallMS), c.Unrecovered, c.Invalid, codes(c.Codes))
	}
}

// mostCodes bounds the list of codes in a table.
const mostCodes = 6

// codes lists the most frequent codes first.
func codes(n map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(n), func(a, b string) int { return cmp.Or(cmp.Compare(n[b], n[a]), cmp.Compare(a, b)) })
	var out []string
	for i, name := range names {
		if i == mostCodes {
			out = append(out, "…")
			break
		}
		out = append(out, fmt.Sprintf("%s %d", name, n[name]))
	}
	return strings.Join(out, ", ")
}

// phases prints the medians of a system's own account, where it gives one.
func (r *Report) phases(b *strings.Builder) {
	var rows strings.Builder
	for _, c := range r.Cells {
		for _, p := range phaseMedians(r.Runs, c.System, c.Fault) {
			fmt.Fprintf(&rows, "| %s | %s | %s | %s | %s |\n", title(r.Faults, c.Fault), title(r.Systems, c.System), p.Name, Human(p.StartMS), Human(p.EndMS-p.StartMS))
		}
	}
	if rows.Len() > 0 {
		b.WriteString("\n## Where the time goes\n\nBy the system's own account; medians. A phase that begins late waited for what comes before it: detection, above all.\n\n")
		b.WriteString("| fault | system | phase | begins, after the fault | takes |\n|---|---|---|--:|--:|\n" + rows.String())
	}
}

// phaseMedians is the median beginning and duration of each phase, in the order in which they first appear.
func phaseMedians(runs []Run, system, fault string) []Phase {
	var order []string
	begins, takes := map[string][]float64{}, map[string][]float64{}
	for _, r := range runs {
		if r.System != system || r.Fault != fault || !r.Measured {
			continue
		}
		for _, p := range r.Phases {
			if _, ok := begins[p.Name]; !ok {
				order = append(order, p.Name)
			}
			begins[p.Name] = append(begins[p.Name], p.StartMS)
			takes[p.Name] = append(takes[p.Name], p.EndMS-p.StartMS)
		}
	}
	var out []Phase
	for _, name := range order {
		start := Median(begins[name])
		out = append(out, Phase{Name: name, StartMS: start, EndMS: start + Median(takes[name])})
	}
	return out
}

func named(n []Named) []string {
	var out []string
	for _, x := range n {
		out = append(out, "**"+x.Title+"**: "+x.About)
	}
	return out
}

func (*Report) list(b *strings.Builder, heading string, items []string) {
	fmt.Fprintf(b, "\n## %s\n\n", heading)
	for _, item := range items {
		if item != "" {
			b.WriteString("- " + item + "\n")
		}
	}
}

func (r *Report) settings(b *strings.Builder) {
	if len(r.Settings) == 0 {
		return
	}
	b.WriteString("\n## PostgreSQL settings, as the primaries reported them\n\n| parameter |")
	for _, s := range r.Systems {
		b.WriteString(" " + s.Title + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(r.Systems)) + "\n")
	for _, s := range r.Settings {
		b.WriteString("| " + s.Name + " | " + strings.Join(s.Values, " | ") + " |\n")
	}
}

func (r *Report) invalid(b *strings.Builder) {
	heading := false
	for _, run := range r.Runs {
		if run.Note == "" {
			continue
		}
		if !heading {
			b.WriteString("\n## Notes on single repetitions\n\n")
			heading = true
		}
		kind := "measured"
		if !run.Measured {
			kind = "not counted"
		}
		note, _, _ := strings.Cut(run.Note, "\n")
		fmt.Fprintf(b, "- %s, %s, repetition %d (%s): %s\n", title(r.Systems, run.System), title(r.Faults, run.Fault), run.Rep, kind, note)
	}
}

// Human writes milliseconds as people read them.
func Human(ms float64) string {
	switch {
	case ms != ms: // NaN
		return "–"
	case ms < 9.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	case ms < 9995:
		return fmt.Sprintf("%.2f s", ms/1000)
	}
	return fmt.Sprintf("%.1f s", ms/1000)
}
