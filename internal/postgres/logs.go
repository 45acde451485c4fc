package postgres

import (
	"bufio"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Logs takes PostgreSQL's log lines: keeps the last ones for evidence, passes each on, and tells a listener. It never
// makes PostgreSQL wait: when the consumer of Out is slow, lines are dropped there (and kept here).
type Logs struct {
	mu    sync.Mutex
	lines []LogLine
	next  int
	news  chan struct{} // closed at the next line; nil while nobody waits

	out chan string
	// listener is told of each line on the reader's goroutine; it must not block.
	listener func(line string)
}

// LogLine is one line and when it was read.
type LogLine struct {
	// Sequence counts the lines from 1.
	Sequence uint64
	At       time.Time
	Text     string
}

const (
	logLines     = 2000
	logLineBytes = 4 << 10
)

// NewLogs starts passing lines on to w, each behind prefix. listener may be nil.
func NewLogs(w io.Writer, prefix string, listener func(string)) *Logs {
	l := &Logs{lines: make([]LogLine, logLines), out: make(chan string, 512), listener: listener}
	go func() {
		for line := range l.out {
			_, _ = io.WriteString(w, prefix+line+"\n")
		}
	}()
	return l
}

// collect reads lines until the last process that holds the other end of the pipe has exited.
func (l *Logs) collect(r *os.File) {
	defer func() { _ = r.Close() }()
	reader := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := reader.ReadString('\n')
		if line = strings.TrimRight(line, "\n"); line != "" {
			l.add(line)
		}
		if err != nil {
			return
		}
	}
}

// Write takes whole lines, as slog writes them.
func (l *Logs) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		l.add(strings.TrimRight(line, "\n"))
	}
	return len(b), nil
}

func (l *Logs) add(line string) {
	if len(line) > logLineBytes {
		line = line[:logLineBytes] + " …"
	}
	l.mu.Lock()
	l.lines[l.next%logLines] = LogLine{Sequence: uint64(l.next) + 1, At: time.Now(), Text: line}
	l.next++
	if l.news != nil {
		close(l.news)
		l.news = nil
	}
	l.mu.Unlock()
	select {
	case l.out <- line:
	default:
	}
	if l.listener != nil {
		l.listener(line)
	}
}

// Tail is the last lines, no more than limit bytes.
func (l *Logs) Tail(limit int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	size, first := 0, l.next
	for first > 0 && l.next-first < logLines {
		n := len(l.lines[(first-1)%logLines].Text) + 1
		if size+n > limit {
			break
		}
		size += n
		first--
	}
	out := make([]byte, 0, size)
	for i := first; i < l.next; i++ {
		out = append(append(out, l.lines[i%logLines].Text...), '\n')
	}
	return out
}

// After gives the lines after the sequence, oldest first, no more than limit bytes but at least one, and how many between
// are no longer kept. A sequence from the future, of a process that is gone, counts as 0.
func (l *Logs) After(sequence uint64, limit int) (lines []LogLine, missed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := uint64(l.next)
	if sequence > next {
		sequence = 0
	}
	first := max(sequence, next-min(next, logLines))
	missed = first - sequence
	size := 0
	for i := first; i < next; i++ {
		line := l.lines[i%logLines]
		if size += len(line.Text) + 1; size > limit && len(lines) > 0 {
			break
		}
		lines = append(lines, line)
	}
	return lines, missed
}

// News is closed once a line with a higher sequence is there.
func (l *Logs) News(sequence uint64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if uint64(l.next) > sequence {
		there := make(chan struct{})
		close(there)
		return there
	}
	if l.news == nil {
		l.news = make(chan struct{})
	}
	return l.news
}
