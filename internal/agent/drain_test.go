//go:build integration

package agent

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

func TestDrain(t *testing.T) {
	s := newShard(t, "a", "b")
	a, b := s.nodes["a"], s.nodes["b"]
	s.bootstrap("a", "b")
	ctx := minute(t)
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE t (id int)")
	require.NoError(t, err)

	// An idle transaction holds it up, and is terminated in the end.
	_, err = conn.Exec(ctx, "BEGIN; INSERT INTO t VALUES (1)")
	require.NoError(t, err)
	begun := time.Now()
	r, err := a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 300})
	require.NoError(t, err)
	require.EqualValues(t, 1, r.GetOpenTransactions())
	require.GreaterOrEqual(t, time.Since(begun), 300*time.Millisecond)
	require.True(t, a.status().GetDraining())
	_, err = conn.Exec(ctx, "COMMIT")
	require.Error(t, err, "terminated")
	_, err = a.client.Undrain(ctx, &agentpb.UndrainRequest{Term: 1})
	require.NoError(t, err)
	require.False(t, a.status().GetDraining())

	// One that ends in time is waited for.
	conn, err = s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "BEGIN; INSERT INTO t VALUES (2)")
	require.NoError(t, err)
	committed := make(chan error, 1)
	time.AfterFunc(200*time.Millisecond, func() {
		_, err := conn.Exec(ctx, "COMMIT")
		committed <- err
	})
	begun = time.Now()
	r, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 5000})
	require.NoError(t, err)
	require.Zero(t, r.GetOpenTransactions())
	require.Less(t, time.Since(begun), 4*time.Second)
	require.NoError(t, <-committed)
	_, err = a.client.Undrain(ctx, &agentpb.UndrainRequest{Term: 1})
	require.NoError(t, err)

	// A commit that waits for its cohort is terminated, never told that it succeeded.
	_, err = b.client.Promise(ctx, &agentpb.PromiseRequest{Term: 2})
	require.NoError(t, err)
	outcome := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "INSERT INTO t VALUES (3)")
		outcome <- err
	}()
	time.Sleep(200 * time.Millisecond)
	r, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 200})
	require.NoError(t, err)
	require.EqualValues(t, 1, r.GetOpenTransactions())
	require.Error(t, <-outcome)

	_, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 9, TimeoutMs: 200})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
}

// Nobody waits for transactions that are open when a drain is prepared: they are waited for beforehand, and have no more time then.
func TestTransactionsAreAwaitedBeforeADrain(t *testing.T) {
	s := newShard(t, "a")
	a := s.nodes["a"]
	s.bootstrap("a")
	ctx := minute(t)
	begin := func() *pgx.Conn {
		conn, err := s.app(ctx, a)
		require.NoError(t, err)
		_, err = conn.Exec(ctx, "BEGIN; SELECT 1")
		require.NoError(t, err)
		return conn
	}
	old := begin()
	time.AfterFunc(100*time.Millisecond, func() { _, _ = old.Exec(ctx, "COMMIT") })
	r, err := a.client.Await(ctx, &agentpb.AwaitRequest{Term: 1, TimeoutMs: 5000})
	require.NoError(t, err)
	require.Zero(t, r.GetOpenTransactions(), "it has ended")

	old = begin()
	var young *pgx.Conn
	time.AfterFunc(100*time.Millisecond, func() { young = begin() })
	asked := time.Now()
	r, err = a.client.Await(ctx, &agentpb.AwaitRequest{Term: 1, TimeoutMs: 500})
	require.NoError(t, err)
	require.EqualValues(t, 1, r.GetOpenTransactions(), "one that was begun afterwards does not count")
	require.WithinDuration(t, asked, time.UnixMicro(r.GetAskedUnixUs()), 400*time.Millisecond)
	require.False(t, a.status().GetDraining())

	time.AfterFunc(300*time.Millisecond, func() { _, _ = young.Exec(ctx, "COMMIT") })
	begun := time.Now()
	drained, err := a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 20_000, OverdueUnixUs: r.GetAskedUnixUs()})
	require.NoError(t, err)
	require.EqualValues(t, 1, drained.GetOpenTransactions())
	require.Less(t, time.Since(begun), 10*time.Second)
	_, err = old.Exec(ctx, "SELECT 1")
	require.Error(t, err, "its time was over")
	_, err = young.Exec(ctx, "SELECT 1")
	require.NoError(t, err, "it had some left")

	_, err = a.client.Await(ctx, &agentpb.AwaitRequest{Term: 9, TimeoutMs: 200})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
}

