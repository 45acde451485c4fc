//go:build integration

package gateway

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/pki"
	"theseus.dev/theseus/internal/postgres"
)

// The whole test runs as an ordinary user, since neither PostgreSQL nor PgBouncer runs as root.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "theseus-gateway-")
	if err == nil {
		err = os.Chown(dir, unprivileged, unprivileged)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if os.Getenv("THESEUS_TEST_PGBOUNCER") == "" {
		if path, err := operandPgBouncer(dir); err == nil {
			_ = os.Setenv("THESEUS_TEST_PGBOUNCER", path)
		} else {
			fmt.Fprintln(os.Stderr, "no PgBouncer of the operand image:", err)
		}
	}
	// The go command wants to know which files a test opens, in a directory of its own.
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return strings.HasPrefix(a, "-test.testlogfile") })
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unprivileged, Gid: unprivileged}}
	err = cmd.Run()
	_ = os.RemoveAll(dir)
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

const unprivileged = 65534

// operandPgBouncer takes PgBouncer and its libraries out of the newest root file system that the image build has cached,
// and returns a script that runs it with its own dynamic linker.
func operandPgBouncer(dir string) (string, error) {
	archives, err := filepath.Glob("../../build/images/cache/rootfs-pg*.tar.gz")
	if err != nil || len(archives) == 0 {
		return "", errors.New("the operand image has not been built (make images)")
	}
	f, err := os.Open(archives[len(archives)-1])
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	flat := filepath.Join(dir, "operand") // all libraries in one directory
	if err := os.MkdirAll(flat, 0o755); err != nil {
		return "", err
	}
	linker := ""
	for in := tar.NewReader(unzipped); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		base := filepath.Base(h.Name)
		library := strings.Contains(h.Name, "usr/lib/") && strings.Contains(base, ".so") && !strings.Contains(h.Name, "postgresql")
		if !library && base != "pgbouncer" {
			continue
		}
		to := filepath.Join(flat, base)
		switch h.Typeflag {
		case tar.TypeSymlink:
			_ = os.Symlink(filepath.Base(h.Linkname), to)
		case tar.TypeReg:
			data, err := io.ReadAll(in)
			if err != nil {
				return "", err
			}
			if err := os.WriteFile(to, data, 0o755); err != nil { //nolint:gosec // executables
				return "", err
			}
			if strings.HasPrefix(base, "ld-linux") {
				linker = to
			}
		}
	}
	if linker == "" {
		return "", errors.New("no dynamic linker in the root file system")
	}
	script := filepath.Join(dir, "pgbouncer")
	text := fmt.Sprintf("#!/bin/sh\nexec %s --library-path %s %s/pgbouncer \"$@\"\n", linker, flat, flat)
	return script, os.WriteFile(script, []byte(text), 0o755) //nolint:gosec // a script
}

func pgbouncerPath(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("THESEUS_TEST_PGBOUNCER"); p != "" {
		return p
	}
	const p = "/usr/sbin/pgbouncer"
	if out, err := exec.Command(p, "--version").Output(); err == nil {
		var major, minor int
		if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err == nil && (major > 1 || minor >= 21) {
			return p
		}
	}
	t.Skip("needs PgBouncer 1.21 or later: build the operand image (make images) or set THESEUS_TEST_PGBOUNCER")
	return ""
}

func postgresBin(t testing.TB) string {
	t.Helper()
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(dirs) == 0 {
		t.Skip("needs PostgreSQL (Debian's postgresql package)")
	}
	return dirs[len(dirs)-1]
}

const appPassword = "a password with 'quotes' and \"more\""

// lab is two PostgreSQL servers with fake agents, and a gateway in front. The servers do not replicate: what is tested
// is where clients get, and what they notice.
type lab struct {
	t       testing.TB
	shard   agentapi.Shard
	set     *pki.Set
	a, b    *instance
	port    int // of the gateway
	health  int
	tlsDir  string
	gateway *gateway
	stop    func()
}

