package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"theseus.dev/theseus/lab/internal/state"
)

// DrainLimit is how long NodeReplace waits for the Pods of a node to leave, unless told otherwise.
const DrainLimit = 5 * time.Minute

// NodeSurge makes the node that will stand in for another one: same zone, same
// size. Done once, however often it is asked for: the successor is recorded
// before it is made. A node that was made for another one and not needed after
// all is taken instead.
func (c *Cluster) NodeSurge(ctx context.Context, name string) (successor string, err error) {
	err = c.locked(ctx, "node surge "+name, func() error {
		if err := c.needControlPlane(); err != nil {
			return err
		}
		m, err := c.node(name)
		if err != nil {
			return err
		}
		if s := c.state.Machine(m.Successor); s != nil && s.Phase == state.Running && s.Init.Alive() {
			successor = s.Name
			return c.awaitNode(ctx, successor)
		}
		if spare := spareFor(c.state, m); spare != nil {
			successor = spare.Name
			return c.update(func(*state.Lab) { spare.Spare, m.Successor = false, spare.Name })
		}
		s, err := c.newNode(NodeOptions{Zone: m.Zone, CPU: m.CPU, Memory: m.Memory})
		if err != nil {
			return err
		}
		successor = s.Name
		if err := c.update(func(*state.Lab) { m.Successor = s.Name }); err != nil {
			return err
		}
		return c.bootNode(ctx, s)
	})
	return successor, err
}

// spareFor finds a node that was made in the same zone and size, and given back.
func spareFor(lab *state.Lab, m *state.Machine) *state.Machine {
	for _, s := range lab.RunningNodes() {
		if s.Spare && s.Zone == m.Zone && s.CPU == m.CPU && s.Memory == m.Memory && s != m && s.Init.Alive() {
			return s
		}
	}
	return nil
}

// NodeGiveBack takes NodeSurge back: the successor stays, for the next one that asks.
func (c *Cluster) NodeGiveBack(ctx context.Context, name string) error {
	return c.locked(ctx, "node give back "+name, func() error {
		m, err := c.node(name)
		if err != nil {
			return err
		}
		s := c.state.Machine(m.Successor)
		return c.update(func(*state.Lab) {
			m.Successor = ""
			if s != nil {
				s.Spare = true
			}
		})
	})
}

// NodeReplace brings a new node in the same zone, drains the old one and takes
// it away for good: nothing is removed while a Pod is on it that would not
// leave. It returns the name of the new one. Repeating it after an interruption
// goes on where it was.
func (c *Cluster) NodeReplace(ctx context.Context, name string, drain time.Duration) (successor string, err error) {
	successor, err = c.NodeSurge(ctx, name)
	if err != nil {
		return successor, err
	}
	// The lock is not held meanwhile: what has to leave may take its time.
	if m := c.state.Machine(name); m != nil && m.Phase == state.Running {
		if err := c.log.Step("drain "+name, func() error { return c.drain(ctx, name, drain) }); err != nil {
			return successor, err
		}
	}
	return successor, c.NodeRemove(ctx, name)
}

// drain cordons a node and evicts what can be evicted, until nothing is left.
func (c *Cluster) drain(ctx context.Context, name string, limit time.Duration) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	next := time.Time{}
	return c.await(ctx, "node "+name+" is empty", limit, func(ctx context.Context) error {
		pods, err := evictable(ctx, client, name)
		if err != nil || len(pods) == 0 {
			return err
		}
		left := fmt.Errorf("%d Pods are still on it, for example %s/%s", len(pods), pods[0].Namespace, pods[0].Name)
		// As often as kubectl asks, but all at once.
		if now := c.clock.Now(); now.After(next) {
			next = now.Add(5 * time.Second)
			return errors.Join(left, evict(ctx, client, pods))
		}
		return left
	})
}

// evictable are the Pods of a node but those of DaemonSets, static ones and those that have ended.
func evictable(ctx context.Context, client kubernetes.Interface, node string) ([]corev1.Pod, error) {
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		owner := metav1.GetControllerOf(&p)
		_, static := p.Annotations[corev1.MirrorPodAnnotationKey]
		return static || owner != nil && owner.Kind == "DaemonSet" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	}), nil
}

func evict(ctx context.Context, client kubernetes.Interface, pods []corev1.Pod) error {
	var errs error
	for i := range pods {
		if pods[i].DeletionTimestamp != nil {
			continue
		}
		err := client.PolicyV1().Evictions(pods[i].Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta: metav1.ObjectMeta{Namespace: pods[i].Namespace, Name: pods[i].Name},
		})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = errors.Join(errs, fmt.Errorf("%s/%s: %w", pods[i].Namespace, pods[i].Name, err))
		}
	}
	return errs
}
