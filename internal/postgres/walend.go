package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// EndOfWAL reads the WAL of a stopped server from its last checkpoint to the last valid record, as crash recovery would,
// and says where that ends. A primary that did not stop cleanly has to be asked this way: its last known position is too
// low, and starting it would take longer than an emergency has. The newest timeline in its pg_wal is its own, because a
// promotion picks a number above all it knows.
func (s *Server) EndOfWAL(ctx context.Context, c Control) (Position, error) {
	if !c.WasPrimary() {
		return Position{}, errors.New("it was not a primary")
	}
	dir := filepath.Join(s.conf.Data, "pg_wal")
	newest := max(newestTimeline(dir), c.Checkpoint.Timeline)
	text, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%08X.history", newest)))
	if err != nil && (newest != 1 || !errors.Is(err, os.ErrNotExist)) {
		return Position{}, err
	}
	history, err := ParseHistory(newest, string(text))
	if err != nil {
		return Position{}, err
	}
	end, err := walEndFrom(ctx, &walFiles{dir: dir, segment: c.Segment, history: history}, c.Checkpoint.LSN)
	if err != nil {
		return Position{}, err
	}
	return Position{LSN: end, Timeline: TimelineAt(history, end)}, nil
}

// Whole is p without the beginning of a record at its end, as far as that matters to following a primary of history h. What
// nobody waited for is shipped in whole pages, so a primary that died may have left its standbys a record that ends
// nowhere. The one that is promoted begins its timeline before it; for the others, which have it, too, nothing of what was
// begun is a record, and nobody was told that it was durable. Where h does not leave p's timeline before p, or a record is
// whole beyond that point, the answer is p.
func (s *Server) Whole(ctx context.Context, h History, p Position) (Position, error) {
	i := slices.IndexFunc(h.Ancestors, func(a Switch) bool { return a.Timeline == p.Timeline && a.End < p.LSN })
	if i < 0 {
		return p, nil
	}
	left := h.Ancestors[i].End
	control, err := s.Control(ctx)
	if err != nil {
		return p, err
	}
	own, err := ParseHistory(p.Timeline, s.HistoryOf(p.Timeline))
	if err != nil {
		return p, err
	}
	whole, err := wholeBeyond(ctx, &walFiles{dir: filepath.Join(s.conf.Data, "pg_wal"), segment: control.Segment, history: own}, left)
	if err != nil || whole {
		return p, err
	}
	return Position{LSN: left, Timeline: p.Timeline}, nil
}

// wholeBeyond reports whether the record that begins at left is whole. That its page is gone is an error: it proves nothing.
func wholeBeyond(ctx context.Context, pages walPages, left LSN) (bool, error) {
	at := skipPageHead(uint64(left), pages.segmentSize())
	if validPage(pages, at-at%walPage) == nil {
		return false, fmt.Errorf("there is no WAL at %s", left)
	}
	switch _, err := walEndFrom(ctx, pages, LSN(at)); {
	case errors.Is(err, errNoRecord):
		return false, nil
	default:
		return err == nil, err
	}
}

// newestTimeline is the highest number of a history file in dir, 0 without one.
func newestTimeline(dir string) (newest uint32) {
	files, _ := filepath.Glob(filepath.Join(dir, "????????.history"))
	for _, f := range files {
		if n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(f), ".history"), 16, 32); err == nil {
			newest = max(newest, uint32(n))
		}
	}
	return newest
}

// walPages gives the page that starts at an LSN; nil when there is none.
type walPages interface {
	page(at uint64) []byte
	segmentSize() uint64
}

// walFiles reads pages from segment files, keeping one segment in memory.
type walFiles struct {
	dir     string
	segment uint64
	history History
	number  uint64
	data    []byte
}

func (w *walFiles) segmentSize() uint64 { return w.segment }

func (w *walFiles) page(at uint64) []byte {
	if n := at / w.segment; w.data == nil || n != w.number {
		w.number, w.data = n, w.read(n)
	}
	offset := at % w.segment
	if uint64(len(w.data)) < offset+walPage {
		return nil
	}
	return w.data[offset : offset+walPage]
}

