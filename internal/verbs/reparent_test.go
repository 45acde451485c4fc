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

func newVerb(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) (*Reparent, *bytes.Buffer) {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(s))
	out := &bytes.Buffer{}
	return &Reparent{
		Client: fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithInterceptorFuncs(funcs).Build(),
		Clock:  clock.RealClock{}, Out: out, Namespace: "ns",
		Spec: v1alpha1.ReparentSpec{Shard: "db-0", Kind: v1alpha1.ReparentPlanned, Reason: "Requested"},
	}, out
}

func shardAt(term int64) *v1alpha1.Shard {
	return &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0"}, Status: v1alpha1.ShardStatus{Term: term}}
}

func asked(shard, name string, term int64, outcome string) *v1alpha1.Reparent {
	return &v1alpha1.Reparent{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       v1alpha1.ReparentSpec{Shard: shard, Term: term}, Status: v1alpha1.ReparentStatus{Outcome: outcome},
	}
}

func TestTheTermIsAboveAllThatWereAskedFor(t *testing.T) {
	for name, c := range map[string]struct {
		others []client.Object
		want   string
	}{
		"first":                       {want: "db-0-4"},
		"a refused one used its up":   {others: []client.Object{asked("db-0", "db-0-4", 4, v1alpha1.OutcomeRefused)}, want: "db-0-5"},
		"a typing error is no matter": {others: []client.Object{asked("db-0", "db-0-1000000000000", 1e12, v1alpha1.OutcomeRefused)}, want: "db-0-4"},
		"nor while it waits, and a refused one used its up": {
			others: []client.Object{asked("db-0", "db-0-1000000000000", 1e12, ""), asked("db-0", "db-0-4", 4, v1alpha1.OutcomeRefused)}, want: "db-0-5",
		},
		"another shard's is no matter": {
			others: []client.Object{asked("db-1", "db-1-9", 9, v1alpha1.OutcomeRefused)}, want: "db-0-4",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, _ := newVerb(t, interceptor.Funcs{}, append(c.others, shardAt(3))...)
			require.NoError(t, v.Run(context.Background()))
			require.NoError(t, v.Client.Get(context.Background(), client.ObjectKey{Namespace: "ns", Name: c.want}, &v1alpha1.Reparent{}))
		})
	}
}

func TestLosingTheRaceForATermTakesTheNext(t *testing.T) {
	raced := false
	v, out := newVerb(t, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if !raced {
			raced = true
			if err := c.Create(ctx, asked("db-0", o.GetName(), 4, "")); err != nil {
				return err
			}
		}
		return c.Create(ctx, o, opts...)
	}}, shardAt(3))
	require.NoError(t, v.Run(context.Background()))
	require.Contains(t, out.String(), "db-0-5")
}

func TestOutcomes(t *testing.T) {
	for outcome, wantErr := range map[string]string{
		v1alpha1.OutcomeSucceeded: "", v1alpha1.OutcomeRefused: "Refused: because", v1alpha1.OutcomeUndone: "Undone: because",
	} {
		v, out := newVerb(t, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			r := o.(*v1alpha1.Reparent)
			r.Status = v1alpha1.ReparentStatus{Outcome: outcome, OldPrimary: "a", NewPrimary: "b", Message: "because"}
			return c.Create(ctx, o, opts...)
		}}, shardAt(1))
		v.Wait = time.Second
		err := v.Run(context.Background())
		if wantErr != "" {
			require.EqualError(t, err, wantErr)
			continue
		}
		require.NoError(t, err)
		require.Contains(t, out.String(), "a → b\nbecause\n")
	}
}

func TestShardName(t *testing.T) {
	for arg, want := range map[string]string{"db/0": "db-0", "db/db-3": "db-3", "db-2": "db-2"} {
		got, err := ShardName(arg)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"", "/", "db/", "/1", "a/b/c"} {
		_, err := ShardName(bad)
		require.Error(t, err, bad)
	}
}
