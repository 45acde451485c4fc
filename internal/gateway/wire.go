package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The little of PostgreSQL's protocol (version 3) that the hop must understand: where the startup packet ends, where
// messages begin, and how to say an error. Source: PostgreSQL's documentation, "Message Formats".
const (
	requestSSL    = 80877103
	requestGSS    = 80877104
	requestCancel = 80877102

	// maxStartup is PostgreSQL's own limit of a startup packet (MAX_STARTUP_PACKET_LENGTH).
	maxStartup = 10000
	// maxInspect bounds the messages whose body is kept: errors and parameters during a login.
	maxInspect = 4096
)

// SQLSTATEs the hop gives. Drivers treat both as a lost connection.
const (
	// stateMoved is admin_shutdown: what a client would see if PostgreSQL itself had ended its session.
	stateMoved = "57P01"
	// stateLost is connection_failure.
	stateLost = "08006"
	// stateNotYet is cannot_connect_now: PostgreSQL is starting, stopping or recovering.
	stateNotYet = "57P03"
)

var errStartup = errors.New("malformed startup packet")

// readStartup reads the first packet of a connection, refusing encryption (the socket is local), and says whether it
// is a request to cancel.
func readStartup(conn io.ReadWriter) (packet []byte, cancel bool, err error) {
	for range 3 { // SSL, GSS, startup: a client that asks for more is broken
		head := make([]byte, 8)
		if _, err := io.ReadFull(conn, head); err != nil {
			return nil, false, err
		}
		size := binary.BigEndian.Uint32(head)
		code := binary.BigEndian.Uint32(head[4:])
		if size < 8 || size > maxStartup {
			return nil, false, errStartup
		}
		packet = append(head, make([]byte, size-8)...)
		if _, err := io.ReadFull(conn, packet[8:]); err != nil {
			return nil, false, err
		}
		switch code {
		case requestSSL, requestGSS:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, false, err
			}
		case requestCancel:
			return packet, true, nil
		default:
			return packet, false, nil
		}
	}
	return nil, false, errStartup
}

func sslRequest() []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, requestSSL)
}

// errorMessage is an ErrorResponse of severity FATAL.
func errorMessage(sqlstate, message, detail string) []byte {
	var body bytes.Buffer
	field := func(kind byte, value string) {
		body.WriteByte(kind)
		body.WriteString(value)
		body.WriteByte(0)
	}
	field('S', "FATAL")
	field('V', "FATAL")
	field('C', sqlstate)
	field('M', message)
	if detail != "" {
		field('D', detail)
	}
	body.WriteByte(0)
	out := append([]byte{'E'}, binary.BigEndian.AppendUint32(nil, uint32(body.Len()+4))...)
	return append(out, body.Bytes()...)
}

// errorField finds one field of an ErrorResponse's body, "" when it is not there.
func errorField(body []byte, kind byte) string {
	for len(body) > 1 {
		end := bytes.IndexByte(body, 0)
		if end < 1 {
			return ""
		}
		if body[0] == kind {
			return string(body[1:end])
		}
		body = body[end+1:]
	}
	return ""
}

// framer follows the messages a server sends, without copying them.
type framer struct {
	head  [5]byte
	have  int  // bytes of head
	left  int  // bytes of the body still to come
	look  bool // the body is kept
	keep  []byte
	fatal error

	// loggedIn is true from the first ReadyForQuery on.
	loggedIn bool
	// transaction is the status of the last ReadyForQuery: 'I' idle, 'T' in a transaction, 'E' in a failed one; 0 as soon
	// as the next answer has begun. What a server says unasked does not count.
	transaction byte
	// sqlstate of the last ErrorResponse seen before the login was done.
	sqlstate string
	// standby is true when the server said during the login that it is in recovery.
	standby bool
	// ended is true when the server said, after the login, that it ends the session.
	ended bool
	// replies is the number of messages so far that were asked for.
	replies int
}

// boundary reports whether all messages so far are complete, so that one of our own may follow.
func (f *framer) boundary() bool { return f.have == 0 && f.left == 0 && f.fatal == nil }

// feed takes the next bytes of the stream.
func (f *framer) feed(b []byte) {
	for len(b) > 0 && f.fatal == nil {
		if f.left > 0 {
			n := min(f.left, len(b))
			if f.look {
				f.keep = append(f.keep, b[:n]...)
			}
			f.left -= n
			b = b[n:]
			if f.left == 0 {
				f.done()
			}
			continue
		}
		n := copy(f.head[f.have:], b)
		f.have += n
		b = b[n:]
		if f.have < len(f.head) {
			return
		}
		size := binary.BigEndian.Uint32(f.head[1:])
		if size < 4 || size > 1<<30 {
			f.fatal = fmt.Errorf("message %q of %d bytes", f.head[0], size)
			return
		}
		f.left = int(size) - 4
		f.look = f.inspects()
		if f.left == 0 {
			f.done()
		}
	}
}

// inspects says whether the body that begins now is of interest.
func (f *framer) inspects() bool {
	switch f.head[0] {
	case 'Z':
		return f.left == 1
	case 'E':
		return f.left <= maxInspect
	case 'S':
		return !f.loggedIn && f.left <= maxInspect
	}
	return false
}

// isFatal says whether the severity of an error, which is not translated, ends the session.
func isFatal(severity string) bool { return severity == "FATAL" || severity == "PANIC" }

func (f *framer) done() {
	unasked := f.head[0] == 'S' || f.head[0] == 'N' || f.head[0] == 'A'
	if !unasked {
		f.replies++
	}
	switch {
	case f.head[0] == 'Z' && len(f.keep) == 1:
		f.transaction, f.loggedIn = f.keep[0], true
	case f.head[0] == 'E' && !f.loggedIn:
		f.sqlstate = errorField(f.keep, 'C')
	case f.head[0] == 'E':
		f.transaction, f.ended = 0, f.ended || isFatal(errorField(f.keep, 'V'))
	case f.head[0] == 'S' && !f.loggedIn:
		f.standby = f.standby || string(f.keep) == "in_hot_standby\x00on\x00"
	case !unasked:
		f.transaction = 0
	}
	f.have, f.keep = 0, f.keep[:0]
}
