package gateway

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var lookupStartup = startupPacket(3<<16, "user\x00"+lookupUser+"\x00database\x00postgres\x00\x00")

// openLookup is a session that looks names up, logged in to s, whose question s has heard and not answered.
func (l *hopLab) openLookup(s *fakeServer) (pooler, server net.Conn) {
	l.t.Helper()
	pooler, server = l.openAs(lookupStartup, s)
	l.write(pooler, query)
	l.expect(server, query)
	return pooler, server
}

// answerNext lets the session log in to s, which hears the question and answers it to pooler.
func (l *hopLab) answerNext(s *fakeServer, pooler net.Conn, answer []byte) (server net.Conn) {
	l.t.Helper()
	server, _ = s.next()
	l.write(server, loggedIn)
	l.expect(server, query)
	l.write(server, answer)
	l.expect(pooler, answer)
	return server
}

func TestALookupIsPutToTheNextPrimary(t *testing.T) {
	answer := append(bytes.Clone(row), ready...)
	for name, lose := range map[string]func(*hopLab, net.Conn){
		"the term is over":   func(*hopLab, net.Conn) {},
		"the connection too": func(_ *hopLab, server net.Conn) { _ = server.Close() },
		"after a hold":       func(l *hopLab, _ net.Conn) { l.route(Hold, 1, l.a) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newHopLab(t)
			l.route(Serve, 1, l.a)
			pooler, server := l.openLookup(l.a)
			lose(l, server)
			l.route(Serve, 2, l.b)
			server, packet := l.b.next()
			require.Equal(t, lookupStartup, packet)
			l.write(server, loggedIn)
			l.expect(server, query)
			l.write(server, answer)
			l.expect(pooler, answer) // and nothing of the second login before it

			l.write(pooler, query) // it goes on as if nothing had been
			l.expect(server, query)
			l.write(server, answer)
			l.expect(pooler, answer)
			l.a.forget()
			l.route(Serve, 3, l.a) // idle now
			server, _ = l.a.next()
			l.write(server, loggedIn)
			l.write(pooler, query)
			l.expect(server, query)
			l.write(server, answer)
			l.expect(pooler, answer)
		})
	}
}

// A server that ends says so to whoever has asked. That is no answer.
func TestALookupIsNotAnsweredByTheEndOfItsServer(t *testing.T) {
	answer := append(bytes.Clone(row), ready...)
	end := errorMessage("57P01", "terminating connection due to unexpected postmaster exit", "")
	notice := errorMessage("57P02", "terminating connection because of crash of another server process", "")
	notice[0] = 'N'
	for name, pieces := range map[string][][]byte{
		"at once":                    {end},
		"in pieces":                  {end[:3], end[3:20], end[20:]},
		"after part of a row":        {row[:len(row)-1]},
		"after a row, in one go":     {append(bytes.Clone(row), end...)},
		"with a notice":              {notice},
		"a notice in pieces":         {notice[:4], notice[4:]},
		"a notice, part of one":      {append(bytes.Clone(notice), notice[:9]...)},
		"a notice and part of a row": {append(bytes.Clone(notice), row[:len(row)-1]...)},
		"after a row":                {row},
		"after a row, with a notice": {append(bytes.Clone(row), notice...)},
		"after a row, then a notice": {row, notice},
		"after all but the end":      {append(bytes.Clone(row), message('C', "SELECT 1\x00")...)},
	} {
		t.Run(name, func(t *testing.T) {
			l := newHopLab(t)
			l.route(Serve, 1, l.a)
			pooler, server := l.openLookup(l.a)
			for _, piece := range pieces {
				l.write(server, piece)
			}
			_ = server.Close()
			l.silent(pooler, 50*time.Millisecond)
			l.route(Serve, 2, l.b)
			l.answerNext(l.b, pooler, answer)
		})
	}
}

// PgBouncer may ask in the very moment in which an idle session loses its server, or while there is none.
func TestAnIdleSessionForLookupsOutlivesItsPrimary(t *testing.T) {
	answer := append(bytes.Clone(row), ready...)
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, server := l.openLookup(l.a)
	l.write(server, answer)
	l.expect(pooler, answer)
	l.route(Hold, 1, l.a)
	l.write(pooler, query)
	l.route(Serve, 2, l.b)
	server = l.answerNext(l.b, pooler, answer)

	_ = server.Close() // one backend has died, the primary lives
	server, _ = l.b.next()
	l.write(server, loggedIn)
	l.write(pooler, query)
	l.expect(server, query)
}

// With nobody waiting there is nobody to tell that there is no primary.
func TestAnIdleSessionForLookupsEndsQuietly(t *testing.T) {
	l := newHopLab(t)
	l.hop.maxPause = 50 * time.Millisecond
	l.route(Serve, 1, l.a)
	pooler, server := l.openLookup(l.a)
	answer := append(bytes.Clone(row), ready...)
	l.write(server, answer)
	l.expect(pooler, answer)
	l.route(Hold, 1, l.a)
	sqlstate, _ := l.end(pooler)
	require.Empty(t, sqlstate)
}

// What is too long to be a name's is passed on as it comes. Half of such an answer is nobody else's to go on with.
func TestALookupThatIsHalfAnsweredIsNotAskedAgain(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, server := l.openLookup(l.a)
	long := message('D', strings.Repeat("x", maxQuestion))
	l.write(server, long)
	l.expect(pooler, long)
	l.route(Serve, 2, l.b)
	sqlstate, _ := l.end(pooler)
	require.Equal(t, stateMoved, sqlstate)
	l.b.quiet(100 * time.Millisecond)
}

func TestALookupWaitsNoLongerThanClientsMay(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, _ := l.openLookup(l.a)
	l.route(Hold, 1, l.a)
	sqlstate, text := l.end(pooler)
	require.Equal(t, stateLost, sqlstate)
	require.Contains(t, text, "no primary")
}

func TestALookupThatNoPrimaryTakesIsGivenUp(t *testing.T) {
	l := newHopLab(t)
	l.route(Serve, 1, l.a)
	pooler, _ := l.openLookup(l.a)
	l.route(Serve, 2, l.b)
	stop := make(chan struct{})
	var refusing sync.WaitGroup
	refusing.Go(func() {
		for {
			select {
			case conn := <-l.b.conns:
				if _, _, err := readStartup(conn); err == nil {
					_, _ = conn.Write(message('E', "C28000\x00\x00"))
				}
			case <-stop:
				return
			}
		}
	})
	sqlstate, text := l.end(pooler)
	close(stop)
	refusing.Wait()
	require.Equal(t, stateLost, sqlstate)
	require.Contains(t, text, "lets nobody in")
}

func TestALookupIsPutTwiceIfTheSecondFailsToo(t *testing.T) {
	l := newHopLab(t)
	l.hop.maxPause = time.Minute
	l.route(Serve, 1, l.a)
	pooler, _ := l.openLookup(l.a)
	l.route(Serve, 2, l.b)
	server, _ := l.b.next()
	l.write(server, message('E', "C28000\x00\x00"))
	again, _ := l.b.next()
	l.write(again, loggedIn)
	l.expect(again, query)
	l.write(again, append(bytes.Clone(row), ready...))
	l.expect(pooler, append(bytes.Clone(row), ready...))
}
