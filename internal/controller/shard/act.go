package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/names"
)

// Timeouts of the commands. A command that runs into one is repeated; all are idempotent.
const (
	bootstrapTimeout = 2 * time.Minute // initdb on a slow disk
	establishTimeout = 10 * time.Second
	configureTimeout = 5 * time.Second
	seedTimeout      = 30 * time.Second // it answers once the copying has begun
	demoteTimeout    = 15 * time.Second
	demoteFast       = 3 * time.Second
)

// act carries the actions out. One that fails does not keep the others from being tried, except that nothing is done
// on top of a record that could not be stored.
func (r *Reconciler) act(ctx context.Context, shard *v1alpha1.Shard, s *State, m *memory, actions []Action) error {
	var failed []error
	for i := range actions {
		a := &actions[i]
		err := r.actOne(ctx, shard, s, m, a)
		if err == nil {
			continue
		}
		failed = append(failed, fmt.Errorf("%s %s: %w", a.Verb, a.Instance, err))
		if a.Verb == Store {
			// Wrapped so that a lost race is still seen to be one.
			return errors.Join(append(failed[:len(failed)-1], err)...)
		}
	}
	return errors.Join(failed...)
}

func (r *Reconciler) actOne(ctx context.Context, shard *v1alpha1.Shard, s *State, m *memory, a *Action) error {
	switch a.Verb {
	case CreateInstance:
		return r.createInstance(ctx, shard, s, m, a)
	case RestartInstance:
		return r.createPod(ctx, shard, s, m, a.Instance, "InstanceRestarted", a.Why)
	case DeletePod:
		return r.deletePod(ctx, shard, s, a)
	case DeleteClaim:
		return r.deleteClaim(ctx, shard, a)
	case SetRole:
		return r.setRole(ctx, shard, a)
	case Settle:
		return r.settle(ctx, shard, a)
	case Condemn:
		_, err := CondemnInstance(ctx, r.Client, r.Recorder, r.Clock, shard, a.Instance, a.Why)
		return err
	case Store:
		return r.store(ctx, shard, a)
	}
	return r.command(ctx, shard, s, a)
}

func (r *Reconciler) event(shard *v1alpha1.Shard, kind, reason, action, note string, args ...any) {
	r.Recorder.Eventf(shard, nil, kind, reason, action, note, args...)
}

func (r *Reconciler) createInstance(ctx context.Context, shard *v1alpha1.Shard, s *State, m *memory, a *Action) error {
	if !m.mayAsk(another, s.Now) {
		return nil
	}
	name := names.Instance(shard.Name, r.Draw)
	for tries := 0; s.instance(name) != nil; tries++ {
		if tries > 100 {
			return errors.New("no free name found")
		}
		name = names.Instance(shard.Name, r.Draw)
	}
	// A name that was taken by something we do not see fails here, before anything runs.
	if err := createClaim(ctx, r.Client, shard, newClaim(shard, name)); err != nil {
		return r.asked(ctx, shard, s, m, another, err)
	}
	delete(m.refused, another)
	return r.createPod(ctx, shard, s, m, name, "InstanceCreated", a.Why)
}

func (r *Reconciler) createPod(ctx context.Context, shard *v1alpha1.Shard, s *State, m *memory, name, reason, why string) error {
	if !m.mayAsk(name, s.Now) {
		return nil
	}
	m.expected[name] = s.Now
	made, err := createPod(ctx, r.Client, shard, newPod(shard, name, nil))
	if made {
		r.event(shard, corev1.EventTypeNormal, reason, string(CreateInstance), "Instance %s: %s", name, why)
	}
	return r.asked(ctx, shard, s, m, name, err)
}

// settle has the Pod of a surge keep others of the shard off its node, now that it has one.
func (r *Reconciler) settle(ctx context.Context, shard *v1alpha1.Shard, a *Action) error {
	pod := &corev1.Pod{}
	if err := r.Client.Get(ctx, types.NamespacedName{Namespace: shard.Namespace, Name: a.Instance}, pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	patch := client.MergeFrom(pod.DeepCopy())
	pod.Labels[v1alpha1.LabelSettled] = "true"
	return client.IgnoreNotFound(r.Client.Patch(ctx, pod, patch))
}

func (r *Reconciler) deletePod(ctx context.Context, shard *v1alpha1.Shard, s *State, a *Action) error {
	it := s.instance(a.Instance)
	if it == nil || it.UID == "" {
		return nil
	}
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = shard.Namespace, a.Instance
	opts := []client.DeleteOption{client.Preconditions{UID: &it.UID}}
	if a.Force {
		opts = append(opts, client.GracePeriodSeconds(0))
	}
	err := r.Client.Delete(ctx, pod, opts...)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		r.event(shard, corev1.EventTypeNormal, "InstanceRemoved", string(DeletePod), "Instance %s: %s", a.Instance, a.Why)
	}
	return err
}

