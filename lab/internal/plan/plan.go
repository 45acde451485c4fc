// Package plan decides names and addresses: which address a machine gets, which
// range its Pods get, which zone a new node belongs to. It is pure.
//
// Every lab uses the same addresses. That is safe because none of them exists
// outside namespaces the lab made; the only thing two labs on one machine could
// collide on is the loopback port of the API, which PreferredPort spreads by name.
//
// Addresses of nodes, like their names, are never used twice within one lab: a
// packet or a cached connection meant for a dead node must not reach its
// successor.
package plan

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"regexp"
)

// Fixed addresses. The machine network is 172.30.0.0/16, Pods live in
// 10.128.0.0/9 and Services in 10.96.0.0/16.
var (
	Router       = netip.MustParseAddr("172.30.0.1")
	ControlPlane = netip.MustParseAddr("172.30.0.2")
	Client       = netip.MustParseAddr("172.30.0.3")
	MachineNet   = netip.MustParsePrefix("172.30.0.0/16")
	PodNet       = netip.MustParsePrefix("10.128.0.0/9")
	ServiceNet   = netip.MustParsePrefix("10.96.0.0/16")
	APIService   = netip.MustParseAddr("10.96.0.1")
	// DNS is a link-local address that every machine has on its own loopback
	// interface, so that names resolve without leaving the machine.
	DNS = netip.MustParseAddr("169.254.20.10")
)

const (
	// APIPort is where the API server listens, inside the lab.
	APIPort = 6443
	// MachinePort is where the control plane answers calls about machines.
	MachinePort = 7400
	// ClusterDomain is the DNS domain of Services and Pods.
	ClusterDomain = "cluster.local"
	// MaxIndex is the largest node index the address plan has room for: the
	// Pod network is divided into 32,768 ranges of 256 addresses.
	MaxIndex = 32767 - 1

	nodeBase  = 256 // the first 256 machine addresses are not nodes
	portBase  = 16443
	portRange = 1000
)

// ControlPlaneName and ClientName are the names of the two machines that are not nodes.
const (
	ControlPlaneName = "control-plane"
	ClientName       = "client"
)

// Zones are the failure domains a node can belong to.
func Zones() []string { return []string{"z1", "z2", "z3"} }

// NodeAddress is the machine address of the node with this index (1 and up).
// It fails when the index is outside the plan.
func NodeAddress(index int) (netip.Addr, error) {
	if index < 1 || index > MaxIndex {
		return netip.Addr{}, fmt.Errorf("node index %d is outside 1..%d: run `lab down` and `lab up` to start a new cluster", index, MaxIndex)
	}
	n := nodeBase + index
	return netip.AddrFrom4([4]byte{172, 30, byte(n >> 8), byte(n)}), nil
}

// PodRange is the /24 from which the node with this index gives addresses to Pods.
func PodRange(index int) (netip.Prefix, error) {
	if index < 1 || index > MaxIndex {
		return netip.Prefix{}, fmt.Errorf("node index %d is outside 1..%d", index, MaxIndex)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + index>>8), byte(index), 0}), 24), nil
}

// nameAlphabet leaves out vowels and look-alikes, like Kubernetes' own generated names.
const nameAlphabet = "bcdfghjklmnpqrstvwxz2456789"

// NodeName makes a random node name that taken does not know. The name stays
// under 15 characters because it also names a network interface.
func NodeName(r *rand.Rand, taken func(string) bool) string {
	for {
		b := make([]byte, 5)
		for i := range b {
			b[i] = nameAlphabet[r.IntN(len(nameAlphabet))]
		}
		if name := "node-" + string(b); !taken(name) {
			return name
		}
	}
}

// NextZone picks the zone with the fewest of the given nodes' zones; the first
// of Zones wins a tie, so that nodes are dealt out in turn.
func NextZone(inUse []string) string {
	count := map[string]int{}
	for _, z := range inUse {
		count[z]++
	}
	best := Zones()[0]
	for _, z := range Zones() {
		if count[z] < count[best] {
			best = z
		}
	}
	return best
}

// PreferredPort is the loopback port the API of a lab is offered on if it is free.
func PreferredPort(lab string) int {
	h := fnv.New32a()
	h.Write([]byte(lab)) // never fails, says hash.Hash
	if lab == DefaultLab {
		return portBase
	}
	return portBase + 1 + int(h.Sum32()%portRange)
}

// DefaultLab is the name of a lab that was given none.
const DefaultLab = "theseus"

var labName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}[a-z0-9]$`)

// CheckLabName reports why a name cannot be a lab's: it becomes part of paths,
// cgroups and namespaces.
func CheckLabName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: use 2 to 32 lower-case letters, digits and dashes, starting with a letter", name)
	}
	return nil
}

// NetNS is the name (under /run/netns) of a machine's network namespace.
func NetNS(lab, machine string) string { return "theseus-lab." + lab + "." + machine }

// RouterName is the machine name under which NetNS names the namespace that
// connects all machines.
const RouterName = "router"

// Cgroup is the path, below every hierarchy's root, of a machine's control
// group; with an empty machine, of the whole lab's.
func Cgroup(lab, machine string) string {
	p := "/theseus-lab/" + lab
	if machine != "" {
		p += "/" + machine
	}
	return p
}
