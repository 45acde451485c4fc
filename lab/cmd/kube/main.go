// Command kube is every Kubernetes server in one executable: it looks at the
// name it was started under and becomes kube-apiserver,
// kube-controller-manager, kube-scheduler, kubelet or kube-proxy.
//
// One executable is compiled and linked once where five would each link the
// same hundred megabytes, which on two cores is the difference between eight
// minutes and a coffee break.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics of every component
	_ "k8s.io/component-base/metrics/prometheus/version"  // the build info metric
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components maps the name the executable is started under to the command it
// becomes. Construction is deferred: each command registers its own flags and
// feature gates, and two of them in one process would collide.
func components() map[string]func() *cobra.Command {
	return map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": controllermanager.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
		"kube-proxy":              proxy.NewProxyCommand,
	}
}

func main() {
	name := filepath.Base(os.Args[0])
	known := components()
	if build, ok := known[name]; ok {
		os.Exit(cli.Run(build()))
	}
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, n)
	}
	sort.Strings(names)
	fmt.Fprintf(os.Stderr, "kube: started as %q; start it through a link named %s\n", name, strings.Join(names, ", "))
	os.Exit(2)
}
