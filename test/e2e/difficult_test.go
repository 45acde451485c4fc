//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// session is a psql process beside the nodes.
type session struct {
	said  *bytes.Buffer
	ended chan error
}

// requireOpen fails when one of the sessions has ended, with what it said.
func requireOpen(t *testing.T, sessions []session) {
	t.Helper()
	for _, s := range sessions {
		select {
		case err := <-s.ended:
			t.Fatalf("a session ended by itself: %v: %s", err, s.said)
		default:
		}
	}
}

// openSession runs psql against uri with the commands as its input, which stays open. Call awaitService before.
func (f *fixture) openSession(uri, commands string) session {
	f.t.Helper()
	s := session{said: &bytes.Buffer{}, ended: make(chan error, 1)}
	cmd := exec.Command(kit.Bin("lab"), "--name", kit.LabName, "client", "--", "psql", "-qtA", "-v", "ON_ERROR_STOP=1", uri)
	cmd.Stderr = s.said
	cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=20")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	in, err := cmd.StdinPipe()
	require.NoError(f.t, err)
	require.NoError(f.t, cmd.Start())
	f.t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill() })
	_, err = in.Write([]byte(commands))
	require.NoError(f.t, err)
	go func() { s.ended <- cmd.Wait() }()
	return s
}

// awaitService waits until uri leads to a server from beside the nodes: names and proxies learn of a new Service in their own time.
func (f *fixture) awaitService(uri string) {
	f.t.Helper()
	err := labkit.Poll(f.ctx, 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		cmd := exec.CommandContext(ctx, kit.Bin("lab"), "--name", kit.LabName, "client", "--", "psql", "-qtAc", "SELECT 1", uri)
		cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=5")
		out, err := cmd.CombinedOutput()
		return err == nil, string(out), nil
	})
	require.NoError(f.t, err)
}

// count is how many sessions of the application the primary has in a state.
func (f *fixture) count(primary, state string) string {
	f.t.Helper()
	out, err := kit.Kubectl(f.ctx, "-n", f.namespace, "exec", primary, "--", "bash", "-c",
		fmt.Sprintf(`psql -h /run/theseus/sock -U postgres -qtAc "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = '%s'" postgres || true`, state))
	require.NoError(f.t, err)
	return strings.TrimSpace(out)
}

// A planned reparent under difficulties completes, or undoes itself, within its deadlines, and the only clients that see
// an error are those whose sessions had to be ended.
func TestPlannedReparentUnderDifficulties(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *fixture)
		size string
	}{
		{"IdleInTransaction", fiftyIdle, "1Gi"},
		{"LongQuery", longQuery, "1Gi"},
		{"ReplicaFarBehind", replicaFarBehind, "5Gi"},
		{"CandidateKilled", candidateKilled, "1Gi"},
		{"OperatorsKilled", operatorsKilled, "1Gi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(db *v1alpha1.Database) { db.Spec.Storage.Size = resource.MustParse(tt.size) })
			f.waitReady()
			f.waitSettled()
			load := f.startLoad()
			tt.run(t, f)
			f.waitSettled()
			load.stopAndVerify(noErrors)
		})
	}
}

// idle opens a transaction that has written something, to the table idle_here, and leaves it open.
const idle = "BEGIN;\nINSERT INTO idle_here VALUES (1);\n"

func fiftyIdle(t *testing.T, f *fixture) {
	f.psql("CREATE TABLE idle_here (id int)")
	f.awaitService(f.directURI())
	var held []session
	for range 50 {
		held = append(held, f.openSession(f.directURI(), idle))
	}
	f.eventually("fifty sessions are idle in transaction", func(s *v1alpha1.Shard) bool {
		requireOpen(t, held)
		return f.count(s.Status.Primary, "idle in transaction") == "50"
	})
	r := f.reparent(nil)
	measured(t, "%s: %s", r.Status.Outcome, phases(r))
	require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, r.Status.Message)
	requireBrief(t, r)
	require.Equal(t, "0", f.psql("SELECT count(*) FROM idle_here"), "what was not committed is not there")
}

// requireBrief fails when others have waited for the sessions that do not end.
func requireBrief(t *testing.T, r *v1alpha1.Reparent) {
	t.Helper()
	require.NotNil(t, r.Status.WriteUnavailable)
	require.Less(t, r.Status.WriteUnavailable.Duration, r.Spec.DrainTimeout.Duration, "their time is over before anybody has to wait")
}

