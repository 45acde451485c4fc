package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// NewestTimeline is the highest timeline pg_wal has the history of. Of a stopped primary that is its own.
func (s *Server) NewestTimeline() uint32 {
	return max(newestTimeline(filepath.Join(s.conf.Data, "pg_wal")), 1)
}

// timelineOf reads the timeline from the name of a file in pg_wal: a segment, a partial one, or a history.
func timelineOf(name string) (uint32, bool) {
	base, _, _ := strings.Cut(name, ".")
	if len(base) != 8 && len(base) != 24 {
		return 0, false
	}
	n, err := strconv.ParseUint(base[:8], 16, 32)
	return uint32(n), err == nil
}

// highestTimeline is that of any file in the directory of WAL wal, 0 without one.
func highestTimeline(wal string) (highest uint32) {
	entries, _ := os.ReadDir(wal)
	for _, e := range entries {
		if tli, ok := timelineOf(e.Name()); ok {
			highest = max(highest, tli)
		}
	}
	return highest
}

// KnowsTimelines says whether pg_wal has anything of one of the timelines.
func (s *Server) KnowsTimelines(timelines []uint32) bool {
	return len(s.filesOf(timelines)) > 0
}

func (s *Server) filesOf(timelines []uint32) (files []string) {
	dir := filepath.Join(s.conf.Data, "pg_wal")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if tli, ok := timelineOf(e.Name()); ok && slices.Contains(timelines, tli) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files
}

// ForgetTimelines removes all of the timelines from pg_wal. The server must be down, and must have no record of them: the
// caller has seen that its last record is of an older one.
func (s *Server) ForgetTimelines(timelines []uint32) error {
	if s.Running() {
		return errors.New("the server is running")
	}
	for _, file := range s.filesOf(timelines) {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("forgetting a timeline: %w", err)
		}
	}
	return syncDir(filepath.Join(s.conf.Data, "pg_wal"))
}
