package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// session is one server connection of PgBouncer.
//
// Until the first byte of a server has been passed on, nothing is promised to PgBouncer and the session may try as
// many targets as it takes. That is what keeps an emergency from becoming errors: PgBouncer fails every client of a
// pool, new and idle alike, once a login has failed and no server connection is left, so logins must not fail for
// want of a primary. From the first byte on the session belongs to that target and ends with it.
type session struct {
	hop     *hop
	pooler  net.Conn
	startup []byte
	gone    context.CancelFunc // PgBouncer closed its side

	up    *upstream
	ready chan struct{} // closed when up is set; upMu guards it from then on
	upMu  sync.Mutex
	// busy is set when PgBouncer sends, cleared when the server is idle.
	busy atomic.Bool
	// lookup is there if this is a session that looks names up, which outlives a primary.
	lookup *lookup
}

// run opens the connection and carries the server's bytes until either side ends.
func (s *session) run(ctx context.Context) {
	t, up, first := s.acquire(ctx)
	if t == nil {
		return
	}
	s.up = up
	close(s.ready)
	f := s.follow(ctx, t, first, &framer{})
	for ctx.Err() == nil && s.outlives(f) {
		if !s.awaitNext(ctx, t) {
			return
		}
		if t = s.askAgain(ctx); t == nil {
			return
		}
		f = s.follow(ctx, t, nil, &framer{loggedIn: true})
	}
	switch {
	case ctx.Err() != nil:
	case f.loggedIn && !f.standby:
		s.explain(f, t)
	case f.sqlstate == "":
		// Lost in the middle of a login. Ending it now would make PgBouncer fail every other client for as long as
		// there is no primary; ending it when there is one costs them a few milliseconds.
		s.park(ctx, t)
	}
}

// follow carries what the server says until the connection has ended.
func (s *session) follow(ctx context.Context, t *target, first []byte, f *framer) *framer {
	up := s.up
	// The route ending the target, or PgBouncer closing, ends the socket, and with it the read in carry.
	defer context.AfterFunc(t.ctx, up.cut)()
	defer context.AfterFunc(ctx, up.leave)()
	s.carry(first, f)
	if ctx.Err() == nil {
		up.cut()
	}
	return f
}

// outlives reports whether the session may go on with another server: it looks names up, and no answer is torn.
func (s *session) outlives(f *framer) bool {
	return s.lookup != nil && f.loggedIn && f.fatal == nil && !s.lookup.torn()
}

