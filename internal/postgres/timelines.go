package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
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

func (s *Server) historyFile(tli uint32) string {
	return filepath.Join(s.conf.Data, "pg_wal", fmt.Sprintf("%08X.history", tli))
}

// HistoryOf is the text of the history file of a timeline, "" without one.
func (s *Server) HistoryOf(tli uint32) string {
	text, err := os.ReadFile(s.historyFile(tli))
	if err != nil {
		return ""
	}
	return string(text)
}

// LearnTimeline gives a standby that waits for an upstream the history file of the upstream's timeline, so that it asks for
// this timeline at once. Otherwise its WAL receiver fetches the file, streams the end of the old timeline, which is
// nothing, and begins anew: some 50 ms on a busy machine, which a new primary waits for. The WAL here must end at end,
// exactly where the timeline begins. Anything else is left to PostgreSQL.
func (s *Server) LearnTimeline(tli uint32, text string, end Position) error {
	h, err := ParseHistory(tli, text)
	if err != nil {
		return err
	}
	if len(h.Ancestors) == 0 || h.Ancestors[len(h.Ancestors)-1] != (Switch{Timeline: end.Timeline, End: end.LSN}) {
		return nil
	}
	path := s.historyFile(tli)
	if _, err := os.Stat(path); err == nil {
		return nil // PostgreSQL has fetched it itself
	}
	// On the device before any WAL of the timeline is: without it, recovery would not find that WAL.
	if err := writeDurably(path, []byte(text)); err != nil {
		return err
	}
	for _, pid := range s.auxiliaries("startup") {
		_ = syscall.Kill(pid, syscall.SIGHUP) // it looks for new timelines when it is woken
	}
	return nil
}

// writeDurably writes a file that is there whole after a power cut, or not at all.
func writeDurably(path string, data []byte) error {
	tmp := path + ".theseus"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
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
