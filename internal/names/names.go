// Package names derives the name of everything Theseus makes from the name of the Database, so that no two packages
// can disagree about one. The limits on a Database's name (package v1alpha1) are chosen so that all of these fit into
// 63 characters.
package names

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// OperatorLabels are what the chart puts on the operator's Pods.
func OperatorLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "theseus", "app.kubernetes.io/component": "operator"}
}

// Shard is the name of the Shard with that index.
func Shard(database string, index int32) string { return database + "-" + strconv.Itoa(int(index)) }

// Authority is the Secret with a Database's certificate authorities and a copy of the application's password. Nothing but the
// operator reads it.
func Authority(database string) string { return database + "-ca" }

// Application is the Secret with the application role's password and how to connect.
func Application(database string) string { return database + "-app" }

// ReadWrite is the Service for reading and writing: of a Shard, or of a Database with one shard.
func ReadWrite(owner string) string { return owner + "-rw" }

// ReadOnly is the Service of the standbys.
func ReadOnly(owner string) string { return owner + "-ro" }

// Direct is the Service of the primary's PostgreSQL itself, past the gateways.
func Direct(owner string) string { return owner + "-direct" }

// Instances is the headless Service of a Shard's instances, ready or not.
func Instances(shard string) string { return shard + "-instances" }

// AgentTLS is the Secret with the certificate of a Shard's agents.
func AgentTLS(shard string) string { return shard + "-agent-tls" }

// GatewayTLS is the Secret with the certificate of a Shard's gateways.
func GatewayTLS(shard string) string { return shard + "-gateway-tls" }

// Gateway is the Deployment of a Shard's gateways.
func Gateway(shard string) string { return shard + "-gateway" }

// Reparent is the Reparent that opens a term of a Shard. Creating it is taking the lock for that term.
func Reparent(shard string, term uint64) string { return fmt.Sprintf("%s-%d", shard, term) }

// label is how long a name may be that becomes a label, or that of a Pod.
const label = 63

// Replacement is the Replacement that an instance and a reason have in common, so that asking twice is asking once; n counts
// those before it that ended and left the instance, from 0. It becomes a label of the successor: where a long name of the
// instance leaves no room for the rest, a hash of it stands for its end.
func Replacement(instance, reason string, n int) string {
	end := "-" + strings.ToLower(reason)
	if n > 0 {
		end += "-" + strconv.Itoa(n+1)
	}
	if len(instance)+len(end) > label {
		hash := fmt.Sprintf("-%x", sha256.Sum256([]byte(instance)))[:11]
		instance = strings.TrimRight(instance[:max(label-len(end)-len(hash), 1)], "-.") + hash
	}
	return instance + end
}

// alphabet leaves out vowels, so that no word comes out, and what is read wrongly (0/o, 1/l), as Kubernetes does.
const alphabet = "bcdfghjkmnpqrstvwxz2456789"

// suffix is how many random characters an instance's name ends in: 26⁵ names, and a name is checked against those that
// exist before it is taken.
const suffix = 5

// Instance makes a new random name for an instance of the shard from draw, which returns a number in [0, n).
func Instance(shard string, draw func(n int) int) string {
	if draw == nil {
		draw = rand.IntN
	}
	b := make([]byte, suffix)
	for i := range b {
		b[i] = alphabet[draw(len(alphabet))]
	}
	return shard + "-" + string(b)
}

// Hosts are the names by which clients inside the cluster may reach a Service, shortest first, without and with the
// cluster's domain.
func Hosts(service, namespace, clusterDomain string) []string {
	hosts := []string{service, service + "." + namespace, service + "." + namespace + ".svc"}
	if clusterDomain != "" {
		hosts = append(hosts, service+"."+namespace+".svc."+clusterDomain)
	}
	return hosts
}
