package controller

import (
	"context"
	"fmt"
	"slices"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/drain"
	"theseus.dev/theseus/internal/controller/evictions"
	"theseus.dev/theseus/internal/controller/gateways"
	"theseus.dev/theseus/internal/controller/nodepolicy"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/machine"
	"theseus.dev/theseus/internal/machine/clusterapi"
	"theseus.dev/theseus/internal/machine/karpenter"
)

// setupNodes registers what has to do with nodes and the machines under them.
func setupNodes(ctx context.Context, mgr ctrl.Manager, opts Options) error {
	if err := request.Index(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	d := &drain.Reconciler{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("theseus"), Clock: opts.Clock, Machines: opts.machines(mgr.GetClient()),
	}
	if err := d.SetupWithManager(mgr, opts.Workers); err != nil {
		return fmt.Errorf("controller drain: %w", err)
	}
	n := &nodepolicy.Reconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: mgr.GetEventRecorder("theseus"), Clock: opts.Clock,
		Namespace: opts.Own, Namespaces: opts.Namespaces, Limits: opts.Limits, Machines: opts.Machines,
	}
	if err := n.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("controller nodepolicy: %w", err)
	}
	if err := (&gateways.Avoided{Client: mgr.GetClient(), Clock: opts.Clock}).SetupWithManager(mgr); err != nil {
		return fmt.Errorf("controller dead-nodes: %w", err)
	}
	if opts.Evictions.Namespace == "" {
		return nil
	}
	return evictions.Setup(mgr, opts.Evictions, opts.Clock)
}

// machines are the providers that may be asked about any node.
func (o *Options) machines(c client.Client) []machine.Provider {
	var out []machine.Provider
	for _, p := range []machine.Provider{karpenter.Provider{Client: c}, clusterapi.Provider{Client: c}} {
		if o.Machines == nil || slices.Contains(o.Machines, v1alpha1.MachineProvider(p.Name())) {
			out = append(out, p)
		}
	}
	return out
}
