package lifetime

import (
	"slices"
	"time"
)

// Lead is how long before its maximum age an object's replacement has to begin, given how long recent ones took
// (seeding included): twice the 95th percentile, because the next one may be the slowest yet and may need a second
// attempt, plus margin for being told to wait. At least a minute, at most half of maxAge. Without measurements it is
// maxAge/48 (14.5 h of 29 days).
func Lead(took []time.Duration, margin, maxAge time.Duration) time.Duration {
	if len(took) == 0 {
		return max(min(maxAge/48+margin, maxAge/2), min(time.Minute, maxAge/2))
	}
	return min(max(2*percentile(took, 0.95)+margin, time.Minute), maxAge/2)
}

// Service is how long a replacement usually takes: the median, or def without measurements.
func Service(took []time.Duration, def time.Duration) time.Duration {
	if len(took) == 0 {
		return def
	}
	return percentile(took, 0.5)
}

func percentile(took []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(took))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}
