package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
	"theseus.dev/theseus/internal/quorum"
)

const (
	// superviseEvery is how often the supervisor looks without being asked.
	superviseEvery = 250 * time.Millisecond
	// reestablishFor bounds each try of a restarted primary to be established: a change of its cohort waits meanwhile.
	reestablishFor = time.Second
	// leaveToOperator is how long a primary that went down waits before it asks its cohort, while the operator is
	// connected: it knows already, and is about to say what is to happen.
	leaveToOperator = 2 * time.Second
	// standDownAfter is how long a former primary that is down waits to be told what to be. Then it becomes a standby of nobody:
	// it may be all there is to seed others from, or to elect.
	standDownAfter = 10 * time.Second
)

// backoff spaces restarts: 0.2 s doubling to 10 s, forgotten after a minute of life.
type backoff struct {
	failures int
	next     time.Time
}

func (b *backoff) failed(now time.Time) {
	wait := min(200*time.Millisecond<<min(b.failures, 8), 10*time.Second)
	b.failures++
	b.next = now.Add(wait)
}

// supervise starts PostgreSQL when it is down and ought to be up.
func (a *Agent) supervise(ctx context.Context) {
	ticker := a.clock.NewTicker(superviseEvery)
	defer ticker.Stop()
	for {
		a.loop.Store(a.now().UnixMilli())
		if a.outgrown.Swap(false) {
			a.outgrow(ctx)
		}
		a.standDown(ctx)
		if a.shouldStart(a.snapshot()) {
			a.startAgain(ctx)
		}
		a.checkStuck(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		case <-a.wake:
		}
	}
}

// standDown makes a former primary that nobody tells anything a standby of nobody. It has promised to leave its term, or others
// have and will not have it back; so nothing that it was may be needed of it any more, but what it holds may.
func (a *Agent) standDown(ctx context.Context) {
	st, now := a.snapshot(), a.now()
	a.mu.Lock()
	waits := (st.Halted != "" && st.Halted != haltedSeeding || st.Primary != nil && a.live.left == st.Term) && a.live.seed == nil && st.Diverged == "" && !st.Rewinding && !st.Bootstrapping
	if !waits || a.pg.Running() {
		a.live.waiting = time.Time{}
	} else if a.live.waiting.IsZero() {
		a.live.waiting = now
	}
	since := a.live.waiting
	a.mu.Unlock()
	if since.IsZero() || now.Sub(since) < standDownAfter || !a.commands.idle() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, st.Term, "stand down")
	if err != nil {
		return
	}
	defer done()
	begun := a.pg.NewestTimeline()
	err = a.update(ctx, func(s *State) error {
		if s.Term != st.Term || s.Halted == haltedSeeding {
			return refuse("something was told meanwhile")
		}
		s.attribute(begun)
		s.Halted, s.Primary = "", nil
		return nil
	})
	a.log.Warn("nobody says what to be: a standby of nobody", "term", st.Term, "waited", now.Sub(since).String(), "error", err)
	a.mu.Lock()
	a.live.waiting = time.Time{}
	a.mu.Unlock()
}

// outgrow stops a standby that has paused its replay because its primary has more of some setting. It is started again like
// any that went down, with as much.
func (a *Agent) outgrow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.conf.StartTimeout)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, a.snapshot().Term, "restart")
	if err != nil {
		a.outgrown.Store(true)
		return
	}
	defer done()
	if a.isPrimary() || !a.pg.Running() {
		return
	}
	a.log.Info("restarting PostgreSQL, because its primary has more of some setting")
	if _, err := a.pg.Stop(ctx, postgres.Fast); err != nil {
		a.log.Error("PostgreSQL does not stop", "error", err)
	}
}

// shouldStart says whether PostgreSQL is down without a reason to be.
func (a *Agent) shouldStart(st State) bool {
	if !a.down(st) || !a.commands.idle() {
		return false
	}
	a.mu.Lock()
	ready := !a.live.stopping && a.live.seed == nil && !a.now().Before(a.live.restarts.next)
	a.mu.Unlock()
	return ready && a.pg.Initialised()
}

