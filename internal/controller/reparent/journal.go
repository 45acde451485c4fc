package reparent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/clip"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/reparent"
)

// journal implements reparent.Journal with Reparent objects, one per term. Phases are written in the background: the
// newest state wins, and a slow API server holds nothing up.
type journal struct {
	client  client.Client
	live    client.Reader
	clock   clock.Clock
	log     logr.Logger
	shard   *v1alpha1.Shard
	drain   time.Duration
	observe func(reparent.Phase)

	mu      sync.Mutex
	entries map[uint64]*entry
}

// entry is the journal of one term.
type entry struct {
	mu     sync.Mutex // held while writing
	object *v1alpha1.Reparent
	// generation of the object's spec, which cannot be changed.
	generation int64
	pending    v1alpha1.ReparentStatus // guarded by journal.mu
	dirty      bool
	writing    bool
	failed     int // writes in a row
}

const (
	// writeTimeout bounds one write of the journal in the background.
	writeTimeout = 5 * time.Second
	// writeApart is the pause after a write in the background: phases end every few ten milliseconds, and each write costs the
	// API server, its store and all who watch what the databases on the same machines need to be back.
	writeApart = 300 * time.Millisecond
	// writeTries is how many writes in a row may fail before what is pending is left alone: half a minute at the least. What stays
	// open then is closed by the leader, see tidy.
	writeTries = 100
)

// Open implements reparent.Journal.
func (j *journal) Open(ctx context.Context, o reparent.Opening) error {
	object := &v1alpha1.Reparent{ObjectMeta: metav1.ObjectMeta{
		Namespace: j.shard.Namespace, Name: names.Reparent(j.shard.Name, o.Term),
		Labels: map[string]string{v1alpha1.LabelDatabase: j.shard.Spec.Database, v1alpha1.LabelShard: j.shard.Name},
		// Part of the creation, so that nobody can take it for a request that waits for a coordinator.
		Annotations: map[string]string{v1alpha1.AnnotationCoordinator: o.Coordinator},
	}}
	object.Spec = v1alpha1.ReparentSpec{
		Shard: j.shard.Name, Term: int64(o.Term), Kind: v1alpha1.ReparentKind(o.Kind), Reason: o.Reason,
		ExpectPrimary: o.OldPrimary, DrainTimeout: metav1.Duration{Duration: cmp.Or(j.drain, 3*time.Second)},
	}
	if err := controllerutil.SetControllerReference(j.shard, object, j.client.Scheme()); err != nil {
		return err
	}
	err := j.client.Create(ctx, object)
	if apierrors.IsAlreadyExists(err) {
		if object, err = j.adopt(ctx, o); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	e := &entry{object: object, generation: object.Generation}
	e.pending = v1alpha1.ReparentStatus{Coordinator: o.Coordinator, OldPrimary: o.OldPrimary, Phase: string(reparent.PhaseCheck)}
	j.mu.Lock()
	j.entries[o.Term] = e
	j.mu.Unlock()
	j.write(o.Term, e)
	return nil
}

// adopt claims a Reparent that somebody made as a request, by writing ourselves into it as the coordinator. Two who try
// get one winner by the resource version. Whatever a coordinator made is never adopted, not even by the same process: a
// term is opened once, because it names one primary for ever.
func (j *journal) adopt(ctx context.Context, o reparent.Opening) (*v1alpha1.Reparent, error) {
	object := &v1alpha1.Reparent{}
	key := types.NamespacedName{Namespace: j.shard.Namespace, Name: names.Reparent(j.shard.Name, o.Term)}
	if err := j.live.Get(ctx, key, object); err != nil {
		return nil, err
	}
	if object.Opened() || object.Status.Outcome != "" ||
		object.Spec.Kind != v1alpha1.ReparentKind(o.Kind) || object.Spec.Shard != j.shard.Name {
		return nil, reparent.ErrTermTaken
	}
	patch := client.MergeFromWithOptions(object.DeepCopy(), client.MergeFromWithOptimisticLock{})
	object.Status.Coordinator, object.Status.Phase = o.Coordinator, string(reparent.PhaseCheck)
	if err := j.client.Status().Patch(ctx, object, patch); err != nil {
		if apierrors.IsConflict(err) {
			return nil, reparent.ErrTermTaken
		}
		return nil, err
	}
	return object, nil
}

// Phase implements reparent.Journal. Phases before a term is opened have no journal to be in.
func (j *journal) Phase(p reparent.Phase) {
	if j.observe != nil {
		j.observe(p)
	}
	j.mu.Lock()
	e := j.entries[p.Term]
	if e != nil {
		note(&e.pending, p)
	}
	j.mu.Unlock()
	if e != nil {
		j.write(p.Term, e)
	}
}

// note puts the phase into the status: a phase that is going on is replaced by its end.
func note(st *v1alpha1.ReparentStatus, p reparent.Phase) {
	out := v1alpha1.ReparentPhase{Name: string(p.Name), StartedAt: metav1.NewMicroTime(p.Started), Message: clip.Bytes(p.Message, maxMessage)}
	if !p.Finished.IsZero() {
		finished := metav1.NewMicroTime(p.Finished)
		out.FinishedAt = &finished
	}
	st.Phase = out.Name
	i := slices.IndexFunc(st.Phases, func(have v1alpha1.ReparentPhase) bool {
		return have.Name == out.Name && have.FinishedAt == nil && have.StartedAt.Equal(&out.StartedAt)
	})
	if i < 0 {
		st.Phases = append(st.Phases, out)
		return
	}
	st.Phases[i] = out
}

// maxMessage, in bytes, keeps a message from making the object too large.
const maxMessage = 1000

// write starts writing what is pending, unless that is under way: then it is written after it, and a pause. So is what could
// not be written: a phase that hangs is not followed by another one for long, and others must see that it has begun.
func (j *journal) write(term uint64, e *entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.dirty = true
	if e.writing {
		return
	}
	e.writing = true
	go func() {
		for j.more(e) {
			ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
			if err := j.flush(ctx, e); err != nil {
				j.log.Info("journal not written", "term", term, "error", err.Error())
			}
			cancel()
			<-j.clock.After(writeApart)
		}
	}()
}

func (j *journal) more(e *entry) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.writing = e.dirty
	return e.dirty
}

