package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLSN(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := LSN(rapid.Uint64().Draw(t, "lsn"))
		got, err := ParseLSN(l.String())
		require.NoError(t, err)
		require.Equal(t, l, got)
	})
	for _, s := range []string{"", "0", "x/0", "0/x", "0/100000000", "-1/0"} {
		_, err := ParseLSN(s)
		require.Error(t, err, s)
	}
}

const history4 = "1\t0/3000000\tno recovery target specified\n\n# comment\n3\t0/5000060\tbefore x\n"

func TestHistory(t *testing.T) {
	h, err := ParseHistory(4, history4)
	require.NoError(t, err)
	require.Equal(t, History{Timeline: 4, Ancestors: []Switch{{1, 0x3000000}, {3, 0x5000060}}}, h)
	for lsn, want := range map[LSN]uint32{0x10: 1, 0x3000000: 1, 0x3000001: 3, 0x5000060: 3, 0x5000061: 4, 0x9000000: 4} {
		require.Equal(t, want, TimelineAt(h, lsn), lsn.String())
	}
	for _, bad := range []struct {
		tli  uint32
		text string
	}{
		{2, "1"}, {2, "x\t0/1"}, {2, "1\tx"}, {2, "2\t0/1"}, {4, "3\t0/1\tx\n1\t0/2\tx"}, {4, "1\t0/2\tx\n3\t0/1\tx"}, {2, "5000000000\t0/1"},
	} {
		_, err := ParseHistory(bad.tli, bad.text)
		require.Error(t, err, bad.text)
	}
}

func TestContains(t *testing.T) {
	h, err := ParseHistory(4, history4)
	require.NoError(t, err)
	for _, tc := range []struct {
		p    Position
		want bool
		why  string
	}{
		{Position{0x2000000, 1}, true, "before the first switch"},
		{Position{0x3000000, 1}, true, "exactly at the switch"},
		{Position{0x3000008, 1}, false, "one record more than the new primary took over"},
		{Position{0x4000000, 2}, false, "a timeline that is no ancestor: a failed promotion"},
		{Position{0x5000060, 3}, true, "at the second switch"},
		{Position{0x5000068, 3}, false, "beyond the second switch"},
		{Position{0x9000000, 4}, true, "on the newest"},
		{Position{0x100, 5}, false, "newer than the primary"},
	} {
		require.Equal(t, tc.want, Contains(h, tc.p), tc.why)
	}
}

// A WAL that follows a history is always contained in it, at whatever point it ends.
func TestContainsWhatTimelineAtSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := History{}
		tli, end := uint32(0), LSN(0)
		for range rapid.IntRange(0, 5).Draw(t, "ancestors") {
			tli += rapid.Uint32Range(1, 3).Draw(t, "step")
			end += LSN(rapid.Uint64Range(0, 1000).Draw(t, "length"))
			h.Ancestors = append(h.Ancestors, Switch{tli, end})
		}
		h.Timeline = tli + rapid.Uint32Range(1, 3).Draw(t, "last")
		lsn := LSN(rapid.Uint64Range(0, 6000).Draw(t, "lsn"))
		p := Position{LSN: lsn, Timeline: TimelineAt(h, lsn)}
		require.True(t, Contains(h, p))
		for _, a := range h.Ancestors {
			if lsn > a.End {
				require.False(t, Contains(h, Position{lsn, a.Timeline}))
			}
		}
	})
}

func TestRecordEnd(t *testing.T) {
	const seg = 16 << 20
	for _, tc := range []struct {
		start LSN
		total uint32
		want  LSN
		why   string
	}{
		{0x1000028, 114, 0x10000A0, "the shutdown checkpoint of a new cluster: 114 bytes, aligned to 120"},
		{0x1001F00, 256, 0x1002000, "ends exactly with its page"},
		{0x1001F80, 256, 0x1002098, "flows over into a page with a short header"},
		{0x1FFFF80, 256, 0x20000A8, "flows over into a segment with a long header"},
		{0x1001F80, 128 + 8168 + 8, 0x1004020, "over two pages"},
	} {
		require.Equal(t, tc.want, RecordEnd(tc.start, tc.total, seg), tc.why)
	}
}

