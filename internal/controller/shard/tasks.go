package shard

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// tasks runs commands to agents in the background, so that a slow one (initdb, a rewind) holds up neither the worker nor
// another shard. At most one of a verb runs per instance; after a failure it is not repeated before a pause that grows.
type tasks struct {
	clock clock.PassiveClock
	// done is called after each with the shard it was for.
	done func(types.NamespacedName)

	mu      sync.Mutex
	running map[taskKey]bool
	failed  map[taskKey]failure
	told    map[told]string
	ended   map[told]time.Time
	group   sync.WaitGroup
}

// told is an instance that was told something.
type told struct {
	shard    types.NamespacedName
	instance string
}

type taskKey struct {
	shard    types.NamespacedName
	instance string
	verb     Verb
}

type failure struct {
	at    time.Time
	count int
	err   error
}

// Pauses after failures: quick at first, since most are races with something that is just starting.
const (
	firstPause = 250 * time.Millisecond
	maxPause   = 10 * time.Second
)

func newTasks(c clock.PassiveClock, done func(types.NamespacedName)) *tasks {
	return &tasks{clock: c, done: done, running: map[taskKey]bool{}, failed: map[taskKey]failure{}, told: map[told]string{}, ended: map[told]time.Time{}}
}

// start runs f unless the same is running or failed just now; it reports whether it did. The context of f ends with ctx
// or after timeout.
func (t *tasks) start(ctx context.Context, key taskKey, timeout time.Duration, f func(context.Context) error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[key] || t.clock.Since(t.failed[key].at) < t.failed[key].pause() {
		return false
	}
	t.running[key] = true
	t.group.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		err := f(ctx)
		t.mu.Lock()
		delete(t.running, key)
		t.ended[told{key.shard, key.instance}] = t.clock.Now()
		if err == nil {
			delete(t.failed, key)
		} else {
			t.failed[key] = failure{at: t.clock.Now(), count: t.failed[key].count + 1, err: err}
		}
		t.mu.Unlock()
		t.done(key.shard)
	})
	return true
}

func (f failure) pause() time.Duration {
	if f.count == 0 {
		return 0
	}
	return min(firstPause<<min(f.count-1, 10), maxPause)
}

// busy reports whether any command to the instance is under way, or has ended since heard: what was heard before knows
// nothing of what the command did.
func (t *tasks) busy(shard types.NamespacedName, instance string, heard time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ended, ok := t.ended[told{shard, instance}]; ok && !heard.After(ended) {
		return true
	}
	for key := range t.running {
		if key.shard == shard && key.instance == instance {
			return true
		}
	}
	return false
}

// lastError is the newest failure of the instance that was not followed by a success, "" when there is none.
func (t *tasks) lastError(shard types.NamespacedName, instance string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var newest failure
	var verb Verb
	for key, f := range t.failed {
		if key.shard == shard && key.instance == instance && f.at.After(newest.at) {
			newest, verb = f, key.verb
		}
	}
	if newest.err == nil {
		return ""
	}
	return string(verb) + ": " + newest.err.Error()
}

// tell remembers the address at which an instance was told to find its primary.
func (t *tasks) tell(shard types.NamespacedName, instance, address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told[told{shard, instance}] = address
}

// toldAddress is the address last told, "" when we never told any.
func (t *tasks) toldAddress(shard types.NamespacedName, instance string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.told[told{shard, instance}]
}

// settled forgets the failures of an instance that does what it should.
func (t *tasks) settled(shard types.NamespacedName, instance string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.failed {
		if key.shard == shard && key.instance == instance {
			delete(t.failed, key)
		}
	}
}

// forget drops what is known of instances for which keep is false.
func (t *tasks) forget(shard types.NamespacedName, keep func(instance string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.failed {
		if key.shard == shard && !keep(key.instance) {
			delete(t.failed, key)
		}
	}
	for key := range t.ended {
		if key.shard == shard && !keep(key.instance) {
			delete(t.told, key)
			delete(t.ended, key)
		}
	}
}

// wait returns when all have ended.
func (t *tasks) wait() { t.group.Wait() }
