package condemned

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/evidence"
)

const (
	// pruneEvery is how often what is too old is deleted; the first time comes soon after the start.
	pruneEvery = time.Hour
	pruneFirst = 5 * time.Minute
	// pruneTimeout bounds one round; what it did not get to waits for the next.
	pruneTimeout = 30 * time.Minute
)

// Janitor deletes evidence that is too old.
type Janitor struct {
	Bucket evidence.Bucket
	// KeepCases and KeepTrails are how long each is kept; 0 is for ever.
	KeepCases, KeepTrails time.Duration
	// May says whether this replica deletes: it is the leader, or the bucket is its own.
	May   func() bool
	Clock clock.Clock
	Log   logr.Logger
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: May decides.
func (*Janitor) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable.
func (j *Janitor) Start(ctx context.Context) error {
	wait := pruneFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-j.Clock.After(wait):
		}
		if j.May() {
			j.Prune(ctx)
		}
		wait = pruneEvery
	}
}

// Prune deletes what is too old now.
func (j *Janitor) Prune(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	for _, of := range []struct {
		what  string
		keep  time.Duration
		prune func(context.Context, time.Time, time.Duration) (int, error)
	}{{"cases", j.KeepCases, j.Bucket.Cases().Prune}, {"segments", j.KeepTrails, j.Bucket.Trails().Prune}} {
		if of.keep <= 0 {
			continue
		}
		n, err := of.prune(ctx, j.Clock.Now(), of.keep)
		pruned.WithLabelValues(of.what).Add(float64(n))
		if err != nil {
			pruned.WithLabelValues("failures").Inc()
			j.Log.Error(err, "old evidence was not deleted", "what", of.what)
		}
	}
}
