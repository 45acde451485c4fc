package recorder

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// The metrics of the flight recorder, registered once per process with controller-runtime's registry.
var (
	segments = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_recorder_segments_total", Help: "Segments of trails, by whether they were stored.",
	}, []string{"outcome"})
	storedBytes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "theseus_recorder_bytes_total", Help: "Bytes of trails stored, compressed.",
	})
	lostEntries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "theseus_recorder_lost_entries_total", Help: "Log lines and statuses that were dropped before they were stored.",
	})
	lagSeconds = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "theseus_recorder_lag_seconds", Help: "How long the oldest entry of any trail has waited to be stored; 0 on replicas that store faults only.",
	})
	instances = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "theseus_recorder_instances", Help: "Instances whose trail is remembered.",
	})
)

func init() {
	metrics.Registry.MustRegister(segments, storedBytes, lostEntries, lagSeconds, instances)
}
