package reparent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// plan makes sure that a planned reparent will succeed, without disturbing anything: it chooses the candidate, opens the
// term, lets transactions finish, has the primary write a checkpoint and the candidate catch up. Failing here is a refusal.
func (r *run) plan(ctx context.Context) error {
	statuses := r.statuses(ctx)
	st, ok := statuses[r.old]
	if !ok || st.Role != RolePrimary || !st.Established || st.Term != r.oldTerm {
		return refuse("%s does not answer as the primary of term %d: a planned reparent needs it in good health", r.old, r.oldTerm)
	}
	candidates, refused := r.fitting(statuses)
	if len(candidates) == 0 {
		return refuse("no instance can take over: %s", strings.Join(refused, "; "))
	}
	if err := r.open(ctx); err != nil {
		return err
	}
	end := r.phase(PhasePrepare)
	overdue := r.await(ctx)
	checkpoint := "no checkpoint"
	if !r.req.NoCheckpoint {
		checkpoint = "checkpoint written"
		if err := do(ctx, r.Runtime, r.lim.Checkpoint, func(ctx context.Context) error { return r.Agents.Checkpoint(ctx, r.old, r.oldTerm) }); err != nil {
			end("checkpoint: %v", err)
			return refuse("%s did not finish a checkpoint: %v", r.old, err)
		}
	}
	deadline := r.Runtime.Now().Add(r.lim.CatchUp)
	for _, c := range candidates {
		if r.caughtUp(ctx, c, deadline) {
			r.prefer = c
			end("%s will take over; %s, it has caught up%s", c, checkpoint, overdue)
			return nil
		}
		refused = append(refused, c+" did not catch up in time")
	}
	end("nobody caught up")
	return refuse("no instance can take over: %s", strings.Join(refused, "; "))
}

// await gives the transactions that are open already their time while nobody waits for them: a session that sits in one, or a
// long query, would keep all others from working for as long. The drain ends those that are left at once; of these it tells. An
// agent that does not know how to tell is drained without.
func (r *run) await(ctx context.Context) string {
	if r.lim.Patience < 0 {
		return ""
	}
	type answer struct {
		open  int
		asked time.Time
	}
	a, err := one(ctx, r.Runtime, r.lim.Patience+r.lim.Store, func(ctx context.Context) (a answer, err error) {
		a.open, a.asked, err = r.Agents.Await(ctx, r.old, r.oldTerm, r.lim.Patience)
		return a, err
	})
	if err != nil || a.open == 0 {
		return ""
	}
	r.overdue = a.asked
	return fmt.Sprintf("; open transactions that did not finish within %v: %d", r.lim.Patience, a.open)
}

// statuses asks everybody at once. Who does not answer is not in the result.
func (r *run) statuses(ctx context.Context) map[string]Status {
	out := map[string]Status{}
	waiting := len(r.reachable())
	each(ctx, r.Runtime, r.lim.Status, len(r.req.Instances),
		func(ctx context.Context, i int) (Status, error) { return r.Agents.Status(ctx, r.req.Instances[i].Name) },
		func(i int, st Status, err error) time.Duration {
			if err == nil {
				out[r.req.Instances[i].Name] = st
			}
			if r.req.Instances[i].Reachable {
				waiting--
			}
			if waiting == 0 {
				return r.lim.Grace
			}
			return All
		})
	return out
}

// fitting lists who could take over from a healthy primary, the best first, and why the others could not. It also notes
// who streams, for the new cohort.
func (r *run) fitting(statuses map[string]Status) (names, refused []string) {
	primary := statuses[r.old]
	r.following = []string{r.old}
	var ok []Instance
	for _, i := range r.req.Instances {
		if i.Name == r.old {
			continue
		}
		why := r.unsuitable(i, statuses, primary)
		if why == "" || strings.HasPrefix(why, unfitPrefix) {
			r.following = append(r.following, i.Name)
		}
		if why != "" {
			refused = append(refused, i.Name+" "+why)
			continue
		}
		ok = append(ok, i)
	}
	f := r.field()
	slices.SortStableFunc(ok, f.rank)
	for _, i := range ok {
		if _, err := f.cohort(quorum.Promise{Instance: i.Name}); err != nil {
			refused = append(refused, fmt.Sprintf("%s could not commit: %v", i.Name, err))
			continue
		}
		names = append(names, i.Name)
	}
	return names, refused
}

// unfitPrefix begins the reasons that concern serving as a primary, not following one.
const unfitPrefix = "is not to be primary"