func TestSegmentName(t *testing.T) {
	require.Equal(t, "000000020000000100000023", SegmentName(Position{LSN: 0x123456789, Timeline: 2}, 16<<20))
	require.Equal(t, "000000010000000000000001", SegmentName(Position{LSN: 0x1000000, Timeline: 1}, 16<<20))
	require.Equal(t, "000000010000000100000000", SegmentName(Position{LSN: 0x100000000, Timeline: 1}, 1<<30))
}

const controlText = `pg_control version number:            1300
Database system identifier:           7312345678901234567
Database cluster state:               shut down
Latest checkpoint location:           0/3000028
Latest checkpoint's TimeLineID:       2
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
Bytes per WAL segment:                16777216
`

func TestControl(t *testing.T) {
	c, err := parseControl(controlText)
	require.NoError(t, err)
	require.True(t, c.Clean())
	require.True(t, c.WasPrimary())
	require.Equal(t, Position{0x3000028, 2}, c.Checkpoint)
	require.EqualValues(t, 7312345678901234567, c.System)
	for state, primary := range map[string]bool{"in production": true, "shut down in recovery": false, "in archive recovery": false, "in crash recovery": true} {
		c, err := parseControl(strings.Replace(controlText, "shut down", state, 1))
		require.NoError(t, err)
		require.Equal(t, primary, c.WasPrimary(), state)
		require.False(t, c.Clean())
	}
	_, err = parseControl(strings.Replace(controlText, "0/3000028", "?", 1))
	require.Error(t, err)
	_, err = parseControl("")
	require.Error(t, err)
}

func TestSyncNames(t *testing.T) {
	require.Empty(t, SyncNames(nil, 0))
	require.Empty(t, SyncNames([]string{"a"}, 0))
	require.Equal(t, `ANY 1 ("a-1","b")`, SyncNames([]string{"a-1", "b"}, 1))
	require.Equal(t, `ANY 2 ("a""b","c","d")`, SyncNames([]string{`a"b`, "c", "d"}, 2))
}

func TestAppliedAtStart(t *testing.T) {
	require.Equal(t, applied{known: true, acks: 1, members: []string{nobody}}, appliedAtStart(Nobody))
	require.Equal(t, applied{acks: 2}, appliedAtStart(SyncNames([]string{"a", "b"}, 2)), "how many is known, whether it was proven is not")
	require.Equal(t, applied{mayBeEmpty: true}, appliedAtStart(""))
}

func TestParameters(t *testing.T) {
	require.Empty(t, CheckParameters(map[string]string{
		"work_mem": "64MB", "shared_buffers": "1GB", "synchronous_commit": "remote_apply", "pg_stat_statements.max": "100",
		"shared_preload_libraries": "pg_stat_statements", "max_connections": "300",
	}))
	for name, value := range map[string]string{
		"synchronous_standby_names": "''", "Synchronous_Standby_Names": "", "fsync": "off", "full_page_writes": "off", "ssl": "off",
		"ssl_cert_file": "x", "primary_conninfo": "x", "primary_slot_name": "x", "recovery_target_lsn": "0/1", "hba_file": "x",
		"synchronous_commit": "off", "restart_after_crash": "on", "wal_level": "minimal", "archive_command": "x", "port": "1",
		"statement_timeout": "1s", "include_dir": "x", "x y": "1", "work_mem": "1\nfsync=off", "": "x", "a.b.c": "x", "wal_receiver_timeout": "0",
	} {
		require.Len(t, CheckParameters(map[string]string{name: value}), 1, name)
	}
	got := CheckParameters(map[string]string{"fsync": "off", "archive_mode": "on", "jit": "on"})
	require.Len(t, got, 2)
	require.True(t, strings.HasPrefix(got[0], "archive_mode: "), "sorted, named first")
	Owned()["fsync"] = "" // a copy
	require.NotEmpty(t, owned["fsync"])
	for name, why := range owned {
		require.NotEmpty(t, why, name)
		require.Equal(t, strings.ToLower(name), name)
	}
}

