package simfleet

import (
	"fmt"
	"io"
	"time"
)

const width, height, margin = 1000, 260, 50

// RateSVG plots the starts for age per hour over the run.
func (r *Report) RateSVG(w io.Writer) {
	top := 1
	for _, h := range r.hours {
		top = max(top, h.starts)
	}
	p := plot{w: w, title: fmt.Sprintf("starts for age per hour (%s); line: steady mean", r.Config.Mode), xMax: float64(r.Config.Days), yMax: float64(top) * 1.1, yName: "per hour"}
	p.open(r.Config.Troubles)
	p.path("#2a6f97", 0.7, len(r.hours), func(i int) float64 { return float64(r.hours[i].starts) })
	mean := r.Steady().Mean
	p.path("#c1121f", 1.5, len(r.hours), func(int) float64 { return mean })
	p.close()
}

// OldestSVG plots the age of the oldest thing over the run.
func (r *Report) OldestSVG(w io.Writer) {
	p := plot{w: w, title: "age of the oldest instance or node; line: maximum age", xMax: float64(r.Config.Days), yMax: 35, yName: "days"}
	p.open(r.Config.Troubles)
	p.path("#2a6f97", 1, len(r.hours), func(i int) float64 { return r.hours[i].oldest.Hours() / 24 })
	p.path("#c1121f", 1.5, len(r.hours), func(int) float64 { return r.Config.MaxAge.Hours() / 24 })
	p.close()
}

// FlightSVG plots replacements in flight and shards with a copy missing.
func (r *Report) FlightSVG(w io.Writer) {
	top := 1
	for _, h := range r.hours {
		top = max(top, h.inFlight)
	}
	p := plot{w: w, title: "replacements in flight", xMax: float64(r.Config.Days), yMax: float64(top) * 1.1, yName: "in flight"}
	p.open(r.Config.Troubles)
	p.path("#2a6f97", 0.7, len(r.hours), func(i int) float64 { return float64(r.hours[i].inFlight) })
	p.close()
}

// AgesSVG plots how many instances have which age, week by week: a level fleet is an even band.
func (r *Report) AgesSVG(w io.Writer) {
	p := plot{w: w, title: "instances by age, weekly (darker is more)", xMax: float64(r.Config.Days), yMax: 32, yName: "days old"}
	p.open(r.Config.Troubles)
	even := float64(r.Config.Shards*zones) / (r.Config.MaxAge.Hours() / 24)
	for week, ages := range r.ages {
		for age, n := range ages {
			if n == 0 || age >= 32 {
				continue
			}
			shade := min(float64(n)/even/3, 1)
			x0, y0 := p.at(float64(week*7), float64(age+1))
			x1, y1 := p.at(float64(min(week*7+7, r.Config.Days)), float64(age))
			fmt.Fprintf(w, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#013a63" fill-opacity="%.3f"/>`+"\n", x0, y0, x1-x0, y1-y0, 0.08+0.92*shade)
		}
	}
	p.close()
}

type plot struct {
	w          io.Writer
	title      string
	xMax, yMax float64
	yName      string
}

func (p plot) at(x, y float64) (float64, float64) {
	return margin + x/p.xMax*(width-2*margin), height - margin - y/p.yMax*(height-2*margin)
}

func (p plot) open(troubles []Trouble) {
	fmt.Fprintf(p.w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(p.w, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="20" font-size="14">%s</text>`+"\n", width, height, margin, p.title)
	for _, t := range troubles {
		x0, y0 := p.at(t.From.Hours()/24, p.yMax)
		x1, y1 := p.at(t.End().Hours()/24, 0)
		fmt.Fprintf(p.w, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#ffb703" fill-opacity="0.5"/>`, x0, y0, max(x1-x0, 1.5), y1-y0)
		fmt.Fprintf(p.w, `<text x="%.1f" y="%d" font-size="9">%s</text>`+"\n", x0, margin-8, t.Name)
	}
	for i := range 6 {
		y := p.yMax * float64(i) / 5
		px, py := p.at(0, y)
		fmt.Fprintf(p.w, `<line x1="%.1f" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%.3g</text>`+"\n", px, width-margin, py, py, px-4, py+4, y)
	}
	for d := 0.0; d <= p.xMax; d += max(p.xMax/12, 1) {
		px, py := p.at(d, 0)
		fmt.Fprintf(p.w, `<text x="%.1f" y="%.1f" text-anchor="middle">day %.0f</text>`+"\n", px, py+16, d)
	}
	fmt.Fprintf(p.w, `<text x="12" y="%d" transform="rotate(-90 12 %d)" text-anchor="middle">%s</text>`+"\n", height/2, height/2, p.yName)
}

// path draws one value per hour.
func (p plot) path(colour string, stroke float64, n int, value func(i int) float64) {
	fmt.Fprintf(p.w, `<path fill="none" stroke="%s" stroke-width="%.1f" d="`, colour, stroke)
	for i := range n {
		x, y := p.at((time.Duration(i)*time.Hour).Hours()/24, min(value(i), p.yMax))
		op := "L"
		if i == 0 {
			op = "M"
		}
		fmt.Fprintf(p.w, "%s%.1f %.1f", op, x, y)
	}
	fmt.Fprintln(p.w, `"/>`)
}

func (p plot) close() { fmt.Fprintln(p.w, "</svg>") }