func (r *run) unsuitable(i Instance, statuses map[string]Status, primary Status) string {
	st, ok := statuses[i.Name]
	switch {
	case !ok:
		return "does not answer"
	case r.record.IsRetired(i.Name):
		return "is being thrown away"
	case st.Role != RoleStandby || st.Diverged || st.Source != r.old || st.Term > r.oldTerm:
		return fmt.Sprintf("does not stream from %s", r.old)
	case st.Position.LSN+r.lim.MaxLag < primary.Position.LSN:
		return fmt.Sprintf("is %d MiB of WAL behind", (primary.Position.LSN-st.Position.LSN)>>20)
	case i.Unfit != "":
		return unfitPrefix + ": " + i.Unfit
	case st.Replayed+r.lim.MaxLag < primary.Position.LSN:
		return fmt.Sprintf("%s: it is %d MiB behind in replay", unfitPrefix, (primary.Position.LSN-st.Replayed)>>20)
	case r.req.To != "" && i.Name != r.req.To:
		return fmt.Sprintf("%s: %s was asked for", unfitPrefix, r.req.To)
	}
	return ""
}

// nearly is how close in replay a candidate must have been once: what is left is replayed while the primary stops.
const nearly = 1 << 20

// caughtUp waits until the candidate has flushed and replayed nearly all that the primary had written at some moment.
func (r *run) caughtUp(ctx context.Context, candidate string, deadline time.Time) bool {
	primary, err := r.status(ctx, r.old)
	if err != nil {
		return false
	}
	for {
		st, err := r.status(ctx, candidate)
		if err != nil || st.Source != r.old {
			return false
		}
		if st.Position.LSN+nearly >= primary.Position.LSN && st.Replayed+nearly >= primary.Position.LSN {
			return true
		}
		if !r.Runtime.Now().Before(deadline) || r.Runtime.Sleep(ctx, r.lim.Poll) != nil {
			return false
		}
	}
}

// disturb pauses the clients and stops the old primary. As long as the old primary has not been told to stop, every
// failure is undone.
func (r *run) disturb(ctx context.Context) error {
	// Before anybody is disturbed, so that no client waits for an API server that is slow.
	if err := r.announce(ctx); err != nil {
		return r.undo(ctx, err)
	}
	r.disturbed = r.Runtime.Now()
	if err := r.drain(ctx); err != nil {
		return r.undo(ctx, err)
	}
	if ctx.Err() != nil {
		return r.undo(ctx, ctx.Err())
	}
	ctx = context.WithoutCancel(ctx)
	return r.demote(ctx)
}

// demote stops the old primary, which ships everything to the candidate first, and has the standbys promise as soon as
// there is nothing more to come; of them only the candidate is waited for. The promises are like any others: what they prove,
// and who may be promoted, the takeover decides. Should the candidate's be missing, or lack something, it asks everybody.
func (r *run) demote(ctx context.Context) error {
	end := r.phase(PhaseDemote)
	term, candidate, within := r.term, r.prefer, r.lim.Demote
	ask := []string{r.old, candidate}
	for _, name := range r.following {
		if !slices.Contains(ask, name) {
			ask = append(ask, name) // otherwise it would go on asking a server that stops, and get ready to follow only afterwards
		}
	}
	var err error = context.DeadlineExceeded
	var stopped, promised quorum.Promise
	var others []quorum.Promise
	answered := false // the candidate, whatever it says
	each(ctx, r.Runtime, within+r.lim.Promise, len(ask),
		func(ctx context.Context, i int) (quorum.Promise, error) {
			if ask[i] == r.old {
				return r.Agents.Demote(ctx, ask[i], term, candidate, within)
			}
			return r.Agents.Promise(ctx, ask[i], term, within)
		},
		func(i int, p quorum.Promise, e error) time.Duration {
			name := ask[i]
			answered = answered || name == candidate
			switch {
			case r.overtaken(e):
				stopped, err = quorum.Promise{}, e
				return Enough
			case name == r.old:
				if stopped, err = p, e; err != nil {
					return Enough
				}
			case e == nil && proves(p, name, term) && name == candidate:
				promised = p
			case e == nil && proves(p, name, term):
				others = append(others, p)
			}
			switch {
			case stopped.Instance == "":
				return All
			case answered:
				return Enough
			}
			return r.lim.Promise // for the candidate: it was alive a moment ago
		})
	if promised.Instance != "" {
		r.promises = append(r.promises, promised)
	}
	if r.overtaken(err) {
		end("%v", err)
		return err
	}
	if err != nil {
		// It may have stopped, or be about to. The takeover asks it again, with everybody: that there are promises enough without
		// its own must not keep it from hearing that its term is over.
		end("%s gave no answer: %v", r.old, err)
		r.following = nil
		return nil
	}
	r.promises = append(append(r.promises, stopped), others...)
	end("%s stopped at %v; %s has promised at %v", r.old, stopped.Position, candidate, promised.Position)
	return nil
}

