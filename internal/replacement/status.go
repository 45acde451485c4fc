package replacement

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
)

// maxSteps is how many steps are kept in an object.
const maxSteps = 32

// FromObject reads what Next must know from an object's status.
func FromObject(s v1alpha1.ReplacementStatus) Status {
	return Status{
		Phase: Phase(s.Phase), PhaseStartedAt: read(s.PhaseStartedAt), AdmittedAt: read(s.AdmittedAt),
		Attempt: int(s.Attempt), Successor: s.Successor, SuccessorSeen: s.SuccessorSeen,
		RetryAt: read(s.RetryAt), EvidenceAt: read(s.EvidenceAt), EvidenceDone: s.EvidenceDone,
		ReparentFailures: int(s.ReparentFailures), Undo: Phase(s.Undo), StopBegun: s.StopBegun, VolumeKept: s.VolumeKept,
		LastFailure: Failure(s.LastFailure), NoCapacityAt: read(s.NoCapacityAt), GotMachineAt: read(s.GotMachineAt),
		Outcome: s.Outcome, Message: s.Message, FinishedAt: read(s.FinishedAt),
	}
}

// ToObject writes a decision into an object's status and keeps its list of steps. It leaves alone what is not its own:
// conditions, node and zone, the place of the evidence.
func ToObject(d Decision, into *v1alpha1.ReplacementStatus, now time.Time) {
	s := d.Status
	if into.Phase != v1alpha1.ReplacementPhase(s.Phase) {
		step(s, into, now)
	}
	into.Phase, into.PhaseStartedAt, into.AdmittedAt = v1alpha1.ReplacementPhase(s.Phase), write(s.PhaseStartedAt), write(s.AdmittedAt)
	into.Attempt, into.Successor, into.SuccessorSeen = int32(s.Attempt), s.Successor, s.SuccessorSeen
	into.RetryAt, into.EvidenceAt, into.EvidenceDone = write(s.RetryAt), write(s.EvidenceAt), s.EvidenceDone
	into.ReparentFailures, into.Undo, into.StopBegun = int32(s.ReparentFailures), v1alpha1.ReplacementPhase(s.Undo), s.StopBegun
	into.VolumeKept, into.LastFailure = s.VolumeKept, string(s.LastFailure)
	into.NoCapacityAt, into.GotMachineAt = write(s.NoCapacityAt), write(s.GotMachineAt)
	into.Outcome, into.Message, into.FinishedAt = s.Outcome, s.Message, write(s.FinishedAt)
	into.Waiting = d.Waiting
}

func step(s Status, into *v1alpha1.ReplacementStatus, now time.Time) {
	at := metav1.NewMicroTime(now)
	if n := len(into.Steps); n > 0 && into.Steps[n-1].FinishedAt == nil {
		into.Steps[n-1].FinishedAt = &at
		into.Steps[n-1].Message = s.Message
	}
	if s.Phase.Finished() {
		return
	}
	into.Steps = append(into.Steps, v1alpha1.ReplacementStep{Phase: v1alpha1.ReplacementPhase(s.Phase), StartedAt: at})
	if n := len(into.Steps); n > maxSteps {
		into.Steps = into.Steps[n-maxSteps:]
	}
}

func read(t *metav1.MicroTime) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

func write(t time.Time) *metav1.MicroTime {
	if t.IsZero() {
		return nil
	}
	m := metav1.NewMicroTime(t)
	return &m
}
