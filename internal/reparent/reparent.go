package reparent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"theseus.dev/theseus/internal/quorum"
)

// Coordinator carries out reparents of one shard.
type Coordinator struct {
	Records Records
	Agents  Agents
	Journal Journal
	Runtime Runtime
}

// Run carries out one reparent and returns how it ended. It returns within the sum of the limits. Cancelling ctx makes it
// stop, and undo, as long as the old primary was not told to stop; afterwards it goes on to the end.
func (c Coordinator) Run(ctx context.Context, req Request) Result {
	req.Instances = slices.Clone(req.Instances)
	r := &run{Coordinator: c, req: req, lim: req.Limits.WithDefaults(), noCatchUp: !req.CatchUp}
	err := r.run(ctx)
	res := r.result(err)
	if r.term != 0 || req.Term != 0 {
		ctx, closing := context.WithoutCancel(ctx), res
		if e := do(ctx, r.Runtime, r.lim.Store, func(ctx context.Context) error { return r.Journal.Close(ctx, closing) }); e != nil {
			res.Message = join(res.Message, fmt.Sprintf("the journal could not be closed: %v", e))
		}
	}
	return res
}

// run is the state of one reparent. Calls that were given up may still be running, so what they use is passed to them by
// value: the fields are for the goroutine of Run alone.
type run struct {
	Coordinator
	req Request
	lim Limits

	record  quorum.Record
	version Version
	term    uint64 // opened; 0 before
	old     string // the primary when it began
	oldTerm uint64 // its term
	// promises of the present term.
	promises  []quorum.Promise
	following []string // seen streaming by a PRS
	failed    []string
	prefer    string
	overdue   time.Time // transactions of the old primary that were begun before had their time; zero for none
	noCatchUp bool
	asked     bool // everybody was asked for a promise of the present term
	sent      bool // somebody was told to promote in the present term
	seen      uint64

	disturbed time.Time
	restored  time.Time
	primary   string
	why       string
	judged    []Candidate
}

// ending is an error that says how the reparent ends.
type ending struct {
	outcome Outcome
	message string
}

func (e *ending) Error() string { return e.message }

func refuse(format string, args ...any) error {
	return &ending{Refused, fmt.Sprintf(format, args...)}
}

// errDone ends a reparent for which there is nothing to do.
type errDone struct{ primary, message string }

func (e *errDone) Error() string { return e.message }

func (r *run) result(err error) Result {
	res := Result{Outcome: Succeeded, Term: r.term, OldPrimary: r.old, NewPrimary: r.primary, Why: r.why, Candidates: r.judged}
	if !r.disturbed.IsZero() && !r.restored.IsZero() {
		res.WriteUnavailable = r.restored.Sub(r.disturbed)
	}
	var end *ending
	var done *errDone
	var over *OvertakenError
	switch {
	case err == nil && r.req.Kind == Planned && r.primary == r.old:
		res.Outcome = Undone
		res.Message = fmt.Sprintf("nobody else could take over in the end: %s was promoted again", r.old)
		return res
	case err == nil:
		res.Message = r.insteadOf()
		return res
	case errors.As(err, &done):
		res.NewPrimary, res.Message = done.primary, done.message
		return res
	case errors.As(err, &end):
		res.Outcome = end.outcome
	case errors.As(err, &over), errors.Is(err, ErrTermTaken):
		res.Outcome = Overtaken
	default:
		res.Outcome = Failed
	}
	res.NewPrimary, res.Message = "", err.Error()
	return res
}

// insteadOf says why another one is the primary than was asked for; "" when nobody was, or it is. An emergency cannot choose
// freely, and serving matters more than by whom.
func (r *run) insteadOf() string {
	if r.req.To == "" || r.primary == r.req.To {
		return ""
	}
	why := "not judged"
	for _, c := range r.judged {
		if c.Instance == r.req.To {
			why = c.Refused
		}
	}
	return fmt.Sprintf("%s was asked for and could not be taken (%s); %s is the primary", r.req.To, why, r.primary)
}

func (r *run) run(ctx context.Context) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	if r.req.Kind == Planned {
		if err := r.plan(ctx); err != nil {
			return err
		}
		if err := r.disturb(ctx); err != nil {
			return err
		}
	} else {
		if err := r.open(ctx); err != nil {
			return err
		}
		r.disturbed = r.Runtime.Now()
		if since := r.req.Since; !since.IsZero() && since.Before(r.disturbed) {
			r.disturbed = since
		}
		r.prefer = r.req.To
	}
	return r.succeed(context.WithoutCancel(ctx))
}

// succeed takes over, in further terms when a promotion failed.
func (r *run) succeed(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := r.takeover(ctx)
		var over *OvertakenError
		var end *ending
		if err == nil || errors.As(err, &over) || errors.As(err, &end) || attempt == r.lim.Attempts {
			return err
		}
		if !r.sent {
			continue // nobody was told to promote: the term is still good
		}
		spent := Result{Outcome: Failed, Term: r.term, OldPrimary: r.old, Candidates: r.judged, Message: fmt.Sprintf("%v; it goes on in a higher term", err)}
		_ = do(ctx, r.Runtime, r.lim.Store, func(ctx context.Context) error { return r.Journal.Close(ctx, spent) })
		if e := r.load(ctx); e != nil {
			return fmt.Errorf("%w; and %w", err, e)
		}
		if r.record.Term() > r.term || r.record.Established >= r.term {
			return &OvertakenError{Instance: "the record", Term: r.record.Term()}
		}
		r.req.Term, r.prefer, r.following = 0, "", nil
		if e := r.open(ctx); e != nil {
			return fmt.Errorf("%w; and %w", err, e)
		}
	}
}

