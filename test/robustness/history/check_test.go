package history

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/load"
)

// op makes an operation of client 0 on object 0 of "gateway".
func op(kind Kind, call, ret int64, change func(*Op)) Op {
	o := Op{Kind: kind, Call: call, Return: ret, Outcome: load.Acked, Endpoint: "gateway", Server: "a"}
	if change != nil {
		change(&o)
	}
	return o
}

func write(call, ret, value, version int64) Op {
	return op(Write, call, ret, func(o *Op) { o.Value, o.Version = value, version })
}

func read(call, ret, got, version int64) Op {
	return op(Read, call, ret, func(o *Op) { o.Got, o.Version = got, version })
}

func glance(call, ret, got, version int64) Op {
	return op(Glance, call, ret, func(o *Op) { o.Got, o.Version = got, version })
}

func cas(call, ret, expect, value, got int64) Op {
	return op(CAS, call, ret, func(o *Op) { o.Expect, o.Value, o.Got = expect, value, got })
}

func outcome(o Op, out load.Outcome, code string) Op {
	o.Outcome, o.Code = out, code
	return o
}

func unknown(o Op) Op { return outcome(o, load.Unknown, "closed") }
func failed(o Op) Op  { return outcome(o, load.Failed, "25006") }

func rules(r *Report) []string {
	var out []string
	for _, v := range r.Violations {
		out = append(out, v.Rule)
	}
	return out
}

// example is a history and the rules that it breaks.
type example struct {
	name    string
	ops     []Op
	entries []Entry
	audited bool
	want    []string
}

func judge(t *testing.T, examples []example) {
	t.Helper()
	for _, tc := range examples {
		t.Run(tc.name, func(t *testing.T) {
			r := Check(&History{Ops: tc.ops, Entries: tc.entries, Audited: tc.audited}, time.Minute)
			require.ElementsMatch(t, tc.want, rules(r))
			require.Empty(t, r.Undecided)
			require.Equal(t, tc.want == nil, r.Err() == nil)
		})
	}
}

func TestRegisters(t *testing.T) {
	judge(t, []example{
		{name: "nothing happened"},
		{name: "a read sees the last write", ops: []Op{write(0, 1, 7, 1), read(2, 3, 7, 1)}},
		{
			name: "an acknowledged write is lost",
			ops:  []Op{write(0, 1, 7, 1), read(2, 3, 0, 0)},
			want: []string{"not linearizable"},
		},
		{
			name: "a lost write whose version was given again",
			ops:  []Op{write(0, 1, 7, 1), write(2, 3, 8, 1), read(4, 5, 8, 1)},
			want: []string{"lost write"},
		},
		{
			name: "two primaries acknowledge",
			ops:  []Op{write(0, 1, 7, 1), read(2, 3, 7, 1), write(2, 4, 8, 1), read(5, 6, 7, 1), read(7, 8, 8, 1), read(9, 10, 7, 1)},
			want: []string{"lost write", "not linearizable"},
		},
		{name: "unknown, and never seen", ops: []Op{unknown(write(0, 1, 7, 0)), read(2, 3, 0, 0)}},
		{name: "unknown, seen much later", ops: []Op{unknown(write(0, 1, 7, 0)), read(2, 3, 0, 0), read(4, 5, 7, 1)}},
		{
			name: "unknown, seen, and then undone",
			ops:  []Op{unknown(write(0, 1, 7, 0)), read(2, 3, 7, 1), read(4, 5, 0, 0)},
			want: []string{"not linearizable"},
		},
		{
			name: "seen before it was asked for",
			ops:  []Op{read(0, 1, 7, 1), unknown(write(2, 3, 7, 0))},
			want: []string{"not linearizable"},
		},
		{
			name: "a success with a warning may be lost",
			ops:  []Op{outcome(write(0, 1, 7, 1), load.Unknown, load.CodeWarning), read(2, 3, 0, 0)},
		},
		{
			name: "a failed write is seen",
			ops:  []Op{failed(write(0, 1, 7, 0)), read(2, 3, 7, 1)},
			want: []string{"not linearizable"},
		},
		{name: "an unknown read has told nobody", ops: []Op{unknown(read(0, 1, 99, 9)), read(2, 3, 0, 0)}},
	})
}

