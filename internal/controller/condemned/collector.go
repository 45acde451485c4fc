// Package condemned takes the evidence of condemned instances: it knows whom to ask, package evidence how to ask without
// waiting. Asked are the instance's agent, the flight recorder, what the operator observed of the shard, and Kubernetes
// about the Pod, its volume, its node and what was decided. It runs beside a replacement, which waits for it within bounds.
package condemned

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
)

const (
	// kubeletTimeout bounds what goes through the kubelet: on a node that is gone the API server would wait for long.
	kubeletTimeout = 8 * time.Second
	// agentTimeout bounds the agent's dump, which bounds itself.
	agentTimeout = 8 * time.Second
	// bucketTimeout bounds reading back what the recorder stored.
	bucketTimeout = 10 * time.Second
	// trailSpan is how much of the trail goes into a case: the last minutes.
	trailSpan = 20 * time.Minute
	// dumpBytes is the most an agent is asked for.
	dumpBytes = 3 << 20
	// logTail is how many lines of a container's log are kept.
	logTail = 20_000
)

// Recorder remembers the trail of an instance.
type Recorder interface {
	// Entries since a time, in order.
	Entries(who evidence.Walker, from time.Time) []evidence.Entry
}

// Observer knows what was last heard from the instances of a shard.
type Observer interface {
	Observations(shard types.NamespacedName) map[string]observer.Observation
}

// Agents calls the agent at an endpoint of a shard.
type Agents func(ctx context.Context, shard types.NamespacedName, endpoint *agentpb.Endpoint) (c agentpb.AgentClient, closeConn func(), err error)

const (
	// casesAtOnce is how many cases are taken at a time, and writesAtOnce how many items of all of them are written: drivers
	// of buckets hold megabytes for each. In a storm the later ones wait; their trails are kept in any case.
	casesAtOnce  = 4
	writesAtOnce = 6
)

// Collector takes evidence. All fields but Limits must be set.
type Collector struct {
	// Live reads from the API server: events are not cached, and a Pod that is about to go must be seen as it is now.
	Live     client.Reader
	Pods     corev1client.PodsGetter
	Observer Observer
	Agents   Agents
	Recorder Recorder
	Bucket   evidence.Bucket
	Clock    clock.Clock
	Log      logr.Logger
	Limits   evidence.Limits

	once          sync.Once
	cases, writes chan struct{}
}

// within does something while it holds a slot, or gives up when ctx ends first.
func within(ctx context.Context, slots chan struct{}, do func() error) error {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
		return do()
	case <-ctx.Done():
		return fmt.Errorf("too much evidence is being taken at once: %w", context.Cause(ctx))
	}
}

// store writes to the bucket, not too much at a time.
type store struct {
	evidence.Store
	slots chan struct{}
}

// Write implements evidence.Store.
func (s store) Write(ctx context.Context, key, contentType string, r io.Reader) error {
	return within(ctx, s.slots, func() error { return s.Store.Write(ctx, key, contentType, r) })
}

// Collect takes what can be had of the subject and returns the name of the case, for `theseus autopsy`. It ends with its
// context and within Limits. What is missing is in the case's manifest; the error is about storing it.
func (c *Collector) Collect(ctx context.Context, s evidence.Subject) (string, error) {
	c.once.Do(func() { c.cases, c.writes = make(chan struct{}, casesAtOnce), make(chan struct{}, writesAtOnce) })
	began := c.Clock.Now()
	var m evidence.Manifest
	err := within(ctx, c.cases, func() (err error) {
		m, err = evidence.Collect(ctx, s, c.sources(), store{c.Bucket.Cases(), c.writes}, c.Limits, c.Clock)
		return err
	})
	outcome := "complete"
	missing := 0
	for _, item := range m.Items {
		caseBytes.Add(float64(item.Size))
		if item.Error != "" {
			missing++
		}
	}
	switch {
	case err != nil:
		outcome = "failed"
	case m.Incomplete || missing > 0:
		outcome = "partial"
	}
	casesTotal.WithLabelValues(outcome).Inc()
	caseSeconds.Observe(c.Clock.Since(began).Seconds())
	c.Log.Info("evidence taken", "case", s.Name(), "outcome", outcome, "items", len(m.Items), "missing", missing, "took", c.Clock.Since(began).String())
	return s.Name(), err
}

func (c *Collector) sources() []evidence.Source {
	sources := append(c.objects(), c.agent(), c.trail(), c.observations(), c.containerLogs())
	return append(sources, c.events()...)
}

// agent asks the instance's agent, which knows most and is the likeliest to be silent.
func (c *Collector) agent() evidence.Source {
	return evidence.Agent(func(ctx context.Context, s evidence.Subject) ([]evidence.Dump, error) {
		ctx, cancel := context.WithTimeout(ctx, agentTimeout)
		defer cancel()
		key := shardKey(s)
		o, ok := c.Observer.Observations(key)[s.Instance]
		if !ok || o.Endpoint == nil {
			return nil, errNoAddress
		}
		agent, done, err := c.Agents(ctx, key, o.Endpoint)
		if err != nil {
			return nil, err
		}
		defer done()
		reply, err := agent.Dump(ctx, &agentpb.DumpRequest{MaxBytes: dumpBytes})
		if err != nil {
			return nil, err
		}
		dumps := make([]evidence.Dump, 0, len(reply.GetFiles()))
		for name, data := range reply.GetFiles() {
			dumps = append(dumps, evidence.Dump{Name: name, Data: data})
		}
		return dumps, nil
	})
}

func shardKey(s evidence.Subject) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Shard}
}
