package reparent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/reparent"
	"theseus.dev/theseus/internal/verdict"
)

// condemnAfter is how long a verdict must stand before it condemns: what it was taken from has its own patience, this is
// against glitches in between.
const condemnAfter = 5 * time.Second

// patience with a verdict that asks for a replacement. What the shard controller has another cure for gets time for that:
// an old primary is told to stop, and diverged data is seeded again.
func (e *Emergency) patience(v verdict.Verdict) time.Duration {
	if v == verdict.TwoPrimaries || v == verdict.StandbyDiverged {
		return max(e.Runner.Params.ReplaceAfter, condemnAfter)
	}
	return condemnAfter
}

// standing is since when the verdict has been what it is, on the same instance.
func (h *history) standing(j verdict.Judgement, now time.Time) time.Duration {
	if what := string(j.Verdict) + "/" + j.Subject; what != h.stands {
		h.stands, h.standsSince = what, now
	}
	return now.Sub(h.standsSince)
}

// condemn asks for the replacement of the instance a verdict is about. The replacement machine does everything else.
func (e *Emergency) condemn(ctx context.Context, log logr.Logger, sh *v1alpha1.Shard, instance string, v verdict.Verdict, why string) {
	r := e.Runner
	made, err := shard.CondemnInstance(ctx, r.Client, r.Recorder, r.Clock, sh, instance, fmt.Sprintf("%s: %s", v, why))
	if err != nil {
		log.Error(err, "cannot condemn", "instance", instance)
	}
	if made {
		log.Info("condemned", "instance", instance, "verdict", v, "why", why)
	}
}

// condemnOld condemns the primary that a reparent has moved away from, when it was the instance that misbehaved: slow
// counts as failed, and one that healed by itself is replaced all the same. One that only was out of reach, or whose
// process ended, comes back as a standby.
func (e *Emergency) condemnOld(ctx context.Context, log logr.Logger, sh *v1alpha1.Shard, o verdict.Observed, j verdict.Judgement, res reparent.Result) {
	if res.Outcome != reparent.Succeeded || j.Subject == "" || res.NewPrimary == j.Subject {
		return
	}
	if j.Verdict == verdict.PrimaryStalled || e.misbehaves(o, j.Subject) {
		e.condemn(ctx, log, sh, j.Subject, j.Verdict, j.Why)
	}
}

func (e *Emergency) misbehaves(o verdict.Observed, name string) bool {
	return slices.ContainsFunc(o.Instances, func(i verdict.Instance) bool { return i.Name == name && e.Runner.Params.Misbehaves(o, i) })
}

// Suspects are the standbys of the shard that do not belong into the cohort by the last look, and why.
func (e *Emergency) Suspects(key types.NamespacedName) map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.suspects[key])
}

// suspect notes who does not belong into the cohort, and has the shard controller look when that changed.
func (e *Emergency) suspect(key types.NamespacedName, now map[string]string) {
	e.mu.Lock()
	changed := !sameKeys(e.suspects[key], now)
	if len(now) == 0 {
		delete(e.suspects, key)
	} else {
		if e.suspects == nil {
			e.suspects = map[types.NamespacedName]map[string]string{}
		}
		e.suspects[key] = now
	}
	e.mu.Unlock()
	if changed && e.Changed != nil {
		e.Changed(key)
	}
}

func sameKeys(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			return false
		}
	}
	return true
}