// down says whether PostgreSQL ought to be up and is not, or is a primary that took longer to recover than its start waited:
// that one is up and nobody has said so. (A standby in that case is noticed by looking at it.)
func (a *Agent) down(st State) bool {
	if st.Halted != "" || st.Diverged != "" || st.Rewinding || st.Bootstrapping {
		return false
	}
	return !a.pg.Running() || st.Primary != nil && !a.isPrimary()
}

func (a *Agent) startAgain(ctx context.Context) {
	st := a.snapshot()
	if st.Primary != nil && !a.termStands(ctx, st) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, a.conf.StartTimeout+quickLimit)
	defer cancel()
	ctx, done, err := a.commands.begin(ctx, st.Term, "start")
	if err != nil {
		return
	}
	defer done()
	if st = a.snapshot(); !a.down(st) {
		return
	}
	if st.Primary != nil {
		err = a.resume(ctx, st)
	} else {
		err = a.startStandby(ctx, st)
	}
	a.mu.Lock()
	if err != nil {
		a.live.restarts.failed(a.now())
		a.live.message = "start failed: " + err.Error()
	} else {
		a.live.message = ""
	}
	a.mu.Unlock()
	if err != nil {
		a.log.Error("PostgreSQL did not start", "error", err)
	}
	a.changed()
}

// start starts PostgreSQL and watches for its end. A primary is called one by the caller, when its cohort is in force.
func (a *Agent) start(ctx context.Context, mode postgres.Mode, r postgres.Runtime) error {
	begun := time.Now()
	err := a.pg.Start(ctx, mode, r)
	life := a.pg.Life()
	if life.Exited == nil || !life.Started.After(begun) {
		return err
	}
	a.mu.Lock()
	a.live.exit = ""
	a.live.obs = postgres.Observation{Identity: postgres.Identity{System: a.live.obs.System}}
	a.live.use(a.live.cohort, a.now())
	a.mu.Unlock()
	go a.awaitExit(life)
	if err == nil {
		if mode == postgres.AsStandby {
			a.started(mode)
		}
		a.log.Info("PostgreSQL started", "primary", mode == postgres.AsPrimary, "took", took(begun))
	}
	return err
}

// started says what PostgreSQL, which takes sessions now, is.
func (a *Agent) started(mode postgres.Mode) {
	a.mu.Lock()
	a.live.started, a.live.role = a.now(), agentpb.Role_STANDBY
	if mode == postgres.AsPrimary {
		a.live.role = agentpb.Role_PRIMARY
	}
	a.mu.Unlock()
	a.changed()
}

// awaitExit tells everybody the moment the postmaster has ended.
func (a *Agent) awaitExit(life postgres.Life) {
	<-life.Exited
	now := a.pg.Life()
	if !now.Started.Equal(life.Started) {
		return
	}
	a.mu.Lock()
	a.live.exit = now.Exit
	a.live.established, a.live.draining = false, false
	if a.live.role == agentpb.Role_PRIMARY || a.live.role == agentpb.Role_STANDBY {
		a.live.role = agentpb.Role_STOPPED
	}
	if a.clock.Since(life.Started) > time.Minute {
		a.live.restarts = backoff{}
	}
	a.live.restarts.failed(a.now())
	a.mu.Unlock()
	a.publish()
	a.log.Warn("PostgreSQL exited", "exit", now.Exit)
	a.lookAgain()
	a.reconsider()
}

// startStandby starts as a standby of the persisted target, if there is one.
func (a *Agent) startStandby(ctx context.Context, st State) error {
	r := postgres.Runtime{Sync: postgres.Nobody}
	if st.Follow != nil {
		up := upstream(st.Follow)
		r.Upstream = &up
	}
	if err := a.start(ctx, postgres.AsStandby, r); err != nil {
		return err
	}
	if st.Intent == 0 {
		return nil
	}
	return a.attribute(ctx)
}

// attribute ends an interrupted promotion's intent: if it got as far as a new timeline, that is its.
func (a *Agent) attribute(ctx context.Context) error {
	pos, err := a.pg.Position(ctx)
	if err != nil {
		return err
	}
	return a.update(ctx, func(s *State) error { s.attribute(pos.Timeline); return nil })
}