func testConfig(dir string) Config {
	return Config{
		Bin: "/bin", Data: filepath.Join(dir, "pgdata"), Run: filepath.Join(dir, "run"), Instance: "db-0-x7f3", Listen: "*", Port: 5432,
		AgentCN: "agent.0123456789ab", GatewayCN: "gateway.0123456789ab", ServerName: "agent.0123456789ab.theseus.internal",
		Parameters: map[string]string{"work_mem": "64MB", "fsync": "off", "application_name": "it's"},
	}
}

// last is the value PostgreSQL would use.
func last(conf, name string) (value string) {
	for line := range strings.Lines(conf) {
		if n, v, ok := strings.Cut(line, " = "); ok && n == name {
			value = strings.TrimSpace(v)
		}
	}
	return value
}

func TestGeneratedConfiguration(t *testing.T) {
	c := testConfig(t.TempDir())
	conf := c.static(10 << 30)
	require.Equal(t, "'64MB'", last(conf, "work_mem"))
	require.Equal(t, "'it''s'", last(conf, "application_name"))
	for name, want := range map[string]string{
		"fsync": "'on'", "full_page_writes": "'on'", "wal_log_hints": "'on'", "hot_standby": "'on'", "restart_after_crash": "'off'",
		"synchronous_commit": "'on'", "wal_keep_size": "'1024MB'", "max_slot_wal_keep_size": "'1024MB'", "shared_buffers": "'131072kB'",
	} {
		require.Equal(t, want, last(conf, name), name)
	}
	require.Equal(t, 1, strings.Count(conf, "\nfsync = "), "what the user asked for in vain does not appear")
	for _, s := range c.ownedSettings(1 << 30) {
		require.NotEmpty(t, checkParameter(s.name, s.value), "%s is set by us but open to users", s.name)
	}
	for _, s := range c.defaults(1 << 30) {
		require.Empty(t, checkParameter(s.name, s.value), "%s is a default users cannot change", s.name)
	}
	c.MemoryLimit = 1 << 30
	require.Equal(t, "'262144kB'", last(c.static(1<<30), "shared_buffers"))
	require.Equal(t, "'102MB'", last(c.static(1<<30), "wal_keep_size"), "a tenth of a small volume")
}

func TestDynamicConfiguration(t *testing.T) {
	c := testConfig(t.TempDir())
	text := c.dynamic(Runtime{Sync: Nobody})
	require.Equal(t, "''", last(text, "primary_conninfo"))
	require.Equal(t, `'ANY 1 ("theseus:nobody")'`, last(text, "synchronous_standby_names"))
	text = c.dynamic(Runtime{Upstream: &Upstream{Instance: "db-0-a", Host: "10.0.0.1", Port: 5432}, key: 3})
	info := last(text, "primary_conninfo")
	for _, want := range []string{"sslmode=verify-full", "hostaddr=''10.0.0.1''", "host=''" + c.ServerName + "''", "application_name=''db-0-x7f3''", "wal.3.key"} {
		require.Contains(t, info, want)
	}
	require.Contains(t, c.conninfo(Upstream{Host: "name.example", Port: 1}, "k"), "sslmode=verify-ca")
	six := c.conninfo(Upstream{Host: "fd00::1", Port: 5432}, "k")
	require.Contains(t, six, "hostaddr='fd00::1' sslmode=verify-full port=5432")
}

func TestAccessRules(t *testing.T) {
	c := testConfig(t.TempDir())
	var rules [][]string
	for line := range strings.Lines(c.hba()) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
			rules = append(rules, f)
		}
	}
	for _, r := range rules {
		if r[len(r)-1] == "trust" {
			require.Equal(t, "local", r[0])
			require.Equal(t, Superuser, r[2])
		}
		if r[0] == "host" {
			require.Equal(t, "reject", r[len(r)-1], "nothing without TLS")
		}
	}
	require.Equal(t, []string{"host", "all", "all", "all", "reject"}, rules[len(rules)-1])
	require.Contains(t, c.ident(), `theseus "agent.0123456789ab" theseus_replicator`)
	require.NotContains(t, c.ident(), `"gateway.0123456789ab" theseus_replicator`)
}

