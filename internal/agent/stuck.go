package agent

import (
	"context"
	"time"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

const (
	// stuckAfter is how long a standby may fail to stream before it is compared with its primary.
	stuckAfter = 3 * time.Second
	// compareEvery is how often that is repeated: its primary may not have answered.
	compareEvery = 5 * time.Second
)

// stuck remembers since when a standby does not stream.
type stuck struct {
	since, compared time.Time
	busy            bool
}

// checkStuck compares a standby that does not stream with its primary. A diverged one is never let retry for ever, looking
// healthy: it says so, and is seeded again.
func (a *Agent) checkStuck(ctx context.Context) {
	now := a.now()
	a.mu.Lock()
	k := &a.live.stuck
	follow := a.state.Follow
	streams := a.live.role != agentpb.Role_STANDBY || follow == nil || a.live.obs.Receiver.Streaming
	if streams {
		k.since = time.Time{}
	} else if k.since.IsZero() {
		k.since = now
	}
	due := !streams && !k.busy && now.Sub(k.since) > stuckAfter && now.Sub(k.compared) > compareEvery
	if due {
		k.busy, k.compared = true, now
	}
	a.mu.Unlock()
	if due {
		go a.compareStuck(ctx, *follow)
	}
}

func (a *Agent) compareStuck(ctx context.Context, follow Target) {
	defer func() {
		a.mu.Lock()
		a.live.stuck.busy = false
		a.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	why, err := a.fits(ctx, upstream(&follow))
	if err != nil || why == "" {
		return
	}
	ctx, done, err := a.commands.begin(ctx, follow.Term, "compare")
	if err != nil {
		return
	}
	defer done()
	st := a.snapshot()
	a.mu.Lock()
	streaming := a.live.obs.Receiver.Streaming
	a.mu.Unlock()
	if st.Follow == nil || *st.Follow != follow || streaming {
		return
	}
	a.log.Warn("diverged", "primary", follow.Instance, "why", why)
	if _, err := a.diverged(ctx, why, true); err != nil {
		a.log.Error("divergence not remembered", "error", err)
	}
}
