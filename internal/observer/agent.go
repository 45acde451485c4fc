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

// AgentStream is the Stream to real agents, with the identity that identities gives for the shard.
func AgentStream(identities func(ctx context.Context, shard types.NamespacedName) (agentapi.Identity, error)) Stream {
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
		return c.WatchStatus(ctx, req, got)
	}
}
