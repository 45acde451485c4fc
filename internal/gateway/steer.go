package gateway

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// Bounds of steering. settle is how long a pause waits for logins under way; see quiesce.
const (
	settle      = 500 * time.Millisecond
	settleStep  = 2 * time.Millisecond
	steerRetry  = 50 * time.Millisecond
	steerWindow = 500 * time.Millisecond
)

// steering is one step for PgBouncer.
type steering int

const (
	leave steering = iota
	pause
	resume
)

// nextStep says what to do to a PgBouncer that is paused or not. It stays paused through Hold, so that the logins of a
// planned reparent all begin at once when the new primary is there. Once clients have waited for as long as they may, it is
// resumed whatever the mode. In Hold that lets logins begin, because only they carry the hop's error to clients. In
// Drain it sends traffic to the primary again: a reparent takes seconds, so whoever announced this one has died over it,
// and the primary is the established one for as long as it says so.
func nextStep(mode Mode, paused, overdue bool) steering {
	switch {
	case mode == Drain && !paused && !overdue:
		return pause
	case paused && (mode == Serve || overdue):
		return resume
	}
	return leave
}

// word is what the primary's agent is told of a PAUSE that was sent or not, and has ended every transaction or not; nothing
// while it is under way. An agent that goes on believing in a pause that was taken back would end, with the primary, the
// transactions that were let through.
func word(mode Mode, sent, over, overdue bool) (paused, say bool) {
	switch {
	case mode != Drain:
		return false, false
	case sent:
		return over, over
	}
	return false, overdue
}

// steer applies routes: to the hop at once, to PgBouncer through its console in a loop of its own.
type steer struct {
	gate     *gate
	hop      *hop
	console  *console
	metrics  *metrics
	clock    clock.WithTicker
	log      *slog.Logger
	maxPause time.Duration
	poolSize int
	// paused tells the primary of a Drain that no transaction runs or begins any more, or that they do all the same, because
	// clients have waited for as long as they may. It is told again and again while the Drain lasts, since an agent that is
	// asked to drain once more forgets what it was told.
	paused func(ctx context.Context, r Route, paused bool) error

	wake    chan struct{}
	telling atomic.Bool

	mu       sync.Mutex
	left     time.Time // when serving ended, zero while serving
	served   uint64    // term served last
	instance string
}

// apply takes a new route. It never blocks on PgBouncer.
func (s *steer) apply(r Route) {
	old := s.gate.set(r)
	s.account(old, r)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *steer) account(old, r Route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	s.metrics.mode.Set(float64(r.Mode))
	if old.Mode != Hold && (r.Mode == Hold || old.Term != r.Term || old.Instance != r.Instance) && s.hop.open.Load() > 0 {
		s.metrics.cuts.Inc()
	}
	if old.Mode == Serve && r.Mode != Serve {
		s.left = now
		s.metrics.pauses.WithLabelValues(r.Mode.String()).Inc()
	}
	if r.Mode != Serve {
		s.log.Info("clients are held", "mode", r.Mode, "term", r.Term, "instance", r.Instance, "why", r.Why)
		return
	}
	args := []any{"term", r.Term, "instance", r.Instance, "address", r.Address}
	if !s.left.IsZero() {
		s.metrics.pauseSeconds.Observe(now.Sub(s.left).Seconds())
		args = append(args, "held", now.Sub(s.left))
	}
	if s.served != r.Term || s.instance != r.Instance {
		if s.served != 0 {
			s.metrics.moves.Inc()
		}
		s.served, s.instance = r.Term, r.Instance
		s.metrics.term.Set(float64(r.Term))
	}
	s.left = time.Time{}
	s.log.Info("serving", args...)
}

