package simfleet

import (
	"slices"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/lifetime"
	"theseus.dev/theseus/internal/replacement"
)

// hour is what was seen in one hour.
type hour struct {
	starts   int // for age: of nodes, or of instances in that mode
	moves    int // replacements of instances that began for age
	repairs  int // replacements of instances that began because they were condemned
	inFlight int
	backlog  int // due and not begun
	degraded int // shards with a copy missing
	oldest   time.Duration
	holds    bool
	reason   lifetime.Reason
}

// reasonCount is how replacements for one reason ended.
type reasonCount struct {
	Succeeded, Failed, Cancelled int
	took                         []float64 // seconds from admission, of a sample
}

// Report is what a run has shown.
type Report struct {
	Config Config
	// Violations of what must never happen, with how often; First says when each happened first.
	Violations map[string]int
	First      map[string]int64

	NodeFailures, Sicknesses, Reparents, Surges, GivenBack, MissingCopies, BelowQuorum, Decisions int
	NodesRotated                                                                                  int
	ByReason                                                                                      map[v1alpha1.Reason]*reasonCount
	Failures                                                                                      map[replacement.Failure]int
	Refusals                                                                                      map[ledger.Why]int

	hours        []hour
	current      hour
	ages         [][]int // weekly: instances by age in days
	nodeLives    []float64
	lives        []float64
	plannedNow   bool
	planReason   lifetime.Reason
	planMessage  string
	saidAt       int64 // when the plan last began to say that it does not hold
	announcement []announcement
}

// announcement is a change of the plan's mind.
type announcement struct {
	at     int64
	reason lifetime.Reason
	text   string
}

func newReport(cfg Config) *Report {
	return &Report{
		Config: cfg, Violations: map[string]int{}, First: map[string]int64{}, ByReason: map[v1alpha1.Reason]*reasonCount{},
		Failures: map[replacement.Failure]int{}, Refusals: map[ledger.Why]int{}, plannedNow: true, planReason: lifetime.Holds,
	}
}

func (r *Report) violate(at int64, what string) {
	if r.Violations[what]++; r.Violations[what] == 1 {
		r.First[what] = at
	}
}

func (r *Report) start(int64) { r.current.starts++ }

func (r *Report) admitted(f *fleet, p *repair) {
	switch p.request.Reason {
	case v1alpha1.ReasonCondemned:
		r.current.repairs++
	default:
		r.current.moves++
		if f.cfg.Mode == Instances {
			r.current.starts++
		}
	}
}

func (r *Report) verdict(v ledger.Verdict) {
	if !v.Allowed {
		r.Refusals[v.Why]++
	}
}

func (r *Report) rotated(life, _ int64) {
	r.NodesRotated++
	r.nodeLives = append(r.nodeLives, float64(life)/3600)
}

func (r *Report) died(life int64) { r.lives = append(r.lives, float64(life)/3600) }

func (r *Report) planned(f *fleet) {
	p := f.plan
	if p.Reason != r.planReason {
		r.announcement = append(r.announcement, announcement{f.now, p.Reason, p.Message})
		if !p.Holds && r.plannedNow {
			r.saidAt = f.now
		}
	}
	r.plannedNow, r.planReason, r.planMessage = p.Holds, p.Reason, p.Message
}

func (r *Report) finished(f *fleet, p *repair) {
	c := r.ByReason[p.request.Reason]
	if c == nil {
		c = &reasonCount{}
		r.ByReason[p.request.Reason] = c
	}
	switch p.status.Phase {
	case replacement.Done:
		c.Succeeded++
		c.took = append(c.took, p.status.FinishedAt.Sub(p.status.AdmittedAt).Seconds())
	case replacement.Failed:
		c.Failed++
		r.Failures[p.status.LastFailure]++
	default:
		c.Cancelled++
	}
}

// hour closes an hour: it looks at everything there is.
func (r *Report) hour(f *fleet) {
	h := r.current
	r.current = hour{}
	h.holds, h.reason = r.plannedNow, r.planReason
	weekly := len(r.hours)%(7*24) == 0
	var ages []int
	if weekly {
		ages = make([]int, 40)
	}
	for i := range f.instances {
		in := &f.instances[i]
		if !in.pod || in.dead || !in.running {
			continue
		}
		age := f.now - in.born
		h.oldest = max(h.oldest, time.Duration(age)*time.Second)
		if weekly {
			ages[min(age/86400, 39)]++
		}
	}
	for n := range f.nodes {
		if nd := &f.nodes[n]; f.cfg.Mode == Nodes && nd.alive && nd.up && !nd.dead && !nd.dark {
			h.oldest = max(h.oldest, time.Duration(f.now-nd.born)*time.Second)
		}
	}
	for _, p := range f.repairs {
		if !p.over && !p.status.AdmittedAt.IsZero() {
			h.inFlight++
		}
	}
	for s := range f.shards {
		if f.healthy(int32(s)) < zones {
			h.degraded++
		}
	}
	now := clock(f.now)
	for _, s := range f.plan.Slots {
		if s.Start.After(now) {
			break
		}
		h.backlog++
	}
	if h.oldest > f.cfg.MaxAge && h.holds {
		r.violate(f.now, "something was older than its maximum age and the plan had not said so")
	}
	r.hours = append(r.hours, h)
	if weekly {
		r.ages = append(r.ages, ages)
	}
}

