package gateway

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Files and directories under Config.RunDir.
const (
	iniFile    = "pgbouncer.ini"
	authFile   = "users.txt"
	consoleDir = "console"
	hopDir     = "server"
	// hopPort only names the hop's unix socket: PostgreSQL's convention is .s.PGSQL.<port>.
	hopPort = 5432
)

// consoleUser may use PgBouncer's console; lookupUser runs the query for passwords. Both are in the auth file with
// random passwords of this process, so that no client can log in as either.
const (
	consoleUser = "theseus_console"
	lookupUser  = "theseus_gateway"
	// lookupDatabase is where names are looked up, whatever database a client asks for.
	lookupDatabase = "postgres"
)

// hopSocket is where PgBouncer finds its "server".
func hopSocket(runDir string) string {
	return filepath.Join(runDir, hopDir, fmt.Sprintf(".s.PGSQL.%d", hopPort))
}

// poolerConfig is PgBouncer's configuration. It never changes while the process lives: primaries are moved by the
// hop, so that no reload is in the path of a reparent.
func poolerConfig(c Config) string {
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, "[%s]\n", name) }
	set := func(key string, value any) { fmt.Fprintf(&b, "%s = %v\n", key, value) }
	seconds := func(d time.Duration) string { return fmt.Sprintf("%g", d.Seconds()) }

	b.WriteString("; written by theseus gateway\n")
	section("databases")
	set("*", fmt.Sprintf("host=%s port=%d", filepath.Join(c.RunDir, hopDir), hopPort))
	section("pgbouncer")
	set("listen_addr", c.ListenHost)
	set("listen_port", c.ListenPort)
	set("listen_backlog", 1024)
	set("unix_socket_dir", filepath.Join(c.RunDir, consoleDir))
	set("unix_socket_mode", "0700")

	set("auth_type", "scram-sha-256")
	set("auth_file", filepath.Join(c.RunDir, authFile))
	set("auth_user", lookupUser)
	set("auth_dbname", lookupDatabase)
	set("auth_query", "SELECT uname, phash FROM theseus.user_lookup($1)")
	set("admin_users", consoleUser)

	set("pool_mode", "transaction")
	set("default_pool_size", c.PoolSize)
	set("max_client_conn", c.MaxClients)
	set("max_prepared_statements", 200)
	// Drivers send these whatever the user does; they only concern the session's own output and planning. Anything else
	// that transaction pooling cannot keep is refused by PgBouncer with an error, rather than dropped in silence.
	set("ignore_startup_parameters", "extra_float_digits,jit")

	// A client is held for max-pause. The hop says so with a clear error when the primary is gone for longer; this one
	// second later is the backstop, and what ends the wait for a pool that is merely full.
	set("query_wait_timeout", seconds(c.MaxPause+time.Second))
	// The hop holds logins while there is no primary and has its own deadlines for those that fail. Should PgBouncer
	// give one up, it would fail every client of the pool, idle ones too, and wait for server_login_retry (15 s).
	set("server_connect_timeout", seconds(24*time.Hour))
	set("server_login_retry", "0.05")
	set("client_login_timeout", seconds(max(time.Minute, 2*c.MaxPause)))
	set("server_idle_timeout", 300)
	set("server_lifetime", 3600)
	// Connections that died are noticed by the hop; a check before use would cost a round trip after each quiet spell.
	set("server_check_query", "")
	set("cancel_wait_timeout", 5)

	set("client_tls_sslmode", c.ClientTLS)
	if c.ClientTLS != "disable" {
		set("client_tls_cert_file", filepath.Join(c.ClientTLSDir, "tls.crt"))
		set("client_tls_key_file", filepath.Join(c.ClientTLSDir, "tls.key"))
		set("client_tls_protocols", "secure")
	}
	set("server_tls_sslmode", "disable") // a unix socket; the hop does TLS

	set("tcp_keepalive", 1)
	set("tcp_keepidle", 30)
	set("tcp_keepintvl", 5)
	set("tcp_keepcnt", 3)
	set("tcp_user_timeout", 30_000)
	set("log_connections", 0)
	set("log_disconnections", 0)
	set("log_stats", 0)
	return b.String()
}

// poolerUsers is the auth file.
func poolerUsers(console, lookup string) string {
	return fmt.Sprintf("%q %q\n%q %q\n", consoleUser, console, lookupUser, lookup)
}
