package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

// errTold ends a step that cannot succeed before the claim or the machine changes. The
// user has been told, and trying again soon would not help.
var errTold = errors.New("the claim's owner has been told")

// provisioner keeps disks and PersistentVolumes in step with claims.
type provisioner struct {
	client  kubernetes.Interface
	store   disk.Store
	nodes   func() []Node
	claims  cache.Indexer
	volumes cache.Indexer
	queue   workqueue.TypedRateLimitingInterface[string]
	events  record.EventRecorder
	// complaints are what was last said about claims that cannot be served, by volume.
	complaints sync.Map
	clock      clock.PassiveClock
	log        *slog.Logger
}

// work takes volumes from the queue until it is shut down. One volume is only ever worked
// on by one worker.
func (p *provisioner) work(ctx context.Context) {
	for {
		name, down := p.queue.Get()
		if down {
			return
		}
		if err := p.reconcile(ctx, name); err != nil {
			p.log.Warn("volume not yet as wanted", "volume", name, "error", err)
			p.queue.AddRateLimited(name)
		} else {
			p.queue.Forget(name)
		}
		p.queue.Done(name)
	}
}

// enqueueAll looks at every volume there is a trace of. Most changes arrive as events of
// the API; that a node has booted, or a disk was left over, does not.
func (p *provisioner) enqueueAll() {
	for _, claim := range p.claims.List() {
		p.queue.Add(claimKey(claim.(*corev1.PersistentVolumeClaim)))
	}
	for _, volume := range p.volumes.List() {
		p.queue.Add(volume.(*corev1.PersistentVolume).Name)
	}
	disks, err := p.store.List()
	if err != nil {
		p.log.Warn("cannot list the disks", "error", err)
	}
	for _, d := range disks {
		p.queue.Add(d.Name)
	}
}

// claimKey is the name of the volume made for a claim.
func claimKey(c *corev1.PersistentVolumeClaim) string { return volumeNamePrefix + string(c.UID) }

