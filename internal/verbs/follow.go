package verbs

import (
	"context"
	"fmt"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// pollInterval is how often an object is read while somebody waits for its end. A person watches.
const pollInterval = 100 * time.Millisecond

// follow reads the object again and again, shows it, and returns when show says that it has ended, with show's error. After
// wait it gives up: what was asked for goes on without a spectator. kind is what kubectl calls the object.
func follow(ctx context.Context, c client.Reader, clk clock.Clock, wait time.Duration, kind string, o client.Object, show func() (ended bool, err error)) error {
	deadline := clk.Now().Add(wait)
	for {
		if err := c.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		if ended, err := show(); ended {
			return err
		}
		if !clk.Now().Before(deadline) {
			return fmt.Errorf("%s has not ended after %v; it goes on, see kubectl -n %s get %s %s -o yaml", o.GetName(), wait, o.GetNamespace(), kind, o.GetName())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-clk.After(pollInterval):
		}
	}
}
