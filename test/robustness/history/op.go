// Package history holds what clients did to a shard and what they were answered, and says whether one copy of the data,
// touched by one operation at a time, could have given these answers.
//
// # Operations
//
// There are registers (a value each) and ledgers (a head each, moved by compare-and-set, and every move an entry). Every
// value is written at most once in a run, so that a value tells which operation wrote it.
//
//   - Write, Read and CAS must be linearizable. All three change a row, so that they are answered only when a quorum has
//     them; a Read that changed nothing could be answered by a primary that has lost its quorum and does not know it yet,
//     and docs/reparent.md promises nothing for those. For the same reason a CAS that finds another head writes too.
//   - Glance is such a plain read. It may be old, or show a commit that was never acknowledged and is lost later. It must
//     not show a value that nobody wrote, or that was written only afterwards; and on one connection to one life of one
//     server it must not go back.
//
// # Outcomes
//
// As in package load. A failed operation has had no effect and is left out. One of unknown outcome may take effect at any
// moment from its call on, or never: it stays open until the end of the history. A success with a warning ("canceling
// the wait for synchronous replication") is no success, it is unknown.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"theseus.dev/theseus/internal/load"
)

// Kind of an operation.
type Kind string

// The kinds; see the package.
const (
	Write  Kind = "write"
	Read   Kind = "read"
	Glance Kind = "glance"
	CAS    Kind = "cas"
)

// Op is one operation of one client.
type Op struct {
	Client int `json:"client"`
	// Endpoint is the way the client went, Session the number of its connection.
	Endpoint string `json:"endpoint"`
	Session  int    `json:"session"`
	Kind     Kind   `json:"kind"`
	// Key is the number of the register or ledger.
	Key int `json:"key"`
	// Value is what is to be written; 0 is what everything begins with, and never written.
	Value int64 `json:"value,omitempty"`
	// Expect is the head that a CAS asks for.
	Expect int64 `json:"expect,omitempty"`
	// Got is the value found: by Read and Glance, and by a CAS before it moved the head.
	Got int64 `json:"got"`
	// Version counts the changes of a register's value: after a Write, of what a Read or a Glance found.
	Version int64 `json:"version,omitempty"`
	// Server names one life of the server that answered a Glance: address and time of start.
	Server string `json:"server,omitempty"`
	// Call and Return are nanoseconds since the run began, of one clock for all clients.
	Call    int64        `json:"call"`
	Return  int64        `json:"return"`
	Outcome load.Outcome `json:"outcome"`
	// Code and Error as in load.Op.
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

// object names what an operation is about.
func (o Op) object() string {
	if o.Kind == CAS {
		return fmt.Sprintf("ledger %d", o.Key)
	}
	return fmt.Sprintf("register %d", o.Key)
}

// String describes an operation as people and porcupine's pictures say it.
func (o Op) String() string {
	open := ""
	if o.Outcome != load.Acked {
		open = fmt.Sprintf(" %s (%s)", o.Outcome, o.Code)
	}
	switch o.Kind {
	case Write:
		return fmt.Sprintf("write %d%s", o.Value, open)
	case CAS:
		if o.Outcome != load.Acked {
			return fmt.Sprintf("cas %d → %d%s", o.Expect, o.Value, open)
		}
		if o.Got != o.Expect {
			return fmt.Sprintf("cas %d → %d finds %d", o.Expect, o.Value, o.Got)
		}
		return fmt.Sprintf("cas %d → %d", o.Expect, o.Value)
	default:
		return fmt.Sprintf("%s %d%s", o.Kind, o.Got, open)
	}
}

// Entry is a row that a CAS left in the ledger when it moved the head.
type Entry struct {
	Ledger int   `json:"ledger"`
	Seq    int64 `json:"seq"`
	Prev   int64 `json:"prev"`
	Value  int64 `json:"value"`
}

// History is a run: the operations in the order in which they ended, and at the end the ledgers' entries in order.
type History struct {
	// Began is the moment 0 of the operations' times.
	Began time.Time
	Ops   []Op
	// Audited is true when the ledgers could be read back at the end.
	Audited bool
	Entries []Entry
}

// line of a history file.
type line struct {
	Began   *time.Time `json:"began,omitempty"`
	Op      *Op        `json:"op,omitempty"`
	Entries []Entry    `json:"entries,omitempty"`
	Audited bool       `json:"audited,omitempty"`
}

// Writer writes a history file, a line an operation, so that a run that is killed leaves what it has.
type Writer struct {
	buffer *bufio.Writer
	json   *json.Encoder
}

// NewWriter begins a history file.
func NewWriter(w io.Writer, began time.Time) (*Writer, error) {
	b := bufio.NewWriter(w)
	hw := &Writer{buffer: b, json: json.NewEncoder(b)}
	return hw, hw.json.Encode(line{Began: &began})
}

// Op adds an operation.
func (w *Writer) Op(op Op) error { return w.json.Encode(line{Op: &op}) }

// Audit adds the ledgers as they were read back.
func (w *Writer) Audit(entries []Entry) error {
	return w.json.Encode(line{Entries: entries, Audited: true})
}

// Flush hands on what is buffered.
func (w *Writer) Flush() error { return w.buffer.Flush() }

// ReadFrom reads a history file. A last line that was cut short is left out.
func ReadFrom(r io.Reader) (*History, error) {
	h := &History{}
	d := json.NewDecoder(bufio.NewReader(r))
	for {
		var l line
		switch err := d.Decode(&l); {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return h, nil
		case err != nil:
			return nil, fmt.Errorf("after %d operations: %w", len(h.Ops), err)
		}
		if l.Began != nil {
			h.Began = *l.Began
		}
		if l.Op != nil {
			h.Ops = append(h.Ops, *l.Op)
		}
		if l.Audited {
			h.Audited, h.Entries = true, l.Entries
		}
	}
}
