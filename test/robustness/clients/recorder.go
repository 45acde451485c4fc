package clients

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/test/robustness/history"
)

// recorder writes the operations of all clients.
type recorder struct {
	began time.Time

	mu    sync.Mutex
	out   *history.Writer
	err   error // the first one of writing
	acked map[string]int
	other map[string]int
}

func newRecorder(out io.Writer) (*recorder, error) {
	r := &recorder{began: time.Now(), acked: map[string]int{}, other: map[string]int{}}
	var err error
	r.out, err = history.NewWriter(out, r.began)
	return r, err
}

// now is the time of operations: monotonic, of one clock for all clients.
func (r *recorder) now() int64 { return time.Since(r.began).Nanoseconds() }

func (r *recorder) ended(op history.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(r.out.Op(op))
	if op.Outcome == load.Acked {
		r.acked[op.Endpoint]++
	} else {
		r.other[op.Endpoint]++
	}
}

func (r *recorder) audit(entries []history.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(r.out.Audit(entries))
	return r.err
}

func (r *recorder) keep(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *recorder) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(r.out.Flush())
	return r.err
}

// report flushes the history and writes a line of progress again and again.
func (r *recorder) report(ctx context.Context, live io.Writer) {
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		r.keep(r.out.Flush())
		line := fmt.Sprintf("%7.1fs", time.Since(r.began).Seconds())
		for _, e := range slices.Sorted(maps.Keys(r.acked)) {
			line += fmt.Sprintf("  %s %d acked %d not", e, r.acked[e], r.other[e])
		}
		r.mu.Unlock()
		if live != nil {
			_, _ = fmt.Fprintln(live, line)
		}
	}
}
