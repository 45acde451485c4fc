package observe

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/observer"
)

func TestTargets(t *testing.T) {
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Name: "db-0", UID: "1"}}
	pod := func(name string, edit func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), OwnerReferences: []metav1.OwnerReference{{UID: "1", Controller: ptr.To(true)}}}}
		p.Status.PodIP = "10.0.0.1"
		if edit != nil {
			edit(&p)
		}
		return p
	}
	got := Targets(sh, []corev1.Pod{
		pod("good", nil),
		pod("terminating", func(p *corev1.Pod) { p.DeletionTimestamp = ptr.To(metav1.Now()) }),
		pod("no address yet", func(p *corev1.Pod) { p.Status.PodIP = "" }),
		pod("ended", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		pod("not ours", func(p *corev1.Pod) { p.OwnerReferences = nil }),
	})
	var names []string
	for _, g := range got {
		names = append(names, g.Instance)
	}
	require.Equal(t, []string{"good", "terminating"}, names)
}

func TestAnInstanceIsListenedToForAWhileAfterItsPodIsGone(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	r := &Reconciler{Clock: clock}
	key := types.NamespacedName{Name: "db-0"}
	a, b := observer.Target{Instance: "a", UID: "1"}, observer.Target{Instance: "b", UID: "2"}

	got, again := r.withLingering(key, []observer.Target{a, b})
	require.Len(t, got, 2)
	require.Zero(t, again)
	got, again = r.withLingering(key, []observer.Target{b})
	require.Len(t, got, 2)
	require.Equal(t, linger, again)
	clock.SetTime(clock.Now().Add(linger - time.Second))
	got, again = r.withLingering(key, []observer.Target{b})
	require.Len(t, got, 2)
	require.Equal(t, time.Second, again)
	clock.SetTime(clock.Now().Add(time.Second))
	got, _ = r.withLingering(key, []observer.Target{b})
	require.Len(t, got, 1)

	// One that comes back under its name is itself again, not its ghost.
	_, _ = r.withLingering(key, []observer.Target{a, b})
	_, _ = r.withLingering(key, []observer.Target{b})
	restarted := observer.Target{Instance: "a", UID: "9"}
	got, _ = r.withLingering(key, []observer.Target{restarted, b})
	require.Equal(t, []observer.Target{restarted, b}, got)
}
