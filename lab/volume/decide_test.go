package volume

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

const (
	testUID  = "7d0c"
	testName = "pvc-7d0c"
	mib      = 1 << 20
)

// testClaim is a claim that the scheduler has given to node n1.
func testClaim(change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	class := ClassName
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "data", UID: testUID,
			Annotations: map[string]string{provisionerAnnotation: Provisioner, selectedNodeAnnotation: "n1"},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: bytes(64 * mib)},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// bound is a claim that has its volume.
func bound(change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	return testClaim(append([]func(*corev1.PersistentVolumeClaim){func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName = testName
		c.Status.Phase = corev1.ClaimBound
		c.Status.Capacity = bytes(64 * mib)
	}}, change...)...)
}

func bytes(n int64) corev1.ResourceList {
	return corev1.ResourceList{storage: *resource.NewQuantity(n, resource.BinarySI)}
}

// testVolume is what was published for testClaim.
func testVolume(phase corev1.PersistentVolumePhase, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := persistentVolume(testClaim(), Node{Name: "n1", Zone: "a"}, *testDisk("n1"), storageClass())
	v.Status.Phase = phase
	for _, f := range change {
		f(v)
	}
	return v
}

func testDisk(node string) *disk.Disk {
	return &disk.Disk{Name: testName, Namespace: "shop", Claim: "data", Node: node, Size: 64 * mib}
}

var up = map[string]Node{"n1": {Name: "n1", Zone: "a", PID: 1 << 22}}

func TestDecide(t *testing.T) {
	wants := func(n int64) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = bytes(n) }
	}
	annotated := func(key, value string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Annotations[key] = value }
	}
	deleted := func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} }
	retain := func(v *corev1.PersistentVolume) {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	foreign := func(v *corev1.PersistentVolume) { v.Annotations[provisionedByAnnotation] = "someone.else" }

	for name, c := range map[string]struct {
		facts facts
		want  action
	}{
		"nothing at all":                       {facts{}, nothing},
		"a new claim":                          {facts{claim: testClaim(), nodes: up}, provision},
		"stopped between disk and publication": {facts{claim: testClaim(), disk: testDisk("n1"), nodes: up}, provision},
		"the scheduler has not chosen yet": {
			facts{claim: testClaim(annotated(selectedNodeAnnotation, "")), nodes: up}, nothing,
		},
		"another provisioner's claim": {facts{claim: testClaim(annotated(provisionerAnnotation, "x")), nodes: up}, nothing},
		"a claim being deleted":       {facts{claim: testClaim(deleted), nodes: up}, nothing},
		"a claim being deleted keeps its disk until it is gone": {
			facts{claim: testClaim(deleted), disk: testDisk("n1"), nodes: up}, nothing,
		},
		"a claim bound to a volume that was deleted under it": {facts{claim: bound(), disk: testDisk("n1"), nodes: up}, nothing},
		"the chosen node was killed": {
			facts{claim: testClaim(annotated(selectedNodeAnnotation, "n9")), nodes: up}, reschedule,
		},
		"the impossible is refused before a node is chosen anew": {
			facts{claim: testClaim(wants(1), annotated(selectedNodeAnnotation, "n9")), nodes: up}, refuse,
		},
		"the claim vanished before publication": {facts{disk: testDisk("n1"), nodes: up}, destroyAll},

		"in use":            {facts{claim: bound(), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up, mounted: true}, nothing},
		"just published":    {facts{claim: testClaim(), volume: testVolume(corev1.VolumeAvailable), disk: testDisk("n1"), nodes: up, mounted: true}, nothing},
		"not listed yet":    {facts{volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up, mounted: true}, nothing},
		"a booted node":     {facts{claim: bound(), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up}, mount},
		"a node still down": {facts{claim: bound(), volume: testVolume(corev1.VolumeBound), disk: testDisk("n2"), nodes: up}, nothing},
		"lost with its node is never made anew": {
			facts{claim: bound(), volume: testVolume(corev1.VolumeBound), nodes: up}, nothing,
		},
		"the claim was deleted": {facts{volume: testVolume(corev1.VolumeReleased), disk: testDisk("n1"), nodes: up, mounted: true}, destroyAll},
		"the claim was deleted, but the volume is to be retained": {
			facts{volume: testVolume(corev1.VolumeReleased, retain), disk: testDisk("n1"), nodes: up, mounted: true}, nothing,
		},
		"the claim of a lost volume was deleted":         {facts{volume: testVolume(corev1.VolumeReleased), nodes: up}, destroyAll},
		"an attempt to delete failed":                    {facts{volume: testVolume(corev1.VolumeFailed), disk: testDisk("n1"), nodes: up}, destroyAll},
		"a released volume of another provisioner":       {facts{volume: testVolume(corev1.VolumeReleased, foreign)}, nothing},
		"a claim that wants more":                        {facts{claim: bound(wants(128 * mib)), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up, mounted: true}, grow},
		"a claim that wants less":                        {facts{claim: bound(wants(32 * mib)), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up, mounted: true}, nothing},
		"a claim that wants absurdly much":               {facts{claim: bound(wants(maxVolume + 1)), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up, mounted: true}, nothing},
		"mounting comes before growing":                  {facts{claim: bound(wants(128 * mib)), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up}, mount},
		"grown, but stopped before the claim knew of it": {facts{claim: bound(func(c *corev1.PersistentVolumeClaim) { c.Status.Capacity = bytes(mib) }), volume: testVolume(corev1.VolumeBound), disk: testDisk("n1"), nodes: up, mounted: true}, grow},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := decide(c.facts)
			require.Equal(t, c.want, got)
			require.Equal(t, c.want == refuse, why != "", "a refusal, and nothing else, has a reason")
		})
	}
}

func TestWhatCannotBeHadIsRefusedWithAReason(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for want, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"volumeMode": func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block },
		"ReadWriteMany": func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = append(c.Spec.AccessModes, corev1.ReadWriteMany)
		},
		"dataSource": func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} },
		"selector":   func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} },
		"size":       func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = bytes(maxVolume + 1) },
	} {
		got, why := decide(facts{claim: testClaim(change), nodes: up})
		require.Equal(t, refuse, got)
		require.Contains(t, why, want)
	}
}
