package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
)

// Progress is how far a seeding is, in bytes; safe for concurrent use.
type Progress struct{ done, total atomic.Uint64 }

// Get is bytes copied and expected; both 0 before it is known.
func (p *Progress) Get() (done, total uint64) { return p.done.Load(), p.total.Load() }

// Seed copies the data directory of source, which may be a standby. The copy is made beside the data directory and renamed
// when it is complete and flushed, so that a crash midway leaves something recognisable. There must be no data directory.
// The copy carries mark: see SeedMark. Before it is renamed, accept is called with the highest timeline of its WAL; should
// that fail, so does Seed.
func (s *Server) Seed(ctx context.Context, source Upstream, mark string, progress *Progress, accept func(ctx context.Context, timeline uint32) error) error {
	if s.Initialised() {
		return errors.New("there is a data directory already")
	}
	if err := s.Discard(); err != nil {
		return err
	}
	conf := s.config()
	conninfo := conf.conninfo(source, filepath.Join(conf.tlsDir(), "tls.key")) +
		// A slow volume here must not look like a dead receiver there.
		" application_name=" + connQuote(applicationPrefix+" seed "+conf.Instance) + " options='-c wal_sender_timeout=60s'"
	cmd := exec.Command(s.bin("pg_basebackup"), "--dbname="+conninfo, "--pgdata="+s.seeding(), "--wal-method=stream",
		"--checkpoint=fast", "--progress", "--no-password")
	cmd.Env = toolEnv()
	errs := &tail{limit: 4 << 10}
	cmd.Stderr = &progressWriter{progress: progress, rest: errs}
	if _, err := s.procs.Run(ctx, cmd); err != nil {
		return fmt.Errorf("%w: %s", err, complaint(errs.String()))
	}
	for _, name := range []string{"standby.signal", "recovery.signal", "backup_manifest"} {
		if err := os.Remove(filepath.Join(s.seeding(), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := writeSynced(filepath.Join(s.seeding(), seedFile), mark); err != nil {
		return err
	}
	if err := syncDir(s.seeding()); err != nil {
		return err
	}
	if err := accept(ctx, highestTimeline(filepath.Join(s.seeding(), "pg_wal"))); err != nil {
		return err
	}
	if err := os.Rename(s.seeding(), conf.Data); err != nil {
		return err
	}
	return syncDir(filepath.Dir(conf.Data))
}

// complaint is what a tool says went wrong: its last line with an error, or else its last line.
func complaint(stderr string) string {
	found := lastLine([]byte(stderr))
	for line := range strings.Lines(stderr) {
		if strings.Contains(line, "error:") || strings.Contains(line, "FATAL:") {
			found = strings.TrimSpace(line)
		}
	}
	return found
}

// seedFile is in a seeded data directory, and in those seeded from it, until overwritten.
const seedFile = "theseus.seed"

// SeedMark is the mark of the Seed that made the data directory, "" for none. After a crash it tells whether the data
// directory is the finished copy or still the one it was to replace.
func (s *Server) SeedMark() string {
	data, _ := os.ReadFile(filepath.Join(s.conf.Data, seedFile))
	return string(data)
}

func writeSynced(path, text string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// progressWriter reads pg_basebackup's progress lines, which end in a carriage return.
type progressWriter struct {
	progress *Progress
	rest     *tail
	line     []byte
}

var progressLine = regexp.MustCompile(`(\d+)/(\d+) kB \(`)

func (w *progressWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		end := bytes.IndexAny(b, "\r\n")
		if end < 0 {
			w.line = append(w.line, b...)
			break
		}
		w.flush(append(w.line, b[:end]...))
		w.line, b = w.line[:0], b[end+1:]
	}
	if len(w.line) > 4<<10 {
		w.line = w.line[:0]
	}
	return n, nil
}

func (w *progressWriter) flush(line []byte) {
	m := progressLine.FindSubmatch(line)
	if m == nil {
		if len(bytes.TrimSpace(line)) > 0 {
			_, _ = w.rest.Write(append(bytes.Clone(line), '\n'))
		}
		return
	}
	done, _ := strconv.ParseUint(string(m[1]), 10, 64)
	total, _ := strconv.ParseUint(string(m[2]), 10, 64)
	w.progress.done.Store(done << 10)
	w.progress.total.Store(max(done, total) << 10)
}

// Rewind makes the data directory a copy of an ancestor of source's by copying what differs (pg_rewind). The server must
// be down and source must be a primary. After an error the directory is unusable and must be seeded again: the caller has
// to remember, durably and before the call, that one was begun.
func (s *Server) Rewind(ctx context.Context, source Upstream) error {
	if s.Running() {
		return errors.New("the server is running")
	}
	if err := s.awaitCleaned(ctx); err != nil {
		return err
	}
	conf := s.config()
	if err := conf.writeConfig(Runtime{Sync: ""}); err != nil {
		return err
	}
	conninfo := conf.conninfo(source, filepath.Join(conf.tlsDir(), "tls.key")) + " dbname=postgres application_name=" +
		connQuote(applicationPrefix+" rewind")
	cmd := exec.Command(s.bin("pg_rewind"), "--target-pgdata="+conf.Data, "--source-server="+conninfo,
		"--config-file="+filepath.Join(conf.confDir(), "postgresql.conf"))
	cmd.Env = toolEnv()
	_, err := s.procs.Run(ctx, cmd)
	return err
}