// flush writes the newest state. What fails is left to be written; one that was deleted cannot be any more.
func (j *journal) flush(ctx context.Context, e *entry) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	j.mu.Lock()
	next := e.pending.DeepCopy()
	e.dirty = false
	j.mu.Unlock()
	patch := client.MergeFrom(e.object.DeepCopy())
	updated := e.object.DeepCopy()
	updated.Status = *next
	err := j.client.Status().Patch(ctx, updated, patch)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		e.object, e.failed = updated, 0
		return nil
	}
	e.failed++
	e.dirty = e.dirty || !apierrors.IsNotFound(err) && e.failed < writeTries
	return err
}

// Close implements reparent.Journal. A term that was never opened (a request refused before) is closed all the same
// when it has an object: people wait for the answer in it.
func (j *journal) Close(ctx context.Context, r reparent.Result) error {
	j.mu.Lock()
	e := j.entries[r.Term]
	if e != nil {
		conclude(&e.pending, e.generation, r, j.clock.Now())
	}
	j.mu.Unlock()
	if e == nil {
		return nil
	}
	for {
		err := j.flush(ctx, e)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			j.write(r.Term, e) // goes on in the background
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// conclude writes the outcome into the status.
func conclude(st *v1alpha1.ReparentStatus, generation int64, r reparent.Result, now time.Time) {
	finished := metav1.NewMicroTime(now)
	st.Outcome, st.Message, st.FinishedAt = string(r.Outcome), clip.Bytes(r.Message, maxMessage), &finished
	st.NewPrimary, st.Why = r.NewPrimary, clip.Bytes(r.Why, maxMessage)
	if r.OldPrimary != "" {
		st.OldPrimary = r.OldPrimary
	}
	if r.WriteUnavailable > 0 {
		st.WriteUnavailable = &metav1.Duration{Duration: r.WriteUnavailable.Round(time.Millisecond)}
	}
	st.Candidates = nil
	for _, c := range r.Candidates {
		st.Candidates = append(st.Candidates, v1alpha1.ReparentCandidate{
			Instance: c.Instance, WALTerm: int64(c.Position.WALTerm), LSN: lsn(c.Position.LSN), Refused: clip.Bytes(c.Refused, maxMessage),
		})
	}
	status := metav1.ConditionFalse
	if r.Outcome == reparent.Succeeded {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&st.Conditions, metav1.Condition{
		Type: ConditionComplete, Status: status, Reason: string(r.Outcome), Message: clip.Bytes(r.Message, maxMessage),
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now),
	})
}

// ConditionComplete of a Reparent is True once it has succeeded and False once it has ended otherwise.
const ConditionComplete = "Complete"

func lsn(v uint64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%X/%X", v>>32, uint32(v))
}
