package nodepolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/lifetime"
	"theseus.dev/theseus/internal/machine"
)

// Reconciler leads the nodes of NodePolicies out.
type Reconciler struct {
	Client client.Client
	// Live reads from the API server itself.
	Live     client.Reader
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
	// Namespace of the operator, where the Secrets of webhooks are.
	Namespace string
	// Namespaces that are watched; empty is all.
	Namespaces []string
	// Limits of the ledger; what concerns policies is filled in.
	Limits ledger.Limits
	// Machines are the providers (Karpenter, ClusterAPI) whose objects in the cluster may be used; nil means all.
	Machines []v1alpha1.MachineProvider
	// Providers replaces the providers of machines. For tests.
	Providers func(*v1alpha1.NodePolicy) (machine.Provider, error)

	answers map[string]answers            // by policy
	missed  map[string]map[types.UID]bool // nodes of which it was told, by policy
}

// retryAtMost bounds the pause before a look at a policy that ended with an error: what fails may be one node's alone, and
// the others do not wait for it.
const retryAtMost = 30 * time.Second

func retries() workqueue.TypedRateLimiter[reconcile.Request] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, retryAtMost)
}

// SetupWithManager registers the controller. It runs on the elected leader only, one policy at a time.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		<-ctx.Done()
		reset()
		return nil
	})); err != nil {
		return err
	}
	every := handler.EnqueueRequestsFromMapFunc(r.everyPolicy)
	return ctrl.NewControllerManagedBy(mgr).Named("nodepolicy").
		For(&v1alpha1.NodePolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Node{}, every, builder.WithPredicates(predicate.Funcs{UpdateFunc: relabelled})).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(r.policyOfPod)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1, RateLimiter: retries()}).
		Complete(r)
}

func relabelled(e event.UpdateEvent) bool {
	return !maps.Equal(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) || (e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
}

func (r *Reconciler) everyPolicy(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.policies(ctx, func(*v1alpha1.NodePolicy) bool { return true })
}

// policyOfPod finds who leads the Pod's node out, if anybody does.
func (r *Reconciler) policyOfPod(ctx context.Context, o client.Object) []reconcile.Request {
	p, ok := o.(*corev1.Pod)
	if !ok || p.Spec.NodeName == "" {
		return nil
	}
	return r.policies(ctx, func(np *v1alpha1.NodePolicy) bool {
		return slices.ContainsFunc(np.Status.Rotations, func(rot v1alpha1.NodeRotation) bool {
			return rot.Node == p.Spec.NodeName && underWay(&rot)
		})
	})
}

func (r *Reconciler) policies(ctx context.Context, which func(*v1alpha1.NodePolicy) bool) []reconcile.Request {
	list := &v1alpha1.NodePolicyList{}
	if err := r.Client.List(ctx, list); err != nil {
		return nil // looked at again within a minute
	}
	var out []reconcile.Request
	for i := range list.Items {
		if which(&list.Items[i]) {
			out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Name: list.Items[i].Name}})
		}
	}
	return out
}

// busyInterval is the time between two looks while a node is on its way out.
const busyInterval = 2 * time.Second

// Reconcile plans, begins what may begin, and takes what is under way a step further.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	w, err := r.gather(ctx, req.Name)
	if err != nil {
		return reconcile.Result{}, r.unready(ctx, w, "Invalid", err)
	}
	if w.policy == nil {
		forget(req.Name)
		delete(r.answers, req.Name)
		delete(r.missed, req.Name)
		return reconcile.Result{}, nil
	}
	p := w.policy
	if p.DeletionTimestamp != nil {
		return r.release(ctx, w)
	}
	if controllerutil.AddFinalizer(p, v1alpha1.Finalizer) {
		if err := r.Client.Update(ctx, p); err != nil {
			return reconcile.Result{}, err
		}
	}
	provider, err := r.provider(ctx, p)
	if err != nil {
		return reconcile.Result{}, r.unready(ctx, w, "NoProvider", err)
	}
	before := p.Status.DeepCopy()
	next, err := r.work(ctx, w, provider)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	p.Status.ObservedGeneration = p.Generation
	switch {
	case err != nil:
		set(p, v1alpha1.ConditionReady, false, "Error", err.Error())
	case len(w.shared) > 0:
		set(p, v1alpha1.ConditionReady, false, "PoliciesOverlap", "other policies select these nodes, too, which are left alone: "+strings.Join(w.shared, ", "))
	case len(w.unknown) > 0:
		set(p, v1alpha1.ConditionReady, false, "NoMachine", provider.Name()+" knows no machine under these nodes, which are left alone: "+strings.Join(w.unknown, ", "))
		r.warn(p, before)
	default:
		set(p, v1alpha1.ConditionReady, true, "Working", "nodes go when the plan says so")
	}
	if !equality.Semantic.DeepEqual(before, &p.Status) {
		if storeErr := r.Client.Status().Update(ctx, p); storeErr != nil && !apierrors.IsConflict(storeErr) {
			err = errors.Join(err, storeErr)
		}
	}
	return reconcile.Result{RequeueAfter: next}, err
}

