package history

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"theseus.dev/theseus/internal/load"
)

// Violation is a promise that was broken.
type Violation struct {
	// Rule that was broken, in a word or two.
	Rule string `json:"rule"`
	// Object it was broken for.
	Object string `json:"object"`
	// What happened.
	What string `json:"what"`
	// Ops that show it, so far as it takes few.
	Ops []Op `json:"ops,omitempty"`
}

// maxViolations bounds those of one rule in a Report; the first ones say it all.
const maxViolations = 20

// Report is what can be said of a history.
type Report struct {
	Acked   int `json:"acked"`
	Failed  int `json:"failed"`
	Unknown int `json:"unknown"`
	// Warned is how many of the unknown were reported as successes, with a warning.
	Warned int `json:"warned"`
	// Codes of operations that were not acked, by endpoint.
	Codes map[string]map[string]int `json:"codes"`
	// Old is how many Glances of each endpoint showed a value that had been overwritten, and acknowledged as such, before
	// the Glance began. This is allowed. Oldest is for how long it had been at most.
	Old    map[string]int           `json:"old"`
	Oldest map[string]time.Duration `json:"oldest"`
	// Violations found. None is what is wanted, and means something only if Undecided is empty too.
	Violations []Violation `json:"violations"`
	// Undecided are the objects whose history took too long to check.
	Undecided []string `json:"undecided,omitempty"`

	pictures map[string]picture
}

// picture is what porcupine can draw.
type picture struct {
	model porcupine.Model
	info  porcupine.LinearizationInfo
}

// Check judges a history. Each object may take as long as limit.
func Check(h *History, limit time.Duration) *Report {
	r := &Report{Codes: map[string]map[string]int{}, Old: map[string]int{}, Oldest: map[string]time.Duration{}, pictures: map[string]picture{}}
	r.count(h.Ops)
	r.linear(h.Ops, limit)
	r.versions(h.Ops)
	r.glances(h.Ops)
	r.ledgers(h)
	return r
}

// Err says in one error what is wrong with the history, nil if nothing is.
func (r *Report) Err() error {
	if len(r.Violations) == 0 && len(r.Undecided) == 0 {
		return nil
	}
	var b strings.Builder
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "%s, %s: %s\n", v.Object, v.Rule, v.What)
	}
	for _, o := range r.Undecided {
		fmt.Fprintf(&b, "%s: not decided in time\n", o)
	}
	return fmt.Errorf("%d violations, %d objects undecided:\n%s", len(r.Violations), len(r.Undecided), b.String())
}

// Draw writes porcupine's picture of every object that broke linearizability into a directory.
func (r *Report) Draw(dir string) error {
	for object, p := range r.pictures {
		path := filepath.Join(dir, strings.ReplaceAll(object, " ", "-")+".html")
		if err := porcupine.VisualizePath(p.model, p.info, path); err != nil {
			return err
		}
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) violate(rule, object, what string, ops ...Op) {
	n := 0
	for _, v := range r.Violations {
		if v.Rule == rule {
			n++
		}
	}
	if n < maxViolations {
		r.Violations = append(r.Violations, Violation{rule, object, what, ops})
	}
}

func (r *Report) count(ops []Op) {
	for _, o := range ops {
		switch o.Outcome {
		case load.Acked:
			r.Acked++
			continue
		case load.Failed:
			r.Failed++
		default:
			r.Unknown++
			if o.Code == load.CodeWarning {
				r.Warned++
			}
		}
		if r.Codes[o.Endpoint] == nil {
			r.Codes[o.Endpoint] = map[string]int{}
		}
		r.Codes[o.Endpoint][o.Code]++
	}
}

func (r *Report) linear(ops []Op, limit time.Duration) {
	byObject := operations(ops)
	for _, object := range slices.Sorted(maps.Keys(byObject)) {
		m := modelOf(object)
		result, info := porcupine.CheckOperationsVerbose(m, narrow(byObject[object]), limit)
		switch result {
		case porcupine.Illegal:
			r.violate("not linearizable", object, "no order of its operations explains their answers; see the picture")
			r.pictures[object] = picture{m, info}
		case porcupine.Unknown:
			r.Undecided = append(r.Undecided, object)
		}
	}
}

// versions finds two acknowledged answers that tell of different values under the same version of a register: one of the
// two writes was undone and another one took its place. Linearizability says so too, but not so clearly.
func (r *Report) versions(ops []Op) {
	type version struct {
		key     int
		version int64
	}
	first, told := map[version]Op{}, map[version]bool{}
	value := func(o Op) int64 {
		if o.Kind == Write {
			return o.Value
		}
		return o.Got
	}
	for _, o := range ops {
		if o.Outcome != load.Acked || (o.Kind != Write && o.Kind != Read) {
			continue
		}
		v := version{o.Key, o.Version}
		before, ok := first[v]
		switch {
		case !ok:
			first[v] = o
		case value(before) != value(o) && !told[v]:
			told[v] = true
			r.violate("lost write", o.object(), fmt.Sprintf("version %d was %d, and later %d", o.Version, value(before), value(o)), before, o)
		}
	}
}

// ledgers checks the chain of entries, and that acknowledged moves are in it and failed ones are not.
func (r *Report) ledgers(h *History) {
	if !h.Audited {
		return
	}
	entries := map[int64]Entry{}
	last := map[int]Entry{}
	for _, e := range h.Entries {
		object := fmt.Sprintf("ledger %d", e.Ledger)
		if before := last[e.Ledger]; e.Prev != before.Value || e.Seq != before.Seq+1 {
			r.violate("broken chain", object, fmt.Sprintf("entry %d follows %d and says that %d was before; entry %d was %d", e.Seq, before.Seq, e.Prev, before.Seq, before.Value))
		}
		last[e.Ledger], entries[e.Value] = e, e
	}
	for _, o := range h.Ops {
		if o.Kind != CAS {
			continue
		}
		e, there := entries[o.Value]
		moved := o.Got == o.Expect
		delete(entries, o.Value)
		switch {
		case o.Outcome == load.Acked && moved && !there:
			r.violate("lost entry", o.object(), "the entry of an acknowledged move is missing", o)
		case there && (o.Outcome == load.Failed || (o.Outcome == load.Acked && !moved)):
			r.violate("entry of nothing", o.object(), "the entry of an operation that had no effect is there", o)
		case there && (e.Ledger != o.Key || e.Prev != o.Expect):
			r.violate("wrong entry", o.object(), fmt.Sprintf("the entry is %+v", e), o)
		}
	}
	for _, e := range entries {
		r.violate("entry of nobody", fmt.Sprintf("ledger %d", e.Ledger), fmt.Sprintf("nobody asked for entry %+v", e))
	}
}

// Stall is the longest time without an acknowledged Write, Read or CAS by an endpoint that overlaps [from, to]. Times are
// those of Op.
func (h *History) Stall(endpoint string, from, to int64) time.Duration {
	var longest, last int64
	for _, o := range h.Ops {
		if o.Outcome != load.Acked || o.Kind == Glance || o.Endpoint != endpoint {
			continue
		}
		if o.Return > from && last < to {
			longest = max(longest, o.Return-last)
		}
		last = max(last, o.Return)
	}
	return time.Duration(longest)
}
