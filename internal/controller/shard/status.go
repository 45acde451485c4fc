package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/clip"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/quorum"
)

// Roles of InstanceStatus.
const (
	rolePrimary     = "primary"
	roleMember      = "member"
	roleLearner     = "learner"
	roleSeeding     = "seeding"
	roleStarting    = "starting"
	roleUnreachable = "unreachable"
	roleLeaving     = "leaving"
)

// numbersInterval is how often the status is written when only lags have changed.
const numbersInterval = 10 * time.Second

// summarize writes the part of the status that is for people. It patches its own fields only, without a lock: it can
// neither undo a record written meanwhile nor be held up by one.
func (r *Reconciler) summarize(ctx context.Context, shard *v1alpha1.Shard, s *State, m *memory, acting bool, objectsErr error) error {
	before := shard.DeepCopy()
	st := &shard.Status
	st.ObservedGeneration = shard.Generation
	st.Instances = nil
	ready := 0
	st.OldestInstance = nil
	for i := range s.Instances {
		is := r.instanceStatus(shard, s, &s.Instances[i])
		st.Instances = append(st.Instances, is)
		if is.Ready {
			ready++
		}
		if st.OldestInstance == nil || is.CreatedAt.Before(st.OldestInstance) {
			st.OldestInstance = is.CreatedAt.DeepCopy()
		}
	}
	slices.SortFunc(st.Instances, func(a, b v1alpha1.InstanceStatus) int { return strings.Compare(a.Name, b.Name) })
	st.InstancesReady = fmt.Sprintf("%d/%d", ready, s.Wanted)
	if primary := s.established(r.Params); primary != nil && st.SystemIdentifier == "" {
		st.SystemIdentifier = fmt.Sprint(primary.Status.GetSystemIdentifier())
	}
	all := conditions(s, r.Params, ready, acting, objectsErr)
	if r.Lifetimes != nil {
		all = append(all, r.Lifetimes(client.ObjectKeyFromObject(shard))...)
	}
	measure(client.ObjectKeyFromObject(shard), all, ready)
	for _, c := range all {
		c.ObservedGeneration = shard.Generation
		meta.SetStatusCondition(&st.Conditions, c)
	}
	if equality.Semantic.DeepEqual(before.Status, *st) || (sameWithoutNumbers(&before.Status, st) && s.Now.Sub(m.summarized) < numbersInterval) {
		*st = before.Status
		return nil
	}
	m.summarized = s.Now
	r.announce(before, shard, s, m)
	return r.Client.Status().Patch(ctx, shard, client.MergeFrom(before))
}

// ReasonDeleting is why a Shard or a Database that is being deleted is not Ready.
const ReasonDeleting = "Deleting"

// ReasonInstanceRefused is why a Shard is not Ready whose instances the API server does not let be made.
const ReasonInstanceRefused = "InstanceRefused"

// saysDeleting writes what a Shard being deleted waits for.
func (r *Reconciler) saysDeleting(ctx context.Context, shard *v1alpha1.Shard, pods []corev1.Pod) error {
	before := shard.DeepCopy()
	var names []string
	for i := range pods {
		names = append(names, pods[i].Name)
	}
	slices.Sort(names)
	c := condition(v1alpha1.ConditionReady, false, ReasonDeleting, "waiting for its Pods to end: "+strings.Join(names, ", "))
	c.ObservedGeneration = shard.Generation
	meta.SetStatusCondition(&shard.Status.Conditions, c)
	if equality.Semantic.DeepEqual(before.Status, shard.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.Client.Status().Patch(ctx, shard, client.MergeFrom(before)))
}

func sameWithoutNumbers(a, b *v1alpha1.ShardStatus) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	for _, st := range []*v1alpha1.ShardStatus{a, b} {
		for i := range st.Instances {
			st.Instances[i].LagBytes, st.Instances[i].Message = 0, ""
		}
	}
	return equality.Semantic.DeepEqual(a, b)
}

// announce makes an event of every condition that turned.
func (r *Reconciler) announce(before, after *v1alpha1.Shard, s *State, m *memory) {
	for _, name := range []string{v1alpha1.ConditionWritable, v1alpha1.ConditionRedundant, v1alpha1.ConditionPlanHolds, v1alpha1.ConditionFrozen} {
		if s.Reparenting {
			return // the reparent tells its own story, and half of it would only alarm
		}
		was, is := meta.FindStatusCondition(before.Status.Conditions, name), meta.FindStatusCondition(after.Status.Conditions, name)
		if is == nil || was == nil && is.Reason == "Going" || was != nil && was.Status == is.Status && was.Reason == is.Reason {
			continue
		}
		kind := corev1.EventTypeNormal
		if was != nil && (is.Status == metav1.ConditionFalse) != (name == v1alpha1.ConditionFrozen) {
			kind = corev1.EventTypeWarning
		}
		if m.known[name] != is.Reason {
			m.known[name] = is.Reason
			r.event(after, kind, is.Reason, name, "%s: %s", name, is.Message)
		}
	}
}

