package volume

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

const (
	// Provisioner is the name the StorageClass and every claim of it carry.
	Provisioner = "lab.theseus.dev/local"
	// ClassName is the name of the StorageClass.
	ClassName = "lab-local"

	// These annotations are the protocol between the scheduler, the controller manager
	// and provisioners outside of it.
	provisionerAnnotation          = "volume.kubernetes.io/storage-provisioner"
	selectedNodeAnnotation         = "volume.kubernetes.io/selected-node"
	provisionedByAnnotation        = "pv.kubernetes.io/provisioned-by"
	defaultClassAnnotation         = "storageclass.kubernetes.io/is-default-class"
	hostnameLabel, zoneLabel       = corev1.LabelHostname, corev1.LabelTopologyZone
	storage                        = corev1.ResourceStorage
	volumeNamePrefix               = "pvc-"
	maxVolume                int64 = 1 << 40
)

// facts are all that is known about one volume.
type facts struct {
	// claim is the PersistentVolumeClaim whose UID names the volume, if it exists.
	claim *corev1.PersistentVolumeClaim
	// volume is the PersistentVolume, if it exists.
	volume *corev1.PersistentVolume
	// disk is what is on this machine, if anything.
	disk *disk.Disk
	// nodes are the machines that are up.
	nodes map[string]Node
	// mounted says that the disk is mounted inside its node.
	mounted bool
}

// action is what to do next about a volume.
type action string

const (
	// nothing is to be done.
	nothing action = "nothing"
	// provision: make the disk, mount it, publish a PersistentVolume.
	provision action = "provision"
	// reschedule: the selected node is gone; ask the scheduler for another.
	reschedule action = "reschedule"
	// refuse: the claim asks for what cannot be had; tell the user.
	refuse action = "refuse"
	// mount: the node has booted again, or the provisioner stopped half-way.
	mount action = "mount"
	// grow: the claim asks for more than it has.
	grow action = "grow"
	// destroy: nobody may use the volume any more.
	destroyAll action = "destroy"
)

// decide says what to do next about a volume, and why if it is to refuse.
func decide(f facts) (action, string) {
	if f.volume != nil {
		return decidePublished(f), ""
	}
	if f.claim == nil {
		if f.disk != nil {
			return destroyAll, ""
		}
		return nothing, ""
	}
	return decideClaim(f)
}

// decidePublished decides about a volume that has a PersistentVolume.
func decidePublished(f facts) action {
	if f.volume.Annotations[provisionedByAnnotation] != Provisioner {
		return nothing
	}
	if f.volume.Status.Phase == corev1.VolumeReleased || f.volume.Status.Phase == corev1.VolumeFailed {
		if f.volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			return destroyAll
		}
		return nothing
	}
	if f.disk == nil {
		return nothing // Lost with its node. Only deleting the claim helps.
	}
	if _, up := f.nodes[f.disk.Node]; up && !f.mounted {
		return mount
	}
	if f.claim != nil && wantsMore(f) {
		return grow
	}
	return nothing
}

// wantsMore says whether the claim asks for more than any of the three places that
// record its size says it has.
func wantsMore(f facts) bool {
	want := size(f.claim.Spec.Resources.Requests)
	return want <= maxVolume && f.claim.Status.Phase == corev1.ClaimBound &&
		(want > f.disk.Size || want > size(f.volume.Spec.Capacity) || want > size(f.claim.Status.Capacity))
}

// decideClaim decides about a claim that has no PersistentVolume.
func decideClaim(f facts) (action, string) {
	c := f.claim
	node := c.Annotations[selectedNodeAnnotation]
	switch {
	case c.DeletionTimestamp != nil, c.Spec.VolumeName != "", node == "":
		return nothing, ""
	case c.Annotations[provisionerAnnotation] != Provisioner:
		return nothing, ""
	}
	if why := impossible(c); why != "" {
		return refuse, why
	}
	if _, up := f.nodes[node]; !up {
		return reschedule, ""
	}
	return provision, ""
}

// impossible says what a claim asks for that this provisioner cannot give.
func impossible(c *corev1.PersistentVolumeClaim) string {
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode != corev1.PersistentVolumeFilesystem {
		return "volumeMode must be Filesystem"
	}
	for _, mode := range c.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return fmt.Sprintf("accessMode %s is not supported: use ReadWriteOnce or ReadWriteOncePod", mode)
		}
	}
	if c.Spec.DataSource != nil || c.Spec.DataSourceRef != nil {
		return "dataSource is not supported: volumes start empty"
	}
	if c.Spec.Selector != nil {
		return "selector is not supported: volumes are made for one claim"
	}
	if want := size(c.Spec.Resources.Requests); want < disk.MinSize || want > maxVolume {
		return fmt.Sprintf("the size must be between %d and %d bytes", disk.MinSize, maxVolume)
	}
	return ""
}

// size returns the bytes of storage in a list of resources.
func size(r corev1.ResourceList) int64 {
	q := r[storage]
	return q.Value()
}
