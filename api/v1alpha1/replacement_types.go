package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReplacementSpec is a request to replace one instance; it cannot be changed.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Replacement cannot be changed: delete it and create another one"
type ReplacementSpec struct {
	// Shard of the instance.
	// +kubebuilder:validation:MaxLength=63
	Shard string `json:"shard"`
	// Instance to replace.
	// +kubebuilder:validation:MaxLength=63
	Instance string `json:"instance"`
	// Reason it must go.
	// +kubebuilder:default=Requested
	Reason Reason `json:"reason,omitempty"`
	// Message for people: who asked and why.
	// +optional
	// +kubebuilder:validation:MaxLength=1000
	Message string `json:"message,omitempty"`
}

// ReplacementStatus says where a replacement is and why it waits.
type ReplacementStatus struct {
	// Conditions: Complete.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Phase under way: Pending, Surging, Seeding, CatchingUp, Swapping, Reparenting, Retiring, Done, Failed.
	// +optional
	Phase string `json:"phase,omitempty"`
	// PhaseStartedAt is when the phase began.
	// +optional
	PhaseStartedAt *metav1.Time `json:"phaseStartedAt,omitempty"`
	// Waiting says what it waits for, in words.
	// +optional
	Waiting string `json:"waiting,omitempty"`
	// Successor is the instance that takes over.
	// +optional
	Successor string `json:"successor,omitempty"`
	// Evidence is where what was kept of a condemned instance can be found.
	// +optional
	Evidence string `json:"evidence,omitempty"`
	// Outcome: Succeeded, Cancelled or Failed; empty while it runs.
	// +optional
	Outcome string `json:"outcome,omitempty"`
	// FinishedAt is when the outcome was known.
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
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
