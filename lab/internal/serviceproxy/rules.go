// Package serviceproxy gives the client machine the Services of the cluster:
// what kube-proxy does for a node, reduced to what a client needs (ClusterIPs,
// no node ports, no session affinity). kube-proxy itself insists on a Node
// object for the machine it runs on, which a client must not have: tests count
// nodes.
package serviceproxy

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// target is one port of one Service, and who answers there.
type target struct {
	addr      netip.Addr
	proto     string
	port      int32
	endpoints []netip.AddrPort
}

// Rules renders the rules for nft. They replace the former ones at once; a
// connection that exists keeps its endpoint, because the kernel translates only
// its first packet by them. A Service without endpoints refuses.
func Rules(services []*corev1.Service, slices []*discoveryv1.EndpointSlice) string {
	var nat, reject strings.Builder
	for _, t := range targets(services, slices) {
		match := fmt.Sprintf("\t\tip daddr %s %s dport %d ", t.addr, t.proto, t.port)
		if len(t.endpoints) == 0 {
			reject.WriteString(match + "reject\n")
			continue
		}
		nat.WriteString(match + "dnat to " + pick(t.endpoints) + "\n")
	}
	return "table ip services\ndelete table ip services\ntable ip services {\n" +
		"\tchain refuse {\n\t\ttype filter hook output priority -110; policy accept;\n" + reject.String() + "\t}\n" +
		"\tchain translate {\n\t\ttype nat hook output priority -100; policy accept;\n" + nat.String() + "\t}\n}\n"
}

// pick chooses an endpoint at random for each new connection.
func pick(endpoints []netip.AddrPort) string {
	if len(endpoints) == 1 {
		return endpoints[0].String()
	}
	parts := make([]string, len(endpoints))
	for i, e := range endpoints {
		parts[i] = fmt.Sprintf("%d : %s . %d", i, e.Addr(), e.Port())
	}
	return fmt.Sprintf("numgen random mod %d map { %s }", len(endpoints), strings.Join(parts, ", "))
}

// targets lists every port of every Service that has a cluster address, in a
// fixed order, so that nothing changes when nothing has changed.
func targets(services []*corev1.Service, slices []*discoveryv1.EndpointSlice) []target {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range slices {
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		byService[key] = append(byService[key], s)
	}
	var out []target
	for _, svc := range services {
		addr, err := netip.ParseAddr(svc.Spec.ClusterIP)
		if err != nil || !addr.Is4() || svc.Spec.Type == corev1.ServiceTypeExternalName {
			continue // headless and nameless Services are DNS only
		}
		for _, p := range svc.Spec.Ports {
			proto := strings.ToLower(string(p.Protocol))
			if proto != "tcp" && proto != "udp" {
				continue
			}
			out = append(out, target{addr, proto, p.Port, endpoints(byService[svc.Namespace+"/"+svc.Name], p.Name)})
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.addr != b.addr {
			return a.addr.Less(b.addr)
		}
		if a.proto != b.proto {
			return a.proto < b.proto
		}
		return a.port < b.port
	})
	return out
}

// endpoints lists who answers on a named port: those that are ready, or, when
// there are none, those that still serve while they terminate, as kube-proxy does.
func endpoints(slices []*discoveryv1.EndpointSlice, portName string) []netip.AddrPort {
	ready, leaving := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for _, s := range slices {
		for _, p := range s.Ports {
			if p.Port == nil || (p.Name != nil && *p.Name != portName) || (p.Name == nil && portName != "") {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					addr, err := netip.ParseAddr(a)
					if err != nil || !addr.Is4() {
						continue
					}
					ap := netip.AddrPortFrom(addr, uint16(*p.Port))
					switch c := e.Conditions; {
					case c.Ready == nil || *c.Ready:
						ready[ap] = true
					case c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating:
						leaving[ap] = true
					}
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = leaving
	}
	out := make([]netip.AddrPort, 0, len(ready))
	for ap := range ready {
		out = append(out, ap)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Compare(out[j]) < 0 })
	return out
}