// resume starts the primary again in the same term, and establishes it again before gateways open: what was committed
// here and never acknowledged is acknowledged now, with the journal's row.
func (a *Agent) resume(ctx context.Context, st State) error {
	cohort := st.Primary.Cohort
	if err := a.startPrimary(ctx, cohort); err != nil {
		return err
	}
	if err := a.pg.SetSynchronous(ctx, cohort.Members, cohort.Acks); err != nil {
		return err
	}
	a.mu.Lock()
	a.live.use(&cohort, a.now())
	a.mu.Unlock()
	a.started(postgres.AsPrimary)
	if err := a.update(ctx, func(s *State) error { s.Fenced = ""; return nil }); err != nil {
		return err
	}
	go a.reestablish(st.Term)
	return nil
}

func (a *Agent) startPrimary(ctx context.Context, cohort quorum.Cohort) error {
	ctx, cancel := context.WithTimeout(ctx, a.conf.StartTimeout)
	defer cancel()
	if a.pg.Running() { // it recovers for longer than an earlier start waited
		return a.pg.AwaitReady(ctx)
	}
	return a.start(ctx, postgres.AsPrimary, postgres.Runtime{Sync: postgres.SyncNames(cohort.Members, cohort.Acks)})
}

// reestablish tries until it is done, superseded, or PostgreSQL is down again.
func (a *Agent) reestablish(term uint64) {
	for a.isPrimary() {
		ctx, cancel := context.WithTimeout(context.Background(), reestablishFor)
		ctx, done, err := a.commands.begin(ctx, term, "establish")
		if err == nil {
			err = a.establish(ctx, term, "restart", "PostgreSQL was restarted in its term")
			done()
		}
		cancel()
		if err == nil || errors.Is(err, errSuperseded) || a.snapshot().Term != term {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// termStands asks the cohort whether it is still in this primary's term. Leaving the term takes promises of more than
// |M|−k members; so as long as k members say that they have promised nothing higher, nobody can have left it.
func (a *Agent) termStands(ctx context.Context, st State) bool {
	cohort := st.Primary.Cohort
	if cohort.Acks <= 0 {
		return true
	}
	now := a.now()
	a.mu.Lock()
	down := a.live.restarts.next
	a.mu.Unlock()
	if now.Sub(a.operators.heard(now)) < a.conf.FenceAfter && now.Before(down.Add(leaveToOperator)) {
		return false
	}
	replies := a.askCohort(ctx, st, cohort)
	yes, higher := countTestimony(replies, st.Term)
	if yes >= cohort.Acks {
		return true
	}
	message := fmt.Sprintf("waiting: %d of %d needed members are still in term %d", yes, cohort.Acks, st.Term)
	if higher > 0 {
		message = fmt.Sprintf("waiting to be told whom to follow: term %d has begun", higher)
	}
	a.mu.Lock()
	a.live.message = message
	if higher > 0 {
		a.live.left = st.Term
	}
	a.live.restarts.next = now.Add(time.Second)
	a.mu.Unlock()
	return false
}

// countTestimony counts the members that have accepted nothing above term, and the highest term any has accepted above it.
func countTestimony(replies []*agentpb.TestifyReply, term uint64) (yes int, higher uint64) {
	for _, r := range replies {
		if r.GetTerm() <= term {
			yes++
		} else {
			higher = max(higher, r.GetTerm())
		}
	}
	return yes, higher
}

// askCohort asks all members at once; those that do not answer in a second are left out.
func (a *Agent) askCohort(ctx context.Context, st State, cohort quorum.Cohort) []*agentpb.TestifyReply {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var replies []*agentpb.TestifyReply
	var all sync.WaitGroup
	for _, member := range cohort.Members {
		for _, t := range st.Endpoints {
			if t.Instance != member {
				continue
			}
			all.Go(func() {
				client, err := agentapi.Dial(ctx, endpoint(t), a.conf.Shard, a.id)
				if err != nil {
					return
				}
				defer func() { _ = client.Close() }()
				r, err := client.Testify(ctx, &agentpb.TestifyRequest{Primary: a.conf.Instance})
				if err != nil {
					return
				}
				mu.Lock()
				replies = append(replies, r)
				mu.Unlock()
			})
		}
	}
	all.Wait()
	return replies
}
