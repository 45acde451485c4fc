package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Source yields items about a subject. It writes each with put, which may be called several times, and returns when it is
// done or its context is. A source that ignores its context is left behind: what it puts afterwards is thrown away.
type Source interface {
	// Name of the source, for errors.
	Name() string
	// Collect puts what there is. An error says what is missing.
	Collect(ctx context.Context, s Subject, put Put) error
}

// Put stores one item. It reads until the end, its limit or its deadline.
type Put func(name, contentType string, r io.Reader) error

// Store is where items go; Bucket is the usual one.
type Store interface {
	// Write stores one object and returns when it is durable.
	Write(ctx context.Context, key, contentType string, r io.Reader) error
}

// Limits of a collection. The zero value of every field is its default.
type Limits struct {
	// Deadline of everything. Default 45s: less than the minute that retiring waits for evidence.
	Deadline time.Duration
	// PerSource default 20s.
	PerSource time.Duration
	// ItemBytes is the most that is kept of one item. Default 16 MiB.
	ItemBytes int64
	// Finish is what is left of the deadline for the manifest. Default 5s.
	Finish time.Duration
}

func (l Limits) withDefaults() Limits {
	duration := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	duration(&l.Deadline, 45*time.Second)
	duration(&l.PerSource, 20*time.Second)
	duration(&l.Finish, min(5*time.Second, l.Deadline/4))
	if l.ItemBytes <= 0 {
		l.ItemBytes = 16 << 20
	}
	return l
}

// errOver is put's answer after the collection has ended.
var errOver = errors.New("the collection is over")

// collection gathers items under way.
type collection struct {
	mu     sync.Mutex
	items  []Item
	names  map[string]bool
	over   bool
	store  Store
	prefix string
	limits Limits
	clock  clock.PassiveClock
}

// Collect asks all sources at once and stores what they yield under the subject's name. It returns the manifest, which it
// has stored, at the deadline at the latest. The error is about the manifest: what is wrong with items is in the manifest.
func Collect(ctx context.Context, s Subject, sources []Source, store Store, limits Limits, clk clock.PassiveClock) (Manifest, error) {
	limits = limits.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, limits.Deadline)
	defer cancel()
	c := &collection{names: map[string]bool{}, store: store, prefix: s.Name(), limits: limits, clock: clk}
	m := Manifest{Version: 1, Subject: s, StartedAt: clk.Now().UTC()}
	sources = append([]Source{Value(subjectName, s)}, sources...)

	gather, stop := context.WithTimeout(ctx, limits.Deadline-limits.Finish)
	defer stop()
	done := make(chan int, len(sources))
	for i, src := range sources {
		go func() {
			c.ask(gather, src, s)
			done <- i
		}()
	}
	pending := map[int]bool{}
	for i := range sources {
		pending[i] = true
		if i > 0 { // the subject was not asked for
			m.Sources = append(m.Sources, sources[i].Name())
		}
	}
wait:
	for len(pending) > 0 {
		select {
		case i := <-done:
			delete(pending, i)
		case <-gather.Done():
			break wait
		}
	}
	// Sources that end in the same moment have ended.
	for len(pending) > 0 {
		select {
		case i := <-done:
			delete(pending, i)
			continue
		default:
		}
		break
	}
	m.Items, m.Incomplete = c.end(), len(pending) > 0
	for i := range pending {
		m.Items = append(m.Items, Item{Name: sources[i].Name(), Error: "the source had not answered at the deadline"})
	}
	slices.SortFunc(m.Items, func(a, b Item) int { return strings.Compare(a.Name, b.Name) })
	m.FinishedAt = clk.Now().UTC()
	return m, writeManifest(ctx, store, m)
}

// ask runs one source. A source that panics is a missing item, not a dead operator.
func (c *collection) ask(ctx context.Context, src Source, s Subject) {
	ctx, cancel := context.WithTimeout(ctx, c.limits.PerSource)
	defer cancel()
	began := c.clock.Now()
	var err error
	func() {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the source panicked: %v\n%.2000s", p, debug.Stack())
			}
		}()
		err = src.Collect(ctx, s, func(name, contentType string, r io.Reader) error { return c.put(ctx, name, contentType, r) })
	}()
	if err != nil {
		c.add(Item{Name: src.Name(), Took: c.clock.Since(began), Error: err.Error()})
	}
}

func (c *collection) put(ctx context.Context, name, contentType string, r io.Reader) error {
	if contentType == "" {
		contentType = "text/plain; charset=utf-8"
	}
	if err := check(name); err != nil {
		return err
	}
	c.mu.Lock()
	taken := c.names[name]
	c.names[name] = true
	over := c.over
	c.mu.Unlock()
	switch {
	case over:
		return errOver
	case taken:
		return fmt.Errorf("there are two items named %q", name)
	}
	began := c.clock.Now()
	limited := &limitedReader{ctx: ctx, r: r, left: c.limits.ItemBytes}
	err := c.store.Write(ctx, c.prefix+"/"+name, contentType, limited)
	item := Item{Name: name, ContentType: contentType, Size: limited.read, Truncated: limited.truncated, Took: c.clock.Since(began)}
	if err == nil && limited.err != nil {
		err = limited.err // what came before it is kept
	}
	if err != nil {
		item.Error = err.Error()
	}
	c.add(item)
	return err
}

func (c *collection) add(i Item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.items = append(c.items, i)
	}
}

func (c *collection) end() []Item {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	return c.items
}

// limitedReader ends at a limit, and ends cleanly when its source fails, so that what came before is kept.
type limitedReader struct {
	ctx       context.Context
	r         io.Reader
	left      int64
	read      int64
	truncated bool
	err       error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		l.err = err
		return 0, io.EOF
	}
	if l.left <= 0 {
		var one [1]byte
		if n, _ := l.r.Read(one[:]); n > 0 {
			l.truncated = true
		}
		return 0, io.EOF
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	l.read += int64(n)
	if err != nil && err != io.EOF {
		l.err = err
		err = io.EOF
	}
	return n, err
}
