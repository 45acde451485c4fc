package postgres

import (
	"bufio"
	"io"
	"os"
	"strings"
	"sync"
)

// Logs takes PostgreSQL's log lines: keeps the last ones for evidence, passes each on, and tells a listener. It never
// makes PostgreSQL wait: when the consumer of Out is slow, lines are dropped there (and kept here).
type Logs struct {
	mu    sync.Mutex
	lines []string
	next  int

	out chan string
	// listener is told of each line on the reader's goroutine; it must not block.
	listener func(line string)
}

const (
	logLines     = 2000
	logLineBytes = 4 << 10
)

// NewLogs starts passing lines on to w, each behind prefix. listener may be nil.
func NewLogs(w io.Writer, prefix string, listener func(string)) *Logs {
	l := &Logs{lines: make([]string, logLines), out: make(chan string, 512), listener: listener}
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
	l.lines[l.next%logLines] = line
	l.next++
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
		n := len(l.lines[(first-1)%logLines]) + 1
		if size+n > limit {
			break
		}
		size += n
		first--
	}
	out := make([]byte, 0, size)
	for i := first; i < l.next; i++ {
		out = append(append(out, l.lines[i%logLines]...), '\n')
	}
	return out
}