// awaitNext waits, as long as nothing is asked, until there is a server to go on with after t. It returns false when the
// session is over: PgBouncer has closed it, or there was no primary for so long that it may.
func (s *session) awaitNext(ctx context.Context, t *target) bool {
	limit := s.hop.clock.NewTimer(s.hop.maxPause)
	defer limit.Stop()
	late := s.hop.clock.NewTimer(newsDelay) // the route stands for longer than news takes: one backend has died
	defer late.Stop()
	same := false
	for len(s.lookup.open()) == 0 {
		now, _, changed := s.hop.gate.state()
		if now != nil && (now != t || same) {
			return true
		}
		select {
		case <-s.lookup.news:
		case <-changed:
		case <-late.C():
			same = true
		case <-limit.C():
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// askAgain opens a connection to the next primary and puts the open question to it. It returns nil when the session is over.
func (s *session) askAgain(ctx context.Context) *target {
	begun := s.hop.clock.Now()
	for ctx.Err() == nil {
		t, up, first := s.acquire(ctx)
		if t == nil {
			return nil
		}
		release := context.AfterFunc(t.ctx, up.cut)
		err := finishLogin(up, first)
		if err == nil {
			err = s.handOver(up)
		}
		release()
		if err == nil {
			return t
		}
		up.cut()
		s.hop.log.Info("a name cannot be looked up yet, trying again", "instance", t.instance, "term", t.term, "error", err)
		if s.hop.clock.Since(begun) > s.hop.maxPause {
			s.refuse(Route{Term: t.term, Why: fmt.Sprintf("primary %s lets nobody in: %v", t.instance, err)})
			return nil
		}
		select {
		case <-ctx.Done():
		case <-s.hop.clock.After(lastRetry):
		}
	}
	return nil
}

// handOver makes up the session's connection: no word of PgBouncer's may come between the question and that.
func (s *session) handOver(up *upstream) error {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	s.up = up
	question := s.lookup.open()
	if len(question) == 0 {
		return nil
	}
	_, err := up.Write(question)
	return err
}

// acquire waits for a target and opens a connection to it, again and again until a server answers. It returns nil when
// PgBouncer has closed its side or has been told that there is no primary.
func (s *session) acquire(ctx context.Context) (*target, *upstream, []byte) {
	pause := firstRetry
	asked := s.hop.clock.Now()
	var lastErr error
	for ctx.Err() == nil {
		t, route, changed := s.hop.gate.state()
		if t == nil {
			if s.giveUp(ctx, changed, route, asked) {
				return nil, nil, nil
			}
			pause = firstRetry
			continue
		}
		up, first, err := s.attempt(ctx, t)
		if err == nil {
			return t, up, first
		}
		if lastErr == nil || err.Error() != lastErr.Error() {
			s.hop.log.Info("server connection failed, trying again", "instance", t.instance, "term", t.term, "error", err)
			lastErr = err
		}
		if s.hop.clock.Since(asked) > s.hop.maxPause {
			s.refuse(Route{Term: t.term, Why: fmt.Sprintf("primary %s cannot be reached: %v", t.instance, err)})
			return nil, nil, nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
			pause = firstRetry
		case <-s.hop.clock.After(pause):
			pause = min(2*pause, lastRetry)
		}
	}
	return nil, nil, nil
}

// giveUp waits in Hold, and says whether the session is over. Clients are held for maxPause from the moment the primary
// was lost; then they are told, through the one login that each of PgBouncer's pools has under way, and the next
// login of the same pool waits in silence, since PgBouncer then fails clients by itself with the same words.
func (s *session) giveUp(ctx context.Context, changed <-chan struct{}, route Route, asked time.Time) bool {
	left := s.hop.maxPause - s.hop.gate.held()
	// Late comers get a moment too, so that a login just after the limit is not refused just before the primary comes.
	left = max(left, lateGrace-s.hop.clock.Since(asked))
	var limit <-chan time.Time
	if left > 0 || !s.hop.gate.asTold(s.startup) {
		timer := s.hop.clock.NewTimer(max(left, 0))
		defer timer.Stop()
		limit = timer.C()
	}
	select {
	case <-changed:
		return false
	case <-ctx.Done():
		return true
	case <-limit:
		if s.hop.gate.tell(s.startup) {
			s.refuse(route)
			return true
		}
		select {
		case <-changed:
			return false
		case <-ctx.Done():
			return true
		}
	}
}

// lateGrace is how long a login waits at least for a primary.
const lateGrace = 250 * time.Millisecond

// refuse ends the login with a clear error, which PgBouncer hands to every client that waits for this pool, and, cut to
// some 120 characters with words of its own, to those that come later: what matters is said first.
func (s *session) refuse(r Route) {
	s.hop.metrics.refused.Inc()
	msg := errorMessage(stateLost, "no primary: "+r.Why, fmt.Sprintf("The shard has had no primary for longer than %s; its term is %d.",
		s.hop.maxPause, r.Term))
	_ = s.pooler.SetWriteDeadline(time.Now().Add(poolerBound))
	_, _ = s.pooler.Write(msg)
	s.hop.refused(s.startup)
}

// attempt opens a connection to t and returns the first bytes the server says.
func (s *session) attempt(ctx context.Context, t *target) (*upstream, []byte, error) {
	ctx, end := context.WithTimeout(ctx, openTimeout)
	defer end()
	defer context.AfterFunc(t.ctx, end)()
	begin := s.hop.clock.Now()
	up, err := s.hop.dial(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	dialed := s.hop.clock.Since(begin)
	release := context.AfterFunc(ctx, up.cut)
	first, err := s.greet(up)
	if err == nil && !release() {
		err = errors.New("the route has changed")
	}
	if err != nil {
		up.cut()
		return nil, nil, err
	}
	s.hop.log.Debug("server connection", "dial", dialed, "answer", s.hop.clock.Since(begin)-dialed)
	return up, first, nil
}

// greet sends the startup packet and waits for an answer that is worth passing on.
func (s *session) greet(up *upstream) ([]byte, error) {
	if _, err := up.Write(s.startup); err != nil {
		return nil, err
	}
	var f framer
	var first []byte
	buf := make([]byte, hopBuffer)
	for {
		n, err := up.Read(buf)
		first = append(first, buf[:n]...)
		f.feed(buf[:n])
		switch {
		case f.sqlstate == stateNotYet:
			return nil, errors.New("the server is starting or stopping")
		case f.sqlstate != "":
			return first, nil // PgBouncer's to see: a wrong password, an unknown database
		case f.fatal != nil:
			return nil, f.fatal
		case len(first) > 0 && first[0] != 'E':
			return first, nil
		case err != nil:
			return nil, err
		case len(first) > maxInspect:
			return first, nil
		}
	}
}

// carry copies what the server says to PgBouncer, beginning with first, until the connection ends; f follows it.
func (s *session) carry(first []byte, f *framer) {
	buf := make([]byte, hopBuffer)
	if !f.loggedIn {
		_ = s.up.SetReadDeadline(time.Now().Add(loginTimeout))
	}
	var held []byte      // the answer to a lookup, as long as it is not whole
	replies := f.replies // of those passed on
	data, err := first, error(nil)
	for {
		if len(data) > 0 {
			was := f.loggedIn
			f.feed(data)
			if f.loggedIn && !was {
				_ = s.up.SetReadDeadline(time.Time{})
			}
			if f.standby {
				s.hop.log.Error("the primary is in recovery", "address", s.up.RemoteAddr())
				return
			}
			if s.lookup != nil && was {
				if f.ended && !s.lookup.torn() {
					return // not PgBouncer's to hear: another server will answer
				}
				data, held = append(held, data...), nil
				switch {
				case f.fatal != nil || len(data) > maxQuestion: // whatever it is, it is no answer to that question
				case f.replies == replies && f.boundary():
					data = nil // a crash announces itself to all: that is no answer, and the question is as open as it was
				case f.transaction == 0 || !f.boundary():
					data, held = nil, data // a server that crashes sends what it had of the answer first
				}
			}
			if len(data) > 0 {
				replies = f.replies
				if !s.pass(data, f) {
					return
				}
			}
		}
		if err != nil || f.fatal != nil {
			return
		}
		var n int
		n, err = s.up.Read(buf)
		data = buf[:n]
	}
}

// pass hands PgBouncer what the server has said, and reports whether it took it.
func (s *session) pass(data []byte, f *framer) bool {
	idle := f.transaction == 'I' && f.boundary()
	if idle {
		s.busy.Store(false)
	}
	if s.lookup != nil {
		s.lookup.heard(idle)
	}
	_, err := s.pooler.Write(data)
	return err == nil
}

// fromPooler copies what PgBouncer says to the server. It reads even while there is no server, to notice that PgBouncer
// has closed: nothing can come before the server's first answer.
func (s *session) fromPooler(ctx context.Context) {
	defer s.gone()
	buf := make([]byte, hopBuffer)
	for {
		n, err := s.pooler.Read(buf)
		if n > 0 {
			select {
			case <-s.ready:
			case <-ctx.Done():
				return
			}
			s.busy.Store(true)
			s.say(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// say passes on what PgBouncer says. A server that does not take it is cut, which ends carry, which has the last word;
// writing to it once more fails at once.
func (s *session) say(b []byte) {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	if s.lookup != nil {
		s.lookup.asked(b)
	}
	if _, err := s.up.Write(b); err != nil {
		s.up.cut()
	}
}

// explain tells a client whose transaction was under way why its connection is going, in the server's name.
func (s *session) explain(f *framer, t *target) {
	if !s.busy.Load() || !f.boundary() {
		return
	}
	sqlstate, message := stateLost, fmt.Sprintf("theseus: the connection to primary %s was lost", t.instance)
	if t.ctx.Err() != nil {
		sqlstate, message = stateMoved, fmt.Sprintf("theseus: term %d of primary %s is over", t.term, t.instance)
	}
	_ = s.pooler.SetWriteDeadline(time.Now().Add(poolerBound))
	_, _ = s.pooler.Write(errorMessage(sqlstate, message, "Whether a COMMIT in flight took effect is not known."))
}

// park waits until another target is there, at most maxPause.
func (s *session) park(ctx context.Context, t *target) {
	limit := s.hop.clock.NewTimer(s.hop.maxPause)
	defer limit.Stop()
	if t.ctx.Err() == nil {
		// PostgreSQL ended the connection but the route stands: one backend died, or the news is still on its way.
		select {
		case <-ctx.Done():
			return
		case <-t.ctx.Done():
		case <-s.hop.clock.After(newsDelay):
			return
		}
	}
	for {
		now, _, changed := s.hop.gate.state()
		if now != nil && now != t {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-limit.C():
			return
		}
	}
}

// newsDelay is how long the news that PostgreSQL has died may take from its agent to here.
const newsDelay = 200 * time.Millisecond