func TestLedgers(t *testing.T) {
	entry := func(seq, prev, value int64) Entry { return Entry{Seq: seq, Prev: prev, Value: value} }
	judge(t, []example{
		{name: "compare and set in turn", ops: []Op{cas(0, 1, 0, 7, 0), cas(2, 3, 0, 8, 7), cas(4, 5, 7, 9, 7), cas(6, 7, -1, 10, 9)}},
		{
			name: "two moves from one head",
			ops:  []Op{cas(0, 1, 0, 7, 0), cas(2, 3, 0, 8, 0)},
			want: []string{"not linearizable"},
		},
		{
			name: "a chain of unknown moves, the last one seen",
			ops:  []Op{unknown(cas(0, 1, 0, 7, 0)), unknown(cas(2, 3, 7, 8, 0)), cas(4, 5, -1, 9, 8)},
		},
		{
			name: "the middle of a chain of unknown moves did not happen",
			ops:  []Op{unknown(cas(0, 1, 0, 7, 0)), cas(2, 3, -1, 9, 0), failed(cas(4, 5, 7, 8, 7)), cas(6, 7, -1, 10, 8)},
			want: []string{"not linearizable"},
		},
		{
			name: "entries of all that moved", audited: true,
			ops:     []Op{cas(0, 1, 0, 7, 0), unknown(cas(2, 3, 7, 8, 0)), unknown(cas(2, 3, 7, 9, 0)), cas(4, 5, -1, 10, 8)},
			entries: []Entry{entry(1, 0, 7), entry(2, 7, 8)},
		},
		{
			name: "an entry is lost", audited: true,
			ops:     []Op{cas(0, 1, 0, 7, 0), cas(2, 3, 7, 8, 7)},
			entries: []Entry{entry(1, 0, 7)},
			want:    []string{"lost entry"},
		},
		{
			name: "a hole in the chain", audited: true,
			ops:     []Op{cas(0, 1, 0, 7, 0), cas(2, 3, 7, 8, 7)},
			entries: []Entry{entry(2, 7, 8)},
			want:    []string{"broken chain", "lost entry"},
		},
		{
			name: "entries of what failed, and of nobody", audited: true,
			ops:     []Op{failed(cas(0, 1, 0, 7, 0))},
			entries: []Entry{entry(1, 0, 7), entry(2, 7, 55)},
			want:    []string{"entry of nothing", "entry of nobody"},
		},
	})
}

func TestGlances(t *testing.T) {
	judge(t, []example{
		{name: "an old glance is allowed", ops: []Op{write(0, 1, 7, 1), write(2, 3, 8, 2), glance(4, 5, 7, 1)}},
		{
			name: "a glance at what is lost later is allowed",
			ops:  []Op{unknown(write(0, 1, 7, 0)), glance(2, 3, 7, 1), read(4, 5, 0, 0)},
		},
		{
			name: "a session goes back",
			ops:  []Op{write(0, 1, 7, 1), glance(2, 3, 7, 1), glance(4, 5, 0, 0)},
			want: []string{"went back"},
		},
		{
			name: "going back on another server, or connection, is allowed",
			ops: []Op{
				write(0, 1, 7, 1), glance(2, 3, 7, 1),
				op(Glance, 4, 5, func(o *Op) { o.Server = "b" }),
				op(Glance, 6, 7, func(o *Op) { o.Session = 1 }),
			},
		},
		{name: "a value that nobody wrote", ops: []Op{glance(0, 1, 7, 1)}, want: []string{"value of nobody"}},
		{name: "a value from the future", ops: []Op{glance(0, 1, 7, 1), write(2, 3, 7, 1)}, want: []string{"value of the future"}},
		{name: "the value of a failed write", ops: []Op{failed(write(0, 1, 7, 0)), glance(2, 3, 7, 1)}, want: []string{"value of a failed write"}},
		{
			name: "the value of another register",
			ops:  []Op{write(0, 1, 7, 1), op(Glance, 2, 3, func(o *Op) { o.Key, o.Got, o.Version = 1, 7, 1 })},
			want: []string{"value of another register"},
		},
	})
}

func TestReportCounts(t *testing.T) {
	r := Check(&History{Ops: []Op{
		write(0, 10, 7, 1), write(20, 30, 8, 2),
		glance(40, 50, 7, 1), // 10 after version 2 was acknowledged
		glance(25, 50, 7, 1), // it may have looked before
		outcome(write(60, 70, 9, 3), load.Unknown, load.CodeWarning),
		failed(write(80, 90, 10, 0)),
	}}, time.Minute)
	require.NoError(t, r.Err())
	require.Equal(t, []int{4, 1, 1, 1}, []int{r.Acked, r.Failed, r.Unknown, r.Warned})
	require.Equal(t, map[string]map[string]int{"gateway": {"warning": 1, "25006": 1}}, r.Codes)
	require.Equal(t, map[string]int{"gateway": 1}, r.Old)
	require.Equal(t, map[string]time.Duration{"gateway": 10}, r.Oldest)
}

func TestDraw(t *testing.T) {
	r := Check(&History{Ops: []Op{write(0, 1, 7, 1), unknown(write(2, 3, 8, 0)), read(2, 3, 0, 0)}}, time.Minute)
	require.Equal(t, []string{"not linearizable"}, rules(r))
	dir := t.TempDir()
	require.NoError(t, r.Draw(dir))
	html, err := os.ReadFile(filepath.Join(dir, "register-0.html"))
	require.NoError(t, err)
	require.Contains(t, string(html), "write 7")
	require.Error(t, r.Draw(filepath.Join(dir, "nowhere")))
}

