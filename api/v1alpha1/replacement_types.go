package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReplacementSpec is a request to replace one instance; it cannot be changed. Delete the Replacement to take it back:
// what was begun is undone as long as the instance has not begun to stop.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Replacement cannot be changed: delete it and create another one"
type ReplacementSpec struct {
	// Shard of the instance.
	// +kubebuilder:validation:MinLength=1
	Shard string `json:"shard"`
	// Instance to replace.
	// +kubebuilder:validation:MinLength=1
	Instance string `json:"instance"`
	// Reason it must go. Default Requested.
	// +kubebuilder:default=Requested
	Reason Reason `json:"reason,omitempty"`
	// Message for people: who asked and why.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// Deadline by which the instance should be gone. Of two replacements for the same reason the earlier goes first.
	// +optional
	Deadline *metav1.Time `json:"deadline,omitempty"`
}

// ReplacementPhase is where a replacement is.
// +kubebuilder:validation:Enum=Pending;Surging;Seeding;CatchingUp;Reparenting;Swapping;Retiring;RollingBack;Done;Failed;Cancelled
type ReplacementPhase string

// ReplacementStep is one phase with its times.
type ReplacementStep struct {
	// Phase of the step.
	Phase ReplacementPhase `json:"phase"`
	// StartedAt is when it began.
	StartedAt metav1.MicroTime `json:"startedAt"`
	// FinishedAt is when it ended; absent while it runs.
	// +optional
	FinishedAt *metav1.MicroTime `json:"finishedAt,omitempty"`
	// Message for people: why it ended as it did.
	// +optional
	Message string `json:"message,omitempty"`
}

// ReplacementStatus says where a replacement is and why it waits. Everything the state machine must remember is here.
type ReplacementStatus struct {
	// Conditions: Complete.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Phase under way: Pending (waits for the ledger), Surging, Seeding, CatchingUp, Reparenting, Swapping, Retiring,
	// RollingBack, Done, Failed or Cancelled.
	// +optional
	Phase ReplacementPhase `json:"phase,omitempty"`
	// PhaseStartedAt is when the phase began.
	// +optional
	PhaseStartedAt *metav1.MicroTime `json:"phaseStartedAt,omitempty"`
	// Steps so far; the latest 32.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Steps []ReplacementStep `json:"steps,omitempty"`
	// AdmittedAt is when the ledger let it begin.
	// +optional
	AdmittedAt *metav1.MicroTime `json:"admittedAt,omitempty"`
	// WaitingFor is why it waits, in a CamelCase word: the ledger's refusal, for example ShardBusy or NoCapacity.
	// +optional
	WaitingFor string `json:"waitingFor,omitempty"`
	// Waiting says what it waits for, in words.
	// +optional
	Waiting string `json:"waiting,omitempty"`
	// Node and Zone of the instance that goes, as they were when it was first seen.
	// +optional
	Node string `json:"node,omitempty"`
	// +optional
	Zone string `json:"zone,omitempty"`
	// Successor is the instance that takes over.
	// +optional
	Successor string `json:"successor,omitempty"`
	// SuccessorSeen is true once the successor's Pod existed.
	// +optional
	SuccessorSeen bool `json:"successorSeen,omitempty"`
	// Attempt counts the successors, from 1.
	// +optional
	Attempt int32 `json:"attempt,omitempty"`
	// RetryAt is when the next attempt begins.
	// +optional
	RetryAt *metav1.MicroTime `json:"retryAt,omitempty"`
	// LastFailure is why the last attempt failed, in a CamelCase word.
	// +optional
	LastFailure string `json:"lastFailure,omitempty"`
	// NoCapacityAt is when a surge last failed for want of a machine; GotMachineAt is when one last had one.
	// +optional
	NoCapacityAt *metav1.MicroTime `json:"noCapacityAt,omitempty"`
	// +optional
	GotMachineAt *metav1.MicroTime `json:"gotMachineAt,omitempty"`
	// ReparentFailures that earlier attempts have seen.
	// +optional
	ReparentFailures int32 `json:"reparentFailures,omitempty"`
	// Undo is how it will end when it is being rolled back: Failed or Cancelled.
	// +optional
	Undo ReplacementPhase `json:"undo,omitempty"`
	// StopBegun is true once the instance was told to stop: from then on there is only forward.
	// +optional
	StopBegun bool `json:"stopBegun,omitempty"`
	// VolumeKept says why the volume was left behind; empty when it was not.
	// +optional
	VolumeKept string `json:"volumeKept,omitempty"`
	// EvidenceAt is when evidence began to be taken.
	// +optional
	EvidenceAt *metav1.MicroTime `json:"evidenceAt,omitempty"`
	// EvidenceDone is true once nothing more will be taken.
	// +optional
	EvidenceDone bool `json:"evidenceDone,omitempty"`
	// Evidence is where what was kept of a condemned instance can be found; `theseus autopsy` reads it.
	// +optional
	Evidence string `json:"evidence,omitempty"`
	// Outcome: Succeeded, Cancelled or Failed; empty while it runs.
	// +optional
	Outcome string `json:"outcome,omitempty"`
	// Message says how it ended, or why the last attempt failed.
	// +optional
	Message string `json:"message,omitempty"`
	// FinishedAt is when the outcome was known.
	// +optional
	FinishedAt *metav1.MicroTime `json:"finishedAt,omitempty"`
}

// Replacement replaces one instance with a new one.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=trl,categories=theseus
// +kubebuilder:printcolumn:name="Shard",type=string,JSONPath=`.spec.shard`
// +kubebuilder:printcolumn:name="Instance",type=string,JSONPath=`.spec.instance`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Successor",type=string,JSONPath=`.status.successor`
// +kubebuilder:printcolumn:name="Waiting",type=string,JSONPath=`.status.waiting`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name must be at most 63 characters: it becomes a label of the instance that is made; choose a shorter one (theseus replace makes it for you)"
type Replacement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ReplacementSpec `json:"spec"`
	// +optional
	Status ReplacementStatus `json:"status,omitempty"`
}

// ReplacementList is a list of Replacement.
//
// +kubebuilder:object:root=true
type ReplacementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Replacement `json:"items"`
}
