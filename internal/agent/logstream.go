package agent

import (
	"context"
	"strings"
	"time"

	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
)

const (
	// logsTogether is the least time between two messages. It is also the most of its last lines that a machine that loses
	// power takes with it.
	logsTogether = 100 * time.Millisecond
	// logsBytes is the most of one source in one message; with logsTogether it bounds what a flood of lines can cost.
	logsBytes = 64 << 10
)

// Logs implements the RPC.
func (a *Agent) Logs(req *agentpb.LogsRequest, stream agentpb.Agent_LogsServer) error {
	sources := []*logCursor{
		{source: agentpb.LogSource_POSTGRES, logs: a.logs, after: req.GetAfterPostgres()},
		{source: agentpb.LogSource_AGENT, logs: a.own, after: req.GetAfterAgent()},
	}
	if req.GetBootId() != a.boot {
		for _, s := range sources {
			s.after = 0
		}
	}
	ctx := stream.Context()
	for {
		pause := a.clock.After(logsTogether)
		reply := &agentpb.LogsReply{Instance: a.conf.Instance, PodUid: a.conf.PodUID, BootId: a.boot}
		for _, s := range sources {
			s.take(reply)
		}
		if len(reply.GetLines()) > 0 {
			if err := stream.Send(reply); err != nil {
				return err
			}
		}
		if !awaitLines(ctx, sources, pause) {
			return nil
		}
	}
}

// awaitLines returns once there are lines and the pause is over; false when ctx has ended. So the first line after a silence
// is sent at once, and what follows in a bunch.
func awaitLines(ctx context.Context, sources []*logCursor, pause <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-sources[0].logs.News(sources[0].after):
	case <-sources[1].logs.News(sources[1].after):
	}
	select {
	case <-ctx.Done():
		return false
	case <-pause:
		return true
	}
}

// logCursor is how far one watcher has read one log.
type logCursor struct {
	source agentpb.LogSource
	logs   *postgres.Logs
	after  uint64
}

// take moves what is new into the reply.
func (c *logCursor) take(reply *agentpb.LogsReply) {
	lines, missed := c.logs.After(c.after, logsBytes)
	reply.Missed += missed
	for _, l := range lines {
		reply.Lines = append(reply.Lines, &agentpb.LogLine{Source: c.source, Sequence: l.Sequence, AtUnixMs: l.At.UnixMilli(), Text: strings.ToValidUTF8(l.Text, "�")})
		c.after = l.Sequence
	}
}
