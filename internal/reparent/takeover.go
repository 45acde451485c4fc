package reparent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// takeover ends every lower term and establishes a primary in r.term. It is the one promotion path: whatever led here, the
// safety of it rests on the promises collected and the record stored, both checked here.
func (r *run) takeover(ctx context.Context) error {
	var ch choice
	for try := 0; ; try++ {
		var err error
		if ch, err = r.revoke(ctx); err != nil {
			return err
		}
		if ch.catchUp != "" && !r.catchUp(ctx, ch) {
			r.noCatchUp = true
			continue
		}
		end := r.phase(PhaseRecord)
		err = r.begin(ctx, ch.cohort)
		end("%v", recorded(ch.cohort, err))
		if err == nil {
			break
		}
		if !errors.Is(err, errMoved) || try == 5 {
			return err
		}
		// The record has changed under us, so what must be revoked has.
	}
	r.why, r.judged = ch.why, ch.candidates
	timelines, err := r.promote(ctx, ch)
	if err != nil {
		return err
	}
	return r.establish(ctx, ch, timelines)
}

func recorded(c quorum.Cohort, err error) string {
	if err != nil {
		return err.Error()
	}
	return c.String()
}

func (r *run) field() field {
	f := field{
		term: r.term, record: r.record.Before(r.term), promises: r.promises, instances: r.req.Instances, following: r.following,
		failed: r.failed, prefer: r.prefer, last: []string{r.old}, size: r.req.Size, maxLag: r.lim.MaxLag, noCatchUp: r.noCatchUp,
	}
	if r.term == 0 {
		f.record = r.record
	}
	if r.req.AwayFrom != "" && r.req.AwayFrom != r.old {
		f.last = append(f.last, r.req.AwayFrom)
	}
	return f
}

// revoke collects promises until a choice can be made, and a moment longer for those that are likely to answer. The
// old primary is asked like everybody: its answer is welcome and not waited for. A planned reparent whose candidate has
// promised while the old primary stopped needs nobody else.
func (r *run) revoke(ctx context.Context) (choice, error) {
	ch, err := r.field().choose()
	if err == nil && (r.asked || r.req.Kind == Planned && ch.cohort.Primary == r.prefer) {
		return ch, nil
	}
	r.asked = true
	end := r.phase(PhaseRevoke)
	var ask []Instance
	waiting := 0
	for _, i := range r.req.Instances {
		if _, ok := find(r.promises, i.Name); !ok {
			ask = append(ask, i)
			if i.Reachable {
				waiting++
			}
		}
	}
	var over error
	term := r.term
	each(ctx, r.Runtime, r.lim.Promise, len(ask),
		func(ctx context.Context, i int) (quorum.Promise, error) {
			return r.Agents.Promise(ctx, ask[i].Name, term, 0)
		},
		func(i int, p quorum.Promise, e error) time.Duration {
			if ask[i].Reachable {
				waiting--
			}
			switch {
			case r.overtaken(e):
				over = e
				return Enough
			case e == nil && proves(p, ask[i].Name, r.term):
				r.promises = append(r.promises, p)
			case ask[i].Name == r.prefer:
				r.prefer = ""
			}
			f := r.field()
			if ch, err = f.choose(); err != nil {
				return All
			}
			switch {
			case ch.cohort.Primary == r.prefer || waiting == 0:
				return Enough
			case ch.cohort.Primary == r.old:
				return All // the last choice, while there are others
			case f.leansOnTheOld(ch.cohort):
				return All // its first commit would wait for a log to be rewound, or for a volume that is full
			case r.prefer != "" && r.req.Kind == Planned:
				return All // it was alive a moment ago, and has what the old primary wrote last, which others may lack: they would diverge
			case r.prefer != "":
				return 4 * r.lim.Grace // another choice costs a store
			}
			return r.lim.Grace
		})
	if over != nil {
		end("%v", over)
		return ch, over
	}
	// Decide again: with nobody left to ask there was no answer to decide on.
	if ch, err = r.field().choose(); err != nil {
		r.judged = ch.candidates
		end("%d promises: %v", len(r.promises), err)
		return ch, err
	}
	end("%d promises; %s: %s", len(r.promises), ch.cohort.Primary, ch.why)
	return ch, nil
}

// proves reports whether p is the promise that was asked for, with a position. Anything else proves nothing.
func proves(p quorum.Promise, instance string, term uint64) bool {
	return p.Instance == instance && p.Term == term && p.Position.WALTerm > 0
}

// catchUp has the chosen instance stream what it lacks from the one that has it. The deadline is short: clients wait.
func (r *run) catchUp(ctx context.Context, ch choice) bool {
	end := r.phase(PhaseCatchUp)
	name, term := ch.cohort.Primary, r.term
	err := do(ctx, r.Runtime, r.lim.Promise, func(ctx context.Context) error { return r.Agents.Follow(ctx, name, term, ch.catchUp, nil) })
	deadline := r.Runtime.Now().Add(r.lim.Phase(PhaseCatchUp))
	for err == nil {
		st, e := r.status(ctx, name)
		if e == nil && st.Term == r.term && !st.Diverged && st.Position.Compare(ch.position) >= 0 {
			for i := range r.promises {
				if r.promises[i].Instance == name {
					r.promises[i].Position = st.Position
				}
			}
			end("%s has caught up with %s", name, ch.catchUp)
			return true
		}
		if !r.Runtime.Now().Before(deadline) {
			err = context.DeadlineExceeded
			break
		}
		err = r.Runtime.Sleep(ctx, r.lim.Poll)
	}
	end("%s did not catch up with %s: %v", name, ch.catchUp, err)
	return false
}