// check reads the record and the request against each other. Nothing is touched.
func (r *run) check(ctx context.Context) error {
	if err := r.load(ctx); err != nil {
		return refuse("the record cannot be read: %v", err)
	}
	if err := r.record.Validate(); err != nil {
		return refuse("the record is not valid: %v", err)
	}
	if r.record.Established == 0 {
		return refuse("the shard has had no primary yet")
	}
	if r.req.Kind == Planned {
		if err := r.settle(ctx); err != nil {
			return refuse("%v", err)
		}
	}
	r.old, r.oldTerm = r.record.Primary(), r.record.Established
	req := r.req
	switch {
	case req.ExpectPrimary != "" && req.ExpectPrimary != r.old:
		return refuse("the primary is %s, expected was %s", r.old, req.ExpectPrimary)
	case req.To != "" && req.To == req.AwayFrom:
		return refuse("asked to move to and away from %s", req.To)
	case req.To != "" && r.instance(req.To) == nil:
		return refuse("there is no instance %s", req.To)
	case req.AwayFrom != "" && req.AwayFrom != r.old:
		return &errDone{r.old, fmt.Sprintf("the primary is %s already", r.old)}
	case req.To == r.old && req.Kind == Planned:
		return &errDone{r.old, fmt.Sprintf("%s is the primary already", r.old)}
	}
	if req.Kind == Emergency {
		if err := quorum.Revocable(r.record, r.reachable()); err != nil {
			return refuse("too few instances are reachable for it to be safe: %v", err)
		}
	}
	return nil
}

// settle stores that the newest term is established when its primary says so: its coordinator may have died before it
// could.
func (r *run) settle(ctx context.Context) error {
	latest, _ := r.record.Latest()
	if latest.Term == r.record.Established {
		return nil
	}
	st, err := r.status(ctx, latest.Primary)
	if err != nil || st.Role != RolePrimary || !st.Established || st.Term != latest.Term {
		return nil // a term left behind: the takeover revokes it
	}
	next, err := quorum.Establish(r.record, latest.Term)
	if err != nil {
		return err
	}
	return r.store(ctx, next)
}

// open takes the lock of a term.
func (r *run) open(ctx context.Context) error {
	next := max(r.record.Term(), r.seen, r.req.Spent) + 1
	for _, i := range r.req.Instances {
		next = max(next, i.Term+1)
	}
	if r.req.Term != 0 {
		if r.req.Term < next {
			return refuse("term %d is spent: the next one is %d", r.req.Term, next)
		}
		if !inReach(r.req.Term, next) {
			return refuse("term %d is out of reach: the next one is %d, and at most %d may be left out", r.req.Term, next, maxSkip)
		}
		next = r.req.Term
	}
	o := Opening{Term: next, Kind: r.req.Kind, Reason: r.req.Reason, Coordinator: r.req.Coordinator, OldPrimary: r.old}
	if err := do(ctx, r.Runtime, r.lim.Store, func(ctx context.Context) error { return r.Journal.Open(ctx, o) }); err != nil {
		return fmt.Errorf("opening term %d: %w", next, err)
	}
	r.term, r.promises, r.asked, r.sent = next, nil, false, false
	return nil
}

func (r *run) load(ctx context.Context) error {
	type loaded struct {
		quorum.Record
		Version
	}
	l, err := one(ctx, r.Runtime, r.lim.Store, func(ctx context.Context) (loaded, error) {
		rec, v, err := r.Records.Load(ctx)
		return loaded{rec, v}, err
	})
	if err == nil {
		r.record, r.version = l.Record, l.Version
	}
	return err
}

func (r *run) status(ctx context.Context, name string) (Status, error) {
	return one(ctx, r.Runtime, r.lim.Status, func(ctx context.Context) (Status, error) { return r.Agents.Status(ctx, name) })
}

// store replaces the record by one derived from r.record.
func (r *run) store(ctx context.Context, next quorum.Record) error {
	at := r.version
	v, err := one(ctx, r.Runtime, r.lim.Store, func(ctx context.Context) (Version, error) { return r.Records.Store(ctx, at, next) })
	if err == nil {
		r.record, r.version = next, v
	}
	return err
}

// phase notes the begin of a phase and returns how to end it.
func (r *run) phase(name PhaseName) func(format string, args ...any) {
	p := Phase{Term: r.term, Name: name, Started: r.Runtime.Now()}
	r.Journal.Phase(p)
	return func(format string, args ...any) {
		p.Finished, p.Message = r.Runtime.Now(), fmt.Sprintf(format, args...)
		r.Journal.Phase(p)
	}
}

func (r *run) instance(name string) *Instance {
	for i := range r.req.Instances {
		if r.req.Instances[i].Name == name {
			return &r.req.Instances[i]
		}
	}
	return nil
}

func (r *run) reachable() []string {
	var out []string
	for _, i := range r.req.Instances {
		if i.Reachable {
			out = append(out, i.Name)
		}
	}
	return out
}

// overtaken remembers the higher term an error reports.
func (r *run) overtaken(err error) bool {
	var over *OvertakenError
	if errors.As(err, &over) {
		r.seen = max(r.seen, over.Term)
		return true
	}
	return false
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
