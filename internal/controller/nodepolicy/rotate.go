package nodepolicy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/clip"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/machine"
)

// rotation is one node on its way out, while it is worked on.
type rotation struct {
	r        *Reconciler
	w        *world
	index    int // in the policy's status, which is decoded anew whenever it is stored
	provider machine.Provider
	node     *corev1.Node // nil when it is gone
	machine  machine.Machine
}

func (t *rotation) stored() *v1alpha1.NodeRotation { return &t.w.policy.Status.Rotations[t.index] }

// rounds bounds how often the next step is asked for within one reconcile: every call of a provider may be followed by the
// step that its answer allows.
const rounds = 4

// giveBackWithin is how long it is tried to give a machine back before the rotation ends without.
const giveBackWithin = time.Hour

// rotate takes the steps of a rotation that can be taken now, and says when to look again. A step is stored before what it
// says is done, so that a restart does it again; but an end is stored afterwards, because nothing is done again after it.
func (r *Reconciler) rotate(ctx context.Context, w *world, index int, p machine.Provider, wanted bool) (time.Time, error) {
	t := &rotation{r: r, w: w, index: index, provider: p}
	node := t.stored().Node
	seen, err := t.look(ctx, wanted)
	if err != nil {
		return time.Time{}, err
	}
	limits := machine.Limits{Drain: w.policy.Spec.DrainTimeout.Duration}
	for range rounds {
		step := machine.Next(seen, limits)
		if step.Rotation.Phase.Finished() {
			return time.Time{}, t.finish(ctx, seen, step)
		}
		if err := errors.Join(t.store(ctx, step.Rotation), t.settle(ctx, step)); err != nil {
			return time.Time{}, err
		}
		seen.Rotation = step.Rotation
		if step.Call == machine.CallNone {
			return step.Recheck, nil
		}
		if err := t.call(ctx, step.Call, &seen); err != nil {
			return time.Time{}, fmt.Errorf("%s of the machine under node %s: %w", step.Call, node, err)
		}
		if next := machine.Next(seen, limits); next.Rotation.Phase == step.Rotation.Phase {
			return step.Recheck, t.store(ctx, next.Rotation)
		}
	}
	return t.r.Clock.Now(), nil
}

// finish does the last things, then stores the end.
func (t *rotation) finish(ctx context.Context, seen machine.Seen, step machine.Step) error {
	errs := t.settle(ctx, step)
	if seen.Rotation.Phase == machine.GivingBack {
		errs = errors.Join(errs, t.call(ctx, machine.CallGiveBack, &seen))
	}
	errs = errors.Join(errs, t.call(ctx, step.Call, &seen))
	if errs != nil && seen.Now.Sub(seen.Rotation.PhaseStartedAt) < giveBackWithin {
		return fmt.Errorf("letting the machine under node %s go: %w", t.stored().Node, errs)
	}
	return t.store(ctx, step.Rotation)
}

// look gathers what a step is decided from.
func (t *rotation) look(ctx context.Context, wanted bool) (machine.Seen, error) {
	s := t.stored()
	t.machine = machine.Machine{ID: s.Machine, UID: s.MachineUID, Node: s.Node, NodeUID: s.NodeUID}
	seen := machine.Seen{
		Now: t.r.Clock.Now(), Wanted: wanted,
		Rotation: machine.Rotation{
			Phase: machine.Phase(s.Phase), PhaseStartedAt: s.PhaseStartedAt.Time, StartedAt: s.StartedAt.Time, Message: s.Message,
			FailedIn: machine.Phase(s.FailedIn),
		},
		Instances: len(t.w.instances[s.Node]) + len(t.w.gateways[s.Node]), Moving: t.w.moving(s.Node),
		Held: s.Phase != "" && machine.Phase(s.Phase) != machine.Holding,
	}
	if n := t.w.nodes[s.Node]; n != nil && string(n.UID) == s.NodeUID {
		t.node, seen.NodeExists = n, true
		m, err := t.provider.Find(ctx, n)
		switch {
		case err == nil:
			t.machine, seen.Removing = m, m.Removing
			seen.Held = seen.Held || m.Held
		case errors.Is(err, machine.ErrNotMine):
		default:
			return seen, fmt.Errorf("finding the machine under node %s: %w", s.Node, err)
		}
	} else {
		seen.Instances, seen.Moving = 0, 0 // what was on it is lost, and replaced as such
	}
	if t.machine.ID == "" || t.w.nodes[s.Node] != nil && !seen.NodeExists {
		// It was never found, so the node is all there is; or there is another node of that name by now, under which nothing
		// must be taken away.
		seen.Gone = !seen.NodeExists
		return seen, nil
	}
	gone, err := t.provider.Gone(ctx, t.machine)
	if err != nil {
		return seen, fmt.Errorf("asking whether the machine under node %s is gone: %w", s.Node, err)
	}
	seen.Gone = gone
	return seen, nil
}

// store writes the rotation into the policy's status before anything is done about it.
func (t *rotation) store(ctx context.Context, rot machine.Rotation) error {
	s := t.stored()
	rot.Message = clip.Bytes(rot.Message, longest)
	finish := rot.Phase.Finished() && s.FinishedAt == nil
	same := s.Phase == string(rot.Phase) && s.Message == rot.Message && s.Machine == t.machine.ID && s.MachineUID == t.machine.UID
	if same && !finish {
		return nil
	}
	changed := s.Phase != string(rot.Phase)
	s.Phase, s.Message, s.Machine, s.MachineUID, s.FailedIn = string(rot.Phase), rot.Message, t.machine.ID, t.machine.UID, string(rot.FailedIn)
	s.PhaseStartedAt, s.StartedAt = metav1.NewTime(rot.PhaseStartedAt), metav1.NewTime(rot.StartedAt)
	if finish {
		s.FinishedAt = &metav1.Time{Time: t.r.Clock.Now()}
		rotationsTotal.WithLabelValues(t.w.policy.Name, string(rot.Phase)).Inc()
	}
	if changed {
		logr.FromContextOrDiscard(ctx).Info("a node is on its way out", "node", s.Node, "phase", s.Phase, "message", s.Message)
		t.r.tell(t.w.policy, t.node, rot)
	}
	return t.r.Client.Status().Update(ctx, t.w.policy)
}

