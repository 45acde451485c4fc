package reparent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// choice is whom to promote and with which cohort.
type choice struct {
	cohort   quorum.Cohort
	position quorum.Position
	// catchUp is the instance to stream from first, when the chosen one is better placed but behind; "" for none.
	catchUp    string
	why        string
	candidates []Candidate
}

// field is everything a choice is made from; the choice is a pure function of it.
type field struct {
	term      uint64
	record    quorum.Record // everything below the term
	promises  []quorum.Promise
	instances []Instance
	// following are instances known to be able to follow without having promised: a PRS saw them stream.
	following []string
	failed    []string // let us down in this reparent: chosen when nobody else is left
	prefer    string   // the request's To, or the candidate a PRS prepared
	last      []string // chosen when nobody else can be: the old primary, AwayFrom
	size      int
	maxLag    uint64
	noCatchUp bool
}

// elects orders electable instances: the highest log first, because whoever is ahead of the new primary has to be rewound or
// seeded again; but the old primary and those that failed last, whatever they have.
func (f field) elects(a, b Instance) int {
	p, _ := find(f.promises, a.Name)
	q, _ := find(f.promises, b.Name)
	return cmp.Or(f.shunned(a)-f.shunned(b), q.Position.Compare(p.Position), f.rank(a, b))
}

func (f field) shunned(i Instance) int {
	switch {
	case slices.Contains(f.failed, i.Name):
		return 2
	case slices.Contains(f.last, i.Name) && i.Name != f.prefer:
		return 1
	}
	return 0
}

// leansOnTheOld reports whether a commit would need the acknowledgement of whom the shard moves away from.
func (f field) leansOnTheOld(c quorum.Cohort) bool {
	others := slices.DeleteFunc(slices.Clone(c.Members), func(m string) bool { return slices.Contains(f.last, m) })
	return len(others) < c.Acks
}

// rank orders candidates that have the same, the best placed first. Where a primary lives matters longer than how it got
// there: one that must soon leave costs another reparent, so that decides first, and lag, which costs milliseconds, last.
func (f field) rank(a, b Instance) int {
	no := func(x bool) int {
		if x {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(no(slices.Contains(f.failed, a.Name)), no(slices.Contains(f.failed, b.Name))),
		cmp.Compare(no(a.Name != f.prefer), no(b.Name != f.prefer)),
		cmp.Compare(no(slices.Contains(f.last, a.Name)), no(slices.Contains(f.last, b.Name))),
		cmp.Compare(no(a.Full), no(b.Full)),
		cmp.Compare(no(a.Leaving), no(b.Leaving)),
		cmp.Compare(no(!a.Current), no(!b.Current)),
		-cmp.Compare(days(a.TimeLeft), days(b.TimeLeft)),
		cmp.Compare(no(f.sameZone(a)), no(f.sameZone(b))),
		cmp.Compare(a.ReplayLag>>20, b.ReplayLag>>20),
		-cmp.Compare(a.TimeLeft, b.TimeLeft),
		cmp.Compare(a.Name, b.Name),
	)
}

// days: a difference of hours between instances that live for weeks is no reason to prefer one.
func days(d time.Duration) int64 { return int64(d / (24 * time.Hour)) }

// sameZone as the instance the shard moves away from.
func (f field) sameZone(i Instance) bool {
	return i.Zone != "" && slices.ContainsFunc(f.instances, func(o Instance) bool { return slices.Contains(f.last, o.Name) && o.Zone == i.Zone })
}

// choose picks the best placed of those who are electable and can be acknowledged. The error says what is missing.
func (f field) choose() (choice, error) {
	electable := quorum.Electable(f.record, f.promises)
	if len(electable) == 0 {
		if err := quorum.Revoked(f.record, f.promises); err != nil {
			return choice{candidates: f.judge(electable, "")}, err
		}
		return choice{}, errors.New("nobody promised")
	}
	var reasons []string
	for _, i := range slices.SortedFunc(slices.Values(f.instances), f.elects) {
		p, ok := find(electable, i.Name)
		if !ok || i.Unfit != "" || f.record.IsRetired(i.Name) {
			continue
		}
		c, err := f.cohort(p)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %v", i.Name, err))
			continue
		}
		ch := choice{cohort: c, position: p.Position, why: f.reason(i, len(electable)), candidates: f.judge(electable, i.Name)}
		return f.better(ch, i, p), nil
	}
	return choice{candidates: f.judge(electable, "")}, fmt.Errorf("nobody electable can serve: %s", strings.Join(reasons, "; "))
}

