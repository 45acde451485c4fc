// Package progress tells a person what a command is doing and how long each
// step took.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Log writes one line per finished step. It is safe for concurrent use.
type Log struct {
	Out   io.Writer
	Clock clock.PassiveClock
	mu    sync.Mutex
}

// Step runs f and reports what it did, for how long, and whether it worked.
func (l *Log) Step(what string, f func() error) error {
	start := l.Clock.Now()
	err := f()
	took := l.Clock.Since(start).Round(10 * time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		fmt.Fprintf(l.Out, "  %-56s failed after %s\n", what, took)
		return err
	}
	fmt.Fprintf(l.Out, "  %-56s %6.1fs\n", what, took.Seconds())
	return nil
}

// Say writes a line that is not a step.
func (l *Log) Say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.Out, format+"\n", args...)
}