func TestScramVerifier(t *testing.T) {
	// From PostgreSQL 15: CREATE ROLE … PASSWORD 'pencil' computes the same for this salt (RFC 7677's example).
	got, err := ScramVerifier("pencil", []byte{0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81})
	require.NoError(t, err)
	require.Equal(t, "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=", got)
}

func TestStat(t *testing.T) {
	st, err := parseStat("4242 (a ) (b) c) Z 17 1 1 0 -1")
	require.NoError(t, err)
	require.Equal(t, procStat{state: 'Z', parent: 17}, st)
	for _, bad := range []string{"", "1 (x", "1 (x)", "1 (x) SS 1", "1 (x) S y"} {
		_, err := parseStat(bad)
		require.Error(t, err, bad)
	}
}

func TestProgress(t *testing.T) {
	p := &Progress{}
	w := &progressWriter{progress: p, rest: &tail{limit: 100}}
	_, err := io.Copy(w, io.LimitReader(strings.NewReader("waiting for checkpoint\r  1024/40"), 100))
	require.NoError(t, err)
	_, err = w.Write([]byte("96 kB (25%), 0/1 tablespace\rpg_basebackup: error: gone\n"))
	require.NoError(t, err)
	done, total := p.Get()
	require.EqualValues(t, 1<<20, done)
	require.EqualValues(t, 4<<20, total)
	require.Contains(t, w.rest.String(), "error: gone")
}

func TestComplaint(t *testing.T) {
	require.Equal(t, "pg_basebackup: error: no", complaint("pg_basebackup: error: no\npg_basebackup: removing data directory\n"))
	require.Equal(t, "last", complaint("first\nlast\n"))
	require.Empty(t, complaint(""))
}

func TestLogsNeverBlock(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	stuck, _ := io.Pipe() // nobody reads what is written to its other end
	defer func() { _ = stuck.Close() }()
	_, sink := io.Pipe()
	heard := 0
	l := NewLogs(sink, "postgres: ", func(string) { heard++ })
	go func() {
		for i := range 3 * logLines {
			_, _ = fmt.Fprintf(w, "line %d\n", i)
		}
		_, _ = w.Write(append(bytes.Repeat([]byte("x"), 2*logLineBytes), '\n'))
		_ = w.Close()
	}()
	done := make(chan struct{})
	go func() { l.collect(r); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("PostgreSQL would hang in a write to its log")
	}
	require.Equal(t, 3*logLines+1, heard)
	tail := string(l.Tail(1 << 20))
	require.NotContains(t, tail, "line 10\n")
	require.Contains(t, tail, fmt.Sprintf("line %d\n", 3*logLines-1))
	require.LessOrEqual(t, len(l.Tail(1000)), 1000)
	require.Empty(t, NewLogs(io.Discard, "", nil).Tail(100))
}

// wal builds a WAL in memory, as PostgreSQL would write it.
type wal struct {
	segment uint64
	base    uint64
	data    []byte
	prev    uint64
	starts  []uint64
	ends    []uint64
}

func newWAL(segment, base uint64) *wal { return &wal{segment: segment, base: base} }

func (w *wal) segmentSize() uint64 { return w.segment }

func (w *wal) page(at uint64) []byte {
	if at < w.base || at+walPage > w.base+uint64(len(w.data)) {
		return nil
	}
	return w.data[at-w.base : at-w.base+walPage]
}

func (w *wal) at() uint64 { return w.base + uint64(len(w.data)) }

// pad makes room for the next page's header when a page is full. left is what of a record continues there.
func (w *wal) pad(left uint32) {
	at := w.at()
	if at%walPage != 0 {
		return
	}
	size := shortPageHead
	if at%w.segment == 0 {
		size = longPageHead
	}
	head := make([]byte, size)
	binary.NativeEndian.PutUint16(head, 0xD110)
	binary.NativeEndian.PutUint32(head[4:], 1)
	binary.NativeEndian.PutUint64(head[8:], at)
	binary.NativeEndian.PutUint32(head[16:], left)
	w.data = append(w.data, head...)
}