// better replaces the choice by an instance that is a little behind, when it was asked for or the chosen one is to leave. It
// takes the chosen one as its source, so that must be a running standby.
func (f field) better(ch choice, chosen Instance, p quorum.Promise) choice {
	wanted := f.prefer != "" && chosen.Name != f.prefer
	if f.noCatchUp || p.WasPrimary || !chosen.Leaving && !wanted && f.shunned(chosen) == 0 {
		return ch
	}
	for _, i := range slices.SortedFunc(slices.Values(f.instances), f.rank) {
		q, ok := find(f.promises, i.Name)
		if i.Name == chosen.Name || !ok || q.WasPrimary || i.Unfit != "" || f.record.IsRetired(i.Name) || i.Diverged || i.Leaving && i.Name != f.prefer || f.shunned(i) > 0 {
			continue
		}
		if wanted && i.Name != f.prefer && !chosen.Leaving {
			continue
		}
		if !prefix(q.Position, p.Position) || p.Position.LSN-q.Position.LSN > f.maxLag {
			continue
		}
		q.Position = p.Position // once it has caught up
		if c, err := f.cohort(q); err == nil {
			return choice{cohort: c, position: p.Position, catchUp: chosen.Name, candidates: f.judge([]quorum.Promise{q}, i.Name), why: fmt.Sprintf("%s is better placed than %s, which has more, and catches up from it", i.Name, chosen.Name)}
		}
	}
	return ch
}

// prefix reports whether a log that ends at p is certain to be the beginning of one that ends at q.
func prefix(p, q quorum.Position) bool { return p.WALTerm == q.WALTerm && p.LSN <= q.LSN }

// cohort is the one to record for the candidate: up to size of those that can follow it, best first. Without a doubt can
// those whose log is a beginning of its own; those that end in a lower term may be, which shows when they follow. The
// acknowledgements are those of the established term: a reparent never relaxes them.
func (f field) cohort(p quorum.Promise) (quorum.Cohort, error) {
	old := f.old()
	var followers []string
	doubt := map[string]int{}
	for _, i := range f.instances {
		q, promised := find(f.promises, i.Name)
		member := old.Has(i.Name) || i.Name == old.Primary
		switch {
		case i.Name == p.Instance, f.record.IsRetired(i.Name):
			continue
		case promised && prefix(q.Position, p.Position) && (p.Position.LSN-q.Position.LSN <= f.maxLag || member):
		case promised && !i.Diverged && q.Position.WALTerm < p.Position.WALTerm && (q.Position.LSN+f.maxLag >= p.Position.LSN || member):
			doubt[i.Name] += 2 * int(min(p.Position.WALTerm-q.Position.WALTerm, 1000))
		case !promised && !i.Diverged && slices.Contains(f.following, i.Name) && !slices.Contains(f.failed, i.Name):
		default:
			continue
		}
		if !member {
			doubt[i.Name]++
		}
		followers = append(followers, i.Name)
	}
	slices.SortStableFunc(followers, func(a, b string) int { return cmp.Compare(doubt[a], doubt[b]) })
	c := quorum.Cohort{Term: f.term, Primary: p.Instance, Members: followers[:min(len(followers), max(f.size, old.Acks))], Acks: old.Acks}.Normalize()
	return c, quorum.CanEstablish(c, followers)
}

// old is the newest cohort of the established term.
func (f field) old() quorum.Cohort {
	var old quorum.Cohort
	for _, c := range f.record.Cohorts {
		if c.Term == f.record.Established {
			old = c
		}
	}
	return old
}

func (f field) reason(i Instance, electable int) string {
	switch {
	case i.Name == f.prefer:
		return "it was asked for or prepared, and has everything that was acknowledged"
	case slices.Contains(f.last, i.Name):
		return "nobody else has everything that was acknowledged and can serve"
	}
	return fmt.Sprintf("the best placed of %d that have everything that was acknowledged: %v left to live, zone %q", electable, i.TimeLeft.Round(time.Hour), i.Zone)
}

// judge lists every instance with why it was not chosen.
func (f field) judge(electable []quorum.Promise, chosen string) []Candidate {
	var out []Candidate
	for _, i := range f.instances {
		p, promised := find(f.promises, i.Name)
		c := Candidate{Instance: i.Name, Position: p.Position}
		_, ok := find(electable, i.Name)
		switch {
		case i.Name == chosen:
		case i.Unfit != "":
			c.Refused = i.Unfit
		case slices.Contains(f.failed, i.Name):
			c.Refused = "failed in this reparent"
		case !promised:
			c.Refused = "did not promise"
		case !ok:
			c.Refused = "may not have everything that was acknowledged"
		case slices.Contains(f.last, i.Name):
			c.Refused = "is to be moved away from"
		case chosen == "":
			c.Refused = "too few could acknowledge its commits"
		default:
			c.Refused = "not as well placed"
		}
		out = append(out, c)
	}
	return out
}

func find(promises []quorum.Promise, name string) (quorum.Promise, bool) {
	i := slices.IndexFunc(promises, func(p quorum.Promise) bool { return p.Instance == name })
	if i < 0 {
		return quorum.Promise{}, false
	}
	return promises[i], true
}
