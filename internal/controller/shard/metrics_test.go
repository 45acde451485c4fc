package shard

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/api/v1alpha1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMetricsSayWhatTheStatusSays(t *testing.T) {
	key, other := types.NamespacedName{Namespace: "ns", Name: "db-0"}, types.NamespacedName{Namespace: "ns", Name: "db-1"}
	of := func(k types.NamespacedName, kind string) float64 {
		return testutil.ToFloat64(conditionGauge.WithLabelValues(k.Namespace, k.Name, kind))
	}
	measure(key, []metav1.Condition{condition(v1alpha1.ConditionWritable, true, "Established", ""), condition(v1alpha1.ConditionRedundant, false, "Degraded", "")}, 2)
	measure(other, []metav1.Condition{condition(v1alpha1.ConditionWritable, true, "Established", "")}, 3)
	require.Equal(t, 1.0, of(key, v1alpha1.ConditionWritable))
	require.Equal(t, 0.0, of(key, v1alpha1.ConditionRedundant))
	require.Equal(t, 2.0, testutil.ToFloat64(readyGauge.WithLabelValues("ns", "db-0")))
	measure(key, []metav1.Condition{condition(v1alpha1.ConditionWritable, false, "NoPrimary", "")}, 0)
	require.Equal(t, 0.0, of(key, v1alpha1.ConditionWritable))
	unmeasure(key)
	require.Equal(t, 1, testutil.CollectAndCount(conditionGauge), "only the other shard's")
	require.Equal(t, 1.0, of(other, v1alpha1.ConditionWritable))
	unmeasure(other)
}
