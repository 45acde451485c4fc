package result

import (
	"math"
	"slices"
)

// Quantile is the smallest value that at least the share q (0 < q ≤ 1) of the values does not exceed: the nearest rank.
// No value is invented by interpolation, so that the p95 of ten values is the worst of them. NaN of no values.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q*float64(len(sorted)) - 1e-9))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the middle value, or the mean of the two in the middle. NaN of no values.
func Median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// Cell is the figures of one system under one fault.
type Cell struct {
	System string `json:"system"`
	Fault  string `json:"fault"`
	// N repetitions were measured, Unrecovered of which the system did not recover from by itself. In Closed of them no
	// client that came after the fault could write.
	N           int `json:"n"`
	Unrecovered int `json:"unrecovered"`
	Closed      int `json:"closed,omitempty"`
	// Invalid repetitions say nothing about the system.
	Invalid int `json:"invalid"`

	StallMedianMS float64 `json:"stallMedianMs"`
	StallP95MS    float64 `json:"stallP95Ms"`
	StallMinMS    float64 `json:"stallMinMs"`
	StallMaxMS    float64 `json:"stallMaxMs"`
	// RepairStallMaxMS is the worst stall caused by the repair.
	RepairStallMaxMS float64 `json:"repairStallMaxMs"`

	ErrorsMedian float64 `json:"errorsMedian"`
	ErrorsMax    float64 `json:"errorsMax"`
	// UnknownMedian is the part of the errors whose outcome the client could not know.
	UnknownMedian float64 `json:"unknownMedian"`
	// Codes counts the errors of all repetitions, those of the repair included, by code (see load.Op).
	Codes map[string]int64 `json:"codes,omitempty"`

	// Lost is the sum of acknowledged writes that are missing; Unverified is in how many repetitions nobody could look.
	Lost       int64 `json:"lost"`
	Unverified int   `json:"unverified"`

	HealthyMedianMS float64 `json:"healthyMedianMs"`
	SteadyRate      float64 `json:"steadyRateMedian"`
	SteadyStallMS   float64 `json:"steadyStallMedianMs"`
}

// Cells makes the figures of all runs, in the given orders of faults and systems. Pairs without any run are left out.
func Cells(runs []Run, faults, systems []string) []Cell {
	var out []Cell
	for _, f := range faults {
		for _, s := range systems {
			if c := cell(runs, s, f); c.N+c.Invalid > 0 {
				out = append(out, c)
			}
		}
	}
	return out
}

func cell(runs []Run, system, fault string) Cell {
	c := Cell{System: system, Fault: fault}
	var stalls, errs, unknown, healthy, rate, noise []float64
	for _, r := range runs {
		switch {
		case r.System != system || r.Fault != fault:
			continue
		case !r.Measured:
			c.Invalid++
			continue
		}
		c.N++
		for code, n := range r.Errors {
			if c.Codes == nil {
				c.Codes = map[string]int64{}
			}
			c.Codes[code] += n
		}
		stalls = append(stalls, r.StallMS)
		errs = append(errs, float64(r.ClientErrors()))
		unknown = append(unknown, float64(r.Unknown))
		rate, noise = append(rate, r.SteadyRate), append(noise, r.SteadyStallMS)
		if r.HealthyMS > 0 {
			healthy = append(healthy, r.HealthyMS)
		}
		c.RepairStallMaxMS = max(c.RepairStallMaxMS, r.RepairStallMS)
		if !r.Recovered {
			c.Unrecovered++
		}
		if r.Closed {
			c.Closed++
		}
		if r.Verified {
			c.Lost += r.Lost
		} else {
			c.Unverified++
		}
	}
	if c.N == 0 {
		return c
	}
	c.StallMedianMS, c.StallP95MS = Median(stalls), Quantile(stalls, 0.95)
	c.StallMinMS, c.StallMaxMS = slices.Min(stalls), slices.Max(stalls)
	c.ErrorsMedian, c.ErrorsMax, c.UnknownMedian = Median(errs), slices.Max(errs), Median(unknown)
	c.SteadyRate, c.SteadyStallMS = Median(rate), Median(noise)
	if len(healthy) > 0 {
		c.HealthyMedianMS = Median(healthy)
	}
	return c
}
