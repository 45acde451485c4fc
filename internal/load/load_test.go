package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"
	"pgregory.net/rapid"
)

func TestClassify(t *testing.T) {
	pg := func(severity, code string) error {
		return fmt.Errorf("wrapped: %w", &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: severity, Code: code})
	}
	for _, tc := range []struct {
		name    string
		err     error
		warned  string
		outcome Outcome
		code    string
	}{
		{"success", nil, "", Acked, ""},
		{"success with a reservation", nil, "canceling wait for synchronous replication due to user request", Unknown, "warning"},
		{"rolled back", pg("ERROR", "25006"), "", Failed, "25006"},
		{"rolled back, with a warning before", pg("ERROR", "40001"), "something", Failed, "40001"},
		{"session ended: it may have committed", pg("FATAL", "57P01"), "", Unknown, "57P01"},
		{"server panics", pg("PANIC", "XX000"), "", Unknown, "XX000"},
		{"severity of an old server", &pgconn.PgError{Severity: "ERROR", Code: "23505"}, "", Failed, "23505"},
		{"nothing sent", notSent{}, "", Failed, "closed"},
		{"deadline", fmt.Errorf("wrapped: %w", context.DeadlineExceeded), "", Unknown, "timeout"},
		{"socket deadline", &net.OpError{Err: os.ErrDeadlineExceeded}, "", Unknown, "timeout"},
		{"closed", errors.New("unexpected EOF"), "", Unknown, "closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			outcome, code, text := Classify(tc.err, tc.warned)
			require.Equal(t, tc.outcome, outcome)
			require.Equal(t, tc.code, code)
			require.Equal(t, tc.outcome == Acked, text == "")
		})
	}
}

type notSent struct{}

func (notSent) Error() string     { return "dialing" }
func (notSent) SafeToRetry() bool { return true }

func TestConnectCode(t *testing.T) {
	require.Equal(t, "53300", ConnectCode(fmt.Errorf("x: %w", &pgconn.PgError{Code: "53300"})))
	require.Equal(t, "connect timeout", ConnectCode(context.DeadlineExceeded))
	require.Equal(t, "connect", ConnectCode(errors.New("refused")))
}

func recorderAt(writers int, start time.Time) *recorder {
	c := Config{DSN: "x", Writers: writers, KeepOps: true}
	if err := c.complete(); err != nil {
		panic(err)
	}
	r := newRecorder(c)
	r.start, r.lastAck, r.s.Started = start, start, start
	for i := range r.writerAck {
		r.writerAck[i] = start
	}
	return r
}

func TestStalls(t *testing.T) {
	start := time.Now().Add(-10 * time.Second)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	r := recorderAt(2, start)
	end := func(writer int, seq int64, ms int, o Outcome) {
		r.ended(Op{Writer: writer, Seq: seq, Start: at(ms - 1), End: at(ms), Outcome: o, Code: map[Outcome]string{Unknown: "x"}[o]})
	}
	end(0, 1, 100, Acked)
	end(1, 1, 150, Acked)
	end(0, 2, 400, Unknown) // not an acknowledgement
	end(1, 2, 450, Acked)   // 300 for all, 300 for writer 1
	end(0, 3, 500, Acked)   // 400 for writer 0
	require.Equal(t, 300.0, r.s.LongestStallMS)
	require.Equal(t, at(150), r.s.LongestStallAt)
	require.Equal(t, []float64{400, 300}, r.s.WriterStallMS)
	require.Equal(t, 300*time.Millisecond, r.s.StallWithin(at(200), at(210)))
	require.Equal(t, 50*time.Millisecond, r.s.StallWithin(at(460), at(470)))

	s := r.summary()
	require.InDelta(t, 9500, s.LongestStallMS, 500, "the silence at the end counts")
	require.EqualValues(t, 4, s.Acked)
	require.Equal(t, map[string]int64{"x": 1}, s.Errors)
	require.Len(t, s.Samples, 1)
}

// Whatever happened and whatever is there, compare counts each row once and in the right column.
func TestCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := recorderAt(3, time.Now())
		there := []map[int64]bool{{}, {}, {}}
		var want Summary
		for writer := range there {
			ops := rapid.Int64Range(0, 20).Draw(t, "ops")
			for seq := int64(1); seq <= ops; seq++ {
				o := rapid.SampledFrom([]Outcome{Acked, Failed, Unknown}).Draw(t, "outcome")
				present := rapid.Bool().Draw(t, "present")
				r.ended(Op{Writer: writer, Seq: seq, End: time.Now(), Outcome: o, Code: "x"})
				if present {
					there[writer][seq] = true
				}
				switch {
				case o == Acked && !present:
					want.Lost++
				case o == Unknown && present:
					want.UnknownPresent++
				case o == Failed && present:
					want.FailedPresent++
				}
			}
		}
		s := r.summary()
		r.compare(there, s)
		if !s.Verified || s.Lost != want.Lost || s.UnknownPresent != want.UnknownPresent || s.FailedPresent != want.FailedPresent {
			t.Fatalf("%+v, want %+v", s, want)
		}
		if int64(len(s.LostSamples)) != min(s.Lost, maxSamples) {
			t.Fatalf("%d samples of %d lost", len(s.LostSamples), s.Lost)
		}
	})
}

func TestConfigDefaults(t *testing.T) {
	var c Config
	require.Error(t, c.complete())
	c.DSN = "x"
	require.NoError(t, c.complete())
	require.Equal(t, 4, c.Writers)
	require.Equal(t, c.Timeout, c.ConnectTimeout)
	require.Equal(t, clock.RealClock{}, c.Clock)
	c.Writers = -1
	require.Error(t, c.complete())
	_, err := Run(context.Background(), Config{})
	require.Error(t, err)
	_, err = Run(context.Background(), Config{DSN: "host=127.0.0.1 port=1 connect_timeout=1", SetupTimeout: 50 * time.Millisecond})
	require.ErrorContains(t, err, "making table")
}
