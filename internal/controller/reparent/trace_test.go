package reparent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/reparent"
)

// traced has what is traced during the test kept in memory.
func traced(t *testing.T) *tracetest.InMemoryExporter {
	t.Helper()
	before, kept := otel.GetTracerProvider(), tracetest.NewInMemoryExporter()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(kept)))
	t.Cleanup(func() { otel.SetTracerProvider(before) })
	return kept
}

// A reparent is one trace, and every phase is one span of it, over as many terms as it takes.
func TestAReparentIsATrace(t *testing.T) {
	for name, tc := range map[string]struct {
		begin func(f *fleet, leader *Reconciler)
		terms []int64
		must  []reparent.PhaseName
	}{
		"planned": {
			func(f *fleet, leader *Reconciler) { f.asked(leader) },
			[]int64{5},
			[]reparent.PhaseName{reparent.PhasePrepare, reparent.PhaseRecord, reparent.PhaseDrain, reparent.PhaseDemote, reparent.PhasePromote, reparent.PhaseEstablish},
		},
		"emergency, whose first promotion fails": {
			func(f *fleet, _ *Reconciler) {
				promotions := 0
				for _, m := range f.agents {
					m.refuses = func(command string) bool {
						if command == "Promote" {
							promotions++
						}
						return command == "Promote" && promotions == 1
					}
				}
				f.freeze("a")
			},
			[]int64{5, 6},
			[]reparent.PhaseName{reparent.PhaseRevoke, reparent.PhaseRecord, reparent.PhasePromote, reparent.PhaseEstablish},
		},
	} {
		t.Run(name, func(t *testing.T) {
			kept := traced(t)
			inFleet(t, func(t *testing.T, f *fleet) {
				leader := f.replica("one", true)
				time.Sleep(2 * time.Second)
				tc.begin(f, leader)
				var phases []string
				for _, term := range tc.terms {
					rp, _ := f.await(term)
					for _, p := range rp.Status.Phases {
						phases = append(phases, fmt.Sprintf("%d %s %v", term, p.Name, p.FinishedAt.Sub(p.StartedAt.Time)))
					}
				}
				time.Sleep(time.Second)
				var whole tracetest.SpanStub
				var spans []string
				for _, s := range kept.GetSpans() {
					if !s.Parent.IsValid() {
						require.Empty(t, whole.Name, "one trace")
						whole = s
						continue
					}
					term := s.Attributes[slices.IndexFunc(s.Attributes, func(kv attribute.KeyValue) bool { return kv.Key == "theseus.term" })].Value.AsInt64()
					spans = append(spans, fmt.Sprintf("%d %s %v", term, s.Name, s.EndTime.Sub(s.StartTime).Truncate(time.Microsecond)))
				}
				require.Equal(t, "reparent", whole.Name)
				require.Contains(t, whole.Attributes, attribute.String("theseus.outcome", v1alpha1.OutcomeSucceeded))
				require.Contains(t, whole.Attributes, attribute.Int64("theseus.term", tc.terms[len(tc.terms)-1]))
				for _, s := range kept.GetSpans() {
					require.Equal(t, whole.SpanContext.TraceID(), s.SpanContext.TraceID())
					if s.Name != whole.Name {
						require.Equal(t, whole.SpanContext.SpanID(), s.Parent.SpanID())
					}
				}
				require.Equal(t, phases, spans, "the phases of the journal")
				for _, must := range tc.must {
					require.Contains(t, strings.Join(spans, "\n"), string(must))
				}
			})
		})
	}
}
