package agent

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

const (
	dumpDefault = 1 << 20
	dumpMost    = 4<<20 - 64<<10 // gRPC's limit for a message, less the rest
	dumpTimeout = 5 * time.Second
)

// Dump implements the RPC. What cannot be had in time is replaced by the reason.
func (a *Agent) Dump(ctx context.Context, req *agentpb.DumpRequest) (*agentpb.DumpReply, error) {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	limit := int(req.GetMaxBytes())
	if limit <= 0 {
		limit = dumpDefault
	}
	limit = min(limit, dumpMost)
	files := map[string][]byte{}
	if st, err := (protojson.MarshalOptions{Multiline: true}).Marshal(a.status()); err == nil {
		files["status.json"] = st
	}
	state := a.snapshot()
	if data, err := json.MarshalIndent(state, "", "  "); err == nil {
		files["state.json"] = data
	}
	for name, data := range inTime(ctx, dumpSlow, a.slowEvidence()) {
		files[name] = data[:min(len(data), limit/6)] // the logs have the better half, however many processes there are
	}
	for _, data := range files {
		limit -= len(data)
	}
	if limit > 0 {
		files["agent.log"] = a.own.Tail(limit / 4)
		files["postgres.log"] = a.logs.Tail(limit - len(files["agent.log"]))
	}
	return &agentpb.DumpReply{Files: files}, nil
}