// errMoved says that the record changed between the decision and the store.
var errMoved = errors.New("the record has moved on")

// begin stores the cohort of the term. While nobody was told to promote, a cohort recorded for the term before, by this
// very coordinator, is replaced.
func (r *run) begin(ctx context.Context, c quorum.Cohort) error {
	next := r.record
	if next.Term() > r.term {
		return &OvertakenError{Instance: "the record", Term: next.Term()}
	}
	if next.Term() == r.term {
		latest, _ := next.Latest()
		if latest.SameRule(c) {
			return nil
		}
		if r.sent {
			return fmt.Errorf("term %d names %s already", r.term, latest.Primary)
		}
		var err error
		if next, err = quorum.AbandonTerm(next, r.term); err != nil {
			return err
		}
	}
	next, err := quorum.BeginTerm(next, c)
	if err != nil {
		return err
	}
	err = r.store(ctx, next)
	if err == nil {
		return nil
	}
	// Somebody else changed it, or the answer was lost. Look again; the caller decides on what is there now.
	if e := r.load(ctx); e != nil {
		return e
	}
	if latest, _ := r.record.Latest(); latest.Equal(c) {
		return nil
	}
	return fmt.Errorf("%w: %w", errMoved, err)
}

func (r *run) promote(ctx context.Context, ch choice) ([]Timeline, error) {
	name := ch.cohort.Primary
	end := r.phase(PhasePromote)
	limit := r.lim.Promote
	if i := r.instance(name); i != nil {
		limit += time.Duration(i.ReplayLag/r.lim.ReplayRate) * time.Second
	}
	r.sent = true
	timelines, err := one(ctx, r.Runtime, limit, func(ctx context.Context) ([]Timeline, error) { return r.Agents.Promote(ctx, name, ch.cohort) })
	if err != nil {
		end("%s: %v", name, err)
		r.overtaken(err)
		r.failed = append(r.failed, name)
		return nil, fmt.Errorf("%s could not be promoted: %w", name, err)
	}
	end("%s at %v: %s", name, ch.position, ch.why)
	return timelines, nil
}

// headStart is what running standbys get over the old primary of a planned reparent when both are told to follow.
const headStart = 150 * time.Millisecond

// establish has everybody follow the new primary while it writes the row of the journal, which waits for them.
func (r *run) establish(ctx context.Context, ch choice, timelines []Timeline) error {
	name, term, old := ch.cohort.Primary, r.term, ""
	if r.req.Kind == Planned && len(ch.cohort.Members) > ch.cohort.Acks {
		old = r.old
	}
	end := r.phase(PhaseEstablish)
	var followers []string
	for _, i := range r.req.Instances {
		_, promised := find(r.promises, i.Name)
		if i.Name != name && (promised || slices.Contains(ch.cohort.Members, i.Name) || i.Reachable && i.Name != r.old) {
			followers = append(followers, i.Name)
		}
	}
	err := context.DeadlineExceeded
	var left []string
	each(ctx, r.Runtime, r.lim.Establish, 1+len(followers),
		func(ctx context.Context, i int) (struct{}, error) {
			if i == 0 {
				return struct{}{}, r.Agents.Establish(ctx, name, term, r.req.Kind, r.req.Reason)
			}
			if followers[i-1] == old {
				// It has to be started first, which takes what the others need to acknowledge the row: processors, and the new
				// primary's attention. Where they are enough it is not waited for, and where not, this is soon enough.
				if err := r.Runtime.Sleep(ctx, headStart); err != nil {
					return struct{}{}, err
				}
			}
			return struct{}{}, r.Agents.Follow(ctx, followers[i-1], term, name, timelines)
		},
		func(i int, _ struct{}, e error) time.Duration {
			switch {
			case i == 0 && e == nil:
				err, r.restored = nil, r.Runtime.Now()
				return r.lim.Follow
			case i == 0:
				err = e
				return Enough
			case e != nil:
				left = append(left, fmt.Sprintf("%s: %v", followers[i-1], e))
				if errors.Is(e, ErrDiverged) {
					r.instance(followers[i-1]).Diverged = true
				}
			}
			return All
		})
	if err != nil {
		end("%s: %v; followers left behind: %v", name, err, left)
		r.overtaken(err)
		r.failed = append(r.failed, name)
		return fmt.Errorf("%s was not acknowledged: %w", name, err)
	}
	r.primary = name
	err = r.finish(ctx)
	end("%s is established; followers left behind: %v; record: %v", name, left, err)
	return nil
}

// finish stores that the term is established. Failing does not undo it: clients are being served, and the keeper of the
// cohort stores it as soon as it can.
func (r *run) finish(ctx context.Context) error {
	var err error
	for range 5 {
		var next quorum.Record
		if next, err = quorum.Establish(r.record, r.term); err != nil {
			return err
		}
		if err = r.store(ctx, next); err == nil || !errors.Is(err, ErrConflict) {
			return err
		}
		if err = r.load(ctx); err != nil || r.record.Established >= r.term {
			return err
		}
	}
	return err
}
