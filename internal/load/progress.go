package load

import "fmt"

// Progress is the line per second of a run.
type Progress struct {
	// Seconds since the beginning; PerSecond are the writes acknowledged since the line before.
	Seconds   float64
	PerSecond int64
	// Failed and Unknown operations so far.
	Failed, Unknown int64
	// StallMS is the time since the last acknowledgement, LongestStallMS the longest so far.
	StallMS, LongestStallMS float64
}

const progressFormat = "%6.1fs  %6d writes/s  %5d failed  %5d unknown  since last write %6.1f ms  longest stall %7.1f ms"

// String is the line.
func (p Progress) String() string {
	return fmt.Sprintf(progressFormat, p.Seconds, p.PerSecond, p.Failed, p.Unknown, p.StallMS, p.LongestStallMS)
}

// ParseProgress reads a line of theseus-load; ok is false for any other line.
func ParseProgress(line string) (p Progress, ok bool) {
	n, err := fmt.Sscanf(line, "%fs %d writes/s %d failed %d unknown since last write %f ms longest stall %f ms",
		&p.Seconds, &p.PerSecond, &p.Failed, &p.Unknown, &p.StallMS, &p.LongestStallMS)
	return p, err == nil && n == 6
}
