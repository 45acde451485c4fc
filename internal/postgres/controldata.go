package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Control is what pg_controldata says.
type Control struct {
	// State is the cluster state, for example "in production", "shut down", "shut down in recovery".
	State      string
	System     uint64
	Checkpoint Position
	// MinRecovery is where a standby's data files became consistent last; zero for a primary.
	MinRecovery Position
	Segment     uint64
	// Floors are settings of the primary that a standby must have as much of.
	Floors map[string]int
	Text   string
}

// Clean says that a primary wrote its shutdown checkpoint: its WAL ends right behind it.
func (c Control) Clean() bool { return c.State == "shut down" }

// WasPrimary says that the server was last running as a primary.
func (c Control) WasPrimary() bool {
	switch c.State {
	case "in production", "shut down", "shutting down", "in crash recovery":
		return true
	}
	return false
}

// Control runs pg_controldata.
func (s *Server) Control(ctx context.Context) (Control, error) {
	cmd := exec.Command(s.bin("pg_controldata"), "-D", s.conf.Data)
	cmd.Env = toolEnv()
	out, err := s.procs.Run(ctx, cmd)
	if err != nil {
		return Control{}, err
	}
	return parseControl(out)
}

func parseControl(text string) (Control, error) {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			values[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	c := Control{State: values["Database cluster state"], Text: text}
	var err error
	number := func(name string, bits int) uint64 {
		v, e := strconv.ParseUint(values[name], 10, bits)
		if e != nil && err == nil {
			err = fmt.Errorf("pg_controldata: %s: %w", name, e)
		}
		return v
	}
	position := func(name string) LSN {
		v, e := ParseLSN(values[name])
		if e != nil && err == nil {
			err = fmt.Errorf("pg_controldata: %s: %w", name, e)
		}
		return v
	}
	c.System = number("Database system identifier", 64)
	c.Segment = number("Bytes per WAL segment", 64)
	c.Checkpoint = Position{LSN: position("Latest checkpoint location"), Timeline: uint32(number("Latest checkpoint's TimeLineID", 32))}
	c.MinRecovery = Position{LSN: position("Minimum recovery ending location"), Timeline: uint32(number("Min recovery ending loc's timeline", 32))}
	if err != nil {
		return c, err
	}
	c.Floors = map[string]int{}
	for name, f := range floors {
		if v, ok := values[f.control]; ok {
			if c.Floors[name], err = strconv.Atoi(v); err != nil {
				return c, fmt.Errorf("pg_controldata: %s: %w", f.control, err)
			}
		}
	}
	return c, nil
}

// ShutdownPosition is where the WAL of a cleanly stopped primary ends: behind its shutdown checkpoint.
func (s *Server) ShutdownPosition(c Control) (Position, error) {
	total, err := s.recordLength(c)
	if err != nil {
		return Position{}, err
	}
	return Position{LSN: RecordEnd(c.Checkpoint.LSN, total, c.Segment), Timeline: c.Checkpoint.Timeline}, nil
}

// recordLength reads xl_tot_len of the checkpoint record. It never straddles a page: records are aligned.
func (s *Server) recordLength(c Control) (uint32, error) {
	lsn := uint64(c.Checkpoint.LSN)
	f, err := os.Open(filepath.Join(s.conf.Data, "pg_wal", SegmentName(c.Checkpoint, c.Segment)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	var head [recordTotalLen]byte
	if _, err := f.ReadAt(head[:], int64(lsn%c.Segment)); err != nil {
		return 0, err
	}
	total := binary.NativeEndian.Uint32(head[:])
	if total < 24 || total > 8192 {
		return 0, fmt.Errorf("no checkpoint record at %s", c.Checkpoint.LSN)
	}
	return total, nil
}

// SegmentName is the name of the WAL file that holds the byte at p.
func SegmentName(p Position, segment uint64) string {
	n, per := uint64(p.LSN)/segment, (uint64(1)<<32)/segment
	return fmt.Sprintf("%08X%08X%08X", p.Timeline, n/per, n%per)
}
