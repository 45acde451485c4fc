package nodepolicy

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine"
)

func (tn *town) aging() (out []string) {
	tn.t.Helper()
	for name, n := range tn.nodes() {
		if n.Labels[v1alpha1.LabelAging] == "true" {
			out = append(out, name)
		}
	}
	return out
}

func (tn *town) relabel(node string, change func(labels map[string]string)) {
	tn.t.Helper()
	n := tn.nodes()[node]
	change(n.Labels)
	require.NoError(tn.t, tn.c.Update(tn.t.Context(), n))
}

// A node is labelled an eighth of its life before it goes, and until it is gone or stays after all.
func TestNodesThatGoSoonAreLabelled(t *testing.T) {
	tn := newTown(t, func(p *v1alpha1.NodePolicy) { p.Spec.Selector.MatchLabels = map[string]string{"pool": "db"} })
	n := tn.node("z1")
	tn.shard("a", n)
	tn.relabel(n, func(l map[string]string) { l["pool"] = "db" })
	look := func() {
		t.Helper()
		_, err := tn.reconcile()
		require.NoError(t, err)
	}
	tn.clock.Step(7 * time.Hour)
	look()
	require.Empty(t, tn.aging())
	tn.clock.Step(time.Hour + 15*time.Minute)
	look()
	require.Equal(t, []string{n}, tn.aging())
	require.Empty(t, tn.get().Status.Rotations, "it has not begun to go")

	tn.relabel(n, func(l map[string]string) { l["pool"] = "web" })
	look()
	require.Empty(t, tn.aging(), "it is nobody's any more")
	other := &v1alpha1.NodePolicy{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	other.Spec.Selector.MatchLabels = map[string]string{"pool": "web"}
	require.NoError(t, tn.c.Create(t.Context(), other))
	tn.relabel(n, func(l map[string]string) { l[v1alpha1.LabelAging] = "true" })
	look()
	require.Equal(t, []string{n}, tn.aging(), "it is another policy's")
	require.NoError(t, tn.c.Delete(t.Context(), other))

	tn.relabel(n, func(l map[string]string) { l["pool"] = "db" })
	tn.clock.Step(time.Hour + 30*time.Minute)
	tn.run(10*time.Second, nil)
	require.Equal(t, machine.Moving, tn.phase())
	require.Equal(t, []string{n}, tn.aging(), "while it is on its way out, too")
	require.NoError(t, tn.c.Delete(t.Context(), tn.get()))
	look()
	require.Empty(t, tn.aging(), "there is no policy by which it would go")
}