// small draws a history of one object with many operations open, most of them short of time, right or wrong.
func small(t *rapid.T, ledger bool) []Op {
	var ops []Op
	values := []int64{0}
	for i := range rapid.IntRange(1, 7).Draw(t, "ops") {
		call := rapid.Int64Range(0, 20).Draw(t, "call")
		o := Op{Client: i, Kind: Write, Call: call, Return: call + rapid.Int64Range(0, 10).Draw(t, "took"), Outcome: load.Acked}
		if ledger {
			o.Kind = CAS
		} else if rapid.Bool().Draw(t, "read") {
			o.Kind = Read
		}
		if o.Kind != Read {
			o.Value = int64(i + 1)
			values = append(values, o.Value)
			o.Outcome = rapid.SampledFrom([]load.Outcome{load.Acked, load.Unknown, load.Unknown}).Draw(t, "outcome")
		}
		ops = append(ops, o)
	}
	some := rapid.SampledFrom(values)
	for i := range ops {
		if ops[i].Kind != Write {
			ops[i].Got, ops[i].Expect = some.Draw(t, "got"), some.Draw(t, "expect")
		}
	}
	return ops
}

// Making a history quicker to check must not change the answer, whatever the history.
func TestNarrowChangesNothing(t *testing.T) {
	legal, illegal := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		ledger := rapid.Bool().Draw(t, "ledger")
		for object, p := range operations(small(t, ledger)) {
			m := modelOf(object)
			want := porcupine.CheckOperations(m, p)
			if got := porcupine.CheckOperations(m, narrow(p)); got != want {
				t.Fatalf("narrowed: %v, as it was: %v: %+v", got, want, p)
			}
			if want {
				legal++
			} else {
				illegal++
			}
		}
	})
	require.Positive(t, legal)
	require.Positive(t, illegal)
}

// A long history of a store that works, with many operations of unknown outcome, is decided quickly; and one lost write
// in it is found.
func TestLongHistory(t *testing.T) {
	h := longHistory(20_000)
	start := time.Now()
	r := Check(h, time.Minute)
	require.NoError(t, r.Err())
	t.Logf("%d operations, %d unknown, checked in %v", len(h.Ops), r.Unknown, time.Since(start))
	for i := len(h.Ops) / 2; ; i++ {
		if o := &h.Ops[i]; o.Kind == Read && o.Got != 0 {
			o.Got = 0
			break
		}
	}
	require.Error(t, Check(h, time.Minute).Err())
}

func longHistory(n int) *History {
	random := rand.New(rand.NewPCG(1, 2))
	values, heads := map[int]int64{}, map[int]int64{}
	versions := map[int]int64{}
	var ops []Op
	for i := range n {
		// Answers overlap, and each operation happens in the order of the loop.
		o := Op{Client: i % 10, Key: random.IntN(10), Call: int64(i*10) - random.Int64N(40), Return: int64(i*10) + random.Int64N(40), Outcome: load.Acked}
		lost := random.IntN(100) == 0
		if lost {
			o.Outcome = load.Unknown
		}
		happens := !lost || random.IntN(2) == 0
		switch random.IntN(3) {
		case 0:
			o.Kind, o.Value = Write, int64(i+1)
			if happens {
				values[o.Key] = o.Value
				versions[o.Key]++
			}
			o.Version = versions[o.Key]
		case 1:
			o.Kind, o.Got, o.Version = Read, values[o.Key], versions[o.Key]
		default:
			o.Kind, o.Value, o.Expect, o.Got = CAS, int64(i+1), heads[o.Key], heads[o.Key]
			if happens {
				heads[o.Key] = o.Value
			}
		}
		ops = append(ops, o)
	}
	return &History{Ops: ops}
}

func TestFile(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var b bytes.Buffer
	w, err := NewWriter(&b, began)
	require.NoError(t, err)
	ops := []Op{write(0, 1, 7, 1), unknown(cas(2, 3, 0, 8, 0))}
	for _, o := range ops {
		require.NoError(t, w.Op(o))
	}
	require.NoError(t, w.Audit([]Entry{{Seq: 1, Value: 8}}))
	require.NoError(t, w.Flush())
	whole := b.String()

	h, err := ReadFrom(strings.NewReader(whole))
	require.NoError(t, err)
	require.Equal(t, &History{Began: began, Ops: ops, Audited: true, Entries: []Entry{{Seq: 1, Value: 8}}}, h)

	lines := strings.SplitAfter(whole, "\n")
	h, err = ReadFrom(strings.NewReader(strings.Join(lines[:2], "") + lines[2][:10]))
	require.NoError(t, err, "a run that was killed leaves what it has")
	require.Len(t, h.Ops, 1)
	require.False(t, h.Audited)

	_, err = ReadFrom(strings.NewReader("nonsense"))
	require.Error(t, err)
	_, err = ReadFrom(broken{})
	require.Error(t, err)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestStall(t *testing.T) {
	h := &History{Ops: []Op{write(0, 100, 1, 1), write(0, 150, 2, 2), glance(150, 300, 2, 2), unknown(write(150, 350, 3, 0)), write(200, 500, 4, 3), write(500, 510, 5, 4)}}
	require.EqualValues(t, 350, h.Stall("gateway", 160, 170))
	require.EqualValues(t, 10, h.Stall("gateway", 505, 600))
	require.Zero(t, h.Stall("direct", 0, 600))
}