// run keeps PgBouncer as the route wants it until the context ends. It is begun anew, with a PgBouncer that is not
// paused, whenever PgBouncer was started.
func (s *steer) run(ctx context.Context) {
	var p *pausing
	defer func() { p.end() }()
	narrow := false
	tick := s.clock.NewTicker(steerWindow)
	defer tick.Stop()
	for {
		_, route, _ := s.gate.state()
		overdue := s.gate.held() > s.maxPause
		var err error
		switch step := nextStep(route.Mode, p != nil, overdue); {
		case step == pause:
			narrow = true
			if s.quiesce(ctx) {
				p = s.pause(ctx)
			}
		case step == resume:
			p.end()
			if err = s.widen(ctx); err == nil {
				err = s.console.resume(ctx)
			}
			if err == nil {
				p, narrow = nil, false
			}
		case p == nil && narrow: // the drain was taken back before it had begun
			if err = s.widen(ctx); err == nil {
				narrow = false
			}
		case p == nil:
			err = s.console.warm(ctx)
		}
		var retry <-chan time.Time
		if err != nil {
			s.failed(ctx, err)
			retry = s.clock.After(steerRetry)
		}
		if p.over() && p.err != nil && route.Mode == Drain { // try again, within steerWindow
			p = nil
		}
		if paused, say := word(route.Mode, p != nil, p.over(), overdue); say {
			s.tell(ctx, route, paused)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-p.wait():
			p.heard = true
		case <-tick.C():
		case <-retry:
		}
	}
}

// tell says whether the gateway has paused, in the background: a resume must not wait for an agent.
func (s *steer) tell(ctx context.Context, r Route, paused bool) {
	if !s.telling.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer s.telling.Store(false)
		if err := s.paused(ctx, r, paused); err != nil && ctx.Err() == nil {
			s.log.Warn("the primary's agent cannot be told whether the gateway has paused", "paused", paused, "error", err)
		}
	}()
}

// quiesce gets PgBouncer to where no login is under way, and says whether the pause is still wanted.
//
// PAUSE closes logins. To PgBouncer that is a login that failed, and after the RESUME it turns away whoever asks for a
// pool without server connections (which all are, then) until a login succeeds. So pools are first kept from growing,
// by a limit of one; then the logins under way are waited for, while transactions go on. What is left is a pool that
// had no connection at all and begins its first login in the microseconds between the last look and the PAUSE.
func (s *steer) quiesce(ctx context.Context) bool {
	if err := s.console.limitPools(ctx, 1); err != nil {
		s.failed(ctx, err)
	}
	limit := s.clock.NewTimer(settle)
	defer limit.Stop()
	for {
		pools, err := s.console.pools(ctx)
		s.failed(ctx, err)
		_, route, changed := s.gate.state()
		if err != nil || pools["sv_login"] == 0 || route.Mode != Drain {
			return route.Mode == Drain && ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-limit.C():
			s.log.Warn("a login takes long; pausing all the same", "logins", pools["sv_login"])
			return true
		case <-s.clock.After(settleStep):
		}
	}
}

// widen takes the limit of quiesce back.
func (s *steer) widen(ctx context.Context) error { return s.console.limitPools(ctx, s.poolSize) }

// pausing is a PAUSE that has been sent and not taken back. Its methods may be called on nil: not paused.
type pausing struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when PgBouncer has answered, or failed to
	err    error         // valid when done
	heard  bool          // done has been acted on
}

func (s *steer) pause(ctx context.Context) *pausing {
	ctx, cancel := context.WithCancel(ctx)
	p := &pausing{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		begin := s.clock.Now()
		p.err = s.console.pause(ctx)
		if p.err == nil {
			s.log.Info("running transactions have ended", "took", s.clock.Since(begin))
		}
		s.failed(ctx, p.err)
	}()
	return p
}

// end stops waiting for the answer. It does not resume.
func (p *pausing) end() {
	if p != nil {
		p.cancel()
		<-p.done
	}
}

// over reports whether every transaction has ended, or the PAUSE has failed.
func (p *pausing) over() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait is done, once.
func (p *pausing) wait() <-chan struct{} {
	if p == nil || p.heard {
		return nil
	}
	return p.done
}

func (s *steer) failed(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		s.metrics.consoleFailures.Inc()
		s.log.Error("steering PgBouncer", "error", err)
	}
}
