package gateway

import (
	"bytes"
	"errors"
	"sync"
	"time"
)

// A client that logs in waits for PgBouncer to look its name up on the primary. When the primary is lost in that moment
// PgBouncer turns the client away with "bouncer config error", although nothing of the client's was under way. So the
// session that looks names up outlives its primary: it goes on with the next one, and asks there again what the lost one has
// not answered. It may: the question is a read, always the same one, and nobody has heard any of the answer. An
// idle one outlives it too, for a question may be on its way. For the same reason an answer is passed on as a whole: a server that
// crashes in the middle of one sends what it has of it.

// looksUp reports whether a startup packet begins the session that looks names up.
func looksUp(startup []byte) bool {
	return bytes.Contains(startup, []byte("\x00user\x00"+lookupUser+"\x00"))
}

// lookup keeps the question that PgBouncer has asked and the server has not answered.
type lookup struct {
	mu       sync.Mutex
	question []byte
	answered bool          // PgBouncer has heard some of the answer, or the question is too long to be one of a name
	news     chan struct{} // has an element after a question was asked
}

func newLookup() *lookup { return &lookup{news: make(chan struct{}, 1)} }

// maxQuestion bounds what is kept: a name has at most 63 bytes, the query and the protocol add some 200.
const maxQuestion = 8 << 10

// asked notes what PgBouncer says.
func (l *lookup) asked(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.question) == 0 {
		l.answered = false
	}
	if len(l.question)+len(b) > maxQuestion {
		l.answered = true
		return
	}
	l.question = append(l.question, b...)
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// heard notes that PgBouncer is told something; idle, that it is told all.
func (l *lookup) heard(idle bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered = true
	if idle {
		l.question = nil
	}
}

// open is the question of whose answer PgBouncer has heard nothing, if there is one.
func (l *lookup) open() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answered {
		return nil
	}
	return bytes.Clone(l.question)
}

// torn reports whether PgBouncer has heard a part of an answer: nobody else can go on with it.
func (l *lookup) torn() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered && len(l.question) > 0
}

// finishLogin reads what the server says to a login, which PgBouncer has heard from another server already.
func finishLogin(up *upstream, first []byte) error {
	_ = up.SetReadDeadline(time.Now().Add(loginTimeout))
	var f framer
	buf := make([]byte, hopBuffer)
	for data := first; ; {
		f.feed(data)
		switch {
		case f.sqlstate != "":
			return errors.New("the server refuses the login: SQLSTATE " + f.sqlstate)
		case f.standby:
			return errors.New("the primary is in recovery")
		case f.fatal != nil:
			return f.fatal
		case f.loggedIn && f.boundary():
			return up.SetReadDeadline(time.Time{})
		}
		n, err := up.Read(buf)
		if err != nil {
			return err
		}
		data = buf[:n]
	}
}