// reconcile takes one step towards what is wanted of the volume called name. Every step
// changes something that leads to another look at it.
func (p *provisioner) reconcile(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	f, err := p.facts(name)
	if err != nil {
		return err
	}
	what, why := decide(f)
	if what == nothing {
		return nil
	}
	began := p.clock.Now()
	err = p.perform(ctx, name, what, why, f)
	if errors.Is(err, errTold) {
		return nil
	}
	if err != nil {
		if f.claim != nil && what == provision {
			p.events.Event(f.claim, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	p.log.Info("volume", "action", string(what), "volume", name, "took", p.clock.Since(began).Round(time.Millisecond))
	return nil
}

// facts gathers what is known about the volume called name.
func (p *provisioner) facts(name string) (facts, error) {
	f := facts{nodes: map[string]Node{}}
	for _, n := range p.nodes() {
		f.nodes[n.Name] = n
	}
	claims, err := p.claims.ByIndex(byVolume, name)
	if err != nil {
		return f, err
	}
	if len(claims) > 0 {
		f.claim = claims[0].(*corev1.PersistentVolumeClaim)
	}
	if v, ok, err := p.volumes.GetByKey(name); err != nil {
		return f, err
	} else if ok {
		f.volume = v.(*corev1.PersistentVolume)
	}
	switch d, err := p.store.Get(name); {
	case err == nil:
		f.disk = &d
	case !errors.Is(err, disk.ErrNotFound):
		return f, err
	}
	if f.disk == nil {
		return f, nil
	}
	if node, up := f.nodes[f.disk.Node]; up {
		mounted, err := disk.Mounted(node.PID)
		if err != nil {
			return f, fmt.Errorf("node %s: %w", node.Name, err)
		}
		f.mounted = mounted[name]
	}
	return f, nil
}

// perform does what was decided.
func (p *provisioner) perform(ctx context.Context, name string, what action, why string, f facts) error {
	switch what {
	case provision:
		return p.provision(ctx, name, f)
	case reschedule:
		return p.reschedule(ctx, f.claim)
	case refuse:
		return p.complain(name, f.claim, "ProvisioningFailed", why)
	case mount:
		return p.store.Mount(name, f.nodes[f.disk.Node].PID)
	case grow:
		return p.grow(ctx, name, f)
	case destroyAll:
		return p.destroy(ctx, name, f)
	default:
		return fmt.Errorf("%q is unknown", what)
	}
}

// complain warns about a claim once, though it is looked at every few seconds. It returns
// errTold.
func (p *provisioner) complain(name string, claim *corev1.PersistentVolumeClaim, reason, why string) error {
	if before, told := p.complaints.Swap(name, why); !told || before != why {
		p.events.Event(claim, corev1.EventTypeWarning, reason, why)
		p.log.Warn("claim cannot be served", "volume", name, "claim", claim.Namespace+"/"+claim.Name, "reason", reason, "error", why)
	}
	return errTold
}

// provision makes the disk on the selected node and publishes it.
func (p *provisioner) provision(ctx context.Context, name string, f facts) error {
	class, err := p.class(ctx, f.claim)
	if err != nil {
		return err
	}
	node := f.nodes[f.claim.Annotations[selectedNodeAnnotation]]
	if f.disk != nil && f.disk.Node != node.Name {
		// Made for a node that was dropped before its volume was published.
		if err := p.destroyDisk(name, f); err != nil {
			return err
		}
		f.disk, f.mounted = nil, false
	}
	d := disk.Disk{
		Name: name, Namespace: f.claim.Namespace, Claim: f.claim.Name, Node: node.Name,
		Created: p.clock.Now(), Size: disk.RoundUp(size(f.claim.Spec.Resources.Requests)),
	}
	if err := p.store.Create(ctx, d); err != nil {
		return err
	}
	if !f.mounted {
		if err := p.store.Mount(name, node.PID); err != nil {
			return err
		}
	}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, persistentVolume(f.claim, node, d, class), createOptions)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// reschedule takes the node's name off the claim, which makes the scheduler choose again.
func (p *provisioner) reschedule(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	c := claim.DeepCopy()
	delete(c.Annotations, selectedNodeAnnotation)
	_, err := p.client.CoreV1().PersistentVolumeClaims(c.Namespace).Update(ctx, c, updateOptions)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // The claim changed, so it will be looked at again.
	}
	return err
}

// grow enlarges the disk, then says so: first in the volume, then in the claim.
func (p *provisioner) grow(ctx context.Context, name string, f facts) error {
	want := f.claim.Spec.Resources.Requests[storage]
	err := p.store.Grow(name, want.Value())
	if errors.Is(err, disk.ErrCannotGrow) {
		return p.complain(name, f.claim, "VolumeResizeFailed", err.Error()+": use a new claim instead")
	}
	if err != nil {
		return err
	}
	v := f.volume.DeepCopy()
	if size(v.Spec.Capacity) < want.Value() {
		v.Spec.Capacity[storage] = want
		if _, err := p.client.CoreV1().PersistentVolumes().Update(ctx, v, updateOptions); err != nil {
			return err
		}
	}
	c := f.claim.DeepCopy()
	c.Status = grown(c.Status, want)
	_, err = p.client.CoreV1().PersistentVolumeClaims(c.Namespace).UpdateStatus(ctx, c, updateOptions)
	return err
}

// destroy removes the disk and then its PersistentVolume.
func (p *provisioner) destroy(ctx context.Context, name string, f facts) error {
	if err := p.destroyDisk(name, f); err != nil {
		return err
	}
	p.complaints.Delete(name)
	if f.volume == nil {
		return nil
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, name, deleteOptions(f.volume.UID))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// destroyDisk thaws, unmounts and deletes the disk of a volume. Thawing comes first, for
// nothing that uses a frozen disk can let go of it.
func (p *provisioner) destroyDisk(name string, f facts) error {
	if f.disk == nil {
		return nil
	}
	if err := p.store.Thaw(name); err != nil && !errors.Is(err, disk.ErrNotAttached) {
		return err
	}
	if f.mounted {
		if err := disk.Unmount(name, f.nodes[f.disk.Node].PID); err != nil {
			return err
		}
	}
	return p.store.Destroy(name)
}