func newLab(t testing.TB, change func(*Config)) *lab {
	t.Helper()
	bouncer, bin := pgbouncerPath(t), postgresBin(t)
	l := &lab{t: t, shard: agentapi.Shard{Namespace: "test", Name: "db-0"}}
	var err error
	l.set, err = pki.NewSet("db", time.Now())
	require.NoError(t, err)
	verifier, err := postgres.ScramVerifier(appPassword, []byte("0123456789abcdef"))
	require.NoError(t, err)
	var wg sync.WaitGroup
	l.a, l.b = l.newInstance("db-0-aaaaa"), l.newInstance("db-0-bbbbb")
	introduce(l.a.fakeAgent, l.b.fakeAgent)
	for _, i := range []*instance{l.a, l.b} {
		wg.Go(func() { i.initdb(bin, verifier) })
	}
	wg.Wait()
	require.False(t, t.Failed())

	l.tlsDir = l.leaf(agentapi.RoleGateway, "localhost")
	l.port, l.health = freePort(t), freePort(t)
	c := Config{
		Shard: l.shard, Instances: []string{l.a.addr}, ListenHost: "127.0.0.1", ListenPort: l.port,
		HealthHost: "127.0.0.1", HealthPort: l.health, RunDir: shortDir(t), TLSDir: l.tlsDir, PgBouncer: bouncer,
		ShutdownDelay: -1, DrainTimeout: 3 * time.Second, MaxPause: 5 * time.Second,
		PoolerLog: testWriter{t}, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&c)
	}
	require.NoError(t, c.Complete())
	l.gateway, err = build(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.gateway.run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	t.Cleanup(l.stop)
	require.Eventually(t, l.gateway.health.spoke.Load, 10*time.Second, 10*time.Millisecond, "PgBouncer does not answer")
	return l
}

// leaf makes a directory with the certificate of a role.
func (l *lab) leaf(role agentapi.Role, hosts ...string) string {
	dir := l.t.TempDir()
	l.writeLeaf(dir, role, hosts...)
	return dir
}

