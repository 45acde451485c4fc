package labkit

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// Poll calls f every interval until it says done, fails, or the context ends; the error then names the last reason
// f gave for waiting.
func Poll(ctx context.Context, interval time.Duration, f func(context.Context) (done bool, waiting string, err error)) error {
	last := ""
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		done, waiting, err := f(ctx)
		if err != nil || done {
			return err
		}
		last = waiting
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting: %s: %w", last, ctx.Err())
		case <-ticker.C:
		}
	}
}

// WaitReady waits until the Database says Ready for its newest generation. Each new reason for waiting goes to Out.
func (k *Kit) WaitReady(ctx context.Context, namespace, name string) (*v1alpha1.Database, error) {
	db := &v1alpha1.Database{}
	said := ""
	err := Poll(ctx, 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		if err := k.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, db); err != nil {
			return false, err.Error(), nil
		}
		c := meta.FindStatusCondition(db.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil {
			return false, "no status yet", nil
		}
		if c.Status == "True" && db.Status.ObservedGeneration == db.Generation {
			return true, "", nil
		}
		waiting := fmt.Sprintf("%s: %s (instances %s)", c.Reason, c.Message, db.Status.Instances)
		if waiting != said {
			said = waiting
			k.Out("  " + waiting)
		}
		return false, waiting, nil
	})
	return db, err
}

// Shards lists the shards of a Database by index.
func (k *Kit) Shards(ctx context.Context, namespace, database string) ([]v1alpha1.Shard, error) {
	list := &v1alpha1.ShardList{}
	err := k.Client.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelDatabase: database})
	return list.Items, err
}
