package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// MachineProvider names who makes and removes the machines under nodes.
// +kubebuilder:validation:Enum=None;Karpenter;ClusterAPI;Webhook
type MachineProvider string

const (
	// MachineNone moves the instances off an old node and leaves the node to people.
	MachineNone MachineProvider = "None"
	// MachineKarpenter deletes the node's NodeClaim (karpenter.sh/v1).
	MachineKarpenter MachineProvider = "Karpenter"
	// MachineClusterAPI surges and removes the node's Machine (cluster.x-k8s.io/v1beta2).
	MachineClusterAPI MachineProvider = "ClusterAPI"
	// MachineWebhook asks an HTTP endpoint.
	MachineWebhook MachineProvider = "Webhook"
)

// NodePolicySpec bounds the age of nodes.
//
// +kubebuilder:validation:XValidation:rule="(self.machine.provider == 'Webhook') == has(self.machine.webhook)",message="spec.machine.webhook belongs to provider Webhook, and only to it"
type NodePolicySpec struct {
	// Selector of the nodes, by label. An empty selector selects all nodes. Policies must not overlap: a node that two
	// select is left alone, and both say so.
	// +kubebuilder:default={}
	Selector metav1.LabelSelector `json:"selector,omitempty"`
	// MaxAge no selected node outlives. At least 1m, at most 696h (29 days, the default).
	// +kubebuilder:default="696h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('696h')",message="spec.maxAge must be between 1m and 696h (29 days): nothing gets older here"
	MaxAge metav1.Duration `json:"maxAge,omitzero"`
	// Machine says who replaces the machine under a node. Default: nobody (None).
	// +kubebuilder:default={}
	Machine MachineSpec `json:"machine,omitempty"`
	// Budget is how many of the nodes may be on their way out at once for their age: a number, or a percentage of the
	// selected nodes, rounded up. Default 1.
	// +kubebuilder:default=1
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 0 : self.matches('^(100|[0-9]{1,2})%$')",message="spec.budget must be a number of nodes, or a percentage from 0% to 100%"
	Budget intstr.IntOrString `json:"budget,omitempty"`
	// Windows in which nodes may begin to go. Default: always.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Windows []Window `json:"windows,omitempty"`
	// Freeze lets no node begin to go, and is the reason why, for people. Empty (the default) is not frozen.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Freeze string `json:"freeze,omitempty"`
	// DrainTimeout is how long the instances may take to move off one node before the node is given back and tried again
	// later. Default 12h.
	// +kubebuilder:default="12h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="spec.drainTimeout must be at least 1m"
	DrainTimeout metav1.Duration `json:"drainTimeout,omitzero"`
}

// MachineSpec says who replaces machines.
type MachineSpec struct {
	// Provider of the machines. Default None.
	// +kubebuilder:default=None
	Provider MachineProvider `json:"provider,omitempty"`
	// Webhook of the provider Webhook.
	// +optional
	Webhook *MachineWebhookSpec `json:"webhook,omitempty"`
}

// MachineWebhookSpec is an HTTP endpoint that replaces machines. docs/machines.md describes what it is sent.
type MachineWebhookSpec struct {
	// URL that requests are POSTed to.
	// +kubebuilder:validation:Pattern=`^https?://`
	// +kubebuilder:validation:MaxLength=2048
	URL string `json:"url"`
	// SecretName of a Secret in the operator's namespace with the keys `hmac` (requests are signed with it), `token` (sent
	// as a bearer token), and `ca.crt` (whom to trust), all optional.
	// +optional
	SecretName string `json:"secretName,omitempty"`
	// Timeout of one request. At least 1s, at most 5m. Default 30s.
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('5m')",message="spec.machine.webhook.timeout must be between 1s and 5m"
	Timeout metav1.Duration `json:"timeout,omitzero"`
}

// Window is a stretch of the week.
type Window struct {
	// Days on which it opens: Sun, Mon, Tue, Wed, Thu, Fri, Sat. Default: every day.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=7
	// +kubebuilder:validation:items:Enum=Sun;Mon;Tue;Wed;Thu;Fri;Sat
	Days []string `json:"days,omitempty"`
	// Start of the window, as HH:MM.
	// +kubebuilder:validation:Pattern=`^([01][0-9]|2[0-3]):[0-5][0-9]$`
	Start string `json:"start"`
	// Length of the window, at most 24h.
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('24h')",message="a window is open for more than nothing and at most 24h"
	Length metav1.Duration `json:"length"`
	// TimeZone of Start, for example Europe/Berlin. Default UTC.
	// +optional
	TimeZone string `json:"timeZone,omitempty"`
}