func (w *wal) add(payload int, manager, info byte) {
	w.pad(0)
	record := make([]byte, recordHead+payload)
	for i := range payload {
		record[recordHead+i] = byte(i)
	}
	binary.NativeEndian.PutUint32(record, uint32(len(record)))
	binary.NativeEndian.PutUint64(record[recordPrev:], w.prev)
	record[recordInfo], record[recordManager] = info, manager
	sum := crc32.Update(0, castagnoli, record[recordHead:])
	binary.NativeEndian.PutUint32(record[recordCRC:], crc32.Update(sum, castagnoli, record[:recordCRC]))
	w.prev = w.at()
	w.starts = append(w.starts, w.prev)
	for len(record) > 0 {
		w.pad(uint32(len(record)))
		n := min(len(record), int(walPage-w.at()%walPage))
		w.data, record = append(w.data, record[:n]...), record[n:]
	}
	for w.at()%walAlign != 0 {
		w.data = append(w.data, 0)
	}
	w.ends = append(w.ends, w.at())
}

// finish fills the last page with zeroes.
func (w *wal) finish() {
	for w.at()%walPage != 0 {
		w.data = append(w.data, 0)
	}
}

func TestEndOfWALIsTheEndOfTheLastWholeRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWAL(4*walPage, 8*walPage)
		n := rapid.IntRange(1, 12).Draw(t, "records")
		for range n {
			w.add(rapid.IntRange(0, 3*walPage).Draw(t, "payload"), 1, 0)
		}
		for i := range n {
			total := uint32(binary.NativeEndian.Uint32(w.data[w.starts[i]-w.base:]))
			require.Equal(t, LSN(w.ends[i]), RecordEnd(LSN(w.starts[i]), total, w.segment), "RecordEnd agrees with what was written")
		}
		w.finish()
		end, err := walEndFrom(context.Background(), w, LSN(w.starts[0]))
		require.NoError(t, err)
		require.Equal(t, LSN(w.ends[n-1]), end)

		// Tear the WAL anywhere behind the first record: what is found ends before the tear.
		if n > 1 {
			at := rapid.Uint64Range(w.starts[1], w.ends[n-1]-1).Draw(t, "torn at")
			torn := *w
			torn.data = bytes.Clone(w.data)
			clear(torn.data[at-w.base:])
			end, err := walEndFrom(context.Background(), &torn, LSN(w.starts[0]))
			require.NoError(t, err)
			want := w.ends[0]
			for i := range n {
				if w.ends[i] <= at {
					want = w.ends[i]
				}
			}
			require.GreaterOrEqual(t, uint64(end), want)
			require.LessOrEqual(t, uint64(end), at+walAlign, "alignment may be zero anyway")
		}
	})
}

// Whether anything was written beyond a point is told by whole records, wherever the WAL is torn.
func TestOnlyAWholeRecordIsBeyondAPoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWAL(4*walPage, 8*walPage)
		n := rapid.IntRange(2, 12).Draw(t, "records")
		for range n {
			w.add(rapid.IntRange(3*walAlign, 3*walPage).Draw(t, "payload"), 1, 0)
		}
		w.finish()
		i := rapid.IntRange(0, n-2).Draw(t, "the last that is common")
		whole, err := wholeBeyond(context.Background(), w, LSN(w.ends[i]))
		require.NoError(t, err)
		require.True(t, whole)

		// Torn within the next record, before its last byte that is not zero already.
		from := skipPageHead(w.ends[i], w.segment)
		at := rapid.Uint64Range(from, w.ends[i+1]-2*walAlign).Draw(t, "torn at")
		clear(w.data[at-w.base:])
		whole, err = wholeBeyond(context.Background(), w, LSN(w.ends[i]))
		require.NoError(t, err)
		require.False(t, whole)
	})
	w := newWAL(4*walPage, 8*walPage)
	w.add(10, 1, 0)
	w.finish()
	_, err := wholeBeyond(context.Background(), w, LSN(w.at()))
	require.ErrorContains(t, err, "no WAL", "what is gone proves nothing")
}

