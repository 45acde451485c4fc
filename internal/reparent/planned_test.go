package reparent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Transactions that are open already have their time before anybody waits for them, and no more of it while clients wait.
func TestOpenTransactionsAreAwaitedBeforeAnybodyIsDisturbed(t *testing.T) {
	bubble(t, "some do not end", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.open = 1
		begun := time.Now()
		res := f.run(Request{Kind: Planned, Limits: Limits{Drain: 2 * time.Second, Patience: 20 * time.Second}})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Equal(t, begun, f.overdue.Truncate(time.Second))
		require.Greater(t, time.Since(begun), 20*time.Second)
		require.Less(t, res.WriteUnavailable, time.Second)
		require.True(t, slices.ContainsFunc(f.phases, func(p Phase) bool {
			return strings.HasSuffix(p.Message, "; open transactions that did not finish within 20s: 1")
		}))
		require.Less(t, slices.Index(f.calls, "Await p"), slices.Index(f.calls, "Checkpoint p"), "which is the younger for it")
	})
	bubble(t, "they end", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		res := f.run(Request{Kind: Planned})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Zero(t, f.overdue)
	})
	bubble(t, "the agent cannot say", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		f.faults["Await p"] = refuses
		res := f.run(Request{Kind: Planned})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.Zero(t, f.overdue)
	})
	bubble(t, "there is no time to lose", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		res := f.run(Request{Kind: Planned, Limits: Limits{Patience: -1}})
		require.Equal(t, Succeeded, res.Outcome, res.Message)
		require.NotContains(t, f.calls, "Await p")
	})
}

// The record of the term to come is stored before clients are paused: they never wait for an API server.
func TestClientsDoNotWaitForTheRecord(t *testing.T) {
	for _, fl := range []fault{refuses, hangs, loses, late} {
		bubble(t, string(fl), func(t *testing.T) {
			f := newFake(t, "p", "a", "b")
			f.faults["Store"], f.sticky = fl, true
			res := f.run(Request{Kind: Planned})
			if res.Outcome != Succeeded { // a store whose answer is lost is found to have happened
				require.Equal(t, []string{"p"}, f.serving())
				require.Equal(t, Undone, res.Outcome, res.Message)
				require.NotContains(t, f.calls, "Drain p")
				require.Zero(t, res.WriteUnavailable)
			}
			time.Sleep(time.Second) // a late store comes into effect after everything is over
		})
	}
	bubble(t, "the keeper of the cohort is quicker", func(t *testing.T) {
		f := newFake(t, "p", "a", "b")
		go func() {
			for !slices.Contains(f.called(), "Checkpoint p") {
				time.Sleep(100 * time.Microsecond)
			}
			f.mu.Lock()
			f.version++
			f.mu.Unlock()
		}()
		require.Equal(t, Succeeded, f.run(Request{Kind: Planned}).Outcome)
		require.Less(t, slices.Index(f.calls, "Store"), slices.Index(f.calls, "Drain p"))
	})
}
