package result

import (
	"time"

	"theseus.dev/theseus/internal/load"
)

// Moments of a repetition.
type Moments struct {
	// Fault is just before the fault was done.
	Fault time.Time
	// Mend is when the harness began to undo it.
	Mend time.Time
}

// Fill takes the client's account into the run. The summary must have been made with its operations.
func (r *Run) Fill(s *load.Summary, m Moments) {
	end := s.Started.Add(time.Duration(s.Seconds * float64(time.Second)))
	var acks []time.Time
	steady := int64(0)
	r.Errors = map[string]int64{}
	for _, op := range s.Ops {
		switch {
		case op.Outcome == load.Acked:
			acks = append(acks, op.End)
			r.Acked++
			if op.End.Before(m.Fault) {
				steady++
			}
			continue
		case op.End.Before(m.Fault):
			r.Errors["before the fault: "+op.Code]++
			continue
		case op.Start.Before(m.Mend):
			r.count(op.Outcome, &r.Failed, &r.Unknown)
		default:
			r.count(op.Outcome, &r.RepairFailed, &r.RepairUnknown)
		}
		r.Errors[op.Code]++
	}
	if d := m.Fault.Sub(s.Started).Seconds(); d > 0 {
		r.SteadyRate = float64(steady) / d
	}
	r.StallMS = millis(stall(acks, s.Started, end, m))
	r.SteadyStallMS = millis(longest(acks, s.Started, end, s.Started, m.Fault, func(g gap) bool { return g.end.Before(m.Fault) }))
	r.RepairStallMS = millis(longest(acks, s.Started, end, m.Mend, end, func(g gap) bool { return !g.start.Before(m.Mend) }))
	r.Lost, r.Verified, r.FailedPresent = s.Lost, s.Verified, s.FailedPresent
}

func (*Run) count(o load.Outcome, failed, unknown *int64) {
	if o == load.Failed {
		*failed++
	} else {
		*unknown++
	}
}

// stall is the longest gap that touches the time between fault and repair. What lies after the repair began is not the
// system's doing: a gap is cut off there.
func stall(acks []time.Time, start, end time.Time, m Moments) time.Duration {
	var out time.Duration
	for _, g := range gaps(acks, start, end) {
		if g.end.Before(m.Fault) || !g.start.Before(m.Mend) {
			continue
		}
		if g.end.After(m.Mend) {
			g.end = m.Mend
		}
		out = max(out, g.end.Sub(g.start))
	}
	return out
}

// gap is a time without an acknowledgement.
type gap struct{ start, end time.Time }

// gaps lists the times between acknowledgements from start to end, both of which count as one. Acknowledgements come in
// the order of their times, but for the microseconds between two writers.
func gaps(acks []time.Time, start, end time.Time) []gap {
	out := make([]gap, 0, len(acks)+1)
	last := start
	for _, a := range acks {
		if a.After(last) {
			out = append(out, gap{last, a})
			last = a
		}
	}
	if end.After(last) {
		out = append(out, gap{last, end})
	}
	return out
}

// longest is the longest gap within [from, to] that counts.
func longest(acks []time.Time, start, end, from, to time.Time, counts func(gap) bool) time.Duration {
	var out time.Duration
	for _, g := range gaps(acks, start, end) {
		if g.end.Before(from) || g.start.After(to) || !counts(g) {
			continue
		}
		out = max(out, g.end.Sub(g.start))
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
