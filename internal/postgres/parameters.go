package postgres

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// owned are the parameters Theseus sets itself, with the reason a user is told. A name that ends in * is a prefix.
// Admission uses it as well as the server.
var owned = map[string]string{
	"synchronous_standby_names":        "the cohort decides which standbys acknowledge a commit",
	"synchronized_standby_slots":       "the cohort decides which standbys acknowledge a commit",
	"listen_addresses":                 "gateways and agents rely on it",
	"port":                             "gateways and agents rely on it",
	"unix_socket_*":                    "the agent's socket is private",
	"ssl*":                             "certificates come from the database's CA and rotate",
	"hba_file":                         "access rules are generated",
	"ident_file":                       "access rules are generated",
	"config_file":                      "the configuration is generated",
	"include*":                         "the configuration is generated",
	"data_directory":                   "the volume's layout is fixed",
	"external_pid_file":                "nothing but the volume is writable",
	"wal_level":                        "replication needs it",
	"wal_log_hints":                    "rewinding needs it",
	"full_page_writes":                 "turning it off loses data in a power cut",
	"fsync":                            "turning it off loses data in a power cut",
	"data_checksums":                   "set when the data directory is created",
	"ignore_checksum_failure":          "corruption must be seen",
	"zero_damaged_pages":               "corruption must be seen",
	"ignore_system_indexes":            "for repairs only",
	"ignore_invalid_pages":             "corruption must be seen",
	"recovery_*":                       "recovery is the agent's",
	"restore_command":                  "recovery is the agent's",
	"archive_*":                        "backups are configured in the Database",
	"primary_*":                        "the agent decides whom to follow",
	"promote_trigger_file":             "promotion is the agent's",
	"hot_standby":                      "the agent watches standbys through it",
	"max_wal_senders":                  "sized for the shard and its backups",
	"max_replication_slots":            "slots could fill the volume",
	"max_slot_wal_keep_size":           "slots could fill the volume",
	"wal_keep_size":                    "sized from the volume",
	"wal_sender_timeout":               "failure detection depends on it",
	"wal_receiver_*":                   "failure detection depends on it",
	"wal_retrieve_retry_interval":      "recovery time depends on it",
	"tcp_keepalives_*":                 "failure detection depends on it",
	"tcp_user_timeout":                 "failure detection depends on it",
	"restart_after_crash":              "a primary never restarts on its own",
	"superuser_reserved_connections":   "the agent must always get a session",
	"reserved_connections":             "the agent must always get a session",
	"cluster_name":                     "names the instance",
	"log_destination":                  "logs go through the agent",
	"logging_collector":                "logs go through the agent",
	"log_directory":                    "logs go through the agent",
	"log_filename":                     "logs go through the agent",
	"log_line_prefix":                  "logs go through the agent",
	"log_rotation_*":                   "logs go through the agent",
	"event_source":                     "logs go through the agent",
	"syslog_*":                         "logs go through the agent",
	"shared_memory_type":               "leftovers of a crash must not keep a server from starting",
	"dynamic_shared_memory_type":       "only /dev/shm is mounted for it",
	"update_process_title":             "the WAL receiver is found by its title",
	"password_encryption":              "users authenticate with SCRAM",
	"krb_*":                            "not supported",
	"allow_alter_system":               "the configuration is generated",
	"local_preload_libraries":          "libraries could bypass the agent",
	"transaction_read_only":            "roles are the agent's",
	"default_transaction_read_only":    "probes and the reparent journal must be able to write",
	"archive_library":                  "backups are configured in the Database",
	"wal_recycle":                      "replication depends on it",
	"wal_init_zero":                    "running out of space must be noticed early",
	"data_sync_retry":                  "a failed fsync must crash the server, not be retried",
	"trace_*":                          "for developers",
	"debug_*":                          "for developers",
	"post_auth_delay":                  "for developers",
	"pre_auth_delay":                   "for developers",
	"backtrace_functions":              "for developers",
	"remove_temp_files_after_crash":    "leftovers would fill the volume",
	"send_abort_for_*":                 "for developers",
	"wal_consistency_checking":         "for developers",
	"bonjour*":                         "not supported",
	"max_prepared_transactions":        "must grow on standbys before the primary, and two-phase commits survive a reparent unresolved",
	"track_commit_timestamp":           "must be the same on all instances",
	"statement_timeout":                "set it per role: the agent's own sessions must not be cancelled while they wait for acknowledgement",
	"transaction_timeout":              "set it per role: the agent's own sessions must not be cancelled while they wait for acknowledgement",
	"lock_timeout":                     "set it per role",
	"idle_session_timeout":             "set it per role: the agent's own sessions are idle often",
	"client_connection_check_interval": "failure detection depends on it",
}

// Owned lists the parameters that only Theseus sets, sorted; * at the end of a name stands for any suffix. The map's
// values say why.
func Owned() map[string]string { return maps.Clone(owned) }

var parameterName = regexp.MustCompile(`^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$`)

// CheckParameters says what is wrong with the parameters a user asked for: nil when nothing. Messages are sorted and
// name the parameter first.
func CheckParameters(parameters map[string]string) []string {
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if why := checkParameter(name, parameters[name]); why != "" {
			wrong = append(wrong, fmt.Sprintf("%s: %s", name, why))
		}
	}
	return wrong
}

func checkParameter(name, value string) string {
	lower := strings.ToLower(name)
	if !parameterName.MatchString(lower) {
		return "not the name of a PostgreSQL parameter"
	}
	if strings.ContainsAny(value, "\n\r\x00") {
		return "the value has a line break"
	}
	if lower == "synchronous_commit" {
		switch strings.ToLower(strings.Trim(value, "' ")) {
		case "on", "remote_apply":
			return ""
		}
		return `only "on" or "remote_apply" for all sessions; a transaction that may be lost can choose less for itself`
	}
	for pattern, why := range owned {
		prefix, any := strings.CutSuffix(pattern, "*")
		if lower == pattern || any && strings.HasPrefix(lower, prefix) {
			return "is set by Theseus: " + why
		}
	}
	return ""
}