// call asks the provider and writes its answer into what is seen.
func (t *rotation) call(ctx context.Context, c machine.Call, seen *machine.Seen) (err error) {
	switch c {
	case machine.CallHold:
		// A provider that cannot hold says so by holding nothing; it has done what it can.
		if err = t.provider.Hold(ctx, t.machine); err == nil {
			seen.Held = true
		}
	case machine.CallSurge:
		seen.Surge, err = t.provider.Surge(ctx, t.machine)
	case machine.CallReplace:
		// The cache may not have heard yet of one that was scheduled just before the cordon.
		if seen.Instances, err = t.really(ctx); err == nil && seen.Instances == 0 {
			seen.Replace, err = t.provider.Replace(ctx, t.machine)
		}
	case machine.CallGiveBack:
		err = t.provider.GiveBack(ctx, t.machine)
	case machine.CallRelease:
		err = t.provider.Release(ctx, t.machine)
	case machine.CallNone:
	}
	return err
}

// really counts the instances and gateways on the node by asking the API server itself, for no more namespaces than the
// operator may look into.
func (t *rotation) really(ctx context.Context) (int, error) {
	if t.node == nil {
		return 0, nil
	}
	namespaces := t.r.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	n := 0
	for _, ns := range namespaces {
		for _, component := range []string{v1alpha1.ComponentInstance, v1alpha1.ComponentGateway} {
			pods := &corev1.PodList{}
			err := t.r.Live.List(ctx, pods, client.InNamespace(ns), client.MatchingFields{"spec.nodeName": t.node.Name}, client.MatchingLabels{v1alpha1.LabelComponent: component})
			if err != nil {
				return 0, err
			}
			for i := range pods.Items {
				if occupies(&pods.Items[i]) {
					n++
				}
			}
		}
	}
	return n, nil
}

// settle does to the node and to what is on it what the step says.
func (t *rotation) settle(ctx context.Context, step machine.Step) error {
	if t.node == nil {
		return nil
	}
	// A node that is left to people stays cordoned: it is too old for anything new.
	keep := step.Rotation.Phase == machine.RotDone
	if step.Cordon || keep {
		if err := t.r.cordon(ctx, t.node, t.w.policy.Name); err != nil {
			return err
		}
	} else if err := t.r.uncordon(ctx, t.node, t.w.policy.Name); err != nil {
		return err
	}
	requests := request.Requests{Client: t.r.Client}
	now := t.r.Clock.Now()
	for i := range t.w.instances[t.node.Name] {
		pod := &t.w.instances[t.node.Name][i]
		if pod.DeletionTimestamp != nil {
			continue
		}
		if !step.MoveOff {
			if _, err := requests.Withdraw(ctx, pod, v1alpha1.ReasonNodeExpiring); err != nil {
				return err
			}
			continue
		}
		ask := request.Ask{Pod: pod, Reason: v1alpha1.ReasonNodeExpiring, Message: fmt.Sprintf("its node goes for its age (NodePolicy %s)", t.w.policy.Name)}
		if t.stored().Deadline != nil {
			ask.Deadline = t.stored().Deadline.Time
		}
		if _, _, err := requests.Make(ctx, ask, now); err != nil {
			return fmt.Errorf("asking for the replacement of %s: %w", pod.Name, err)
		}
	}
	if step.MoveOff {
		return t.evictGateways(ctx)
	}
	return nil
}

// evictGateways moves the gateways off, one at a time and only as their budget allows.
func (t *rotation) evictGateways(ctx context.Context) error {
	for i := range t.w.gateways[t.node.Name] {
		pod := &t.w.gateways[t.node.Name][i]
		if pod.DeletionTimestamp != nil {
			continue
		}
		err := t.r.Client.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{})
		if err != nil && !apierrors.IsTooManyRequests(err) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("evicting gateway %s: %w", pod.Name, err)
		}
	}
	return nil
}

// cordon keeps new Pods off a node, and notes on whose account.
func (r *Reconciler) cordon(ctx context.Context, node *corev1.Node, policy string) error {
	if node.Spec.Unschedulable {
		return nil // somebody else's cordon stays somebody else's
	}
	patch := client.MergeFromWithOptions(node.DeepCopy(), client.MergeFromWithOptimisticLock{})
	node.Spec.Unschedulable = true
	if node.Annotations == nil {
		node.Annotations = map[string]string{}
	}
	node.Annotations[v1alpha1.AnnotationCordonedFor] = policy
	return client.IgnoreNotFound(r.Client.Patch(ctx, node, patch))
}

// uncordon takes back exactly what cordon did.
func (r *Reconciler) uncordon(ctx context.Context, node *corev1.Node, policy string) error {
	if node.Annotations[v1alpha1.AnnotationCordonedFor] != policy {
		return nil
	}
	patch := client.MergeFromWithOptions(node.DeepCopy(), client.MergeFromWithOptimisticLock{})
	node.Spec.Unschedulable = false
	delete(node.Annotations, v1alpha1.AnnotationCordonedFor)
	return client.IgnoreNotFound(r.Client.Patch(ctx, node, patch))
}
