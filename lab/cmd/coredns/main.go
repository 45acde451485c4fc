// Command coredns is CoreDNS with only the plugins a cluster's DNS needs. The
// stock build links some fifty plugins and several cloud SDKs.
//
// There is no cache plugin on purpose: answers come from an informer's memory
// anyway, and a cache would add seconds of staleness to every failover.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order in which plugins see a query, a subset of upstream's plugin.cfg.
	dnsserver.Directives = []string{"bind", "ready", "errors", "loadbalance", "kubernetes", "template"}
	coremain.Run()
}
