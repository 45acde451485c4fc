package load

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"
)

// How much a Follower keeps: lines of any kind, and seconds.
const (
	followedLines   = 20
	followedSeconds = 10
)

// Follower keeps the end of what a theseus-load says; it is what the process writes its errors to. Its zero value is
// ready, and it may be written and asked at the same time.
type Follower struct {
	mu      sync.Mutex
	partial []byte
	tail    []string
	recent  []second
}

// second is a line of progress and when it was read.
type second struct {
	at     time.Time
	writes int64
}

// Write takes what the process writes, which need not end with a line.
func (f *Follower) Write(b []byte) (int, error) { return f.write(b, time.Now()) }

func (f *Follower) write(b []byte, now time.Time) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.partial = append(f.partial, b...)
	for {
		line, rest, whole := bytes.Cut(f.partial, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		f.partial = rest
		f.line(string(line), now)
	}
}

func (f *Follower) line(text string, now time.Time) {
	f.tail = last(append(f.tail, text), followedLines)
	if p, ok := ParseProgress(text); ok {
		f.recent = last(append(f.recent, second{now, p.PerSecond}), followedSeconds)
	}
}

func last[T any](all []T, n int) []T { return all[max(0, len(all)-n):] }

// String is the end of it, at most 20 lines and what was said of the next.
func (f *Follower) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(append(slices.Clone(f.tail), string(f.partial)), "\n")
}

// Writing says whether something was written in each of the last n seconds that the load told of, at most 10, all of
// them after a moment.
func (f *Follower) Writing(n int, after time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.recent) < n {
		return false
	}
	for _, s := range last(f.recent, n) {
		if s.at.Add(-time.Second).Before(after) || s.writes == 0 {
			return false
		}
	}
	return true
}
