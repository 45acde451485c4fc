package agentapi

import (
	"context"
	"path"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// instanceHeader carries the name of the instance the caller means. Certificates are bound to a shard and not to an
// instance, and a Pod's address can be taken over by another Pod of the same shard.
const instanceHeader = "theseus-instance"

// Allowed says whether a role may call a method (its bare name, as in the proto). The operator may call all; the
// others only look. Unknown roles and methods get nothing.
func Allowed(role Role, method string) bool {
	switch role {
	case RoleOperator:
		return true
	case RoleGateway:
		return method == "Watch" || method == "GetStatus" || method == "Acknowledge"
	case RoleAgent:
		return method == "Watch" || method == "GetStatus" || method == "Testify"
	}
	return false
}

// PeerFromContext says who called, inside a handler.
func PeerFromContext(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(interface{ TLS() credentials.TLSInfo })
	if !ok {
		plain, isTLS := p.AuthInfo.(credentials.TLSInfo)
		if !isTLS {
			return Peer{}, status.Error(codes.Unauthenticated, "no TLS")
		}
		return peerOfInfo(plain)
	}
	return peerOfInfo(info.TLS())
}

func peerOfInfo(info credentials.TLSInfo) (Peer, error) {
	who, err := PeerOf(info.State)
	if err != nil {
		return Peer{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return who, nil
}

// Authorizer checks every call to an agent. Heard, when set, is told of each call let in.
type Authorizer struct {
	// Instance is this agent's own name; calls meant for another are refused.
	Instance string
	// Heard is told of each call that is let in, before it runs.
	Heard func(who Peer, method string)
}

func (a *Authorizer) check(ctx context.Context, fullMethod string) error {
	who, err := PeerFromContext(ctx)
	if err != nil {
		return err
	}
	method := path.Base(fullMethod)
	if !Allowed(who.Role, method) {
		return status.Errorf(codes.PermissionDenied, "a %s may not call %s", who.Role, method)
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if meant := md.Get(instanceHeader); len(meant) == 1 && meant[0] != "" && meant[0] != a.Instance {
			return status.Errorf(codes.FailedPrecondition, "this is instance %s, the call is meant for %s", a.Instance, meant[0])
		}
	}
	if a.Heard != nil {
		a.Heard(who, method)
	}
	return nil
}

// Unary is the interceptor for unary calls.
func (a *Authorizer) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// Stream is the interceptor for streams.
func (a *Authorizer) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := a.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}