// Conditions of a NodePolicy.
const (
	// ConditionPlanHolds is true while no node is, or will be, older than spec.maxAge.
	ConditionPlanHolds = "PlanHolds"
	// ConditionFrozen is true while no node may begin to go, in some zone or at all.
	ConditionFrozen = "Frozen"
)

// NodeRotation is one node on its way out.
type NodeRotation struct {
	// Node that goes.
	Node string `json:"node"`
	// NodeUID tells it from a later node of the same name.
	NodeUID string `json:"nodeUID"`
	// Zone of the node.
	// +optional
	Zone string `json:"zone,omitempty"`
	// Machine that was found under it, as the provider names it.
	// +optional
	Machine string `json:"machine,omitempty"`
	// MachineUID tells it from a later machine of the same name.
	// +optional
	MachineUID string `json:"machineUID,omitempty"`
	// Phase: Holding, Surging, Moving, Replacing, GivingBack, Done or Failed.
	Phase string `json:"phase"`
	// PhaseStartedAt is when the phase began; StartedAt is when it all began.
	PhaseStartedAt metav1.Time `json:"phaseStartedAt"`
	StartedAt      metav1.Time `json:"startedAt"`
	// FinishedAt is when it was over.
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
	// Deadline is when the node reaches its maximum age.
	// +optional
	Deadline *metav1.Time `json:"deadline,omitempty"`
	// Message says what it waits for, or how it ended.
	// +optional
	Message string `json:"message,omitempty"`
	// FailedIn is the phase that took too long, when that is how it ended. After Replacing the node stays cordoned: its
	// provider was told to take the machine, and may do so at any moment.
	// +optional
	FailedIn string `json:"failedIn,omitempty"`
	// Failures is how many rotations of this node took too long before this one.
	// +optional
	Failures int32 `json:"failures,omitempty"`
}

// NodePolicyStatus is what became of a policy.
type NodePolicyStatus struct {
	// ObservedGeneration is the generation of the spec this status answers to.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, PlanHolds, Frozen.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Nodes that are selected.
	// +optional
	Nodes int32 `json:"nodes,omitempty"`
	// OldestNode is when the oldest of them was made.
	// +optional
	OldestNode *metav1.Time `json:"oldestNode,omitempty"`
	// NextNode is the one that goes next, NextAt when.
	// +optional
	NextNode string `json:"nextNode,omitempty"`
	// +optional
	NextAt *metav1.Time `json:"nextAt,omitempty"`
	// PerDay is the rate at which ages ask for new nodes, for people.
	// +optional
	PerDay string `json:"perDay,omitempty"`
	// Rotations under way, those that ended within the last hour, and the last 50 that ended within the last seven days: what
	// they took says how early the next have to begin.
	// +optional
	// +listType=map
	// +listMapKey=node
	Rotations []NodeRotation `json:"rotations,omitempty"`
}

// NodePolicy bounds the age of nodes: before it is reached the instances are moved off and the machine is replaced.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=tnp,categories=theseus
// +kubebuilder:printcolumn:name="MaxAge",type=string,JSONPath=`.spec.maxAge`
// +kubebuilder:printcolumn:name="Machines",type=string,JSONPath=`.spec.machine.provider`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Oldest",type=date,JSONPath=`.status.oldestNode`
// +kubebuilder:printcolumn:name="Next",type=string,JSONPath=`.status.nextNode`
// +kubebuilder:printcolumn:name="Holds",type=string,JSONPath=`.status.conditions[?(@.type=="PlanHolds")].status`
// +kubebuilder:printcolumn:name="Frozen",type=string,JSONPath=`.status.conditions[?(@.type=="Frozen")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NodePolicySpec `json:"spec"`
	// +optional
	Status NodePolicyStatus `json:"status,omitempty"`
}

// NodePolicyList is a list of NodePolicy.
//
// +kubebuilder:object:root=true
type NodePolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodePolicy `json:"items"`
}