// warn makes an event of what keeps a policy from being ready, once.
func (r *Reconciler) warn(p *v1alpha1.NodePolicy, before *v1alpha1.NodePolicyStatus) {
	now, was := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady), meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionReady)
	if was == nil || was.Reason != now.Reason || was.Message != now.Message {
		r.Recorder.Eventf(p, nil, corev1.EventTypeWarning, now.Reason, "Rotate", "%s", now.Message)
	}
}

// unready says in the status why nothing is done.
func (r *Reconciler) unready(ctx context.Context, w *world, reason string, why error) error {
	if w == nil || w.policy == nil {
		return why
	}
	set(w.policy, v1alpha1.ConditionReady, false, reason, why.Error())
	if err := r.Client.Status().Update(ctx, w.policy); err != nil {
		logr.FromContextOrDiscard(ctx).Error(err, "cannot say what is wrong with a NodePolicy")
	}
	return why
}

// work is one look at a policy that is in order. It says when to look again.
func (r *Reconciler) work(ctx context.Context, w *world, provider machine.Provider) (time.Duration, error) {
	p, now := w.policy, r.Clock.Now()
	p.Status.Rotations = forgotten(p.Status.Rotations, w.exists, now)
	limits := r.Limits
	limits.PerPolicy = map[string]int{p.Name: budget(p, len(w.mine))}
	plan, err := makePlan(p, w.mine, r.account(w, limits).FrozenZones(), now)
	if err != nil {
		return time.Minute, err
	}
	limits.PerHour = map[string]float64{p.Name: plan.Rate}
	errs := r.mark(ctx, w, plan.aging(p, now))
	waiting, err := r.begin(ctx, w, &plan, r.account(w, limits), provider)
	errs = errors.Join(errs, err, r.backstop(ctx, w, &plan, provider))
	next := nextLook(&plan, p.Spec.MaxAge.Duration, now)
	for i := range p.Status.Rotations {
		rot := p.Status.Rotations[i]
		if !underWay(&rot) {
			continue
		}
		again, err := r.rotate(ctx, w, i, provider, p.Spec.Freeze == "" && w.selected(&rot))
		if apierrors.IsConflict(err) {
			return 0, err
		}
		errs = errors.Join(errs, err)
		next = min(next, busyInterval)
		if left := again.Sub(now); !again.IsZero() && left < next {
			next = max(left, time.Second)
		}
	}
	plan.summarize(p, waiting)
	measure(p, &plan, now)
	r.miss(p, &plan)
	return next, errs
}

// selected reports whether a rotation's node is still this policy's, or gone.
func (w *world) selected(rot *v1alpha1.NodeRotation) bool {
	n := w.nodes[rot.Node]
	return n == nil || string(n.UID) != rot.NodeUID || slices.Contains(w.mine, n) || w.policy.Spec.Machine.Provider == v1alpha1.MachineNone
}

// exists reports whether a rotation's node is still there.
func (w *world) exists(rot *v1alpha1.NodeRotation) bool {
	n := w.nodes[rot.Node]
	return n != nil && string(n.UID) == rot.NodeUID
}

// nextLook is when the plan may have changed: soon when the next start is near, and at the latest within a minute.
func nextLook(plan *planned, maxAge time.Duration, now time.Time) time.Duration {
	tick := min(max(maxAge/1000, time.Second), time.Minute)
	if len(plan.Slots) == 0 {
		return time.Minute
	}
	return min(max(plan.Slots[0].Start.Sub(now), tick), time.Minute)
}

// begin starts the rotations that are due and that the ledger allows. It says why others wait.
func (r *Reconciler) begin(ctx context.Context, w *world, plan *planned, account *ledger.Account, provider machine.Provider) (waiting []string, err error) {
	p, now := w.policy, r.Clock.Now()
	if p.Spec.Budget.String() == "0" || p.Spec.Budget.String() == "0%" {
		return []string{"spec.budget is 0: no node may go"}, nil
	}
	requests, waiting := r.found(ctx, w, provider, plan.requests(p, w.shards))
	for i, v := range account.GrantNodes(requests) {
		q := requests[i]
		if !v.Allowed {
			refusalsTotal.WithLabelValues(p.Name, string(v.Why)).Inc()
			waiting = append(waiting, fmt.Sprintf("node %s waits: %s", q.Node, v.Message))
			continue
		}
		node := w.nodes[q.Node]
		rot := newRotation(rotationOf(&p.Status, node), node, q, now)
		p.Status.Rotations = slices.DeleteFunc(p.Status.Rotations, func(rot v1alpha1.NodeRotation) bool { return rot.Node == q.Node })
		p.Status.Rotations = append(p.Status.Rotations, rot)
		if err := r.Client.Status().Update(ctx, p); err != nil {
			return waiting, err
		}
	}
	return waiting, nil
}

