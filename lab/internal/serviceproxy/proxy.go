package serviceproxy

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// settle gathers changes that come together into one update of the rules.
	settle = 50 * time.Millisecond
	// retryAfter is how long after a failed update the next attempt is made.
	retryAfter = 2 * time.Second
)

// Run keeps rules in step with the cluster until ctx ends. While the API is away
// the last rules stay in force.
func Run(ctx context.Context, client kubernetes.Interface, apply func(context.Context, string) error, log *slog.Logger) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	services := factory.Core().V1().Services()
	slices := factory.Discovery().V1().EndpointSlices()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return fmt.Errorf("watch Services: %w", err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	current := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		svcs, err := services.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		eps, err := slices.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		rules := Rules(svcs, eps)
		if rules == current {
			continue
		}
		if err := apply(ctx, rules); err != nil {
			log.Error("Service rules not applied", "error", err)
			time.AfterFunc(retryAfter, notify)
			continue
		}
		current = rules
	}
}
