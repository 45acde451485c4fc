package volume

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	clocktesting "k8s.io/utils/clock/testing"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

// rig is a provisioner over a pretended API server and real files.
type rig struct {
	*provisioner
	client *fake.Clientset
	events *record.FakeRecorder
	up     []Node
}

func newRig(t *testing.T, objects ...runtime.Object) *rig {
	t.Helper()
	r := &rig{client: fake.NewClientset(append(objects, storageClass())...), events: record.NewFakeRecorder(20)}
	r.provisioner = newProvisioner(r.client, Config{
		StateDir: filepath.Join(t.TempDir(), "volumes"),
		Nodes:    func() []Node { return r.up },
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
		Clock:    clocktesting.NewFakePassiveClock(time.Unix(1000, 0)),
	}, r.events)
	t.Cleanup(func() { require.NoError(t, Clean(r.store.Dir)) })
	r.relist(t)
	return r
}

// relist does what the watch does: it brings the stores up to date.
func (r *rig) relist(t *testing.T) {
	t.Helper()
	claims, err := r.client.CoreV1().PersistentVolumeClaims("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	var all []any
	for i := range claims.Items {
		all = append(all, &claims.Items[i])
	}
	require.NoError(t, r.claims.Replace(all, ""))
	volumes, err := r.client.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	all = nil
	for i := range volumes.Items {
		all = append(all, &volumes.Items[i])
	}
	require.NoError(t, r.volumes.Replace(all, ""))
}

// step brings the stores up to date and takes one step about the test's volume.
func (r *rig) step(t *testing.T) error {
	t.Helper()
	r.relist(t)
	return r.reconcile(t.Context(), testName)
}

func (r *rig) volume(t *testing.T) *corev1.PersistentVolume {
	t.Helper()
	v, err := r.client.CoreV1().PersistentVolumes().Get(t.Context(), testName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	return v
}

// bootNode starts a process with a mount namespace of its own, in place of a node.
func (r *rig) bootNode(t *testing.T, name string) (kill func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /var/lib && echo ready && read forever")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(stdout, make([]byte, len("ready\n")))
	require.NoError(t, err)
	kill = func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.up = nil
	}
	t.Cleanup(kill)
	r.up = append(r.up, Node{Name: name, Zone: "a", PID: cmd.Process.Pid})
	return kill
}

func TestAClaimFromBirthToDeath(t *testing.T) {
	r := newRig(t, testClaim())
	r.bootNode(t, "n1")
	require.NoError(t, r.step(t))

	v := r.volume(t)
	require.NotNil(t, v)
	require.Equal(t, "/var/lib/lab-volumes/"+testName, v.Spec.Local.Path)
	require.Equal(t, map[string]string{hostnameLabel: "n1", zoneLabel: "a"}, v.Labels)
	require.EqualValues(t, testUID, v.Spec.ClaimRef.UID)
	require.EqualValues(t, 64*mib, size(v.Spec.Capacity))
	mounted, err := disk.Mounted(r.up[0].PID)
	require.NoError(t, err)
	require.True(t, mounted[testName])

	// Stalled, and with its claim deleted: it must go all the same.
	require.NoError(t, Stall(r.store.Dir, "shop", "data"))
	v.Status.Phase = corev1.VolumeReleased
	require.NoError(t, r.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("persistentvolumes"), v, ""))
	require.NoError(t, r.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), "shop", "data"))
	require.NoError(t, r.step(t))
	require.Nil(t, r.volume(t))
	mounted, err = disk.Mounted(r.up[0].PID)
	require.NoError(t, err)
	require.Empty(t, mounted)
	require.ErrorIs(t, Resume(r.store.Dir, "shop", "data"), disk.ErrNotFound)
	require.NoError(t, r.step(t), "and then there is nothing more to do")
}

