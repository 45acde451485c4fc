package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ShardSpec is written by the Database controller; users change the Database.
type ShardSpec struct {
	// Database this shard belongs to.
	Database string `json:"database"`
	// Index of the shard in its Database, from 0.
	// +kubebuilder:validation:Minimum=0
	Index int32 `json:"index"`
	// Template is the Database's spec, as it applies to this shard.
	Template DatabaseSpec `json:"template"`
	// Image of the instances and gateways, resolved from the Database or the operator's default.
	Image string `json:"image"`
	// GatewayImage of the gateways, when it is not Image: older majors' images have no PgBouncer that is new enough.
	// +optional
	GatewayImage string `json:"gatewayImage,omitempty"`
}

// CohortStatus is one recorded cohort: a commit is acknowledged once Primary and Acks of Members flushed it.
type CohortStatus struct {
	// Term of the cohort.
	Term int64 `json:"term"`
	// Primary of the cohort.
	Primary string `json:"primary"`
	// Members are the standbys whose acknowledgement counts, sorted.
	// +optional
	// +listType=atomic
	Members []string `json:"members,omitempty"`
	// Acks is how many of Members it takes.
	Acks int32 `json:"acks"`
	// Revision counts the changes of members within the term, from 0. A primary refuses a lower one than it uses.
	// +optional
	Revision int64 `json:"revision,omitempty"`
}

// CohortRecord is the safety record of a shard. It is written with compare-and-swap before a primary is told to use
// what it says; revocation must satisfy every cohort in it.
type CohortRecord struct {
	// Cohorts that may be in force, oldest first. During a change of members both the old and the next are here.
	// +optional
	// +listType=atomic
	Cohorts []CohortStatus `json:"cohorts,omitempty"`
	// EstablishedTerm is the last term whose journal row was acknowledged; 0 is none.
	// +optional
	EstablishedTerm int64 `json:"establishedTerm,omitempty"`
	// Retired are the last instances whose volume was given up for deletion, oldest first. No cohort names them again.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Retired []string `json:"retired,omitempty"`
}

// BootstrapStatus records which instance was chosen to run initdb, before it was told to.
type BootstrapStatus struct {
	// Instance chosen.
	Instance string `json:"instance"`
	// At is when it was chosen.
	At metav1.Time `json:"at"`
	// Done is true from the moment clients may have been let in, which is just before the first primary is told to
	// establish itself: nothing may ever run initdb again.
	// +optional
	Done bool `json:"done,omitempty"`
}

// InstanceStatus is one instance as last seen.
type InstanceStatus struct {
	// Name of the instance: of its Pod and its claim.
	Name string `json:"name"`
	// PodUID is its identity.
	PodUID string `json:"podUID"`
	// Node it runs on.
	// +optional
	Node string `json:"node,omitempty"`
	// Zone of the node.
	// +optional
	Zone string `json:"zone,omitempty"`
	// Role: primary, member, learner, seeding, starting, unreachable or leaving.
	// +optional
	Role string `json:"role,omitempty"`
	// CreatedAt is when the instance was made.
	// +optional
	CreatedAt metav1.Time `json:"createdAt,omitempty"`
	// Ready is true while it serves in its role.
	// +optional
	Ready bool `json:"ready,omitempty"`
	// LagBytes behind the primary in replay, as of the last report.
	// +optional
	LagBytes int64 `json:"lagBytes,omitempty"`
	// Message for people: what it does or why it fails.
	// +optional
	Message string `json:"message,omitempty"`
}

// ShardStatus is the truth about a shard as the controllers know it.
type ShardStatus struct {
	// ObservedGeneration is the generation of the spec this status answers to.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Writable, Redundant, Progressing, PlanHolds, Frozen.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Term is the highest term begun.
	// +optional
	Term int64 `json:"term,omitempty"`
	// Primary is the primary of the established term.
	// +optional
	Primary string `json:"primary,omitempty"`
	// Bootstrap says who ran initdb.
	// +optional
	Bootstrap *BootstrapStatus `json:"bootstrap,omitempty"`
	// Record is the safety record of cohorts.
	// +optional
	Record CohortRecord `json:"record,omitempty"`
	// SystemIdentifier of the PostgreSQL cluster, as a decimal string; never changes once known.
	// +optional
	SystemIdentifier string `json:"systemIdentifier,omitempty"`
	// Instances as last seen.
	// +optional
	// +listType=map
	// +listMapKey=name
	Instances []InstanceStatus `json:"instances,omitempty"`
	// InstancesReady as "ready/wanted", for people.
	// +optional
	InstancesReady string `json:"instancesReady,omitempty"`
	// OldestInstance is when the oldest living instance was made.
	// +optional
	OldestInstance *metav1.Time `json:"oldestInstance,omitempty"`
	// LastReparent is when the established term began.
	// +optional
	LastReparent *metav1.Time `json:"lastReparent,omitempty"`
}

// Shard is one replication group: one primary and its standbys.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=tsh,categories=theseus
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Primary",type=string,JSONPath=`.status.primary`
// +kubebuilder:printcolumn:name="Term",type=integer,JSONPath=`.status.term`
// +kubebuilder:printcolumn:name="Instances",type=string,JSONPath=`.status.instancesReady`
// +kubebuilder:printcolumn:name="Oldest",type=date,JSONPath=`.status.oldestInstance`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Shard struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ShardSpec `json:"spec"`
	// +optional
	Status ShardStatus `json:"status,omitempty"`
}

// ShardList is a list of Shard.
//
// +kubebuilder:object:root=true
type ShardList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Shard `json:"items"`
}
