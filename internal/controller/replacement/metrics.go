package replacement

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// The metrics of replacements. They are registered once per process with controller-runtime's registry.
var (
	outcomes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_replacements_total", Help: "Replacements that ended, by reason and outcome.",
	}, []string{"reason", "outcome"})
	seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "theseus_replacement_seconds", Help: "Time from admission to the end of replacements that succeeded.",
		Buckets: []float64{5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 3 * 3600, 12 * 3600},
	}, []string{"reason"})
	refusals = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_ledger_refusals_total", Help: "Replacements that the ledger had wait, counted when the reason changes.",
	}, []string{"why"})
)

func init() { metrics.Registry.MustRegister(outcomes, seconds, refusals) }
