package condemned

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// The metrics of evidence, registered once per process with controller-runtime's registry.
var (
	casesTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_evidence_cases_total", Help: "Cases of condemned instances: complete, partial (something could not be had), or failed (not stored).",
	}, []string{"outcome"})
	caseBytes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "theseus_evidence_bytes_total", Help: "Bytes of evidence stored in cases.",
	})
	caseSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "theseus_evidence_seconds", Help: "How long taking the evidence of one instance took.",
		Buckets: []float64{.1, .25, .5, 1, 2, 5, 10, 20, 45},
	})
	pruned = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_evidence_pruned_total", Help: "Cases and segments of trails deleted because of their age, and failures to.",
	}, []string{"what"})
)

func init() {
	metrics.Registry.MustRegister(casesTotal, caseBytes, caseSeconds, pruned)
}
