package replacement

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/evidence"
)

// EvidenceCollector takes the evidence of an instance that is being replaced because it is sick.
type EvidenceCollector interface {
	// Collect takes what can be had and returns where it is, for `theseus autopsy`. It runs beside the replacement, once
	// per replacement in the life of a process; after a restart of the operator it is called again with the same subject.
	// The context ends when nothing waits for it any more. An error does not hold the replacement up; what was stored
	// until then is named all the same.
	Collect(ctx context.Context, s evidence.Subject) (location string, err error)
}

// NoEvidence collects nothing.
type NoEvidence struct{}

// Collect implements EvidenceCollector.
func (NoEvidence) Collect(context.Context, evidence.Subject) (string, error) { return "", nil }

// evidenceDeadline bounds a collection. It is as long as a replacement waits for it.
const evidenceDeadline = time.Minute

// subject says whom evidence is about.
func subject(rp *v1alpha1.Replacement, sh *v1alpha1.Shard) evidence.Subject {
	s := evidence.Subject{
		Namespace: rp.Namespace, Database: sh.Spec.Database, Shard: sh.Name, Instance: rp.Spec.Instance,
		Node: rp.Status.Node, Zone: rp.Status.Zone, Reason: rp.Spec.Reason, Replacement: rp.Name, Why: rp.Spec.Message,
	}
	if at := rp.Status.EvidenceAt; at != nil {
		s.DecidedAt = at.Time
	}
	for _, in := range sh.Status.Instances {
		if in.Name == rp.Spec.Instance {
			s.PodUID = in.PodUID
		}
	}
	return s
}

// collections are those under way and those that ended, by replacement. A restart forgets them: then evidence is taken
// again, within the deadline that is stored.
type collections struct {
	mu   sync.Mutex
	all  map[types.UID]*collected
	base context.Context //nolint:containedctx // of everything that runs in the background
	wake func(types.NamespacedName)
}

type collected struct {
	done     bool
	location string
}

func (c *collections) start(ctx context.Context, wake func(types.NamespacedName)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.wake, c.all = ctx, wake, map[types.UID]*collected{}
}

// begin takes evidence in the background, unless that was begun.
func (c *collections) begin(rp *v1alpha1.Replacement, s evidence.Subject, collector EvidenceCollector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[rp.UID] != nil {
		return
	}
	it := &collected{}
	c.all[rp.UID] = it
	ctx, key, wake := c.base, client.ObjectKeyFromObject(rp), c.wake
	go func() {
		ctx, cancel := context.WithTimeout(ctx, evidenceDeadline)
		defer cancel()
		location, err := collector.Collect(ctx, s)
		if err != nil {
			logf.FromContext(ctx).Error(err, "evidence is not whole", "replacement", key, "instance", s.Instance)
		}
		c.mu.Lock()
		it.done, it.location = true, location
		c.mu.Unlock()
		wake(key)
	}()
}

// ended reports whether the collection has, and where its result is.
func (c *collections) ended(rp *v1alpha1.Replacement) (bool, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.all[rp.UID]
	if it == nil {
		return false, ""
	}
	return it.done, it.location
}

func (c *collections) forget(rp *v1alpha1.Replacement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, rp.UID)
}
