//go:build integration

package agent

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

func TestEvidenceOfAStoppedServer(t *testing.T) {
	s := newShard(t, "a")
	a := s.nodes["a"]
	s.bootstrap("a")
	ctx := minute(t)
	conn, err := a.socket(ctx)
	require.NoError(t, err)
	logs, err := a.client.Logs(ctx, &agentpb.LogsRequest{})
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "DO $$ BEGIN RAISE LOG 'something to remember'; END $$")
	require.NoError(t, err)
	seen := map[agentpb.LogSource]string{}
	for !strings.Contains(seen[agentpb.LogSource_POSTGRES], "something to remember") {
		reply, err := logs.Recv()
		require.NoError(t, err)
		require.Equal(t, "a", reply.GetInstance())
		for _, l := range reply.GetLines() {
			seen[l.GetSource()] += l.GetText() + "\n"
		}
	}
	require.Contains(t, seen[agentpb.LogSource_AGENT], "agent started")

	// A log may hold anything: gateways and other agents do not get it.
	quiet, err := a.quiet.Logs(ctx, &agentpb.LogsRequest{})
	require.NoError(t, err)
	_, err = quiet.Recv()
	require.Equal(t, codes.PermissionDenied, status.Code(err))

	require.NoError(t, syscall.Kill(a.postmaster(), syscall.SIGSTOP))
	begun := time.Now()
	d, err := a.client.Dump(ctx, &agentpb.DumpRequest{MaxBytes: 1 << 20})
	require.NoError(t, err)
	require.Less(t, time.Since(begun), dumpTimeout)
	require.Eventually(t, func() bool { // a signal takes a moment
		d, err = a.client.Dump(ctx, &agentpb.DumpRequest{MaxBytes: 1 << 20})
		return err == nil && strings.Contains(string(d.GetFiles()["processes.txt"]), "State: T (stopped)")
	}, 20*time.Second, 100*time.Millisecond)
	processes := string(d.GetFiles()["processes.txt"])
	require.Contains(t, processes, "checkpointer")
	require.Contains(t, string(d.GetFiles()["controldata.txt"]), "in production")
	require.Contains(t, string(d.GetFiles()["goroutines.txt"]), "supervise")
	require.Contains(t, string(d.GetFiles()["postgres.log"]), "something to remember")
	d, err = a.client.Dump(ctx, &agentpb.DumpRequest{MaxBytes: 20_000})
	require.NoError(t, err)
	require.Contains(t, string(d.GetFiles()["postgres.log"]), "something to remember", "a small dump has logs, too")
	t.Logf("%.1500s", processes)
}
