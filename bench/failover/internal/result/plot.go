package result

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Geometry of the plot, in pixels.
const (
	plotWidth  = 900
	labelWidth = 250
	rightSpace = 90
	rowHeight  = 24
	groupSpace = 18
	headHeight = 64
	footHeight = 44
)

// colours tell the systems apart, also to people who do not see red and green.
var colours = []string{"#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7"}

// Plot writes an SVG: a dot for each repetition's longest stall on a logarithmic axis, a bar for the median.
func (r *Report) Plot(w io.Writer) error {
	low, high := r.bounds()
	x := func(ms float64) float64 {
		ms = math.Min(math.Max(ms, low), high)
		return labelWidth + (plotWidth-labelWidth-rightSpace)*math.Log(ms/low)/math.Log(high/low)
	}
	var body strings.Builder
	y := float64(headHeight)
	for _, f := range r.Faults {
		rows := 0
		for i, s := range r.Systems {
			c := cell(r.Runs, s.ID, f.ID)
			if c.N == 0 {
				continue
			}
			if rows == 0 {
				fmt.Fprintf(&body, `<text x="12" y="%.0f" class="fault">%s</text>`+"\n", y+16, html.EscapeString(f.Title))
			}
			rows++
			r.row(&body, c, s, colours[i%len(colours)], x, y)
			y += rowHeight
		}
		if rows > 0 {
			y += groupSpace
		}
	}
	height := y + footHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img" aria-label="Longest write stall of each repetition, by fault and system">`+"\n", plotWidth, height, plotWidth, height)
	b.WriteString(`<style>text{font:12px sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}.fault{font-weight:bold}.small{font-size:11px;fill:#666}</style>` + "\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%.0f" fill="#fff"/>`+"\n", plotWidth, height)
	b.WriteString(`<text x="12" y="24" class="title">Longest write stall</text><text x="12" y="42" class="small">one dot per repetition, bar and figure: median; logarithmic; less is better</text>` + "\n")
	axis(&b, low, high, x, y)
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// row draws one system under one fault.
func (r *Report) row(b *strings.Builder, c Cell, s Named, colour string, x func(float64) float64, y float64) {
	middle := y + rowHeight/2
	fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", labelWidth-10, middle+4, html.EscapeString(s.Title))
	for _, run := range r.Runs {
		if !run.Measured || run.System != c.System || run.Fault != c.Fault {
			continue
		}
		fill := colour
		if !run.Recovered {
			fill = "none"
		}
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s" stroke="%s" fill-opacity="0.45"/>`+"\n", x(run.StallMS), middle, fill, colour)
	}
	m := x(c.StallMedianMS)
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s" stroke-width="3"/>`+"\n", m, m, y+2, y+rowHeight-2, colour)
	text := atLeast(c, c.StallMedianMS, 2*c.Unrecovered >= c.N)
	text += closed(c)
	if c.Lost > 0 {
		text += fmt.Sprintf(", %d lost", c.Lost)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", x(c.StallMaxMS)+10, middle+4, html.EscapeString(text))
}

// axis draws the lines of the decades and their halves.
func axis(b *strings.Builder, low, high float64, x func(float64) float64, bottom float64) {
	for decade := low; decade <= high*1.001; decade *= 10 {
		for _, k := range []float64{1, 2, 5} {
			ms := decade * k
			if ms > high*1.001 {
				break
			}
			fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%.1f" stroke="#ddd"/>`, x(ms), x(ms), headHeight-6, bottom)
			fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" class="small">%s</text>`+"\n", x(ms), bottom+16, tick(ms))
		}
	}
}

func tick(ms float64) string {
	if ms < 1000 {
		return fmt.Sprintf("%g ms", ms)
	}
	return fmt.Sprintf("%g s", ms/1000)
}

// bounds are powers of ten around everything that is drawn.
func (r *Report) bounds() (low, high float64) {
	low, high = 100, 1000
	for _, run := range r.Runs {
		if run.Measured && run.StallMS > 0 {
			low, high = math.Min(low, run.StallMS), math.Max(high, run.StallMS)
		}
	}
	low = math.Pow(10, math.Floor(math.Log10(low)))
	return low, math.Pow(10, math.Ceil(math.Log10(high)-1e-9))
}
