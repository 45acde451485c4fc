package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// reachTimeout bounds each attempt to reach the primary for a testimony.
const reachTimeout = 500 * time.Millisecond

// Testify implements the RPC. The term comes from memory and is on the device; reaching is tried afresh each time.
func (a *Agent) Testify(ctx context.Context, req *agentpb.TestifyRequest) (*agentpb.TestifyReply, error) {
	now := a.now()
	a.mu.Lock()
	reply := &agentpb.TestifyReply{Term: a.state.Term, Role: a.live.role}
	if a.live.role == agentpb.Role_STANDBY && a.state.Follow != nil && a.state.Follow.Instance == req.GetPrimary() {
		reply.Receiver = a.receiver(now)
	}
	known := a.state.Endpoints
	if a.state.Follow != nil {
		known = append([]Target{*a.state.Follow}, known...)
	}
	a.mu.Unlock()
	if who, err := agentapi.PeerFromContext(ctx); err == nil && who.Role == agentapi.RoleAgent {
		return reply, nil // a primary asks about itself: it need not be reached
	}
	for _, t := range known {
		if t.Instance == req.GetPrimary() {
			a.reach(ctx, t, reply)
			break
		}
	}
	return reply, nil
}

func (a *Agent) reach(ctx context.Context, t Target, reply *agentpb.TestifyReply) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	var both sync.WaitGroup
	both.Go(func() {
		client, err := agentapi.Dial(ctx, endpoint(t), a.conf.Shard, a.id)
		if err != nil {
			return
		}
		defer func() { _ = client.Close() }()
		_, err = client.GetStatus(ctx, &agentpb.GetStatusRequest{})
		reply.AgentReachable = err == nil
	})
	both.Go(func() { reply.PostgresReachable = postgresAnswers(ctx, t.Host, t.PostgresPort) == nil })
	both.Wait()
}

// postgresAnswers asks for TLS and waits for the answer. A TCP connection alone proves nothing: the kernel accepts it for
// a stopped postmaster too. The answer comes from a process the postmaster has just started.
func postgresAnswers(ctx context.Context, host string, port int) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	const sslRequestCode = 80877103
	packet := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), sslRequestCode)
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != 'S' {
		return errors.New("PostgreSQL does not speak TLS")
	}
	return nil
}
