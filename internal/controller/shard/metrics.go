package shard

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// The metrics of shards. They are registered once per process with controller-runtime's registry.
var (
	conditionGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "theseus_shard_condition", Help: "1 while the condition of the shard is true, 0 while it is not: what its status says.",
	}, []string{"namespace", "shard", "condition"})
	readyGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "theseus_shard_instances_ready", Help: "Instances of the shard that serve or stand by.",
	}, []string{"namespace", "shard"})
)

func init() { metrics.Registry.MustRegister(conditionGauge, readyGauge) }

// measure sets the metrics of a shard from what its status says.
func measure(key types.NamespacedName, conditions []metav1.Condition, ready int) {
	for _, c := range conditions {
		v := 0.0
		if c.Status == metav1.ConditionTrue {
			v = 1
		}
		conditionGauge.WithLabelValues(key.Namespace, key.Name, c.Type).Set(v)
	}
	readyGauge.WithLabelValues(key.Namespace, key.Name).Set(float64(ready))
}

// forgetMetrics ends the metrics of every shard: a replica that leads no longer knows nothing of them, and its last word would
// hide what the leader says.
func forgetMetrics(ctx context.Context) error {
	<-ctx.Done()
	conditionGauge.Reset()
	readyGauge.Reset()
	return nil
}

// unmeasure ends the metrics of a shard that is gone.
func unmeasure(key types.NamespacedName) {
	of := prometheus.Labels{"namespace": key.Namespace, "shard": key.Name}
	conditionGauge.DeletePartialMatch(of)
	readyGauge.DeletePartialMatch(of)
}
