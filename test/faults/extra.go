package faults

import (
	"context"
	"io"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/verbs"
)

// Extra are disturbances that are no failure of a primary.
func Extra() []Fault {
	return []Fault{
		{
			Name: "Reparent", About: "a planned reparent is asked for", Effect: Moves,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				ask := verbs.Reparent{
					Client: t.Kit.Client, Clock: clock.RealClock{}, Out: io.Discard, Namespace: t.Namespace, Wait: 30 * time.Second,
					Spec: v1alpha1.ReparentSpec{Shard: t.Shard, Kind: v1alpha1.ReparentPlanned, Reason: "Requested", ExpectPrimary: p},
				}
				return nil, ask.Run(ctx)
			},
		},
		{
			Name: "GatewayDeleted", About: "a gateway is deleted with no grace, which costs its own connections", Effect: Stays,
			Inject: func(ctx context.Context, t Target, _ string) (Undo, error) {
				gateways, err := t.pods(ctx, t.Namespace, client.MatchingLabels{
					v1alpha1.LabelShard: t.Shard, v1alpha1.LabelComponent: v1alpha1.ComponentGateway,
				}, "")
				if err != nil {
					return nil, err
				}
				return nil, t.deletePod(ctx, t.Namespace, gateways[0].Name)
			},
		},
		{
			Name: "OperatorsDeleted", About: "every operator replica is deleted with no grace", Effect: Stays,
			Inject: func(ctx context.Context, t Target, _ string) (Undo, error) {
				operators, err := t.operators(ctx)
				if err != nil {
					return nil, err
				}
				for i := range operators {
					if err := t.deletePod(ctx, operatorNamespace, operators[i].Name); err != nil {
						return nil, err
					}
				}
				return nil, nil
			},
		},
	}
}
