package reparent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"theseus.dev/theseus/internal/reparent"
)

// The metrics of reparents. They are registered once per process with controller-runtime's registry.
var (
	reparentsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_reparents_total", Help: "Reparents that ended, by kind, reason and outcome.",
	}, []string{"kind", "reason", "outcome"})
	phaseSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "theseus_reparent_phase_seconds", Help: "Duration of the phases of reparents.",
		Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
	}, []string{"kind", "phase"})
	unavailableSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "theseus_reparent_write_unavailable_seconds", Help: "How long clients could not write because of a reparent, in an emergency since the old primary was last known to serve.",
		Buckets: []float64{.02, .05, .1, .15, .2, .25, .5, .8, 1.5, 3, 5, 10, 30},
	}, []string{"kind"})
	shardUnavailable = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_shard_write_unavailable_seconds_total", Help: "Seconds in which a shard could not be written to because of reparents.",
	}, []string{"namespace", "shard"})
	verdicts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "theseus_verdicts_total", Help: "Verdicts on shards, counted when they change.",
	}, []string{"verdict", "action"})
)

func init() {
	metrics.Registry.MustRegister(reparentsTotal, phaseSeconds, unavailableSeconds, shardUnavailable, verdicts)
}

// telling records one reparent in metrics and as a trace with one span per phase. Without a configured exporter the
// tracer does nothing.
type telling struct {
	kind   reparent.Kind
	reason string
	shard  types.NamespacedName
	tracer trace.Tracer
	ctx    context.Context //nolint:containedctx // the span of the whole is the parent of the phases'
	span   trace.Span
}

func tell(ctx context.Context, shard types.NamespacedName, req *reparent.Request, now time.Time) *telling {
	t := &telling{kind: req.Kind, reason: req.Reason, shard: shard, tracer: otel.Tracer("theseus.dev/theseus/reparent")}
	t.ctx, t.span = t.tracer.Start(ctx, "reparent", trace.WithTimestamp(now), trace.WithAttributes(
		attribute.String("theseus.shard", shard.String()), attribute.String("theseus.kind", string(req.Kind)),
		attribute.String("theseus.reason", req.Reason)))
	return t
}

// phase records a phase that has ended.
func (t *telling) phase(p reparent.Phase) {
	if p.Finished.IsZero() {
		return
	}
	phaseSeconds.WithLabelValues(string(t.kind), string(p.Name)).Observe(p.Finished.Sub(p.Started).Seconds())
	_, span := t.tracer.Start(t.ctx, string(p.Name), trace.WithTimestamp(p.Started), trace.WithAttributes(
		attribute.Int64("theseus.term", int64(p.Term)), attribute.String("theseus.message", p.Message)))
	span.End(trace.WithTimestamp(p.Finished))
}

// end records the outcome.
func (t *telling) end(r reparent.Result, now time.Time) {
	reparentsTotal.WithLabelValues(string(t.kind), t.reason, string(r.Outcome)).Inc()
	if r.WriteUnavailable > 0 {
		unavailableSeconds.WithLabelValues(string(t.kind)).Observe(r.WriteUnavailable.Seconds())
		shardUnavailable.WithLabelValues(t.shard.Namespace, t.shard.Name).Add(r.WriteUnavailable.Seconds())
	}
	t.span.SetAttributes(attribute.String("theseus.outcome", string(r.Outcome)), attribute.Int64("theseus.term", int64(r.Term)),
		attribute.String("theseus.old_primary", r.OldPrimary), attribute.String("theseus.new_primary", r.NewPrimary),
		attribute.Float64("theseus.write_unavailable_seconds", r.WriteUnavailable.Seconds()))
	if r.Outcome != reparent.Succeeded {
		t.span.SetStatus(codes.Error, string(r.Outcome)+": "+r.Message)
	}
	t.span.End(trace.WithTimestamp(now))
}
