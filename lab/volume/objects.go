package volume

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

var (
	createOptions = metav1.CreateOptions{FieldManager: Provisioner}
	updateOptions = metav1.UpdateOptions{FieldManager: Provisioner}
)

// deleteOptions delete the object with this UID and no later one of the same name.
func deleteOptions(uid types.UID) metav1.DeleteOptions {
	return metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
}

// storageClass is the lab's default class.
func storageClass() *storagev1.StorageClass {
	reclaim, binding, expand := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer, true
	return &storagev1.StorageClass{
		ObjectMeta:           metav1.ObjectMeta{Name: ClassName, Annotations: map[string]string{defaultClassAnnotation: "true"}},
		Provisioner:          Provisioner,
		ReclaimPolicy:        &reclaim,
		VolumeBindingMode:    &binding,
		AllowVolumeExpansion: &expand,
	}
}

// ensureClass makes the StorageClass unless there is one of its name.
func (p *provisioner) ensureClass(ctx context.Context) error {
	_, err := p.client.StorageV1().StorageClasses().Create(ctx, storageClass(), createOptions)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// class returns the StorageClass of a claim.
func (p *provisioner) class(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	if claim.Spec.StorageClassName == nil {
		return nil, fmt.Errorf("claim %s/%s names no StorageClass", claim.Namespace, claim.Name)
	}
	return p.client.StorageV1().StorageClasses().Get(ctx, *claim.Spec.StorageClassName, metav1.GetOptions{})
}

// persistentVolume is the object that publishes a disk: bound to its claim from the
// start, and usable on its node only.
func persistentVolume(claim *corev1.PersistentVolumeClaim, node Node, d disk.Disk, class *storagev1.StorageClass) *corev1.PersistentVolume {
	reclaim := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	labels := map[string]string{hostnameLabel: node.Name}
	if node.Zone != "" {
		labels[zoneLabel] = node.Zone
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        d.Name,
			Labels:      labels,
			Annotations: map[string]string{provisionedByAnnotation: Provisioner},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{storage: *resource.NewQuantity(d.Size, resource.BinarySI)},
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    &mode,
			PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName:              class.Name,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: disk.MountPoint(d.Name)}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: hostnameLabel, Operator: corev1.NodeSelectorOpIn, Values: []string{node.Name},
				}},
			}}}},
		},
	}
}

// grown is the status of a claim whose volume now has the capacity it asked for: nothing
// about resizing is left in it, and everything else stays.
func grown(s corev1.PersistentVolumeClaimStatus, capacity resource.Quantity) corev1.PersistentVolumeClaimStatus {
	out := *s.DeepCopy()
	if out.Capacity == nil {
		out.Capacity = corev1.ResourceList{}
	}
	out.Capacity[storage] = capacity
	out.AllocatedResources, out.AllocatedResourceStatuses = nil, nil
	out.Conditions = slices.DeleteFunc(out.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimResizing || c.Type == corev1.PersistentVolumeClaimFileSystemResizePending
	})
	return out
}
