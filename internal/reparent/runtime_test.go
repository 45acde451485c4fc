package reparent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEach(t *testing.T) {
	ctx := context.Background()
	rt := newRealRuntime()
	// after answers its own number after as many seconds.
	after := func(ctx context.Context, i int) any {
		if rt.Sleep(ctx, time.Duration(i)*time.Second) != nil {
			return -1
		}
		return i
	}
	collect := func(n int, timeout time.Duration, left func(i int) time.Duration) (got []int, took time.Duration) {
		begun := rt.Now()
		rt.Each(ctx, timeout, n, after, func(i int, r any) time.Duration {
			require.Equal(t, i, r)
			got = append(got, i)
			return left(i)
		})
		return got, rt.Now().Sub(begun)
	}
	all := func(int) time.Duration { return All }
	bubble(t, "all answers, in the order they come", func(t *testing.T) {
		got, took := collect(4, time.Minute, all)
		require.Equal(t, []int{0, 1, 2, 3}, got)
		require.Equal(t, 3*time.Second, took)
	})
	bubble(t, "the deadline", func(t *testing.T) {
		got, took := collect(9, 4500*time.Millisecond, all)
		require.Equal(t, []int{0, 1, 2, 3, 4}, got)
		require.Equal(t, 4500*time.Millisecond, took)
	})
	bubble(t, "enough", func(t *testing.T) {
		got, took := collect(9, time.Minute, func(i int) time.Duration {
			if i == 2 {
				return Enough
			}
			return All
		})
		require.Equal(t, []int{0, 1, 2}, got)
		require.Equal(t, 2*time.Second, took)
	})
	bubble(t, "a moment longer, and an answer never prolongs it", func(t *testing.T) {
		got, took := collect(9, time.Minute, func(i int) time.Duration {
			switch i {
			case 1:
				return 2500 * time.Millisecond
			case 2:
				return time.Hour
			}
			return All
		})
		require.Equal(t, []int{0, 1, 2, 3}, got)
		require.Equal(t, 3500*time.Millisecond, took)
	})
	bubble(t, "nothing to ask", func(t *testing.T) {
		got, took := collect(0, time.Minute, all)
		require.Empty(t, got)
		require.Zero(t, took)
	})
	bubble(t, "cancelled", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		begun := rt.Now()
		rt.Each(ctx, time.Hour, 1, func(ctx context.Context, _ int) any { time.Sleep(time.Minute); return nil }, func(int, any) time.Duration { return All })
		require.Equal(t, time.Second, rt.Now().Sub(begun), "a call that ignores its context is not waited for")
		time.Sleep(time.Hour)
	})
}

func TestOne(t *testing.T) {
	rt := newRealRuntime()
	bubble(t, "answer, error, deadline, cancellation", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		v, err := one(ctx, rt, time.Second, func(context.Context) (int, error) { return 7, nil })
		require.NoError(t, err)
		require.Equal(t, 7, v)
		boom := errors.New("boom")
		require.Equal(t, boom, do(ctx, rt, time.Second, func(context.Context) error { return boom }))
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		require.Equal(t, context.DeadlineExceeded, do(ctx, rt, time.Second, hang))
		cancel()
		require.Equal(t, context.Canceled, do(ctx, rt, time.Second, hang))
	})
}
