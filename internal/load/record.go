package load

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxSamples bounds the examples in a Summary.
const maxSamples = 20

// Summary is what happened in a run.
type Summary struct {
	Started time.Time `json:"started"`
	// Seconds from the first operation to the end of the last.
	Seconds float64 `json:"seconds"`
	Writers int     `json:"writers"`

	Acked   int64 `json:"acked"`
	Failed  int64 `json:"failed"`
	Unknown int64 `json:"unknown"`
	// Warned is how many of the unknown the server said yes to, but warned that no standby has them.
	Warned int64 `json:"warned"`
	// Errors by code (see Op.Code); their sum is Failed + Unknown.
	Errors map[string]int64 `json:"errors"`
	// Samples of operations that were not acked.
	Samples []Op `json:"samples,omitempty"`

	PerSecond float64 `json:"ackedPerSecond"`
	// LongestStallMS is the longest time without any acknowledgement, and where it began.
	LongestStallMS float64   `json:"longestStallMs"`
	LongestStallAt time.Time `json:"longestStallAt"`
	// WriterStallMS is the longest time each writer went without one.
	WriterStallMS []float64 `json:"writerStallMs"`
	// Latency of acknowledged operations.
	LatencyMS Latency `json:"latencyMs"`

	// Verified is true when all rows could be read back; the rest is meaningless when it is false.
	Verified bool `json:"verified"`
	// Lost is the number of acknowledged writes that are missing: the one number that must be 0.
	Lost        int64 `json:"lost"`
	LostSamples []Op  `json:"lostSamples,omitempty"`
	// UnknownPresent is how many writes of unknown outcome are there.
	UnknownPresent int64 `json:"unknownPresent"`
	// FailedPresent is how many writes are there although they failed: not lost data, but a lie of the server or a
	// mistake in this client's judgement.
	FailedPresent int64 `json:"failedPresent"`

	// Ops in the order in which they ended, if Config.KeepOps.
	Ops []Op `json:"ops,omitempty"`
}

// Latency is a distribution, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// StallWithin is the longest time without an acknowledgement that overlaps [from, to]. It needs Config.KeepOps.
func (s *Summary) StallWithin(from, to time.Time) time.Duration {
	var longest time.Duration
	last := s.Started
	for _, op := range s.Ops {
		if op.Outcome != Acked {
			continue
		}
		if op.End.After(from) && last.Before(to) {
			longest = max(longest, op.End.Sub(last))
		}
		last = op.End
	}
	return longest
}

// recorder collects the operations of all writers.
type recorder struct {
	config Config
	start  time.Time

	mu        sync.Mutex
	lastAck   time.Time
	writerAck []time.Time
	s         Summary
	latencies []float64 // of each acknowledged operation, in the order in which they ended
	outcomes  []writerOps

	// What the line before has told: so many of the latencies. The longest stall that has ended since.
	told   int
	recent float64
}

// writerOps is the sequence numbers of one writer by outcome. Most are acked, so those that are not are kept.
type writerOps struct {
	last    int64
	notAcks map[int64]Outcome
}

func newRecorder(c Config) *recorder {
	now := c.Clock.Now()
	r := &recorder{config: c, start: now, lastAck: now}
	r.s = Summary{Started: now, Writers: c.Writers, Errors: map[string]int64{}, WriterStallMS: make([]float64, c.Writers)}
	for range c.Writers {
		r.writerAck = append(r.writerAck, now)
		r.outcomes = append(r.outcomes, writerOps{notAcks: map[int64]Outcome{}})
	}
	return r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (r *recorder) ended(op Op) {
	if r.config.Observe != nil {
		defer r.config.Observe(op)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &r.outcomes[op.Writer]
	w.last = op.Seq
	if r.config.KeepOps {
		r.s.Ops = append(r.s.Ops, op)
	}
	switch op.Outcome {
	case Acked:
		r.s.Acked++
		r.latencies = append(r.latencies, ms(op.End.Sub(op.Start)))
		r.gap(op.Writer, op.End)
		r.writerAck[op.Writer] = op.End
		if op.End.After(r.lastAck) {
			r.lastAck = op.End
		}
		return
	case Failed:
		r.s.Failed++
	case Unknown:
		r.s.Unknown++
		if op.Code == CodeWarning {
			r.s.Warned++
		}
	}
	w.notAcks[op.Seq] = op.Outcome
	r.s.Errors[op.Code]++
	if len(r.s.Samples) < maxSamples {
		r.s.Samples = append(r.s.Samples, op)
	}
}

// gap takes the time since the last acknowledgement into account; the mutex is held.
func (r *recorder) gap(writer int, now time.Time) {
	stall := ms(now.Sub(r.lastAck))
	if stall > r.s.LongestStallMS {
		r.s.LongestStallMS, r.s.LongestStallAt = stall, r.lastAck
	}
	r.recent = max(r.recent, stall)
	r.s.WriterStallMS[writer] = max(r.s.WriterStallMS[writer], ms(now.Sub(r.writerAck[writer])))
}

func (r *recorder) summary() *Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Clock.Now()
	for i := range r.outcomes {
		r.gap(i, now)
	}
	s := r.s
	s.Seconds = now.Sub(r.start).Seconds()
	if s.Seconds > 0 {
		s.PerSecond = float64(s.Acked) / s.Seconds
	}
	s.LatencyMS = distribution(r.latencies)
	return &s
}

// distribution of latencies, which are left as they are.
func distribution(latencies []float64) Latency {
	n := len(latencies)
	if n == 0 {
		return Latency{}
	}
	sorted := slices.Clone(latencies)
	slices.Sort(sorted)
	return Latency{P50: sorted[n/2], P99: sorted[n*99/100], Max: sorted[n-1]}
}

// compare judges what was read back: there[writer] has every seq of that writer's rows.
func (r *recorder) compare(there []map[int64]bool, s *Summary) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for writer, w := range r.outcomes {
		for seq := int64(1); seq <= w.last; seq++ {
			outcome, ok := w.notAcks[seq]
			if !ok {
				outcome = Acked
			}
			switch present := there[writer][seq]; {
			case outcome == Acked && !present:
				s.Lost++
				if len(s.LostSamples) < maxSamples {
					s.LostSamples = append(s.LostSamples, Op{Writer: writer, Seq: seq, Outcome: Acked})
				}
			case outcome == Unknown && present:
				s.UnknownPresent++
			case outcome == Failed && present:
				s.FailedPresent++
			}
		}
	}
	s.Verified = true
}

// report writes a line per second until the context ends.
func (r *recorder) report(ctx context.Context) {
	tick := r.config.Clock.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		_, _ = fmt.Fprintln(r.config.Live, r.progress())
	}
}

// progress is the next line. Writers do not wait for its arithmetic.
func (r *recorder) progress() Progress {
	r.mu.Lock()
	now, since := r.config.Clock.Now(), r.latencies[r.told:]
	stall := ms(now.Sub(r.lastAck))
	p := Progress{
		Seconds: now.Sub(r.start).Seconds(), PerSecond: int64(len(since)), Failed: r.s.Failed, Unknown: r.s.Unknown,
		StallMS: stall, RecentStallMS: max(r.recent, stall), LongestStallMS: max(r.s.LongestStallMS, stall),
	}
	r.told, r.recent = len(r.latencies), 0
	r.mu.Unlock()
	latency := distribution(since)
	p.P50MS, p.P99MS = latency.P50, latency.P99
	return p
}