// newRotation is the beginning of one. A machine that was told to go already is not held and surged for again: it is asked
// once more to go.
func newRotation(before *v1alpha1.NodeRotation, node *corev1.Node, q ledger.NodeRequest, now time.Time) v1alpha1.NodeRotation {
	rot := v1alpha1.NodeRotation{
		Node: q.Node, NodeUID: string(node.UID), Zone: q.Zone, Phase: string(machine.Holding),
		StartedAt: metav1.NewTime(now), PhaseStartedAt: metav1.NewTime(now), Deadline: &metav1.Time{Time: q.Deadline},
		Message: "the machine is being held", Failures: failures(before),
	}
	if before != nil && toldToGo(before) {
		rot.Phase, rot.Message = string(machine.Replacing), "the machine is asked for once more"
		rot.Machine, rot.MachineUID = before.Machine, before.MachineUID // it may be gone from under the node by now
	}
	return rot
}

// backstop finds a provider that would remove the oldest machine before its time: it would not wait for anything.
func (r *Reconciler) backstop(ctx context.Context, w *world, plan *planned, provider machine.Provider) error {
	if len(plan.Slots) == 0 || !plan.Holds {
		return nil
	}
	slot := plan.Slots[0]
	m, err := provider.Find(ctx, w.mine[slot.Index])
	if errors.Is(err, machine.ErrNotMine) {
		plan.Holds, plan.Reason = false, "NoMachine"
		plan.Message = fmt.Sprintf("%s has no machine for node %s", provider.Name(), w.mine[slot.Index].Name)
		return nil
	}
	if err != nil {
		return err
	}
	if !m.ExpiresAt.IsZero() && m.ExpiresAt.Before(slot.Deadline) {
		plan.Holds, plan.Reason = false, lifetime.Reason("ProviderExpiresFirst")
		plan.Message = fmt.Sprintf("%s removes the machine under node %s by force at %s, before its maximum age is reached: give its pool a longer expiry than spec.maxAge",
			provider.Name(), w.mine[slot.Index].Name, m.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return nil
}

// releaseWithin is how long a policy that is deleted waits for providers that cannot be asked.
const releaseWithin = 5 * time.Minute

// release gives back what a policy that is being deleted has under way, and lets it go.
func (r *Reconciler) release(ctx context.Context, w *world) (reconcile.Result, error) {
	p := w.policy
	provider, err := r.provider(ctx, p)
	errs := errors.Join(err, r.mark(ctx, w, nil))
	for i := range p.Status.Rotations {
		rot := &p.Status.Rotations[i]
		n := w.nodes[rot.Node]
		if !w.exists(rot) {
			continue
		}
		// Nothing new goes to a machine that its provider was told to take.
		if !toldToGo(rot) {
			errs = errors.Join(errs, r.uncordon(ctx, n, p.Name))
		}
		for j := range w.instances[n.Name] {
			_, err := request.Requests{Client: r.Client}.Withdraw(ctx, &w.instances[n.Name][j], v1alpha1.ReasonNodeExpiring)
			errs = errors.Join(errs, err)
		}
		if provider == nil || !underWay(rot) || toldToGo(rot) {
			continue
		}
		m := machine.Machine{ID: rot.Machine, UID: rot.MachineUID, Node: rot.Node, NodeUID: rot.NodeUID}
		errs = errors.Join(errs, provider.GiveBack(ctx, m), provider.Release(ctx, m))
	}
	if errs != nil && r.Clock.Since(p.DeletionTimestamp.Time) < releaseWithin {
		return reconcile.Result{}, errs
	}
	forget(p.Name)
	controllerutil.RemoveFinalizer(p, v1alpha1.Finalizer)
	return reconcile.Result{}, client.IgnoreNotFound(r.Client.Update(ctx, p))
}

// tell makes an event of a step.
func (r *Reconciler) tell(p *v1alpha1.NodePolicy, node *corev1.Node, rot machine.Rotation) {
	kind := corev1.EventTypeNormal
	if rot.Phase == machine.RotFailed {
		kind = corev1.EventTypeWarning
	}
	if node == nil {
		r.Recorder.Eventf(p, nil, kind, "Node"+string(rot.Phase), "Rotate", "%s", rot.Message)
		return
	}
	r.Recorder.Eventf(p, node, kind, "Node"+string(rot.Phase), "Rotate", "node %s: %s", node.Name, rot.Message)
}

func set(p *v1alpha1.NodePolicy, kind string, ok bool, reason, message string) {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	const most = 32768 // the API's limit
	if len(message) > most {
		message = message[:most]
	}
	meta.SetStatusCondition(&p.Status.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: p.Generation,
	})
}

func isTrue(p *v1alpha1.NodePolicy, kind string) bool {
	return meta.IsStatusConditionTrue(p.Status.Conditions, kind)
}
