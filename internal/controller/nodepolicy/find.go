package nodepolicy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/machine"
)

// answers are what the provider of a policy said lately of the machines under nodes that are due. They only keep it from
// being asked too often: who has forgotten them asks again.
type answers struct {
	generation int64 // of the policy; another one may have another provider
	of         map[types.UID]answer
}

type answer struct {
	at  time.Time
	err error
}

const (
	// askAgain is how long an answer is good.
	askAgain = time.Minute
	// asksAtOnce bounds the questions of one look at a policy, any of which may have to wait for a time-out. Those that were
	// not asked for longest come first, so that no number of nodes without an answer keeps another one from being asked.
	asksAtOnce = 10
)

// found drops the requests for nodes whose machine the provider does not know, or cannot say: what cannot go must not take
// the place of what can. It says why they wait.
func (r *Reconciler) found(ctx context.Context, w *world, provider machine.Provider, requests []ledger.NodeRequest) (kept []ledger.NodeRequest, waiting []string) {
	now := r.Clock.Now()
	before := r.answers[w.policy.Name]
	known := answers{generation: w.policy.Generation, of: map[types.UID]answer{}}
	var ask []*corev1.Node
	for _, q := range requests {
		node := w.nodes[q.Node]
		a, ok := before.of[node.UID]
		if ok && before.generation == w.policy.Generation {
			known.of[node.UID] = a
		}
		if now.Sub(known.of[node.UID].at) >= askAgain {
			ask = append(ask, node)
		}
	}
	slices.SortStableFunc(ask, func(a, b *corev1.Node) int { return known.of[a.UID].at.Compare(known.of[b.UID].at) })
	for _, node := range ask[:min(len(ask), asksAtOnce)] {
		_, err := provider.Find(ctx, node)
		known.of[node.UID] = answer{at: now, err: err}
	}
	if r.answers == nil {
		r.answers = map[string]answers{}
	}
	r.answers[w.policy.Name] = known
	for _, q := range requests {
		a, ok := known.of[w.nodes[q.Node].UID]
		switch {
		case ok && a.err == nil:
			kept = append(kept, q)
			continue
		case !ok:
			a.err = errors.New("its machine was not looked for yet")
		case errors.Is(a.err, machine.ErrNotMine):
			w.unknown = append(w.unknown, q.Node)
		}
		waiting = append(waiting, fmt.Sprintf("node %s waits: %s", q.Node, a.err))
	}
	slices.Sort(w.unknown)
	return kept, waiting
}
