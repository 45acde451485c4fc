package story

import (
	"fmt"
	"strings"
	"time"

	"theseus.dev/theseus/internal/clip"
)

// glyphs by state; of nodes, Standby is simply being there.
var glyphs = map[State]string{Absent: " ", Joining: "·", Standby: "─", Primary: "█", Failing: "×"}

const labelWidth = 24

// Draw renders the chronicle as lines of at most width columns and about height lines: the lifelines of instances, then
// of nodes, then what clients see. When there are too many lifelines the oldest that ended are left out.
func (c *Chronicle) Draw(title string, width, height int) []string {
	width, height = max(width, 60), max(height, 16)
	o := c.Last
	var lines []string
	lines = append(lines, clip.Columns(fmt.Sprintf("%s   %s   term %d", title, o.At.Sub(c.Begun).Round(time.Second), o.Term), width), "")
	instances, nodes := c.Lifelines(Instance), c.Lifelines(Node)
	room := height - 10
	nodeRoom := min(len(nodes), room/2)
	lines = append(lines, c.block("INSTANCES  █ primary  ─ standby  · joining  × failing or leaving", instances, room-nodeRoom, width)...)
	lines = append(lines, c.block("NODES", nodes, nodeRoom, width)...)
	lines = append(lines, "")
	for _, l := range o.Clients.draw() {
		lines = append(lines, clip.Columns(l, width))
	}
	for _, r := range o.Replacements {
		if r.Outcome == "" {
			lines = append(lines, clip.Columns(fmt.Sprintf("REPLACING  %s (%s) %s%s: %s", r.Instance, r.Reason, r.Phase, by(r.Successor), r.Waiting), width))
			if len(lines) >= height {
				break
			}
		}
	}
	return lines
}

// draw is what clients see: how fast writes go, and what is wrong with them. Each of the lines fits into 80 columns.
func (c Clients) draw() []string {
	latency := "no write in the last second"
	if c.PerSecond > 0 {
		latency = fmt.Sprintf("latency p50 %s p99 %s", c.P50.Round(latencyUnit), c.P99.Round(latencyUnit))
	}
	return []string{
		fmt.Sprintf("CLIENTS    %d writes/s   %s   errors %d", c.PerSecond, latency, c.Failed+c.Unknown),
		fmt.Sprintf("           since the last write %s   longest stall %s", c.Stall.Round(time.Millisecond), c.Longest.Round(time.Millisecond)),
	}
}

// latencyUnit is what the load's lines tell latencies in.
const latencyUnit = 100 * time.Microsecond

func (c *Chronicle) block(title string, all []*Lifeline, room, width int) []string {
	lines := []string{clip.Columns(title, width)}
	for len(all) > max(room, 1) {
		all = withoutOldestGone(all)
	}
	columns := width - labelWidth - 8
	for _, l := range all {
		label := fmt.Sprintf("%-*s", labelWidth, clip.Columns("  "+l.Name, labelWidth-1))
		lines = append(lines, label+c.line(l, columns)+" "+l.Age(c.Last.At).Round(time.Second).String())
	}
	return lines
}

// withoutOldestGone drops the first that has ended, or the first of all when none has.
func withoutOldestGone(all []*Lifeline) []*Lifeline {
	for i, l := range all {
		if !l.Gone.IsZero() {
			return append(append([]*Lifeline{}, all[:i]...), all[i+1:]...)
		}
	}
	return all[1:]
}

// line draws one lifeline over the whole time of the chronicle. A column shows the strongest state that falls into it, so
// that a primary of a second is not overlooked.
func (c *Chronicle) line(l *Lifeline, columns int) string {
	whole := max(c.Last.At.Sub(c.Begun), time.Second)
	var b strings.Builder
	for i := range columns {
		from := c.Begun.Add(whole * time.Duration(i) / time.Duration(columns))
		to := c.Begun.Add(whole * time.Duration(i+1) / time.Duration(columns))
		b.WriteString(glyphs[l.within(from, to)])
	}
	return strings.TrimRight(b.String(), " ")
}

func (l *Lifeline) within(from, to time.Time) State {
	state := l.at(from)
	for _, ch := range l.changes {
		if !ch.at.Before(from) && ch.at.Before(to) && (ch.state == Primary || state != Primary) {
			state = ch.state
		}
	}
	return state
}
