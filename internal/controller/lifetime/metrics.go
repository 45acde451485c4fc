package lifetime

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"theseus.dev/theseus/api/v1alpha1"
)

// The metrics of lifetimes. They are registered once per process with controller-runtime's registry.
var (
	oldest = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "theseus_instance_oldest_age_seconds", Help: "Age of the oldest instance of a shard.",
	}, []string{"namespace", "shard"})
	missedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_instance_deadlines_missed_total", Help: "Instances that became older than their maximum age.",
	}, []string{"namespace", "shard"})
	overdue = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "theseus_instance_deadlines_missed", Help: "Instances that are older than their maximum age now.",
	})
	frozen = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "theseus_instance_frozen", Help: "1 while no instance is replaced for its age: by the switch, a storm of condemnations, or too many degraded shards.",
	})
	frozenZones = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "theseus_zones_without_capacity", Help: "Zones in which no machine was to be had for a surge.",
	})
	perHour = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "theseus_instance_replacements_per_hour", Help: "The most replacements for age that may begin in an hour by the plan.",
	})
	inFlight = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "theseus_replacements_in_flight", Help: "Replacements that have begun and not ended, by reason.",
	}, []string{"reason"})
)

func init() {
	metrics.Registry.MustRegister(oldest, missedTotal, overdue, frozen, frozenZones, perHour, inFlight)
}

// forgetMetrics ends what the leader says: a replica that leads no longer knows nothing of it.
func forgetMetrics() {
	oldest.Reset()
	inFlight.Reset()
	for _, g := range []prometheus.Gauge{overdue, frozen, frozenZones, perHour} {
		g.Set(0)
	}
}

// measure sets the metrics.
func (e *Expiry) measure(w *world) {
	oldest.Reset()
	late := 0
	missed := map[string]bool{}
	for age, instances := range w.instances {
		for _, in := range instances {
			if w.now.Sub(in.born) > age {
				late++
				missed[in.id] = true
				if !e.missed[in.id] {
					missedTotal.WithLabelValues(in.shard.Namespace, in.shard.Name).Inc()
				}
			}
		}
	}
	e.missed = missed
	for i := range w.shards {
		sh := &w.shards[i]
		if born := sh.Status.OldestInstance; born != nil {
			oldest.WithLabelValues(sh.Namespace, sh.Name).Set(w.now.Sub(born.Time).Seconds())
		}
	}
	overdue.Set(float64(late))
	frozen.Set(0)
	if w.freeze != "" {
		frozen.Set(1)
	}
	frozenZones.Set(float64(len(w.zones)))
	perHour.Set(e.PerHour()[""])
	for _, reason := range []v1alpha1.Reason{
		v1alpha1.ReasonExpired, v1alpha1.ReasonNodeExpiring, v1alpha1.ReasonDraining, v1alpha1.ReasonCondemned,
		v1alpha1.ReasonOutdated, v1alpha1.ReasonDrill, v1alpha1.ReasonRequested,
	} {
		inFlight.WithLabelValues(string(reason)).Set(float64(w.inFlight[reason]))
	}
}