// read reads a segment from the newest timeline that has it: at a promotion the segment of the switch point is copied to
// the new timeline. A timeline is not looked at for segments before its beginning.
func (w *walFiles) read(n uint64) []byte {
	for i := len(w.history.Ancestors); i >= 0; i-- {
		timeline, begin := w.history.Timeline, LSN(0)
		if i < len(w.history.Ancestors) {
			timeline = w.history.Ancestors[i].Timeline
		}
		if i > 0 {
			begin = w.history.Ancestors[i-1].End
		}
		if n < uint64(begin)/w.segment {
			continue
		}
		name := SegmentName(Position{LSN: LSN(n * w.segment), Timeline: timeline}, w.segment)
		if data, err := os.ReadFile(filepath.Join(w.dir, name)); err == nil {
			return data
		}
	}
	return []byte{}
}

const (
	recordHead     = 24
	recordCRC      = 20 // offset of xl_crc, the last field of the header
	recordPrev     = 8
	recordInfo     = 16
	recordManager  = 17
	longestRecord  = 1 << 30
	walSwitchInfo  = 0x40 // XLOG_SWITCH of resource manager 0
	pageOverwrites = 0x0008
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errNoRecord = errors.New("no valid record")

// walEndFrom follows the chain of records that begins at first, which must be one, and returns the end of the last that
// is whole: right length, right checksum, and naming its predecessor.
func walEndFrom(ctx context.Context, pages walPages, first LSN) (LSN, error) {
	at, prev, end := uint64(first), uint64(0), LSN(0)
	for checked := 0; ; checked++ {
		if checked%1024 == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		record, next, resume := readRecord(pages, at)
		if resume != 0 {
			at, prev = resume, 0 // a torn record that a later start has declared void
			continue
		}
		if record == nil || !validRecord(record, prev) {
			if end == 0 {
				return 0, fmt.Errorf("%w at %s", errNoRecord, first)
			}
			return end, nil
		}
		if record[recordManager] == 0 && record[recordInfo]&0xF0 == walSwitchInfo {
			size := pages.segmentSize() // the rest of the segment belongs to it
			next = (next + size - 1) / size * size
		}
		end, prev = LSN(next), at
		at = skipPageHead(next, pages.segmentSize())
	}
}

func validRecord(record []byte, prev uint64) bool {
	if prev != 0 && binary.NativeEndian.Uint64(record[recordPrev:]) != prev {
		return false
	}
	sum := crc32.Update(0, castagnoli, record[recordHead:])
	sum = crc32.Update(sum, castagnoli, record[:recordCRC])
	return sum == binary.NativeEndian.Uint32(record[recordCRC:])
}

// readRecord collects the record at at from its pages. next is where its end is, aligned; nil means there is none.
// resume is not 0 when the continuation was overwritten: reading goes on there.
func readRecord(pages walPages, at uint64) (record []byte, next, resume uint64) {
	page := validPage(pages, at-at%walPage)
	if page == nil {
		return nil, 0, 0
	}
	total := uint64(binary.NativeEndian.Uint32(page[at%walPage:]))
	if total < recordHead || total > longestRecord {
		return nil, 0, 0
	}
	record = make([]byte, 0, min(total, 64<<10))
	for {
		offset := at % walPage
		n := min(walPage-offset, total-uint64(len(record)))
		record = append(record, page[offset:offset+n]...)
		at += n
		if uint64(len(record)) == total {
			return record, (at + walAlign - 1) &^ (walAlign - 1), 0
		}
		if page = validPage(pages, at); page == nil {
			return nil, 0, 0
		}
		if binary.NativeEndian.Uint16(page[2:])&pageOverwrites != 0 {
			return nil, 0, skipPageHead(at, pages.segmentSize())
		}
		if uint64(binary.NativeEndian.Uint32(page[16:])) != total-uint64(len(record)) {
			return nil, 0, 0 // not the continuation of this record
		}
		at = skipPageHead(at, pages.segmentSize())
	}
}

// validPage is the page at at if its header says that it is that page; a recycled segment says otherwise.
func validPage(pages walPages, at uint64) []byte {
	page := pages.page(at)
	if page == nil || binary.NativeEndian.Uint64(page[8:]) != at || binary.NativeEndian.Uint16(page) == 0 {
		return nil
	}
	return page
}

// skipPageHead moves a position at the very beginning of a page behind the page's header.
func skipPageHead(at, segment uint64) uint64 {
	switch {
	case at%segment == 0:
		return at + longPageHead
	case at%walPage == 0:
		return at + shortPageHead
	}
	return at
}