func (l *lab) writeLeaf(dir string, role agentapi.Role, hosts ...string) {
	leaf, err := l.set.Issue(pki.Request{
		CommonName: agentapi.CommonName(role, l.shard), URI: agentapi.URI(l.shard, role).String(),
		DNSNames: hosts, Server: true, Client: true,
	}, time.Now())
	require.NoError(l.t, err)
	for name, data := range map[string][]byte{
		agentapi.CAFile: l.set.Bundle(), agentapi.CertFile: leaf.CertificatePEM, agentapi.KeyFile: leaf.KeyPEM,
	} {
		require.NoError(l.t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
}

// dsn of an application client through the gateway, with the certificate verified.
func (l *lab) config() *pgx.ConnConfig {
	c, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=app dbname=app sslmode=disable", l.port))
	require.NoError(l.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(l.set.Bundle())
	c.Password = appPassword
	c.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	return c
}

func (l *lab) connect() *pgx.Conn {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, l.config())
	require.NoError(l.t, err)
	l.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// instance is one PostgreSQL server and its agent.
type instance struct {
	*fakeAgent
	lab       *lab
	data, tls string
	bin       string
	port      int
	server    *exec.Cmd
	stopped   bool
}

func (l *lab) newInstance(name string) *instance {
	i := &instance{lab: l, port: freePort(l.t)}
	i.tls = l.leaf(agentapi.RoleAgent, agentapi.ServerName(l.shard))
	id, err := agentapi.NewFileIdentity(i.tls)
	require.NoError(l.t, err)
	i.fakeAgent = newFakeAgent(l.t, id, l.shard, name, i.port)
	return i
}

// initdb makes and starts the server.
func (i *instance) initdb(bin, verifier string) {
	t := i.lab.t
	i.bin = bin
	i.data = filepath.Join(shortDir(t), "data")
	runTool(t, filepath.Join(bin, "initdb"), "-D", i.data, "-U", "postgres", "--no-sync", "-A", "trust", "--no-instructions", "-E", "UTF8", "--locale=C")
	conf := fmt.Sprintf(`
listen_addresses = '127.0.0.1'
port = %d
unix_socket_directories = '%s'
ssl = on
ssl_cert_file = '%s/tls.crt'
ssl_key_file = '%s/tls.key'
ssl_ca_file = '%s/ca.crt'
fsync = off
log_min_messages = fatal
cluster_name = '%s'
`, i.port, i.data, i.tls, i.tls, i.tls, i.name)
	require.NoError(t, os.WriteFile(filepath.Join(i.data, "postgresql.auto.conf"), []byte(conf), 0o600))
	hba := "local all all trust\nhostssl all theseus_gateway all cert map=theseus\nhostssl all all all scram-sha-256\n"
	require.NoError(t, os.WriteFile(filepath.Join(i.data, "pg_hba.conf"), []byte(hba), 0o600))
	ident := fmt.Sprintf("theseus %s theseus_gateway\n", agentapi.CommonName(agentapi.RoleGateway, i.lab.shard))
	require.NoError(t, os.WriteFile(filepath.Join(i.data, "pg_ident.conf"), []byte(ident), 0o600))
	i.start()
	t.Cleanup(func() { i.kill(syscall.SIGQUIT) })
	i.sql("postgres", "CREATE ROLE theseus_gateway LOGIN")
	i.sql("postgres", `CREATE SCHEMA theseus; GRANT USAGE ON SCHEMA theseus TO theseus_gateway;
		CREATE FUNCTION theseus.user_lookup(name text) RETURNS TABLE (uname text, phash text) LANGUAGE sql SECURITY DEFINER
		SET search_path = pg_catalog AS 'SELECT rolname::text, rolpassword FROM pg_authid WHERE rolname = name AND rolcanlogin AND NOT rolsuper'`)
	i.sql("postgres", "CREATE ROLE app LOGIN PASSWORD '"+verifier+"'")
	i.sql("postgres", "CREATE DATABASE app OWNER app")
	i.sql("app", "CREATE TABLE public.writes (writer int, seq bigint, PRIMARY KEY (writer, seq)); ALTER TABLE writes OWNER TO app")
}

func (i *instance) start() {
	t := i.lab.t
	i.server = exec.Command(filepath.Join(i.bin, "postgres"), "-D", i.data)
	i.server.Stderr = testWriter{t}
	i.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, i.server.Start())
	i.stopped = false
	require.Eventually(t, func() bool {
		conn, err := pgx.Connect(context.Background(), i.local("postgres"))
		if err != nil {
			return false
		}
		return conn.Close(context.Background()) == nil
	}, 20*time.Second, 20*time.Millisecond)
}

// kill ends the server: SIGINT is a fast stop, SIGQUIT an immediate one, SIGKILL a crash of the postmaster.
func (i *instance) kill(sig syscall.Signal) {
	if i.stopped {
		return
	}
	i.stopped = true
	if sig == syscall.SIGKILL || sig == syscall.SIGQUIT {
		_ = syscall.Kill(-i.server.Process.Pid, syscall.SIGCONT)
	}
	_ = i.server.Process.Signal(sig)
	_ = i.server.Wait()
}

// freeze stops every process of the server, as a frozen machine would, and thaw lets them go on.
func (i *instance) freeze() { i.tree(syscall.SIGSTOP) }
func (i *instance) thaw()   { i.tree(syscall.SIGCONT) }

func (i *instance) tree(sig syscall.Signal) {
	require.NoError(i.lab.t, i.server.Process.Signal(sig))
	out, _ := exec.Command("ps", "-o", "pid=", "--ppid", fmt.Sprint(i.server.Process.Pid)).Output()
	for _, pid := range strings.Fields(string(out)) {
		var n int
		_, _ = fmt.Sscan(pid, &n)
		_ = syscall.Kill(n, sig)
	}
}

func (i *instance) local(db string) string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", i.data, i.port, db)
}

func (i *instance) sql(db, statement string) {
	i.lab.t.Helper()
	conn, err := pgx.Connect(context.Background(), i.local(db))
	require.NoError(i.lab.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(context.Background(), statement)
	require.NoError(i.lab.t, err)
}

func runTool(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

// testWriter logs to the test, and to nowhere once it is over.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	}
	return len(p), nil
}
