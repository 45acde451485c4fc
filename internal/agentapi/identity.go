// Package agentapi is the protocol between agents, operator and gateways: ports, identities, mutual TLS, who may call
// what, and a client that notices a dead peer quickly. The messages themselves are in agentpb.
//
// All leaf certificates of a database come from one CA, but each is bound to a shard and a role by its SAN URI
// (theseus://namespace/shard/role). A peer is believed only if its chain, its shard and its role are right, so that a
// Pod IP that was given to another shard, or a leaked gateway key, opens nothing.
package agentapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
)

// Ports of an instance. They are the same in every Pod; tests without Kubernetes choose others per agent.
const (
	// PostgresPort is PostgreSQL's own port.
	PostgresPort = 5432
	// AgentPort is the agent's gRPC port, mutual TLS.
	AgentPort = 7420
	// HealthPort serves /livez, /readyz and /metrics over plain HTTP.
	HealthPort = 7421
)

// Role is what a certificate's owner is.
type Role string

// The roles there are.
const (
	RoleAgent    Role = "agent"
	RoleGateway  Role = "gateway"
	RoleOperator Role = "operator"
)

// AnyShard is the shard name of a wildcard certificate. It is honoured for the operator only, and only for shards
// whose agents trust the CA that signed it, which are those of one database.
const AnyShard = "*"

const scheme = "theseus"

// Shard names a shard: the namespace and the name of its Shard object.
type Shard struct {
	Namespace, Name string
}

// String is "namespace/name".
func (s Shard) String() string { return s.Namespace + "/" + s.Name }

// ParseShard reads "namespace/name".
func ParseShard(s string) (Shard, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return Shard{}, fmt.Errorf("shard %q is not namespace/name", s)
	}
	return Shard{Namespace: namespace, Name: name}, nil
}

// hash shortens a shard to 12 hex digits, because a common name may have no more than 64 characters.
func (s Shard) hash() string {
	sum := sha256.Sum256([]byte(s.String()))
	return hex.EncodeToString(sum[:])[:12]
}

// URI is the SAN URI that binds a leaf certificate to a shard and a role.
func URI(shard Shard, role Role) *url.URL {
	return &url.URL{Scheme: scheme, Host: shard.Namespace, Path: "/" + shard.Name + "/" + string(role)}
}

// ParseURI is the inverse of URI.
func ParseURI(u *url.URL) (Shard, Role, error) {
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != scheme || u.Host == "" || len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return Shard{}, "", fmt.Errorf("%q is not theseus://namespace/shard/role", u)
	}
	return Shard{Namespace: u.Host, Name: parts[0]}, Role(parts[1]), nil
}

// CommonName is the subject of a leaf certificate. PostgreSQL maps it to a role with pg_ident, and knows nothing of
// URIs, so it has to name the shard too.
func CommonName(role Role, shard Shard) string { return string(role) + "." + shard.hash() }

// ServerName is the DNS SAN that every agent certificate of a shard carries. Clients verify it instead of the Pod's
// address, which changes.
func ServerName(shard Shard) string { return "agent." + shard.hash() + ".theseus.internal" }

// authorizedShard says whether a certificate for (have, role) may act in shard want.
func authorizedShard(have, want Shard, role Role) bool {
	if have == want {
		return true
	}
	return role == RoleOperator && have.Name == AnyShard && have.Namespace == want.Namespace
}
