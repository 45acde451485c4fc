package recorder

import (
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
)

const (
	// sampleEvery is how often a status that says nothing new is kept all the same: positions and lags.
	sampleEvery = 5 * time.Second
	// entryOverhead is what an entry costs besides its text, roughly, in bytes.
	entryOverhead = 128
	// textMost bounds one line, in bytes. Agents send less.
	textMost = 8 << 10
)

// entry is an evidence.Entry whose status is still in the smaller form.
type entry struct {
	evidence.Entry
	wire []byte
}

func (e *entry) size() int { return entryOverhead + len(e.Text) + len(e.wire) }

// ring keeps the newest entries within a number of bytes.
type ring struct {
	entries []entry
	bytes   int
	// first is the number of entries[0]; stored is the number of the first entry that is not in the bucket yet, and
	// waiting is how many bytes there are from it on.
	first, stored uint64
	waiting       int
}

// add drops the oldest entries beyond limit and returns how many of them were never stored.
func (r *ring) add(e entry, limit int) (lost int) {
	r.entries = append(r.entries, e)
	r.bytes += e.size()
	r.waiting += e.size()
	for r.bytes > limit && len(r.entries) > 1 {
		size := r.entries[0].size()
		r.bytes -= size
		r.entries[0] = entry{}
		r.entries = r.entries[1:]
		if r.first >= r.stored {
			lost++
			r.waiting -= size
		}
		r.first++
	}
	r.stored = max(r.stored, r.first)
	return lost
}

func (r *ring) next() uint64 { return r.first + uint64(len(r.entries)) }

// pending are the entries that are not stored.
func (r *ring) pending() []entry { return r.entries[r.stored-r.first:] }

// store notes that everything before the number is in the bucket.
func (r *ring) store(number uint64) {
	for r.stored < number {
		r.waiting -= r.entries[r.stored-r.first].size()
		r.stored++
	}
}

// tape is what is remembered of one instance. Statuses and lines have rings of their own, so that a flood of lines does not
// push out the statuses.
type tape struct {
	who evidence.Walker

	mu              sync.Mutex
	statuses, lines ring
	// cursor of the agent's log stream.
	cursor agentpb.LogsRequest
	last   *agentpb.Status
	means  *agentpb.Status // of last
	kept   time.Time       // when a status was last kept
	unkept bool            // last is not in the ring
	// pendingSince is when the oldest entry that is not stored came, newsSince the oldest that is more than a sample.
	pendingSince, newsSince time.Time
	// writingSince is the pendingSince of what is being written; zero when nothing is.
	writingSince       time.Time
	urgent             bool
	busy               bool
	writtenAt, retryAt time.Time
	failures           int
	number             uint64
	heardAt            time.Time
	connected          bool
}

// status takes one in.
func (t *tape) status(s *agentpb.Status, now time.Time, limit int) (urgent bool, lost int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	means := observer.Meaning(s)
	news := t.means == nil || !proto.Equal(t.means, means)
	urgent = t.last == nil || fault(t.last, s)
	t.last, t.means, t.unkept, t.heardAt = s, means, true, now
	if news || now.Sub(t.kept) >= sampleEvery {
		lost = t.keepLast(now, news, limit)
	}
	t.urgent = t.urgent || urgent
	return urgent, lost
}

// keepLast puts the last status into its ring; mu is held.
func (t *tape) keepLast(now time.Time, news bool, limit int) (lost int) {
	if !t.unkept {
		return 0
	}
	wire, err := proto.Marshal(t.last)
	if err != nil {
		return 0 // it came as a message; it is one
	}
	t.kept, t.unkept = now, false
	t.note(now, news)
	return t.statuses.add(entry{wire: wire, Entry: evidence.Entry{
		At: time.UnixMilli(t.last.GetAtUnixMs()).UTC(), Kind: evidence.KindStatus, Boot: t.last.GetBootId(), Sequence: t.last.GetSequence(),
	}}, limit/4)
}

// note remembers since when something waits to be stored; mu is held.
func (t *tape) note(now time.Time, news bool) {
	if t.pendingSince.IsZero() {
		t.pendingSince = now
	}
	if news && t.newsSince.IsZero() {
		t.newsSince = now
	}
}

// say adds the operator's own word about the connection, after the last status before it. Only a change is worth a word:
// an instance that is gone is dialled several times a second.
func (t *tape) say(connected bool, text, replica string, now time.Time, limit int) (said bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.connected == connected {
		return false
	}
	t.connected = connected
	t.keepLast(now, true, limit)
	t.note(now, true)
	t.urgent = true
	t.statuses.add(entry{Entry: evidence.Entry{At: now.UTC(), Kind: evidence.KindStream, By: replica, Text: text}}, limit/4)
	return true
}

