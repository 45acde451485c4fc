package lifetime

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/lifetime"
)

// reasonAlways is the reason of reparents that are made because it is time again.
const reasonAlways = "AlwaysFailover"

// failOver asks for a planned reparent of the shards that have had the same primary for as long as they may. What is not
// in good health waits, and so does what is being replaced: that may well bring a reparent of its own.
func (e *Expiry) failOver(ctx context.Context, w *world) (next time.Duration, failed error) {
	byPeriod := map[time.Duration][]*v1alpha1.Shard{}
	for i := range w.shards {
		t := &w.shards[i].Spec.Template
		if p := t.Lifetime.AlwaysFailover; p != nil && p.Duration > 0 && t.Instances > 1 {
			byPeriod[p.Duration] = append(byPeriod[p.Duration], &w.shards[i])
		}
	}
	next = longest
	for period, shards := range byPeriod {
		led := make([]lifetime.Led, len(shards))
		for i, sh := range shards {
			led[i] = lifetime.Led{ID: string(sh.UID), Since: since(sh)}
		}
		next = min(next, max(period/30, shortest))
		for _, s := range lifetime.Failovers(led, period, nil, w.freeze, w.now).Due() {
			sh := shards[s.Index]
			if !meta.IsStatusConditionTrue(sh.Status.Conditions, v1alpha1.ConditionReady) || w.busy[client.ObjectKeyFromObject(sh)] {
				continue
			}
			if err := e.reparent(ctx, sh, period); err != nil {
				failed = errors.Join(failed, err)
			}
		}
	}
	return next, failed
}

// since is when the shard got its primary.
func since(sh *v1alpha1.Shard) time.Time {
	if sh.Status.LastReparent != nil {
		return sh.Status.LastReparent.Time
	}
	return sh.CreationTimestamp.Time
}

// reparent asks, unless the last one that was asked for this reason failed just now.
func (e *Expiry) reparent(ctx context.Context, sh *v1alpha1.Shard, period time.Duration) error {
	list := &v1alpha1.ReparentList{}
	key := types.NamespacedName{Namespace: sh.Namespace, Name: sh.Name}
	if err := e.Client.List(ctx, list, client.InNamespace(sh.Namespace), client.MatchingFields{shard.IndexReparentShard: sh.Name}); err != nil {
		return err
	}
	now := e.Clock.Now()
	if slices.ContainsFunc(list.Items, func(rp v1alpha1.Reparent) bool {
		return rp.Spec.Reason == reasonAlways && now.Sub(rp.CreationTimestamp.Time) < period/20
	}) {
		return nil
	}
	_, err := shard.AskReparent(ctx, e.Client, e.Live, key, v1alpha1.ReparentSpec{
		Kind: v1alpha1.ReparentPlanned, Reason: reasonAlways, AwayFrom: sh.Status.Primary, ExpectPrimary: sh.Status.Primary,
	}, "")
	return err
}