func (r *Reconciler) instanceStatus(shard *v1alpha1.Shard, s *State, it *Instance) v1alpha1.InstanceStatus {
	is := v1alpha1.InstanceStatus{
		Name: it.Name, PodUID: string(it.UID), Node: it.Node, Zone: it.Zone, CreatedAt: metav1.NewTime(it.CreatedAt.Truncate(time.Second)),
	}
	is.Role, is.Ready = roleName(s, r.Params, it)
	if primary := s.primary(r.Params); primary != nil && it.Name != primary.Name && it.Status != nil {
		if have, replayed := primary.Status.GetFlushed().GetLsn(), it.Status.GetReplayedLsn(); have > replayed {
			is.LagBytes = int64(have - replayed)
		}
	}
	if is.Ready {
		r.tasks.settled(client.ObjectKeyFromObject(shard), it.Name)
	}
	is.Message = firstOf(r.tasks.lastError(client.ObjectKeyFromObject(shard), it.Name), it.Status.GetMessage())
	switch {
	case it.Refused != "":
		is.Message = "the API server refuses its Pod: " + it.Refused
	case !it.HasPod:
		is.Message = "its Pod is gone"
	case it.PodMessage != "":
		is.Message = it.PodMessage
	case is.Role == roleUnreachable:
		is.Message = it.LastError
	}
	is.Message = clip.Bytes(is.Message, 300)
	return is
}

func roleName(s *State, p Params, it *Instance) (role string, ready bool) {
	latest, _ := s.Record.Latest()
	primary := s.established(p)
	switch {
	case it.Refused != "" && !it.leaving():
		return roleStarting, false
	case it.leaving() || !it.HasPod:
		return roleLeaving, false
	case it.alive(p) && it.Status.GetRole() == agentpb.Role_PRIMARY && latest.Primary == it.Name:
		return rolePrimary, it == primary
	case it.Status == nil && it.FailingFor < p.StaleAfter:
		return roleStarting, false
	case !it.alive(p):
		if it.IP == "" {
			return roleStarting, false
		}
		return roleUnreachable, false
	}
	switch it.Status.GetRole() {
	case agentpb.Role_SEEDING:
		return roleSeeding, false
	case agentpb.Role_STANDBY:
		if latest.Has(it.Name) {
			return roleMember, primary != nil && streaming(primary, it.Name)
		}
		return roleLearner, false
	}
	return roleStarting, false
}

// conditions judges the shard for people and for those who wait.
func conditions(s *State, p Params, ready int, acting bool, objectsErr error) []metav1.Condition {
	writable := writableCondition(s, p)
	redundant := condition(v1alpha1.ConditionRedundant, true, "Complete", "every standby the spec asks for is in the cohort and streams")
	if s.Wanted == 1 {
		redundant.Message = "one instance is all the spec asks for: durability is the volume's"
	}
	if !s.redundant(p) {
		redundant = condition(v1alpha1.ConditionRedundant, false, "Degraded", degraded(s, p))
	}
	progressing := condition(v1alpha1.ConditionProgressing, false, "Stable", "nothing is under way")
	if acting || len(s.Record.Cohorts) > 1 || ready != s.Wanted || len(s.Instances) != s.Wanted || s.Reparenting {
		progressing = condition(v1alpha1.ConditionProgressing, true, "Working", fmt.Sprintf("%d of %d instances are ready", ready, s.Wanted))
		if s.Reparenting {
			progressing.Reason, progressing.Message = "Reparenting", "a reparent is under way"
		}
	}
	all := condition(v1alpha1.ConditionReady, true, "Ready", writable.Message)
	switch {
	case objectsErr != nil:
		all = condition(v1alpha1.ConditionReady, false, objectsReason(objectsErr), objectsErr.Error())
	case writable.Status != metav1.ConditionTrue:
		all = condition(v1alpha1.ConditionReady, false, writable.Reason, writable.Message)
	case s.NoGateway:
		all = condition(v1alpha1.ConditionReady, false, "NoGateway", "no gateway is ready to take clients yet")
	case redundant.Status != metav1.ConditionTrue:
		all = condition(v1alpha1.ConditionReady, false, redundant.Reason, redundant.Message)
	case ready < s.Wanted:
		all = condition(v1alpha1.ConditionReady, false, "InstancesMissing", fmt.Sprintf("%d of %d instances are ready", ready, s.Wanted)+trouble(s))
	}
	if refused := s.refused(); len(refused) > 0 && objectsErr == nil && all.Status != metav1.ConditionTrue {
		all = condition(v1alpha1.ConditionReady, false, ReasonInstanceRefused, "the API server refuses "+strings.Join(refused, "; "))
	}
	return []metav1.Condition{all, writable, redundant, progressing}
}