func (r *Report) finish(*fleet) {
	for _, c := range r.ByReason {
		slices.Sort(c.took)
	}
	slices.Sort(r.lives)
	slices.Sort(r.nodeLives)
}

// Stats of the rate of starts for age.
type Stats struct {
	// Mean per hour; Peak in the busiest bin, and how many hours a bin has. A bin is an hour, or as many as it takes for a
	// mean of eight starts: with less, rounding to whole starts is all one would see.
	Mean float64
	Peak int
	Bin  int
	// PeakOverMean of the bins looked at.
	PeakOverMean float64
	Hours        int
}

// warmUp is until the first generation has gone: everything after it counts.
const warmUp = 30 * 24

// steady reports whether an hour lies outside all troubles and what they cause; settle is how long a trouble echoes.
func (r *Report) steady(h int) bool {
	at := time.Duration(h) * time.Hour
	for _, t := range r.Config.Troubles {
		if at >= t.From && at < t.End()+catchUpTime(t) {
			return false
		}
	}
	return h >= warmUp
}

// catchUpTime is how long the consequences of a trouble may last: as long as itself, and a day.
func catchUpTime(t Trouble) time.Duration { return t.For + day }

// Steady is the rate outside troubles.
func (r *Report) Steady() Stats {
	return r.stats(func(h int) bool { return r.steady(h) })
}

// CatchUp is the rate while a trouble is caught up with, with the mean of the steady state.
func (r *Report) CatchUp(t Trouble) Stats {
	s := r.stats(func(h int) bool {
		at := time.Duration(h) * time.Hour
		return at >= t.End() && at < t.End()+catchUpTime(t)
	})
	s.Mean = r.Steady().Mean
	s.PeakOverMean = float64(s.Peak) / (s.Mean * float64(s.Bin))
	return s
}

func (r *Report) stats(use func(h int) bool) Stats {
	s := Stats{Bin: 1}
	sum := 0
	for i, h := range r.hours {
		if use(i) {
			s.Hours++
			sum += h.starts
		}
	}
	if sum == 0 {
		return s
	}
	s.Mean = float64(sum) / float64(s.Hours)
	s.Bin = max(1, int(8/s.Mean+0.999))
	bin, filled := 0, 0
	for i, h := range r.hours {
		if !use(i) {
			bin, filled = 0, 0
			continue
		}
		bin += h.starts
		if filled++; filled == s.Bin {
			s.Peak = max(s.Peak, bin)
			bin, filled = 0, 0
		}
	}
	s.PeakOverMean = float64(s.Peak) / (s.Mean * float64(s.Bin))
	return s
}

// Oldest thing ever seen, and the hours in which something was older than allowed: in all, and outside what a trouble
// excuses.
func (r *Report) Oldest() (oldest time.Duration, over, inexcusable int) {
	for i, h := range r.hours {
		oldest = max(oldest, h.oldest)
		if h.oldest <= r.Config.MaxAge {
			continue
		}
		over++
		excused := false
		for _, t := range r.Config.Troubles {
			at := time.Duration(i) * time.Hour
			excused = excused || at >= t.From && at < t.End()+catchUpTime(t)
		}
		if !excused {
			inexcusable++
		}
	}
	return oldest, over, inexcusable
}

// Problems lists what the run was to show and has not; none is success.
func (r *Report) Problems() []string {
	var out []string
	for what, n := range r.Violations {
		out = append(out, sprintf("%s: %d times, first on day %.1f", what, n, float64(r.First[what])/86400))
	}
	slices.Sort(out)
	if s := r.Steady(); s.PeakOverMean > 1.3 || s.Mean == 0 {
		out = append(out, sprintf("peak/mean of the replacement rate is %.2f, more than 1.30", s.PeakOverMean))
	}
	for _, t := range r.Config.Troubles {
		if s := r.CatchUp(t); s.PeakOverMean > 2.4 {
			out = append(out, sprintf("a stampede after %q: %.2f times the mean rate", t.Name, s.PeakOverMean))
		}
	}
	if _, _, bad := r.Oldest(); bad > 0 {
		out = append(out, sprintf("something was older than %s for %d hours without an excuse", r.Config.MaxAge, bad))
	}
	if r.MissingCopies > 0 {
		out = append(out, sprintf("%d copies were never restored", r.MissingCopies))
	}
	return out
}