func TestACrashBeforePublicationIsTakenUp(t *testing.T) {
	r := newRig(t, testClaim())
	r.bootNode(t, "n1")
	broken := true
	r.client.PrependReactor("create", "persistentvolumes", func(k8stesting.Action) (bool, runtime.Object, error) {
		return broken, nil, errors.New("no API server")
	})
	require.ErrorContains(t, r.step(t), "no API server")
	require.Contains(t, <-r.events.Events, "ProvisioningFailed")
	before, err := r.store.Get(testName)
	require.NoError(t, err)
	broken = false
	require.NoError(t, r.step(t))
	require.NotNil(t, r.volume(t))
	after, err := r.store.Get(testName)
	require.NoError(t, err)
	require.Equal(t, before, after, "the same disk is used")
	require.NoError(t, r.provision(t.Context(), testName, facts{claim: testClaim(), disk: &after, nodes: up, mounted: true}),
		"that the volume was published before is no error")
}

func TestADiskLeftOnAnotherNodeIsNotPublishedForThisOne(t *testing.T) {
	r := newRig(t, testClaim())
	r.bootNode(t, "n1")
	stale := *testDisk("n7")
	require.NoError(t, r.store.Create(t.Context(), stale))
	require.NoError(t, r.step(t))
	d, err := r.store.Get(testName)
	require.NoError(t, err)
	require.Equal(t, "n1", d.Node)
	require.NotNil(t, r.volume(t))
}

func TestAKilledNodeLosesItsVolumesAndTheyStayLost(t *testing.T) {
	r := newRig(t, testClaim())
	kill := r.bootNode(t, "n1")
	require.NoError(t, r.step(t))
	require.NoError(t, Stall(r.store.Dir, "shop", "data"))
	kill()
	require.NoError(t, DropNode(r.store.Dir, "another"))
	_, err := r.store.Get(testName)
	require.NoError(t, err, "another node's death is of no concern")
	require.NoError(t, DropNode(r.store.Dir, "n1"))
	require.NoError(t, DropNode(r.store.Dir, "n1"))
	_, err = r.store.Get(testName)
	require.ErrorIs(t, err, disk.ErrNotFound)

	r.bootNode(t, "n1") // A new machine with the old name.
	require.NoError(t, r.step(t))
	_, err = r.store.Get(testName)
	require.ErrorIs(t, err, disk.ErrNotFound)
	require.NotNil(t, r.volume(t), "the volume is only gone once its claim is")
}

func TestANodeThatBootsAgainFindsItsVolume(t *testing.T) {
	r := newRig(t, testClaim())
	kill := r.bootNode(t, "n1")
	require.NoError(t, r.step(t))
	require.NoError(t, os.WriteFile(filepath.Join(seenFrom(r.up[0]), "file"), []byte("kept"), 0o600))
	kill()
	require.NoError(t, r.step(t), "while it is down there is nothing to do")
	r.bootNode(t, "n1")
	require.NoError(t, r.step(t))
	content, err := os.ReadFile(filepath.Join(seenFrom(r.up[0]), "file"))
	require.NoError(t, err)
	require.Equal(t, "kept", string(content))
}

// seenFrom is where the test's volume on a node is seen from here.
func seenFrom(n Node) string {
	return filepath.Join("/proc", strconv.Itoa(n.PID), "root", disk.MountPoint(testName))
}

func TestAClaimForANodeThatIsGoneGoesBackToTheScheduler(t *testing.T) {
	r := newRig(t, testClaim())
	require.NoError(t, r.step(t))
	c, err := r.client.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "data", metav1.GetOptions{})
	require.NoError(t, err)
	require.NotContains(t, c.Annotations, selectedNodeAnnotation)
	require.Nil(t, r.volume(t))
}

func TestTheImpossibleIsToldOnce(t *testing.T) {
	r := newRig(t, testClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = bytes(1) }))
	for range 3 {
		require.NoError(t, r.step(t))
	}
	require.Contains(t, <-r.events.Events, "the size must be")
	require.Empty(t, r.events.Events)
}

