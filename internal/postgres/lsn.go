// Package postgres is one PostgreSQL server (15 and later) as a Go value: create, start, stop, promote, follow, rewind,
// seed, and where its WAL ends. It knows nothing of terms, cohorts' records or Kubernetes; package agent decides.
package postgres

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the WAL: bytes since the beginning of the cluster's history.
type LSN uint64

// String is PostgreSQL's form, "16/B374D848".
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads PostgreSQL's form.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(strings.TrimSpace(s), "/")
	if !ok {
		return 0, fmt.Errorf("%q is not an LSN", s)
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not an LSN: %w", s, err)
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not an LSN: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

// Position is where WAL ends, and on which timeline the last record is.
type Position struct {
	LSN      LSN
	Timeline uint32
}

const (
	walPage        = 8192
	shortPageHead  = 24
	longPageHead   = 40
	walAlign       = 8
	recordTotalLen = 4 // bytes of xl_tot_len, the first field of a record
)

// RecordEnd is the LSN just behind a WAL record that starts at start and is total bytes long (xl_tot_len), rounded up
// to PostgreSQL's alignment. Records flow over page boundaries, where a page header is inserted: a long one on the
// first page of a segment.
func RecordEnd(start LSN, total uint32, segment uint64) LSN {
	pos, left := uint64(start), uint64(total)
	for {
		room := walPage - pos%walPage
		if left <= room {
			pos += left
			break
		}
		left -= room
		pos += room
		if pos%segment == 0 {
			pos += longPageHead
		} else {
			pos += shortPageHead
		}
	}
	return LSN((pos + walAlign - 1) &^ (walAlign - 1))
}
