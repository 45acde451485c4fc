package load

import "fmt"

// Progress is the line per second of a run. All of it but what is said to be so far is about the time since the line before.
type Progress struct {
	// Seconds since the beginning; PerSecond are the writes acknowledged since the line before.
	Seconds   float64
	PerSecond int64
	// P50MS and P99MS are the latency of those writes, 0 when there were none.
	P50MS, P99MS float64
	// Failed and Unknown operations so far.
	Failed, Unknown int64
	// StallMS is the time since the last acknowledgement, RecentStallMS the longest time without one that ended since the line
	// before or goes on, LongestStallMS the longest so far.
	StallMS, RecentStallMS, LongestStallMS float64
}

const progressFormat = "%6.1fs  %6d writes/s  p50 %6.1f ms  p99 %7.1f ms  %5d failed  %5d unknown  " +
	"since last write %6.1f ms  recent stall %7.1f ms  longest stall %7.1f ms"

// String is the line.
func (p Progress) String() string {
	return fmt.Sprintf(progressFormat, p.Seconds, p.PerSecond, p.P50MS, p.P99MS, p.Failed, p.Unknown, p.StallMS, p.RecentStallMS, p.LongestStallMS)
}

// ParseProgress reads a line of theseus-load; ok is false for any other line.
func ParseProgress(line string) (p Progress, ok bool) {
	n, err := fmt.Sscanf(line, "%fs %d writes/s p50 %f ms p99 %f ms %d failed %d unknown since last write %f ms recent stall %f ms longest stall %f ms",
		&p.Seconds, &p.PerSecond, &p.P50MS, &p.P99MS, &p.Failed, &p.Unknown, &p.StallMS, &p.RecentStallMS, &p.LongestStallMS)
	return p, err == nil && n == 9
}
