package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

// sink takes a log stream's messages; each is encoded, as gRPC would, because text that is no UTF-8 fails there.
type sink struct {
	grpc.ServerStream
	ctx context.Context
	got chan *agentpb.LogsReply
}

func (s *sink) Context() context.Context { return s.ctx }

func (s *sink) Send(r *agentpb.LogsReply) error {
	if _, err := proto.Marshal(r); err != nil {
		return err
	}
	select {
	case s.got <- r:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func logsAgent() *Agent {
	return &Agent{
		conf: Config{Instance: "db-0-a", PodUID: "1"}, boot: "this", clock: clock.RealClock{},
		logs: postgres.NewLogs(io.Discard, "", nil), own: postgres.NewLogs(io.Discard, "", nil),
	}
}

func follow(t *testing.T, a *Agent, req *agentpb.LogsRequest) (next func() *agentpb.LogsReply, stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s := &sink{ctx: ctx, got: make(chan *agentpb.LogsReply)}
	ended := make(chan error, 1)
	go func() { ended <- a.Logs(req, s) }()
	next = func() *agentpb.LogsReply {
		select {
		case r := <-s.got:
			return r
		case err := <-ended:
			t.Fatalf("the stream ended: %v", err)
		case <-time.After(10 * time.Second):
			t.Fatal("nothing was sent")
		}
		return nil
	}
	return next, func() error { cancel(); return <-ended }
}

func TestLogsAreStreamedAndResumed(t *testing.T) {
	a := logsAgent()
	say := func(l *postgres.Logs, format string, args ...any) { _, _ = fmt.Fprintf(l, format+"\n", args...) }
	say(a.logs, "first")
	say(a.own, "own")
	next, stop := follow(t, a, &agentpb.LogsRequest{})
	r := next()
	require.Len(t, r.GetLines(), 2)
	require.Equal(t, "this", r.GetBootId())
	require.Equal(t, agentpb.LogSource_AGENT, r.GetLines()[1].GetSource())
	say(a.logs, "second")
	r = next()
	require.Equal(t, "second", r.GetLines()[0].GetText())
	require.EqualValues(t, 2, r.GetLines()[0].GetSequence())
	require.NoError(t, stop())

	say(a.logs, "third")
	next, _ = follow(t, a, &agentpb.LogsRequest{BootId: "this", AfterPostgres: 2, AfterAgent: 1})
	r = next()
	require.Len(t, r.GetLines(), 1)
	require.Equal(t, "third", r.GetLines()[0].GetText())
	next, _ = follow(t, a, &agentpb.LogsRequest{BootId: "one before", AfterPostgres: 99, AfterAgent: 99})
	require.Len(t, next().GetLines(), 4, "another process has said nothing of this one's")
}

func TestAFloodIsCountedNotKept(t *testing.T) {
	a := logsAgent()
	for i := range 5000 {
		_, _ = fmt.Fprintf(a.logs, "line %d %s\n", i, strings.Repeat("x", 500))
	}
	next, _ := follow(t, a, &agentpb.LogsRequest{})
	r := next()
	require.EqualValues(t, 3000, r.GetMissed())
	require.LessOrEqual(t, proto.Size(r), 2*logsBytes)
	last := r.GetLines()[len(r.GetLines())-1].GetSequence()
	for last < 5000 {
		r = next()
		require.Zero(t, r.GetMissed())
		require.Equal(t, last+1, r.GetLines()[0].GetSequence())
		last = r.GetLines()[len(r.GetLines())-1].GetSequence()
	}
}

func TestALineThatIsNoTextBreaksNothing(t *testing.T) {
	a := logsAgent()
	_, _ = a.logs.Write([]byte("ERROR:  bad \xff\xfe bytes\n" + strings.Repeat("ä", 5000) + "\n"))
	next, _ := follow(t, a, &agentpb.LogsRequest{})
	require.Len(t, next().GetLines(), 2)
}

func TestWhatHangsIsLeftBehind(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	began := time.Now()
	out := inTime(context.Background(), 50*time.Millisecond, map[string]func(context.Context) ([]byte, error){
		"good":  func(context.Context) ([]byte, error) { return []byte("here"), nil },
		"half":  func(context.Context) ([]byte, error) { return []byte("half "), errors.New("cut") },
		"hangs": func(context.Context) ([]byte, error) { <-release; return nil, nil },
	})
	require.Less(t, time.Since(began), 5*time.Second)
	require.Equal(t, "here", string(out["good"]))
	require.Equal(t, "half cut\n", string(out["half"]))
	require.Contains(t, string(out["hangs"]), "had not answered")
}

func TestProcessesAreDescribed(t *testing.T) {
	cwd, err := os.Getwd()
	require.NoError(t, err)
	require.Contains(t, string(postgres.NewProcesses().Describe(cwd)), "0 processes", "this process is not listed")
}
