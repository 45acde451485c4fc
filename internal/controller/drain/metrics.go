package drain

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// drainsTotal is registered once per process with controller-runtime's registry.
var drainsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "theseus_drains_total", Help: "Instances whose move off a node was begun or withdrawn on account of a drain.",
}, []string{"what"})

func init() { metrics.Registry.MustRegister(drainsTotal) }
