package nodepolicy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"theseus.dev/theseus/api/v1alpha1"
)

// The metrics of nodes. They are registered once per process with controller-runtime's registry.
var (
	oldestAge = gauge("theseus_node_oldest_age_seconds", "Age of the oldest node of a NodePolicy.")
	maxAge    = gauge("theseus_node_max_age_seconds", "Maximum age of the nodes of a NodePolicy.")
	overdue   = gauge("theseus_node_deadlines_missed", "Nodes of a NodePolicy that are older than allowed.")
	holds     = gauge("theseus_node_plan_holds", "1 while no node of a NodePolicy is or will be older than allowed.")
	frozen    = gauge("theseus_node_frozen", "1 while nodes of a NodePolicy may not begin to go.")
	inFlight  = gauge("theseus_node_rotations_in_flight", "Nodes of a NodePolicy on their way out.")

	missedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_node_deadlines_missed_total", Help: "Nodes of a NodePolicy that became older than allowed.",
	}, []string{"policy"})
	rotationsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_node_rotations_total", Help: "Rotations of nodes that ended, by outcome.",
	}, []string{"policy", "outcome"})
	refusalsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_node_refusals_total", Help: "Times the ledger had a node that was due wait, by why; counted once a look.",
	}, []string{"policy", "why"})
)

func gauge(name, help string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"policy"})
}

func gauges() []*prometheus.GaugeVec {
	return []*prometheus.GaugeVec{oldestAge, maxAge, overdue, holds, frozen, inFlight}
}

func init() {
	for _, g := range gauges() {
		metrics.Registry.MustRegister(g)
	}
	metrics.Registry.MustRegister(missedTotal, rotationsTotal, refusalsTotal)
}

// reset ends the gauges of every policy: a replica that leads no longer knows nothing of them.
func reset() {
	for _, g := range gauges() {
		g.Reset()
	}
}

// forget ends the gauges of a policy that is gone.
func forget(policy string) {
	for _, g := range gauges() {
		g.DeleteLabelValues(policy)
	}
}

// measure sets the gauges from a plan and the status.
func measure(p *v1alpha1.NodePolicy, pl *planned, now time.Time) {
	age := 0.0
	if p.Status.OldestNode != nil {
		age = now.Sub(p.Status.OldestNode.Time).Seconds()
	}
	oldestAge.WithLabelValues(p.Name).Set(age)
	maxAge.WithLabelValues(p.Name).Set(p.Spec.MaxAge.Seconds())
	overdue.WithLabelValues(p.Name).Set(float64(len(pl.overdue)))
	holds.WithLabelValues(p.Name).Set(one(isTrue(p, v1alpha1.ConditionPlanHolds)))
	frozen.WithLabelValues(p.Name).Set(one(isTrue(p, v1alpha1.ConditionFrozen)))
	n := 0
	for i := range p.Status.Rotations {
		if underWay(&p.Status.Rotations[i]) {
			n++
		}
	}
	inFlight.WithLabelValues(p.Name).Set(float64(n))
}

// miss counts the nodes that have become older than allowed, each once.
func (r *Reconciler) miss(p *v1alpha1.NodePolicy, pl *planned) {
	missed := map[types.UID]bool{}
	counter := missedTotal.WithLabelValues(p.Name)
	for _, uid := range pl.overdue {
		missed[uid] = true
		if !r.missed[p.Name][uid] {
			counter.Inc()
		}
	}
	if r.missed == nil {
		r.missed = map[string]map[types.UID]bool{}
	}
	r.missed[p.Name] = missed
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
