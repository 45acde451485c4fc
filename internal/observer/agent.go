package observer

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// connectTimeout bounds one attempt: an agent that lives answers within milliseconds, and the attempt is repeated.
const connectTimeout = 500 * time.Millisecond

// Beside is run beside a stream, on the same connection, until ctx ends with the stream.
type Beside func(ctx context.Context, shard types.NamespacedName, target Target, client agentpb.AgentClient)

// AgentStream is the Stream to real agents, with the identity that identities gives for the shard. beside may be nil.
func AgentStream(identities func(ctx context.Context, shard types.NamespacedName) (agentapi.Identity, error), beside Beside) Stream {
	return func(ctx context.Context, shard types.NamespacedName, target Target, req *agentpb.WatchRequest, got func(*agentpb.Status)) error {
		id, err := identities(ctx, shard)
		if err != nil {
			return err
		}
		dialCtx, cancel := context.WithTimeout(ctx, connectTimeout)
		c, err := agentapi.Dial(dialCtx, target.Endpoint, agentapi.Shard{Namespace: shard.Namespace, Name: shard.Name}, id)
		cancel()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if beside != nil {
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			go beside(ctx, shard, target, c)
		}
		return c.WatchStatus(ctx, req, got)
	}
}
