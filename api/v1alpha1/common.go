package v1alpha1

// Labels and annotations on everything Theseus makes. Pods, claims and services are found by these.
const (
	// LabelDatabase is the Database's name.
	LabelDatabase = "theseus.dev/database"
	// LabelShard is the Shard's name.
	LabelShard = "theseus.dev/shard"
	// LabelInstance is the instance's name, on its Pod and its claim.
	LabelInstance = "theseus.dev/instance"
	// LabelComponent says what a Pod is: ComponentInstance or ComponentGateway.
	LabelComponent = "theseus.dev/component"
	// LabelRole is RolePrimary or RoleStandby on instances; it follows the truth and is never its source.
	LabelRole = "theseus.dev/role"
	// AnnotationShardUID on a claim is the UID of the Shard whose instance it belongs to. Claims have no owner reference: who
	// deletes a Database in the foreground would have the garbage collector delete volumes that are to be kept.
	AnnotationShardUID = "theseus.dev/shard-uid"
	// LabelReplacement is the Replacement something was made for: a surge's Pod and claim, a Reparent.
	LabelReplacement = "theseus.dev/replacement"
	// LabelSettled is on the Pods that keep others of their shard off their node: all but a surge that has no node yet,
	// which may take the place of the instance it replaces.
	LabelSettled = "theseus.dev/settled"

	// ComponentInstance marks the Pods of PostgreSQL servers.
	ComponentInstance = "instance"
	// ComponentGateway marks the Pods of gateways.
	ComponentGateway = "gateway"
	// RolePrimary is the value of LabelRole on the established primary.
	RolePrimary = "primary"
	// RoleStandby is the value of LabelRole on every other instance that can be read from.
	RoleStandby = "standby"

	// Finalizer keeps a Database or Shard until what it made is gone.
	Finalizer = "theseus.dev/cleanup"
)

// Condition types shared by Database and Shard. Reasons are CamelCase words, messages are for people.
const (
	// ConditionReady is true while writes are served and the redundancy of the spec is there.
	ConditionReady = "Ready"
	// ConditionWritable is true while an established primary can acknowledge writes.
	ConditionWritable = "Writable"
	// ConditionRedundant is true while the cohort has as many members as the spec asks for.
	ConditionRedundant = "Redundant"
	// ConditionProgressing is true while instances are being made, seeded or replaced.
	ConditionProgressing = "Progressing"
)

// Durability is the promise made for an acknowledged commit.
// +kubebuilder:validation:Enum=Required
type Durability string

// DurabilityRequired never acknowledges a commit that a quorum has not flushed: writes wait rather than be lost.
const DurabilityRequired Durability = "Required"

// DeletionPolicy says what is left of a deleted Database.
// +kubebuilder:validation:Enum=Delete;RetainVolumes
type DeletionPolicy string

const (
	// DeletionPolicyDelete removes everything the Database made.
	DeletionPolicyDelete DeletionPolicy = "Delete"
	// DeletionPolicyRetainVolumes keeps the claims (and with them the volumes) of the instances alive at deletion.
	DeletionPolicyRetainVolumes DeletionPolicy = "RetainVolumes"
)

// Reason is why an instance must go. See the vocabulary in docs/design.md.
// +kubebuilder:validation:Enum=Expired;NodeExpiring;Draining;Condemned;Outdated;Drill;Requested
type Reason string

// The reasons, in no order; urgency is the ledger's business.
const (
	ReasonExpired      Reason = "Expired"
	ReasonNodeExpiring Reason = "NodeExpiring"
	ReasonDraining     Reason = "Draining"
	ReasonCondemned    Reason = "Condemned"
	ReasonOutdated     Reason = "Outdated"
	ReasonDrill        Reason = "Drill"
	ReasonRequested    Reason = "Requested"
)