func objectsReason(err error) string {
	if taken := (*owned.TakenError)(nil); errors.As(err, &taken) {
		return "NameTaken"
	}
	return "ObjectsFailed"
}

func writableCondition(s *State, p Params) metav1.Condition {
	no := func(reason, format string, args ...any) metav1.Condition {
		return condition(v1alpha1.ConditionWritable, false, reason, fmt.Sprintf(format, args...))
	}
	latest, recorded := s.Record.Latest()
	primary := s.established(p)
	switch {
	case primary != nil && s.CannotCommitFor >= p.CannotCommitAfter:
		return no("CannotCommit", "%s hears fewer than the %d of %v that a commit takes: writes wait, none is lost; bring an instance back or wait for its successor", primary.Name, latest.Acks, latest.Members)
	case primary != nil:
		return condition(v1alpha1.ConditionWritable, true, "Established", fmt.Sprintf("%s is primary of term %d", primary.Name, latest.Term))
	case s.Bootstrap == nil && slices.ContainsFunc(s.Instances, func(i Instance) bool { return i.hasData() }):
		return no("RecordLost", "instances have data but the Shard has no record of who was bootstrapped: nothing is created over it; restore the Shard's status from a backup, or move the volumes away to begin empty")
	case s.Bootstrap == nil || !s.Bootstrap.Done:
		return no("Bootstrapping", "%s", bootstrapMessage(s, p))
	case len(s.Instances) == 0 || !slices.ContainsFunc(s.Instances, func(i Instance) bool { return i.HasClaim && slices.Contains(s.Record.Names(), i.Name) }):
		return no("DataLost", "no volume of %v is left. An empty database is never created in the place of one that had data: restore a backup into a new Database and delete this one", s.Record.Names())
	case s.Reparenting:
		return no("Reparenting", "a reparent to term %d or later is under way", s.Record.Established+1)
	case recorded && latest.Term > s.Record.Established:
		return no("NotEstablished", "term %d was begun under %s and is not established", latest.Term, latest.Primary)
	}
	return no("NoPrimary", "%s, primary of term %d, does not serve: %s", latest.Primary, latest.Term, silence(s.instance(latest.Primary)))
}

func bootstrapMessage(s *State, p Params) string {
	switch {
	case s.Bootstrap == nil:
		return "waiting for the first instance" + trouble(s)
	case s.primary(p) == nil:
		return "waiting for " + s.Bootstrap.Instance + " to create the database system" + trouble(s)
	}
	return fmt.Sprintf("waiting for %d standbys, whose acknowledgement the first commit takes", quorum.DefaultAcks(s.Wanted)) + trouble(s)
}

// tooFewNodes is what to do when instances do not find a node without another of their shard.
const tooFewNodes = "every instance of a shard needs a node of its own: add nodes, or, on a test cluster, create the Database with spec.scheduling.allowSharedNodes"

// trouble is why instances do not run, as far as Kubernetes knows, to be appended to what that means; empty when it knows
// nothing. What to do about it comes first, since a long message is cut.
func trouble(s *State) string {
	var why []string
	for _, refused := range s.refused() {
		why = append(why, "the API server refuses "+clip.Bytes(refused, 300))
	}
	for i := range s.Instances {
		it := &s.Instances[i]
		if it.PodMessage == "" {
			continue
		}
		if it.Unschedulable && strings.Contains(it.PodMessage, "anti-affinity") && !slices.Contains(why, tooFewNodes) {
			why = slices.Insert(why, 0, tooFewNodes)
		}
		why = append(why, it.Name+": "+clip.Bytes(it.PodMessage, 300))
	}
	if len(why) == 0 {
		return ""
	}
	return ": " + strings.Join(why, "; ")
}

func silence(it *Instance) string {
	switch {
	case it == nil:
		return "it is gone"
	case it.Refused != "":
		return "the API server refuses its Pod: " + it.Refused
	case !it.HasPod:
		return "its Pod is gone"
	case it.PodMessage != "":
		return it.PodMessage
	case !it.Connected:
		return firstOf(it.LastError, "not connected")
	}
	return firstOf(it.Status.GetMessage(), strings.ToLower(it.Status.GetRole().String()))
}

func degraded(s *State, p Params) string {
	latest, _ := s.Record.Latest()
	primary := s.established(p)
	if primary == nil {
		return "there is no established primary" + trouble(s)
	}
	heard := 0
	for _, m := range latest.Members {
		if streaming(primary, m) {
			heard++
		}
	}
	return fmt.Sprintf("%d of %d standbys are in the cohort and stream", heard, max(s.Wanted-1, 0)) + trouble(s)
}

func condition(kind string, status bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: clip.Bytes(message, 1000)}
	if status {
		c.Status = metav1.ConditionTrue
	}
	return c
}

func firstOf(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}
