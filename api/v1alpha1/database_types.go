package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DatabaseSpec is what a user asks for.
//
// +kubebuilder:validation:XValidation:rule="self.shards == oldSelf.shards",message="spec.shards cannot be changed: resharding is not supported; create a new Database with the number of shards you need and copy the data"
// +kubebuilder:validation:XValidation:rule="self.postgres.major == oldSelf.postgres.major",message="spec.postgres.major cannot be changed in place: create a new Database of the other major and copy the data"
// +kubebuilder:validation:XValidation:rule="self.application == oldSelf.application",message="spec.application cannot be changed: create roles and databases with SQL instead"
type DatabaseSpec struct {
	// Postgres says which PostgreSQL runs and how it is configured.
	// +kubebuilder:default={}
	Postgres PostgresSpec `json:"postgres,omitempty"`

	// Shards is the number of independent replication groups. Fixed for the Database's life. Default 1.
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	Shards int32 `json:"shards,omitempty"`

	// Instances is the number of PostgreSQL servers per shard, primary included. Odd numbers are best: with 3 one
	// instance, with 5 two may fail with nothing lost. With 1 there is no copy and durability is the volume's. Default 3.
	// +kubebuilder:default=3
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="spec.instances must be at least 1: a shard without instances serves nobody; delete the Database to remove it"
	// +kubebuilder:validation:XValidation:rule="self <= 9",message="spec.instances must be at most 9 per shard: add shards rather than copies"
	// +kubebuilder:validation:XValidation:rule="oldSelf == 1 || self != 1",message="spec.instances cannot go back to 1: commits under way would lose their second copy; create a new Database with one instance and copy the data"
	Instances int32 `json:"instances,omitempty"`

	// Storage of each instance.
	Storage StorageSpec `json:"storage"`

	// Durability of an acknowledged commit. Required (the default) never acknowledges what a quorum has not flushed.
	// +kubebuilder:default=Required
	Durability Durability `json:"durability,omitempty"`

	// Lifetime bounds the age of every instance.
	// +kubebuilder:default={}
	Lifetime LifetimeSpec `json:"lifetime,omitempty"`

	// Gateway is the connection pooler in front of each shard.
	// +kubebuilder:default={}
	Gateway GatewaySpec `json:"gateway,omitempty"`

	// Application is the database and role made for the application at bootstrap.
	// +kubebuilder:default={}
	Application ApplicationSpec `json:"application,omitempty"`

	// Resources of each instance's container. Memory should be a limit equal to the request.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.requests) || !has(self.limits) || ['cpu', 'memory', 'ephemeral-storage'].all(r, !(r in self.requests) || !(r in self.limits) || quantity(string(self.requests[r])).compareTo(quantity(string(self.limits[r]))) <= 0)",message="spec.resources: a request must not be more than its limit, or no instance could be made"
	Resources corev1.ResourceRequirements `json:"resources,omitempty"`

	// Scheduling says where instances and gateways may run.
	// +optional
	Scheduling SchedulingSpec `json:"scheduling,omitempty"`

	// DeletionPolicy says what is left when the Database is deleted. Default Delete.
	// +kubebuilder:default=Delete
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// PostgresSpec says which PostgreSQL runs.
type PostgresSpec struct {
	// Major version. Default 17.
	// +kubebuilder:default=17
	// +kubebuilder:validation:Enum=15;16;17;18
	Major int32 `json:"major,omitempty"`
	// Image of the instances and gateways; default: the operator's operand image of this major.
	// +optional
	Image string `json:"image,omitempty"`
	// Parameters for postgresql.conf. Those that Theseus must own are refused.
	// +optional
	// +kubebuilder:validation:MaxProperties=100
	// +kubebuilder:validation:XValidation:rule="self.all(name, name.matches('^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$'))",message="spec.postgres.parameters: every name must be that of a PostgreSQL parameter, in lower case (such as work_mem or pg_stat_statements.max)"
	// +kubebuilder:validation:XValidation:rule="!self.exists(name, name.matches('^(allow_alter_system|archive_.*|archive_library|backtrace_functions|bonjour.*|client_connection_check_interval|cluster_name|config_file|data_checksums|data_directory|data_sync_retry|debug_.*|default_transaction_read_only|dynamic_shared_memory_type|event_source|external_pid_file|fsync|full_page_writes|hba_file|hot_standby|ident_file|idle_session_timeout|ignore_checksum_failure|ignore_invalid_pages|ignore_system_indexes|include.*|krb_.*|listen_addresses|local_preload_libraries|lock_timeout|log_destination|log_directory|log_filename|log_line_prefix|log_rotation_.*|logging_collector|max_prepared_transactions|max_replication_slots|max_slot_wal_keep_size|max_wal_senders|password_encryption|port|post_auth_delay|pre_auth_delay|primary_.*|promote_trigger_file|recovery_.*|remove_temp_files_after_crash|reserved_connections|restart_after_crash|restore_command|send_abort_for_.*|shared_memory_type|ssl.*|statement_timeout|superuser_reserved_connections|synchronized_standby_slots|synchronous_standby_names|syslog_.*|tcp_keepalives_.*|tcp_user_timeout|trace_.*|track_commit_timestamp|transaction_read_only|transaction_timeout|unix_socket_.*|update_process_title|wal_consistency_checking|wal_init_zero|wal_keep_size|wal_level|wal_log_hints|wal_receiver_.*|wal_recycle|wal_retrieve_retry_interval|wal_sender_timeout|zero_damaged_pages)$'))",message="spec.postgres.parameters has a parameter that Theseus sets itself",messageExpression="'spec.postgres.parameters: ' + self.filter(name, name.matches('^(allow_alter_system|archive_.*|archive_library|backtrace_functions|bonjour.*|client_connection_check_interval|cluster_name|config_file|data_checksums|data_directory|data_sync_retry|debug_.*|default_transaction_read_only|dynamic_shared_memory_type|event_source|external_pid_file|fsync|full_page_writes|hba_file|hot_standby|ident_file|idle_session_timeout|ignore_checksum_failure|ignore_invalid_pages|ignore_system_indexes|include.*|krb_.*|listen_addresses|local_preload_libraries|lock_timeout|log_destination|log_directory|log_filename|log_line_prefix|log_rotation_.*|logging_collector|max_prepared_transactions|max_replication_slots|max_slot_wal_keep_size|max_wal_senders|password_encryption|port|post_auth_delay|pre_auth_delay|primary_.*|promote_trigger_file|recovery_.*|remove_temp_files_after_crash|reserved_connections|restart_after_crash|restore_command|send_abort_for_.*|shared_memory_type|ssl.*|statement_timeout|superuser_reserved_connections|synchronized_standby_slots|synchronous_standby_names|syslog_.*|tcp_keepalives_.*|tcp_user_timeout|trace_.*|track_commit_timestamp|transaction_read_only|transaction_timeout|unix_socket_.*|update_process_title|wal_consistency_checking|wal_init_zero|wal_keep_size|wal_level|wal_log_hints|wal_receiver_.*|wal_recycle|wal_retrieve_retry_interval|wal_sender_timeout|zero_damaged_pages)$'))[0] + ' cannot be set: Theseus sets it itself, because replication, durability or failure detection depend on it; remove it'"
	// +kubebuilder:validation:XValidation:rule="!('synchronous_commit' in self) || self['synchronous_commit'] in ['on', 'remote_apply']",message="spec.postgres.parameters: synchronous_commit must be on or remote_apply for all sessions; a transaction that may be lost can choose less for itself (SET LOCAL)"
	Parameters map[string]ParameterValue `json:"parameters,omitempty"`
}

// ParameterValue is the value of a PostgreSQL parameter, as one would write it in postgresql.conf without quotes.
// +kubebuilder:validation:MaxLength=1000
// +kubebuilder:validation:XValidation:rule="!self.contains('\\n') && !self.contains('\\r')",message="the value of a parameter must be one line"
type ParameterValue string

// StorageSpec is the volume of an instance. A rule on className itself would not be asked when it appears or disappears.
//
// +kubebuilder:validation:XValidation:rule="has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)",message="spec.storage.className cannot be changed, nor added or removed: create a new Database with the other StorageClass and copy the data"
type StorageSpec struct {
	// Size of each volume. It may grow, never shrink.
	// +kubebuilder:validation:XValidation:rule="quantity(self).compareTo(quantity(oldSelf)) >= 0",message="spec.storage.size cannot shrink: file systems do not; create a new Database with smaller volumes and copy the data"
	// +kubebuilder:validation:XValidation:rule="quantity(self).compareTo(quantity('256Mi')) >= 0",message="spec.storage.size must be at least 256Mi: PostgreSQL needs that much for itself"
	Size resource.Quantity `json:"size"`
	// ClassName of the StorageClass; default: the cluster's.
	// +optional
	ClassName *string `json:"className,omitempty"`
}

// LifetimeSpec bounds the age of instances.
type LifetimeSpec struct {
	// MaxAge no instance outlives. At least 1m, at most 696h (29 days, the default).
	// +kubebuilder:default="696h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('696h')",message="spec.lifetime.maxAge must be between 1m and 696h (29 days): nothing gets older here"
	MaxAge metav1.Duration `json:"maxAge,omitzero"`
	// AlwaysFailover additionally reparents every shard at least this often (for example 168h). At least 10s. Default: off.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10s')",message="spec.lifetime.alwaysFailover must be at least 10s, and a duration such as 168h"
	AlwaysFailover *metav1.Duration `json:"alwaysFailover,omitzero"`
}

// GatewaySpec is the connection pooler of each shard.
type GatewaySpec struct {
	// Enabled puts gateways in front of each shard; the read-write Service then points at them. Default true.
	// +kubebuilder:default=true
	Enabled *bool `json:"enabled,omitempty"`
	// Replicas per shard. Default 2.
	// +kubebuilder:default=2
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="spec.gateway.replicas must be at least 1: to do without gateways set spec.gateway.enabled to false"
	// +kubebuilder:validation:Maximum=64
	Replicas int32 `json:"replicas,omitempty"`
	// PoolSize is the number of server connections per gateway, user and database. Default 20.
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	PoolSize int32 `json:"poolSize,omitempty"`
	// MaxPause is how long a client may be held while there is no primary, before it gets an error. Default 15s.
	// +kubebuilder:default="15s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('5m')",message="spec.gateway.maxPause must be between 1s and 5m"
	MaxPause metav1.Duration `json:"maxPause,omitzero"`
	// Resources of each gateway's container. Default: requests of 50m CPU and 64Mi, no limits; {} is none at all.
	// +kubebuilder:default={requests: {cpu: "50m", memory: "64Mi"}}
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
}

// ApplicationSpec is what bootstrap creates for the application.
type ApplicationSpec struct {
	// Database name. Default "app".
	// +kubebuilder:default="app"
	// +kubebuilder:validation:Pattern=`^[a-z_][a-z0-9_]{0,62}$`
	// +kubebuilder:validation:XValidation:rule="!(self in ['postgres', 'template0', 'template1'])",message="spec.application.database must not be one of PostgreSQL's own databases"
	Database string `json:"database,omitempty"`
	// Owner role. Default "app". Its password is in the Secret <database>-app.
	// +kubebuilder:default="app"
	// +kubebuilder:validation:Pattern=`^[a-z_][a-z0-9_]{0,62}$`
	// +kubebuilder:validation:XValidation:rule="self != 'postgres' && !self.startsWith('pg_') && !self.startsWith('theseus')",message="spec.application.owner must not be postgres or begin with pg_ or theseus: those roles are taken"
	Owner string `json:"owner,omitempty"`
}

// SchedulingSpec says where Pods may run. Spreading over nodes and zones is done anyway.
type SchedulingSpec struct {
	// NodeSelector for instances and gateways.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// Tolerations for instances and gateways.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// RuntimeClassName for instances, for example a light VM.
	// +optional
	RuntimeClassName *string `json:"runtimeClassName,omitempty"`
	// PriorityClassName for instances and gateways.
	// +optional
	PriorityClassName string `json:"priorityClassName,omitempty"`
	// AllowSharedNodes lets two instances of one shard share a node. For test clusters only. Default false.
	// +optional
	AllowSharedNodes bool `json:"allowSharedNodes,omitempty"`
}

// DatabaseStatus is the sum of the shards.
type DatabaseStatus struct {
	// ObservedGeneration is the generation of the spec this status answers to.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Writable, Redundant, Progressing, PlanHolds, Frozen.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Shards wanted, ready: as "ready/wanted", for people.
	// +optional
	Shards string `json:"shards,omitempty"`
	// Instances that are ready, as "ready/wanted", for people.
	// +optional
	Instances string `json:"instances,omitempty"`
	// Primary of the only shard, or "n of m shards" when there are several.
	// +optional
	Primary string `json:"primary,omitempty"`
	// Term of the only shard; the highest term when there are several.
	// +optional
	Term int64 `json:"term,omitempty"`
	// OldestInstance is when the oldest living instance was made.
	// +optional
	OldestInstance *metav1.Time `json:"oldestInstance,omitempty"`
	// Endpoint clients use for reading and writing (host:port); of the first shard when there are several.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`
}

// Database is PostgreSQL as a user asks for it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=tdb,categories=theseus
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Primary",type=string,JSONPath=`.status.primary`
// +kubebuilder:printcolumn:name="Term",type=integer,JSONPath=`.status.term`
// +kubebuilder:printcolumn:name="Shards",type=string,JSONPath=`.status.shards`
// +kubebuilder:printcolumn:name="Instances",type=string,JSONPath=`.status.instances`
// +kubebuilder:printcolumn:name="Oldest",type=date,JSONPath=`.status.oldestInstance`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 40",message="metadata.name must be at most 40 characters: the names of shards, instances and services are made from it and must fit Kubernetes' limits"
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name must be lower case letters, digits and '-', begin with a letter: it becomes part of service names"
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.matches('-[0-9]+$')",message="metadata.name must not end in '-' and a number: that is how shards are named"
type Database struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DatabaseSpec `json:"spec"`
	// +optional
	Status DatabaseStatus `json:"status,omitempty"`
}

// DatabaseList is a list of Database.
//
// +kubebuilder:object:root=true
type DatabaseList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Database `json:"items"`
}