// announce records the cohort to come.
func (r *run) announce(ctx context.Context) error {
	end := r.phase(PhaseRecord)
	c, err := r.field().cohort(quorum.Promise{Instance: r.prefer})
	for try := 1; err == nil; try++ {
		if err = r.begin(ctx, c); err == nil {
			break
		}
		if errors.Is(err, errMoved) && try < 3 {
			err = nil // the keeper of the cohort was quicker; what it stored is loaded
		}
	}
	end("%v", recorded(c, err))
	return err
}

// drain asks the clients to pause, and looks at the candidate once more meanwhile: clients wait, and for no longer than it takes.
func (r *run) drain(ctx context.Context) error {
	end := r.phase(PhaseDrain)
	old, term, candidate, overdue, begun := r.old, r.oldTerm, r.prefer, r.overdue, r.Runtime.Now()
	open, st := 0, Status{}
	var drained, err error = context.DeadlineExceeded, context.DeadlineExceeded
	each(ctx, r.Runtime, r.lim.Drain+r.lim.Store, 2,
		func(ctx context.Context, i int) (any, error) {
			if i == 0 {
				return r.Agents.Drain(ctx, old, term, r.lim.Drain, overdue)
			}
			return r.Agents.Status(ctx, candidate)
		},
		func(i int, v any, e error) time.Duration {
			if i == 1 {
				if err = e; e == nil {
					st = v.(Status)
				}
				return All
			}
			if drained = e; e != nil {
				return Enough
			}
			open = v.(int)
			return r.lim.Status
		})
	if drained != nil {
		if ctx.Err() != nil {
			drained = context.Cause(ctx) // whoever cancelled says why
		}
		end("%v", drained)
		return drained
	}
	if r.Runtime.Now().Sub(begun) > r.lim.Status {
		st, err = r.status(ctx, candidate) // much may have happened since
	}
	if err != nil || st.Source != r.old {
		// The takeover could choose another one too, but only after waiting for this one with the primary stopped.
		end("%s was lost: %v", r.prefer, err)
		return r.replaceCandidate(ctx)
	}
	end("%d transactions left open", open)
	return nil
}

// replaceCandidate chooses another candidate after the first was lost, with clients paused and the primary untouched.
func (r *run) replaceCandidate(ctx context.Context) error {
	r.failed = append(r.failed, r.prefer)
	if r.req.To != "" {
		return fmt.Errorf("%s was lost", r.prefer)
	}
	candidates, refused := r.fitting(r.statuses(ctx))
	candidates = slices.DeleteFunc(candidates, func(n string) bool { return slices.Contains(r.failed, n) })
	if len(candidates) == 0 {
		return fmt.Errorf("%s was lost and nobody else can take over: %s", r.prefer, strings.Join(refused, "; "))
	}
	r.prefer = candidates[0]
	c, err := r.field().cohort(quorum.Promise{Instance: r.prefer})
	if err != nil {
		return err
	}
	return r.begin(ctx, c)
}

// undo lets the old primary go on in its old term: nobody was told to stop or to promote. When the reparent was cancelled an
// emergency waits for this, and the primary that is asked here is the one that does not answer: it takes a drain back by
// itself, too.
func (r *run) undo(ctx context.Context, cause error) error {
	limit := r.lim.Store
	if ctx.Err() != nil {
		limit = min(limit, 4*r.lim.Grace)
	}
	ctx = context.WithoutCancel(ctx)
	end := r.phase(PhaseUndo)
	err := do(ctx, r.Runtime, limit, func(ctx context.Context) error { return r.Agents.Undrain(ctx, r.old, r.oldTerm) })
	if err == nil {
		r.restored = r.Runtime.Now()
	}
	// An unanswered store may yet come into effect, so look first; whoever comes next settles what is left.
	for range 3 {
		if r.load(ctx) != nil || r.record.Term() != r.term {
			break
		}
		next, e := quorum.AbandonTerm(r.record, r.term)
		if e != nil || r.store(ctx, next) == nil {
			break
		}
	}
	end("undrain: %v", err)
	if r.overtaken(cause) {
		return cause
	}
	message := fmt.Sprintf("%v; undone, %s serves on", cause, r.old)
	if err != nil {
		message = fmt.Sprintf("%v; %s did not answer and takes the pause back by itself: %v", cause, r.old, err)
	}
	return &ending{Undone, message}
}