func (r *Reconciler) deleteClaim(ctx context.Context, shard *v1alpha1.Shard, a *Action) error {
	claim := &corev1.PersistentVolumeClaim{}
	key := types.NamespacedName{Namespace: shard.Namespace, Name: a.Instance}
	if err := r.Client.Get(ctx, key, claim); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !claim.DeletionTimestamp.IsZero() {
		return nil
	}
	if err := Retire(ctx, r.Client, client.ObjectKeyFromObject(shard), a.Instance); err != nil {
		return err
	}
	err := r.Client.Delete(ctx, claim, client.Preconditions{UID: &claim.UID})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		r.event(shard, corev1.EventTypeNormal, "VolumeRemoved", string(DeleteClaim), "Volume of %s: %s", a.Instance, a.Why)
	}
	return err
}

func (r *Reconciler) setRole(ctx context.Context, shard *v1alpha1.Shard, a *Action) error {
	pod := &corev1.Pod{}
	if err := r.Client.Get(ctx, types.NamespacedName{Namespace: shard.Namespace, Name: a.Instance}, pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	patch := client.MergeFrom(pod.DeepCopy())
	if a.Role == "" {
		delete(pod.Labels, v1alpha1.LabelRole)
	} else {
		pod.Labels[v1alpha1.LabelRole] = a.Role
	}
	return client.IgnoreNotFound(r.Client.Patch(ctx, pod, patch))
}

// store writes the record. The patch carries the resource version that the decision was made from, so it fails with a
// conflict when anybody wrote anything since.
func (r *Reconciler) store(ctx context.Context, shard *v1alpha1.Shard, a *Action) error {
	patch := client.MergeFromWithOptions(shard.DeepCopy(), client.MergeFromWithOptimisticLock{})
	before := RecordOf(shard)
	SetRecord(&shard.Status, a.Record)
	shard.Status.Bootstrap = a.Bootstrap
	if err := r.Client.Status().Patch(ctx, shard, patch); err != nil {
		return err
	}
	reason := "CohortChanged"
	switch {
	case before.Established < a.Record.Established:
		reason = "Established"
	case a.Bootstrap != nil && !a.Bootstrap.Done:
		reason = "Bootstrap"
	case len(a.Record.Cohorts) < len(before.Cohorts):
		reason = "CohortSettled"
	}
	logr.FromContextOrDiscard(ctx).Info("record stored", "reason", reason, "why", a.Why, "record", fmt.Sprint(a.Record.Cohorts), "established", a.Record.Established)
	r.event(shard, corev1.EventTypeNormal, reason, string(Store), "%s", a.Why)
	return nil
}

// command starts a command to an agent in the background.
func (r *Reconciler) command(ctx context.Context, shard *v1alpha1.Shard, s *State, a *Action) error {
	it := s.instance(a.Instance)
	// A cohort is changed whatever else is under way: a member may have died that Establish waits for.
	if it == nil || it.IP == "" || it.Busy && a.Verb != AgentConfigure {
		return nil
	}
	call, timeout, err := r.prepare(ctx, shard, s, a)
	if err != nil {
		return err
	}
	key := client.ObjectKeyFromObject(shard)
	log := logr.FromContextOrDiscard(ctx).WithValues("instance", a.Instance, "command", a.Verb, "term", a.Term)
	shard = shard.DeepCopy()
	started := r.tasks.start(r.base, taskKey{shard: key, instance: a.Instance, verb: a.Verb}, timeout, func(ctx context.Context) error {
		c, closeConn, err := r.Agents(ctx, key, endpoint(it))
		if err == nil {
			defer closeConn()
			err = call(ctx, c)
		}
		if err != nil {
			log.Info("command failed", "error", err.Error())
			r.event(shard, corev1.EventTypeWarning, "CommandFailed", string(a.Verb), "%s on %s: %v", a.Verb, a.Instance, err)
			return err
		}
		if target := s.instance(a.Target); target != nil {
			r.tasks.tell(key, a.Instance, target.IP)
		}
		log.Info("command done")
		return nil
	})
	if started {
		log.Info("command", "why", a.Why)
		if a.Verb != AgentConfigure {
			r.event(shard, corev1.EventTypeNormal, string(a.Verb), string(a.Verb), "%s on %s: %s", a.Verb, a.Instance, a.Why)
		}
	}
	return nil
}

type call func(ctx context.Context, c agentpb.AgentClient) error

func (r *Reconciler) prepare(ctx context.Context, shard *v1alpha1.Shard, s *State, a *Action) (call, time.Duration, error) {
	cohort := agentapi.CohortToPB(&a.Cohort)
	var target *Instance
	if a.Target != "" {
		if target = s.instance(a.Target); target == nil || target.IP == "" {
			return nil, 0, fmt.Errorf("%s has no address", a.Target)
		}
		// WAL that is taken without knowing in which term it was written cannot be compared in an election.
		if len(target.Status.GetTimelineTerms()) == 0 {
			return nil, 0, fmt.Errorf("%s has not said yet in which terms its timelines began", a.Target)
		}
	}
	switch a.Verb {
	case AgentBootstrap:
		req, err := r.bootstrapRequest(ctx, shard, a.Term, cohort)
		return func(ctx context.Context, c agentpb.AgentClient) error { _, err := c.Bootstrap(ctx, req); return err }, bootstrapTimeout, err
	case AgentEstablish:
		req := &agentpb.EstablishRequest{Term: a.Term, Kind: "bootstrap", Reason: "Bootstrap"}
		return func(ctx context.Context, c agentpb.AgentClient) error { _, err := c.Establish(ctx, req); return err }, establishTimeout, nil
	case AgentConfigure:
		req := &agentpb.ConfigureRequest{Term: a.Term, Cohort: cohort}
		return func(ctx context.Context, c agentpb.AgentClient) error { _, err := c.Configure(ctx, req); return err }, configureTimeout, nil
	case AgentSeed:
		source := s.instance(a.Source)
		if source == nil || source.IP == "" {
			return nil, 0, fmt.Errorf("%s has no address", a.Source)
		}
		req := &agentpb.SeedRequest{
			Term: a.Term, Source: endpoint(source), Primary: endpoint(target),
			TimelineTerms: target.Status.GetTimelineTerms(), Discard: a.Discard,
		}
		return func(ctx context.Context, c agentpb.AgentClient) error { _, err := c.Seed(ctx, req); return err }, seedTimeout, nil
	case AgentFollow:
		req := &agentpb.FollowRequest{
			Term: a.Term, Primary: endpoint(target), TimelineTerms: target.Status.GetTimelineTerms(),
			RewindTimeoutMs: r.Params.RewindTimeout.Milliseconds(),
		}
		return func(ctx context.Context, c agentpb.AgentClient) error { _, err := c.Follow(ctx, req); return err }, r.Params.RewindTimeout + 15*time.Second, nil
	case AgentDemote:
		req := &agentpb.DemoteRequest{Term: a.Term, Immediate: true, TimeoutMs: demoteFast.Milliseconds()}
		return func(ctx context.Context, c agentpb.AgentClient) error { _, err := c.Demote(ctx, req); return err }, demoteTimeout, nil
	}
	return nil, 0, fmt.Errorf("unknown verb %q", a.Verb)
}

func (r *Reconciler) bootstrapRequest(ctx context.Context, shard *v1alpha1.Shard, term uint64, cohort *agentpb.Cohort) (*agentpb.BootstrapRequest, error) {
	secret := &corev1.Secret{}
	key := types.NamespacedName{Namespace: shard.Namespace, Name: names.Application(shard.Spec.Database)}
	if err := r.Client.Get(ctx, key, secret); err != nil {
		return nil, fmt.Errorf("the application's password: %w", err)
	}
	if len(secret.Data["password"]) == 0 {
		return nil, fmt.Errorf("Secret %s has no password", key.Name)
	}
	req := &agentpb.BootstrapRequest{
		Term: term, Cohort: cohort, OwnerPassword: string(secret.Data["password"]),
		Database: shard.Spec.Template.Application.Database, Owner: shard.Spec.Template.Application.Owner,
		Parameters: map[string]string{},
	}
	for k, v := range shard.Spec.Template.Postgres.Parameters {
		req.Parameters[k] = string(v)
	}
	return req, nil
}

func endpoint(it *Instance) *agentpb.Endpoint {
	return &agentpb.Endpoint{Instance: it.Name, Host: it.IP, PostgresPort: agentapi.PostgresPort, AgentPort: agentapi.AgentPort}
}

// resizeClaims asks for larger volumes when the spec does. A StorageClass that cannot is reported in an event; the
// instances then get their size by being replaced.
func (r *Reconciler) resizeClaims(ctx context.Context, shard *v1alpha1.Shard) error {
	claims, err := r.claims(ctx, shard)
	if err != nil {
		return err
	}
	want := shard.Spec.Template.Storage.Size
	for i := range claims {
		c := &claims[i]
		have := c.Spec.Resources.Requests[corev1.ResourceStorage]
		if have.Cmp(want) >= 0 || c.Status.Phase != corev1.ClaimBound || !c.DeletionTimestamp.IsZero() {
			continue
		}
		patch := client.MergeFrom(c.DeepCopy())
		c.Spec.Resources.Requests[corev1.ResourceStorage] = want
		if err := r.Client.Patch(ctx, c, patch); err != nil {
			if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
				r.event(shard, corev1.EventTypeWarning, "ResizeRefused", "Resize", "Volume of %s cannot grow to %s: %v", c.Name, want.String(), err)
				continue
			}
			return client.IgnoreNotFound(err)
		}
		r.event(shard, corev1.EventTypeNormal, "Resizing", "Resize", "Volume of %s grows from %s to %s", c.Name, have.String(), want.String())
	}
	return nil
}
