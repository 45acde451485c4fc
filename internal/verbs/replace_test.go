package verbs

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"theseus.dev/theseus/api/v1alpha1"
)

func newReplace(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) (*Replace, *bytes.Buffer) {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(s))
	out := &bytes.Buffer{}
	shard := shardAt(3)
	shard.Spec.Database = "db"
	shard.Status.Instances = []v1alpha1.InstanceStatus{{Name: "db-0-bbbbb"}, {Name: "db-0-ccccc"}}
	return &Replace{
		Client: fake.NewClientBuilder().WithScheme(s).WithObjects(append(objects, shard)...).WithInterceptorFuncs(funcs).Build(),
		Clock:  clock.RealClock{}, Out: out, Namespace: "ns", Instance: "db-0-bbbbb", Reason: v1alpha1.ReasonRequested,
	}, out
}

func replacing(name, instance string, reason v1alpha1.Reason, edit ...func(*v1alpha1.Replacement)) *v1alpha1.Replacement {
	r := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: instance, Reason: reason},
	}
	for _, e := range edit {
		e(r)
	}
	return r
}

func admitted(r *v1alpha1.Replacement) {
	now := metav1.NowMicro()
	r.Status.Phase, r.Status.AdmittedAt, r.Status.Successor = "Seeding", &now, "db-0-ddddd"
}

func over(r *v1alpha1.Replacement) { r.Status.Phase, r.Status.Outcome = "Failed", "Failed" }

func TestReplaceIsRefusedClearly(t *testing.T) {
	for name, c := range map[string]struct {
		instance, database string
		others             []client.Object
		want               string
	}{
		"no such instance":         {instance: "db-0-zzzzz", want: "there is no instance db-0-zzzzz: namespace ns has db-0-bbbbb, db-0-ccccc"},
		"of another database":      {instance: "db-0-bbbbb", database: "other", want: "Database other of namespace ns has none"},
		"under way already":        {instance: "db-0-bbbbb", others: []client.Object{replacing("x", "db-0-bbbbb", v1alpha1.ReasonExpired, admitted)}, want: "db-0-bbbbb is being replaced already: replacement x (Expired, Seeding)"},
		"asked for already":        {instance: "db-0-bbbbb", others: []client.Object{replacing("x", "db-0-bbbbb", v1alpha1.ReasonRequested)}, want: "replacement x (Requested, Pending)"},
		"it is somebody's surge":   {instance: "db-0-bbbbb", others: []client.Object{replacing("x", "db-0-ccccc", v1alpha1.ReasonExpired, func(r *v1alpha1.Replacement) { admitted(r); r.Status.Successor = "db-0-bbbbb" })}, want: "about to take the place of db-0-ccccc"},
		"its shard is going, too":  {instance: "db-1-bbbbb", others: []client.Object{goingShard()}, want: "db-1 is being deleted"},
		"one that waits is no bar": {instance: "db-0-bbbbb", others: []client.Object{replacing("x", "db-0-bbbbb", v1alpha1.ReasonExpired)}},
		"one that is over neither": {instance: "db-0-bbbbb", others: []client.Object{replacing("db-0-bbbbb-requested", "db-0-bbbbb", v1alpha1.ReasonRequested, over)}},
	} {
		t.Run(name, func(t *testing.T) {
			v, out := newReplace(t, interceptor.Funcs{}, c.others...)
			v.Instance, v.Database = c.instance, c.database
			err := v.Run(context.Background())
			if c.want == "" {
				require.NoError(t, err)
				require.Contains(t, out.String(), "created")
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func goingShard() *v1alpha1.Shard {
	now := metav1.Now()
	return &v1alpha1.Shard{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-1", DeletionTimestamp: &now, Finalizers: []string{v1alpha1.Finalizer}},
		Status:     v1alpha1.ShardStatus{Instances: []v1alpha1.InstanceStatus{{Name: "db-1-bbbbb"}}},
	}
}

func TestReplacePrintsItsStepsAndEndsWithTheOutcome(t *testing.T) {
	for outcome, want := range map[string]string{"Succeeded": "", "Failed": "Failed: no machine", "Cancelled": "Cancelled: no machine"} {
		t.Run(outcome, func(t *testing.T) {
			looks := 0
			v, out := newReplace(t, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
				if err := c.Get(ctx, key, o, opts...); err != nil {
					return err
				}
				r, ok := o.(*v1alpha1.Replacement)
				if !ok {
					return nil
				}
				looks++
				r.Status.Steps = []v1alpha1.ReplacementStep{{Phase: "Pending"}, {Phase: "Surging"}}[:min(looks, 2)]
				r.Status.Waiting = "db-0-ddddd is being made"
				if looks > 3 {
					r.Status.Outcome, r.Status.Message = outcome, "no machine"
				}
				return nil
			}})
			v.Wait = time.Minute
			err := v.Run(context.Background())
			if want == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, want)
			}
			require.Equal(t, 1, bytes.Count(out.Bytes(), []byte("Surging")))
			require.Equal(t, 2, bytes.Count(out.Bytes(), []byte("is being made")), "once in each step")
		})
	}
}
