package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"theseus.dev/theseus/internal/clip"
	"theseus.dev/theseus/internal/story"
)

// screen shows a chronicle: drawn over and over on a terminal, a line per event anywhere else.
type screen struct {
	out      *os.File
	terminal bool
	drawn    int      // lines of the last frame
	recent   []string // the last news, below the frame
}

func newScreen(out *os.File) *screen {
	return &screen{out: out, terminal: term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"}
}

// recentLines are shown below the drawing.
const recentLines = 6

func (s *screen) show(c *story.Chronicle, title string, news []string) {
	for _, n := range news {
		line := fmt.Sprintf("%6s  %s", c.Last.At.Sub(c.Begun).Round(time.Second), n)
		s.recent = append(s.recent, line)
		if !s.terminal {
			fmt.Fprintln(s.out, line)
		}
	}
	s.recent = s.recent[max(0, len(s.recent)-recentLines):]
	if !s.terminal {
		return
	}
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil {
		width, height = 100, 40
	}
	lines := append(c.Draw(title, width-1, height-recentLines-3), "")
	for _, r := range s.recent {
		lines = append(lines, clip.Columns(r, width-1))
	}
	s.erase()
	fmt.Fprintln(s.out, strings.Join(lines, "\n"))
	s.drawn = len(lines)
}

// erase takes the last frame away, so that what follows is printed where it was.
func (s *screen) erase() {
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
		s.drawn = 0
	}
}

// keep leaves the last frame where it is.
func (s *screen) keep() { s.drawn = 0 }
