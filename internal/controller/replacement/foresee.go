package replacement

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/ledger"
)

// foreseen are the verdicts on all that wait, as of a moment ago.
type foreseen struct {
	sync.Mutex
	verdicts map[types.UID]judged
	at       time.Time
}

// forget has the next that asks be told what is so by then: one has ended, and those that wait are about to ask.
func (f *foreseen) forget() {
	f.Lock()
	defer f.Unlock()
	f.verdicts = nil
}

// foreseenFor is how long those that wait share the ledger's verdicts. Each would read all the others to be refused, and
// when many wait that is most of what the operator does.
const foreseenFor = time.Second

// foresee asks the ledger by what is cached, to know whether it is worth to ask in earnest. What refuses a replacement for
// what its own shard lacks, and what nobody has judged yet, is judged by what is seen now.
func (r *Reconciler) foresee(ctx context.Context, w *world, rp *v1alpha1.Replacement) error {
	j, known, err := r.share(ctx, rp.UID)
	if err != nil {
		return err
	}
	if !known || j.Why == ledger.ShardDegraded {
		return r.askLedger(ctx, r.Client, w, rp)
	}
	w.told(j)
	return nil
}

// share is the verdict of a moment ago, or a new one when that has run out.
func (r *Reconciler) share(ctx context.Context, uid types.UID) (judged, bool, error) {
	f := &r.foreseen
	f.Lock()
	defer f.Unlock()
	now := r.Clock.Now()
	j, known := f.verdicts[uid]
	if f.verdicts == nil || now.Sub(f.at) >= foreseenFor || known && !j.Retry.IsZero() && !now.Before(j.Retry) {
		verdicts, err := r.judge(ctx, r.Client, func(*ledger.Request, types.UID) {})
		if err != nil {
			return judged{}, false, err
		}
		f.verdicts, f.at = verdicts, now
		j, known = verdicts[uid]
	}
	return j, known, nil
}
