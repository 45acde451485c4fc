package postgres

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"
)

// Switch is one line of a timeline history: Timeline ended at End (exclusive for records that start there).
type Switch struct {
	Timeline uint32
	End      LSN
}

// History is how timeline Timeline came to be: its ancestors, oldest first.
type History struct {
	Timeline  uint32
	Ancestors []Switch
}

// ParseHistory reads the text of a timeline history file (0000000N.history) of timeline tli. Timeline 1 has none: pass
// an empty text.
func ParseHistory(tli uint32, text string) (History, error) {
	h := History{Timeline: tli}
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return History{}, fmt.Errorf("history of timeline %d: %q has no switch point", tli, line)
		}
		ancestor, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return History{}, fmt.Errorf("history of timeline %d: %w", tli, err)
		}
		end, err := ParseLSN(fields[1])
		if err != nil {
			return History{}, fmt.Errorf("history of timeline %d: %w", tli, err)
		}
		if n := len(h.Ancestors); n > 0 && (h.Ancestors[n-1].Timeline >= uint32(ancestor) || h.Ancestors[n-1].End > end) {
			return History{}, fmt.Errorf("history of timeline %d: not in order at %q", tli, line)
		}
		h.Ancestors = append(h.Ancestors, Switch{Timeline: uint32(ancestor), End: end})
	}
	if n := len(h.Ancestors); n > 0 && h.Ancestors[n-1].Timeline >= tli {
		return History{}, fmt.Errorf("history of timeline %d names %d as an ancestor", tli, h.Ancestors[n-1].Timeline)
	}
	return h, scanner.Err()
}

// TimelineAt is the timeline of the last record of a WAL that ends at lsn: a record that ends exactly at a switch
// point still belongs to the older timeline.
func TimelineAt(h History, lsn LSN) uint32 {
	for _, a := range h.Ancestors {
		if lsn <= a.End {
			return a.Timeline
		}
	}
	return h.Timeline
}

// Contains says whether a WAL that ends at p is a prefix of history h, so that a server at p can follow a primary on h
// by streaming. The primary may itself be behind p only when p is on its newest timeline, which the caller has to rule
// out with the primary's position.
func Contains(h History, p Position) bool {
	for _, a := range h.Ancestors {
		if a.Timeline == p.Timeline {
			return p.LSN <= a.End
		}
	}
	return p.Timeline == h.Timeline
}