func TestADrainWaitsForGatewaysThatSayWhenTheyHavePaused(t *testing.T) {
	s := newShard(t, "a")
	a := s.nodes["a"]
	s.bootstrap("a")
	ctx := minute(t)
	gateway, err := agentapi.NewClient(a.endpoint(), testShard, s.gateway)
	require.NoError(t, err)
	defer func() { _ = gateway.Close() }()
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	watching := make(chan struct{}, 100)
	go func() {
		_ = gateway.WatchStatus(watch, &agentpb.WatchRequest{Watcher: "gateway", Name: "g1", Acknowledges: true}, func(st *agentpb.Status) {
			if st.GetDraining() && st.GetTerm() == 1 {
				time.AfterFunc(150*time.Millisecond, func() {
					_, _ = gateway.Acknowledge(ctx, &agentpb.AcknowledgeRequest{Name: "g1", Term: 1, Paused: true})
				})
			}
			watching <- struct{}{}
		})
	}()
	<-watching
	begun := time.Now()
	r, err := a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 5000})
	require.NoError(t, err)
	require.Zero(t, r.GetGatewaysPending())
	require.GreaterOrEqual(t, time.Since(begun), 150*time.Millisecond)
	require.Less(t, time.Since(begun), 3*time.Second)
	_, err = a.client.Undrain(ctx, &agentpb.UndrainRequest{Term: 1})
	require.NoError(t, err)

	// Clients that go past the gateways and are never all idle do not hold up those who wait.
	for range 3 {
		conn, err := s.app(ctx, a)
		require.NoError(t, err)
		go func() {
			for {
				if _, err := conn.Exec(ctx, "SELECT pg_sleep(0.05)"); err != nil {
					return
				}
			}
		}()
	}
	time.Sleep(100 * time.Millisecond)
	begun = time.Now()
	r, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 5000})
	require.NoError(t, err)
	require.Zero(t, r.GetOpenTransactions())
	require.Less(t, time.Since(begun), 2*time.Second)
	_, err = a.client.Undrain(ctx, &agentpb.UndrainRequest{Term: 1})
	require.NoError(t, err)

	// When a gateway lets clients through again the drain has failed, and nobody is terminated.
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "BEGIN; SELECT 1")
	require.NoError(t, err)
	time.AfterFunc(400*time.Millisecond, func() {
		_, _ = gateway.Acknowledge(ctx, &agentpb.AcknowledgeRequest{Name: "g1", Term: 1, Paused: false})
	})
	begun = time.Now()
	_, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 5000})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.Less(t, time.Since(begun), 4*time.Second)
	_, err = conn.Exec(ctx, "COMMIT")
	require.NoError(t, err)
}

func TestADrainThatNobodyEndsIsTakenBack(t *testing.T) {
	s := newShard(t, "a")
	a := s.nodes["a"]
	s.bootstrap("a")
	ctx := minute(t)
	conn, err := s.app(ctx, a)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "BEGIN; CREATE TABLE t (id int)")
	require.NoError(t, err)

	// The coordinator dies while it waits.
	call, die := context.WithCancel(ctx)
	time.AfterFunc(200*time.Millisecond, die)
	_, err = a.client.Drain(call, &agentpb.DrainRequest{Term: 1, TimeoutMs: 20_000})
	require.Equal(t, codes.Canceled, status.Code(err))
	require.Eventually(t, func() bool { return !a.status().GetDraining() }, 2*time.Second, 10*time.Millisecond)
	_, err = conn.Exec(ctx, "COMMIT")
	require.NoError(t, err, "nobody is terminated for a coordinator that died")

	// It dies after the drain, before the demotion.
	_, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 100})
	require.NoError(t, err)
	require.True(t, a.status().GetDraining())
	require.Eventually(t, func() bool { return !a.status().GetDraining() }, 2*drainLease, 50*time.Millisecond)

	// The end of an earlier lease is not the end of a later drain.
	_, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 100})
	require.NoError(t, err)
	time.Sleep(drainLease / 2)
	_, err = a.client.Drain(ctx, &agentpb.DrainRequest{Term: 1, TimeoutMs: 100})
	require.NoError(t, err)
	time.Sleep(drainLease * 3 / 4)
	require.True(t, a.status().GetDraining())
}