// logs takes lines in and moves the cursor.
func (t *tape) logs(reply *agentpb.LogsReply, now time.Time, limit int) (lost int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cursor.GetBootId() != reply.GetBootId() {
		t.cursor.BootId, t.cursor.AfterPostgres, t.cursor.AfterAgent = reply.GetBootId(), 0, 0
	}
	lost = int(reply.GetMissed())
	t.heardAt = now
	for _, l := range reply.GetLines() {
		kind, cursor := evidence.KindPostgres, &t.cursor.AfterPostgres
		if l.GetSource() == agentpb.LogSource_AGENT {
			kind, cursor = evidence.KindAgent, &t.cursor.AfterAgent
		}
		if l.GetSequence() <= *cursor {
			continue
		}
		*cursor = l.GetSequence()
		text := l.GetText()
		lost += t.lines.add(entry{Entry: evidence.Entry{
			At: time.UnixMilli(l.GetAtUnixMs()).UTC(), Kind: kind, Boot: reply.GetBootId(), Sequence: l.GetSequence(), Text: text[:min(len(text), textMost)],
		}}, limit*3/4)
	}
	t.note(now, true)
	return lost
}

// resume is where the agent's log stream goes on.
func (t *tape) resume() *agentpb.LogsRequest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &agentpb.LogsRequest{BootId: t.cursor.GetBootId(), AfterPostgres: t.cursor.GetAfterPostgres(), AfterAgent: t.cursor.GetAfterAgent()}
}

// batch is what is to be stored, and how far each ring will then be.
type batch struct {
	entries         []entry
	statuses, lines uint64
	number          uint64
}

// due says whether something must be stored now, and takes it: the tape is busy until stored is called.
func (t *tape) due(now time.Time, p pace, limit int) (batch, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy || t.pendingSince.IsZero() || now.Before(t.retryAt) {
		return batch{}, false
	}
	since := func(x time.Time, d time.Duration) bool { return !x.IsZero() && now.Sub(x) >= d }
	urgent := t.urgent && now.Sub(t.writtenAt) >= p.apart
	turn := p.all && (since(t.newsSince, p.every) || since(t.pendingSince, p.quiet) || t.lines.waiting > limit/2)
	if !urgent && !turn && !p.now {
		return batch{}, false
	}
	t.keepLast(now, false, limit)
	b := batch{statuses: t.statuses.next(), lines: t.lines.next(), number: t.number}
	b.entries = append(append(b.entries, t.statuses.pending()...), t.lines.pending()...)
	t.number++
	t.busy, t.urgent = true, false
	t.writingSince, t.pendingSince, t.newsSince = t.pendingSince, time.Time{}, time.Time{}
	return b, true
}

// stored ends what due began.
func (t *tape) stored(b batch, now time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := t.writingSince
	t.busy, t.writingSince = false, time.Time{}
	if err != nil {
		t.failures++
		t.retryAt = now.Add(min(time.Second<<min(t.failures, 6), time.Minute))
		t.urgent = true // what was due is still due
		t.note(now, true)
		t.pendingSince = since
		return
	}
	t.failures, t.retryAt, t.writtenAt = 0, time.Time{}, now
	t.statuses.store(b.statuses)
	t.lines.store(b.lines)
}

// waiting is how long the oldest entry has waited to be stored.
func (t *tape) waiting(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.busy:
		return now.Sub(t.writingSince)
	case t.pendingSince.IsZero():
		return 0
	}
	return now.Sub(t.pendingSince)
}

// over says whether the tape can be forgotten: nothing was heard for long, and what was is stored, or was tried for long.
func (t *tape) over(now time.Time, linger time.Duration, stores bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	silent := now.Sub(t.heardAt)
	return !t.busy && silent > linger && (!stores || t.pendingSince.IsZero() || silent > 4*linger)
}

// all is everything remembered since a time.
func (t *tape) all(from time.Time) []evidence.Entry {
	t.mu.Lock()
	t.keepLast(t.heardAt, false, 1<<30)
	entries := append(append([]entry{}, t.statuses.entries...), t.lines.entries...)
	t.mu.Unlock()
	var out []evidence.Entry
	for _, e := range plain(entries) {
		if !e.At.Before(from) {
			out = append(out, e)
		}
	}
	return evidence.Merge(out)
}

// plain turns entries into what is stored.
func plain(entries []entry) []evidence.Entry {
	out := make([]evidence.Entry, 0, len(entries))
	for _, e := range entries {
		if e.wire != nil {
			s := &agentpb.Status{}
			if err := proto.Unmarshal(e.wire, s); err != nil {
				continue
			}
			text, err := protojson.Marshal(s)
			if err != nil {
				continue
			}
			e.Status = text
		}
		out = append(out, e.Entry)
	}
	return out
}

// fault says whether the difference between two statuses should be in the bucket at once.
func fault(a, b *agentpb.Status) bool {
	failing := func(p *agentpb.Probe) bool { return p.GetFailures() > 0 }
	return a.GetBootId() != b.GetBootId() || a.GetRole() != b.GetRole() || a.GetTerm() != b.GetTerm() ||
		a.GetEstablished() != b.GetEstablished() || a.GetFenced() != b.GetFenced() || a.GetHalted() != b.GetHalted() ||
		a.GetPostgresExit() != b.GetPostgresExit() || a.GetDiverged() != b.GetDiverged() ||
		failing(a.GetWriteProbe()) != failing(b.GetWriteProbe()) || failing(a.GetDiskProbe()) != failing(b.GetDiskProbe()) ||
		failing(a.GetConnectProbe()) != failing(b.GetConnectProbe()) || failing(a.GetCommitProbe()) != failing(b.GetCommitProbe())
}