func longQuery(t *testing.T, f *fixture) {
	var queries []session
	for _, uri := range []string{f.directURI(), f.appURI()} {
		f.awaitService(uri)
		queries = append(queries, f.openSession(uri, "SELECT pg_sleep(60);\n"))
	}
	f.eventually("both queries run", func(s *v1alpha1.Shard) bool { return f.count(s.Status.Primary, "active") >= "2" })
	r := f.reparent(nil)
	measured(t, "%s: %s", r.Status.Outcome, phases(r))
	require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, r.Status.Message)
	requireBrief(t, r)
	for _, s := range queries {
		select {
		case err := <-s.ended:
			require.Error(t, err, "a query that was ended is not reported as done")
		case <-time.After(10 * time.Second):
			t.Fatal("the client of a query that was ended was never told")
		}
	}
}

func replicaFarBehind(t *testing.T, f *fixture) {
	s := f.shard()
	behind := current(s).Members[0]
	onStandby := func(sql string) {
		_, err := kit.Kubectl(f.ctx, "-n", f.namespace, "exec", behind, "--", "bash", "-c", `psql -h /run/theseus/sock -U postgres -qtAc "`+sql+`" postgres`)
		require.NoError(t, err)
	}
	onStandby("SELECT pg_wal_replay_pause()")
	f.psql("CREATE TABLE bulk (id int, filler text)")
	for range 10 {
		f.psql("INSERT INTO bulk SELECT i, repeat('x', 950) FROM generate_series(1, 100000) i")
	}
	r := f.reparent(func(spec *v1alpha1.ReparentSpec) { spec.To = behind })
	measured(t, "to the one behind: %s: %s", r.Status.Outcome, r.Status.Message)
	require.Equal(t, v1alpha1.OutcomeRefused, r.Status.Outcome, r.Status.Message)
	r = f.reparent(nil)
	measured(t, "%s: %s", r.Status.Outcome, phases(r))
	require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, r.Status.Message)
	require.NotEqual(t, behind, r.Status.NewPrimary)
	if slices.Contains(f.instances(), behind) {
		onStandby("SELECT pg_wal_replay_resume()")
	}
	require.Equal(t, "1000000", f.psql("SELECT count(*) FROM bulk"))
}

// during begins a planned reparent that is held up in its drain by an open transaction, and calls act then. What is open already
// holds up the preparation; what is begun meanwhile, the drain.
func (f *fixture) during(act func(candidate string)) *v1alpha1.Reparent {
	f.t.Helper()
	f.psql("CREATE TABLE IF NOT EXISTS idle_here (id int)")
	f.awaitService(f.directURI())
	idles := 0
	sit := func() {
		idles++
		f.openSession(f.directURI(), idle)
		f.eventually("a session is idle in transaction", func(s *v1alpha1.Shard) bool {
			return f.count(s.Status.Primary, "idle in transaction") == strconv.Itoa(idles)
		})
	}
	sit()
	r := f.ask(func(spec *v1alpha1.ReparentSpec) { spec.DrainTimeout.Duration = 5 * time.Second })
	f.eventually("the reparent is prepared", func(*v1alpha1.Shard) bool {
		r = f.reload(r)
		return r.Status.Phase == "Prepare"
	})
	sit()
	candidate := ""
	f.eventually("the reparent drains", func(*v1alpha1.Shard) bool {
		r = f.reload(r)
		for _, p := range r.Status.Phases {
			if p.Name == "Prepare" && p.FinishedAt != nil {
				candidate, _, _ = strings.Cut(p.Message, " ")
			}
		}
		return r.Status.Phase == "Drain"
	})
	act(candidate)
	return f.ended(r)
}

func candidateKilled(t *testing.T, f *fixture) {
	victim := ""
	r := f.during(func(candidate string) {
		victim = candidate
		_, err := kit.Kubectl(f.ctx, "-n", f.namespace, "exec", candidate, "--", "bash", "-c", "kill -9 $(head -1 /var/lib/theseus/pgdata/postmaster.pid)")
		require.NoError(t, err)
	})
	measured(t, "%s killed: %s: %s %s", victim, r.Status.Outcome, phases(r), r.Status.Message)
	require.Contains(t, []string{v1alpha1.OutcomeSucceeded, v1alpha1.OutcomeUndone}, r.Status.Outcome, r.Status.Message)
}

func operatorsKilled(t *testing.T, f *fixture) {
	r := f.during(func(string) { f.killOperators() })
	measured(t, "%s: %s %s", r.Status.Outcome, phases(r), r.Status.Message)
}