func TestEndOfWALIgnoresRecycledSegments(t *testing.T) {
	w := newWAL(4*walPage, 8*walPage)
	for w.at() < 12*walPage-200 {
		w.add(100, 1, 0)
	}
	w.finish()
	// The next segment still holds what was written a generation ago: whole records, under an old address.
	old := newWAL(4*walPage, 4*walPage)
	old.prev = w.prev
	for range 10 {
		old.add(100, 1, 0)
	}
	old.finish()
	w.data = append(w.data, old.data...)
	end, err := walEndFrom(context.Background(), w, LSN(w.starts[0]))
	require.NoError(t, err)
	require.Equal(t, LSN(w.ends[len(w.ends)-1]), end)
}

func TestEndOfWALAfterASwitchOfSegment(t *testing.T) {
	w := newWAL(2*walPage, 2*walPage)
	w.add(10, 1, 0)
	w.add(0, 0, walSwitchInfo)
	w.finish()
	for w.at()%w.segment != 0 {
		w.data = append(w.data, 0)
	}
	end, err := walEndFrom(context.Background(), w, LSN(w.starts[0]))
	require.NoError(t, err)
	require.EqualValues(t, 4*walPage, end)
	w.add(10, 1, 0)
	w.finish()
	end, err = walEndFrom(context.Background(), w, LSN(w.starts[0]))
	require.NoError(t, err)
	require.Equal(t, LSN(w.ends[2]), end)
}

func TestEndOfWALNeedsAFirstRecord(t *testing.T) {
	w := newWAL(2*walPage, 2*walPage)
	w.add(10, 1, 0)
	w.finish()
	_, err := walEndFrom(context.Background(), w, LSN(w.ends[0]))
	require.Error(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = walEndFrom(ctx, w, LSN(w.starts[0]))
	require.ErrorIs(t, err, context.Canceled)
}

func TestForgettingTimelines(t *testing.T) {
	dir := t.TempDir()
	s := NewServer(testConfig(dir), NewProcesses(), NewLogs(io.Discard, "", nil), nil)
	walDir := filepath.Join(dir, "pgdata", "pg_wal")
	require.NoError(t, os.MkdirAll(walDir, 0o700))
	names := []string{"000000010000000000000001", "000000020000000000000001", "00000002.history", "00000003.history", "000000020000000000000001.partial", "archive_status"}
	for _, n := range names {
		require.NoError(t, os.WriteFile(filepath.Join(walDir, n), nil, 0o600))
	}
	require.EqualValues(t, 3, s.NewestTimeline())
	require.True(t, s.KnowsTimelines([]uint32{2}))
	require.False(t, s.KnowsTimelines([]uint32{4}))
	require.NoError(t, s.ForgetTimelines([]uint32{2}))
	left, err := os.ReadDir(walDir)
	require.NoError(t, err)
	var kept []string
	for _, e := range left {
		kept = append(kept, e.Name())
	}
	require.Equal(t, []string{"000000010000000000000001", "00000003.history", "archive_status"}, kept)
}

func TestASettingIsRaisedToTheFloorOnly(t *testing.T) {
	have := []setting{{"max_connections", "100"}, {"max_connections", " 300 "}, {"max_wal_senders", "24"}, {"max_worker_processes", "many"}}
	require.Empty(t, raised(have, nil))
	require.Equal(t, []setting{{"max_locks_per_transaction", "65"}, {"max_worker_processes", "4"}}, raised(have, map[string]int{
		"max_connections": 300, "max_wal_senders": 10, "max_locks_per_transaction": 65, "max_worker_processes": 4,
	}), "what is not set has PostgreSQL's default, and what is no number counts for nothing")
	c := Config{Parameters: map[string]string{"max_connections": "50"}, least: map[string]int{"max_connections": 80}}
	require.Contains(t, c.static(1<<30), "As much as the primary has\nmax_connections = '80'\n")
	c.least = nil
	require.NotContains(t, c.static(1<<30), "'80'")
}
