package drain

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// The metrics of drains. They are registered once per process with controller-runtime's registry.
var (
	drainsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_drains_total", Help: "Instances whose move off a node was begun or withdrawn on account of a drain.",
	}, []string{"what"})
	draining = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "theseus_node_draining_instances", Help: "Instances that have to leave a node because it is being drained.",
	}, []string{"node"})
)

func init() { metrics.Registry.MustRegister(drainsTotal, draining) }

// count sets how many instances have to leave a node.
func count(node string, n int) {
	if n == 0 {
		draining.DeleteLabelValues(node)
		return
	}
	draining.WithLabelValues(node).Set(float64(n))
}
