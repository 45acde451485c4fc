package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReparentKind is planned or emergency.
// +kubebuilder:validation:Enum=Planned;Emergency
type ReparentKind string

const (
	// ReparentPlanned is a PRS: the old primary stops cleanly, clients see a pause.
	ReparentPlanned ReparentKind = "Planned"
	// ReparentEmergency is an ERS: the old primary is left behind by revocation.
	ReparentEmergency ReparentKind = "Emergency"
)

// ReparentSpec is a request; it cannot be changed.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Reparent cannot be changed: create another one for the next term"
// +kubebuilder:validation:XValidation:rule="!(has(self.to) && has(self.awayFrom) && self.to == self.awayFrom)",message="spec.to and spec.awayFrom name the same instance"
type ReparentSpec struct {
	// Shard to reparent.
	// +kubebuilder:validation:MaxLength=63
	Shard string `json:"shard"`
	// Term this reparent opens: the shard's status.term plus one. Creating the object takes the lock for that term. One that
	// leaves out more than 1000 terms is refused.
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=1000000000000
	Term int64 `json:"term"`
	// Kind of the reparent. Default Planned.
	// +kubebuilder:default=Planned
	Kind ReparentKind `json:"kind,omitempty"`
	// To names the instance to promote. Default: the best candidate. An emergency promotes another one when this one cannot be
	// taken, and says so in status.message.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	To string `json:"to,omitempty"`
	// AwayFrom names an instance that must not be the primary afterwards. Nothing is done when it is not now.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	AwayFrom string `json:"awayFrom,omitempty"`
	// ExpectPrimary refuses the reparent when another instance is the primary.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	ExpectPrimary string `json:"expectPrimary,omitempty"`
	// Reason in a word, for metrics: Requested, Expired, PrimaryDead …
	// +kubebuilder:default="Requested"
	// +kubebuilder:validation:Pattern=`^[A-Z][A-Za-z]*$`
	// +kubebuilder:validation:MaxLength=63
	Reason string `json:"reason,omitempty"`
	// DrainTimeout is how long open transactions may take to finish in a planned reparent: those that are open when it begins, while
	// everybody goes on; those that were begun meanwhile, with clients paused, and never for more than half of
	// spec.gateway.maxPause of the Database. At most 1m. Default 3s, which 0s stands for, too.
	// +kubebuilder:default="3s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('1m')",message="spec.drainTimeout must be between 0s and 1m"
	DrainTimeout metav1.Duration `json:"drainTimeout,omitzero"`
}

// ReparentPhase is one step with its times.
type ReparentPhase struct {
	// Name of the phase.
	Name string `json:"name"`
	// StartedAt with microseconds.
	StartedAt metav1.MicroTime `json:"startedAt"`
	// FinishedAt with microseconds; absent while it runs.
	// +optional
	FinishedAt *metav1.MicroTime `json:"finishedAt,omitempty"`
	// Message for people: what was decided and why.
	// +optional
	Message string `json:"message,omitempty"`
}

// ReparentCandidate is one instance as it was judged.
type ReparentCandidate struct {
	// Instance judged.
	Instance string `json:"instance"`
	// WALTerm and LSN of its last flushed record.
	// +optional
	WALTerm int64 `json:"walTerm,omitempty"`
	// LSN in PostgreSQL's notation.
	// +optional
	LSN string `json:"lsn,omitempty"`
	// Refused says why it was not chosen; empty on the chosen one.
	// +optional
	Refused string `json:"refused,omitempty"`
}

// Outcomes of a reparent.
const (
	// OutcomeSucceeded: the new primary is established.
	OutcomeSucceeded = "Succeeded"
	// OutcomeRefused: nothing was touched, because it would have been unsafe or pointless.
	OutcomeRefused = "Refused"
	// OutcomeUndone: it failed before establish and the old primary serves again.
	OutcomeUndone = "Undone"
	// OutcomeFailed: it failed and the shard has no primary; the next term's reparent goes on.
	OutcomeFailed = "Failed"
	// OutcomeOvertaken: another coordinator opened a higher term.
	OutcomeOvertaken = "Overtaken"
)

// ReparentStatus is the journal of a reparent.
type ReparentStatus struct {
	// Conditions: Complete.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Phase under way or last.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Coordinator is the operator Pod that runs it.
	// +optional
	Coordinator string `json:"coordinator,omitempty"`
	// Phases with their times.
	// +optional
	// +listType=atomic
	Phases []ReparentPhase `json:"phases,omitempty"`
	// OldPrimary and NewPrimary.
	// +optional
	OldPrimary string `json:"oldPrimary,omitempty"`
	// NewPrimary once chosen.
	// +optional
	NewPrimary string `json:"newPrimary,omitempty"`
	// Why NewPrimary was chosen.
	// +optional
	Why string `json:"why,omitempty"`
	// Candidates as judged.
	// +optional
	// +listType=atomic
	Candidates []ReparentCandidate `json:"candidates,omitempty"`
	// Outcome: Succeeded, Refused, Undone, Failed or Overtaken; empty while it runs.
	// +optional
	Outcome string `json:"outcome,omitempty"`
	// Message for people.
	// +optional
	Message string `json:"message,omitempty"`
	// WriteUnavailable is the time from the moment the old primary stopped acknowledging, as far as known, to the
	// establishment of the new one.
	// +optional
	WriteUnavailable *metav1.Duration `json:"writeUnavailable,omitzero"`
	// FinishedAt is when the outcome was known.
	// +optional
	FinishedAt *metav1.MicroTime `json:"finishedAt,omitempty"`
}

// Reparent changes the primary of a shard. Its name is <shard>-<term>: creating it is taking the lock for that term.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=trp,categories=theseus
// +kubebuilder:printcolumn:name="Shard",type=string,JSONPath=`.spec.shard`
// +kubebuilder:printcolumn:name="Term",type=integer,JSONPath=`.spec.term`
// +kubebuilder:printcolumn:name="Kind",type=string,JSONPath=`.spec.kind`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`
// +kubebuilder:printcolumn:name="From",type=string,JSONPath=`.status.oldPrimary`
// +kubebuilder:printcolumn:name="To",type=string,JSONPath=`.status.newPrimary`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Outcome",type=string,JSONPath=`.status.outcome`
// +kubebuilder:printcolumn:name="Unavailable",type=string,JSONPath=`.status.writeUnavailable`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.startsWith(self.spec.shard + '-') && self.metadata.name.matches('-[1-9][0-9]*$') && int(self.metadata.name.substring(size(self.spec.shard) + 1)) == self.spec.term",message="metadata.name must be <shard>-<term>: the name is the lock for that term (theseus reparent makes it for you)"
type Reparent struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ReparentSpec `json:"spec"`
	// +optional
	Status ReparentStatus `json:"status,omitempty"`
}

// AnnotationCoordinator is on Reparents made by a coordinator for itself, from their creation on; requests of people have none.
const AnnotationCoordinator = "theseus.dev/coordinator"

// Opened reports whether a coordinator has opened its term. Before that a Reparent is a request: nobody is at work on it, and
// one that ended like that was refused.
func (r *Reparent) Opened() bool {
	return r.Annotations[AnnotationCoordinator] != "" || r.Status.Coordinator != ""
}

// ReparentList is a list of Reparent.
//
// +kubebuilder:object:root=true
type ReparentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Reparent `json:"items"`
}
