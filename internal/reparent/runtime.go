package reparent

import (
	"context"
	"errors"
	"time"

	"k8s.io/utils/clock"
)

// Runtime is time and concurrency. The operator's is ClockRuntime; the simulator has its own, in which time is virtual
// and calls interleave by a seed.
type Runtime interface {
	Now() time.Time
	// Sleep returns early with an error when ctx ends.
	Sleep(ctx context.Context, d time.Duration) error
	// Each runs call(ctx, i) for 0 ≤ i < n concurrently and hands each result to take in the order they arrive, in the
	// caller's goroutine. take answers how much longer to wait for the rest: Enough, All, or a duration that can only
	// shorten the wait. Each returns when all results are in, the wait is over, or ctx ended; it cancels the calls that
	// are left and does not wait for them.
	Each(ctx context.Context, timeout time.Duration, n int, call func(ctx context.Context, i int) any, take func(i int, result any) time.Duration)
}

// What take of Runtime.Each answers, besides a duration.
const (
	Enough time.Duration = 0
	All    time.Duration = -1
)

// ClockRuntime is the Runtime of real programs.
type ClockRuntime struct{ Clock clock.Clock }

// Now is the clock's.
func (r ClockRuntime) Now() time.Time { return r.Clock.Now() }

// Sleep waits for d or the end of ctx.
func (r ClockRuntime) Sleep(ctx context.Context, d time.Duration) error {
	t := r.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Each runs a goroutine per call.
func (r ClockRuntime) Each(ctx context.Context, timeout time.Duration, n int, call func(ctx context.Context, i int) any, take func(i int, result any) time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		i      int
		result any
	}
	answers := make(chan answer, n)
	for i := range n {
		go func() { answers <- answer{i, call(ctx, i)} }()
	}
	end := r.Clock.Now().Add(timeout)
	for range n {
		timer := r.Clock.NewTimer(end.Sub(r.Clock.Now()))
		select {
		case a := <-answers:
			if left := take(a.i, a.result); left != All {
				if e := r.Clock.Now().Add(left); e.Before(end) {
					end = e
				}
			}
		case <-timer.C():
		case <-ctx.Done():
			end = r.Clock.Now()
		}
		timer.Stop()
		if !r.Clock.Now().Before(end) {
			return
		}
	}
}

type result[T any] struct {
	value T
	err   error
}

// each is Runtime.Each with a type.
func each[T any](ctx context.Context, rt Runtime, timeout time.Duration, n int, call func(ctx context.Context, i int) (T, error), take func(i int, v T, err error) time.Duration) {
	rt.Each(ctx, timeout, n,
		func(ctx context.Context, i int) any { v, err := call(ctx, i); return result[T]{v, err} },
		func(i int, r any) time.Duration { return take(i, r.(result[T]).value, r.(result[T]).err) })
}

// one is a single call with a deadline, after which it is abandoned.
func one[T any](ctx context.Context, rt Runtime, timeout time.Duration, call func(ctx context.Context) (T, error)) (v T, err error) {
	err = context.DeadlineExceeded
	each(ctx, rt, timeout, 1,
		func(ctx context.Context, _ int) (T, error) { return call(ctx) },
		func(_ int, got T, e error) time.Duration { v, err = got, e; return Enough })
	if ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		err = context.Cause(ctx) // whoever cancelled says why
	}
	return v, err
}

// do is one for calls without a result.
func do(ctx context.Context, rt Runtime, timeout time.Duration, call func(ctx context.Context) error) error {
	_, err := one(ctx, rt, timeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}