func TestAClaimThatGrewSaysSoAndNothingMore(t *testing.T) {
	other := corev1.PersistentVolumeClaimCondition{Type: "Unused"}
	before := corev1.PersistentVolumeClaimStatus{
		Phase: corev1.ClaimBound,
		Conditions: []corev1.PersistentVolumeClaimCondition{
			{Type: corev1.PersistentVolumeClaimResizing}, other, {Type: corev1.PersistentVolumeClaimFileSystemResizePending},
		},
		AllocatedResourceStatuses: map[corev1.ResourceName]corev1.ClaimResourceStatus{storage: corev1.PersistentVolumeClaimNodeResizePending},
	}
	kept := before.DeepCopy()
	after := grown(before, bytes(128 * mib)[storage])
	require.EqualValues(t, 128*mib, size(after.Capacity))
	require.Equal(t, []corev1.PersistentVolumeClaimCondition{other}, after.Conditions)
	require.Empty(t, after.AllocatedResourceStatuses)
	require.Equal(t, corev1.ClaimBound, after.Phase)
	require.Equal(t, *kept, before, "the cache's copy is not touched")
}

// Growing works or is refused with a reason, depending on what this machine allows.
func TestAClaimThatWantsMoreGetsItOrAnAnswer(t *testing.T) {
	r := newRig(t, testClaim())
	r.bootNode(t, "n1")
	require.NoError(t, r.step(t))
	v := r.volume(t)
	v.Status.Phase = corev1.VolumeBound
	require.NoError(t, r.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("persistentvolumes"), v, ""))
	claim := bound(func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = bytes(128 * mib) })
	require.NoError(t, r.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), claim, "shop"))

	require.NoError(t, Stall(r.store.Dir, "shop", "data"))
	require.ErrorIs(t, r.step(t), disk.ErrFrozen, "it comes back to it later")
	require.NoError(t, Resume(r.store.Dir, "shop", "data"))
	for range 2 {
		require.NoError(t, r.step(t))
	}
	if len(r.events.Events) > 0 {
		require.Contains(t, <-r.events.Events, "CAP_SYS_RESOURCE")
		require.Empty(t, r.events.Events, "said once")
		require.EqualValues(t, 64*mib, size(r.volume(t).Spec.Capacity))
		return
	}
	require.EqualValues(t, 128*mib, size(r.volume(t).Spec.Capacity))
	c, err := r.client.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "data", metav1.GetOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 128*mib, size(c.Status.Capacity))
}

func TestTheClassIsMadeOnceAndLeftAlone(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.ensureClass(t.Context()))
	class, err := r.client.StorageV1().StorageClasses().Get(t.Context(), ClassName, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "true", class.Annotations[defaultClassAnnotation])
	require.Equal(t, Provisioner, class.Provisioner)
}

func TestCleanTakesHalfMadeDisksToo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	require.NoError(t, Clean(dir), "what is not there is clean")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "pvc-1.new"), 0o700))
	require.NoError(t, Clean(dir))
	require.NoDirExists(t, dir)
}

func TestStallingWhatIsNotThereSaysSo(t *testing.T) {
	require.ErrorContains(t, Stall(t.TempDir(), "shop", "data"), "shop/data")
}

func TestANotifierTellsOfEveryChange(t *testing.T) {
	r := newRig(t)
	n := newNotifier(r.claims, r.noticeClaim)
	told := func() int { c := r.queue.Len(); drain(r); return c }
	require.NoError(t, n.Add(testClaim()))
	require.Equal(t, 1, told())
	require.NoError(t, n.Update(testClaim()))
	require.Equal(t, 1, told())
	other := testClaim(func(c *corev1.PersistentVolumeClaim) { c.UID, c.Name = "other", "other" })
	require.NoError(t, n.Replace([]any{other}, "1"))
	require.Equal(t, 2, told(), "of what came and of what went")
	<-n.listed
	require.NoError(t, n.Replace(nil, "2"), "more than once")
	require.Equal(t, 1, told())
	require.NoError(t, n.Add(other))
	require.NoError(t, n.Delete(other))
	require.Equal(t, 1, told())
}

// drain empties the queue.
func drain(r *rig) {
	for r.queue.Len() > 0 {
		name, _ := r.queue.Get()
		r.queue.Done(name)
	}
}
