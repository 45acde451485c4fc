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
	// pruneSmall is how often a directory that must not grow is looked at.
	pruneSmall = 10 * time.Minute
	// pruneTimeout bounds one round; what it did not get to waits for the next.
	pruneTimeout = 30 * time.Minute
)

// Janitor deletes evidence that is too old.
type Janitor struct {
	Bucket evidence.Bucket
	// KeepCases and KeepTrails are how long each is kept; 0 is for ever.
	KeepCases, KeepTrails time.Duration
	// MostTrails is how many bytes of trails are kept, the newest; 0 is without limit.
	MostTrails int64
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
	every := pruneEvery
	if j.MostTrails > 0 {
		every = pruneSmall
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-j.Clock.After(wait):
		}
		if j.May() {
			j.Prune(ctx)
		}
		wait = every
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
		j.tell(of.what, n, err)
	}
	if j.MostTrails > 0 {
		n, err := j.Bucket.Trails().Shrink(ctx, j.MostTrails)
		j.tell("segments", n, err)
	}
}

func (j *Janitor) tell(what string, n int, err error) {
	pruned.WithLabelValues(what).Add(float64(n))
	if err != nil {
		pruned.WithLabelValues("failures").Inc()
		j.Log.Error(err, "old evidence was not deleted", "what", what)
	}
}
