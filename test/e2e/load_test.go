//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/load"
)

// running is a write load on a machine beside the nodes.
type running struct {
	f      *fixture
	cmd    *exec.Cmd
	out    string
	said   load.Follower
	exited chan error
}

// startLoad begins to write through the read-write endpoint and returns once the first writes are acknowledged.
func (f *fixture) startLoad(flags ...string) *running {
	f.t.Helper()
	return f.startLoadTo(f.appURI(), flags...)
}

func (f *fixture) startLoadTo(uri string, flags ...string) *running {
	f.t.Helper()
	r := &running{f: f, out: filepath.Join(f.t.TempDir(), "load.json"), exited: make(chan error, 1)}
	args := append([]string{
		"--name", kit.LabName, "client", "--", kit.Bin("theseus-load"),
		"--interval", "5ms", "--timeout", "20s", "--ops", "--out", r.out,
	}, flags...)
	r.cmd = exec.Command(kit.Bin("lab"), args...)
	// The password travels in the environment, where other users cannot read it.
	r.cmd.Env = append(os.Environ(), "DATABASE_URL="+uri)
	r.cmd.Stderr = &r.said
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	require.NoError(f.t, r.cmd.Start())
	go func() { r.exited <- r.cmd.Wait() }()
	f.t.Cleanup(func() { _ = r.cmd.Process.Signal(syscall.SIGTERM) })
	err := labkit.Poll(f.ctx, 100*time.Millisecond, func(context.Context) (bool, string, error) {
		select {
		case err := <-r.exited:
			return false, "", fmt.Errorf("the load ended: %v", err)
		default:
			return r.said.Writing(1, time.Time{}), "nothing is written yet", nil
		}
	})
	require.NoErrorf(f.t, err, "%s", &r.said)
	time.Sleep(time.Second) // A little undisturbed load first, to compare with.
	return r
}

// noErrors is for stopAndVerify: the fault must not be seen by any client.
const noErrors = 0

// stopAndVerify ends the load, requires that nothing acknowledged is missing and that at most so many operations were
// not acknowledged, other than with one of the codes that are allowed, and returns the summary.
func (r *running) stopAndVerify(mostErrors int64, allowed ...string) *load.Summary {
	t := r.f.t
	t.Helper()
	require.NoErrorf(t, r.cmd.Process.Signal(syscall.SIGTERM), "%s", &r.said)
	select {
	case err := <-r.exited:
		require.NoErrorf(t, err, "the load ended badly:\n%s", &r.said)
	case <-r.f.ctx.Done():
		t.Fatalf("the load did not end:\n%s", &r.said)
	}
	data, err := os.ReadFile(r.out)
	require.NoError(t, err)
	s := &load.Summary{}
	require.NoError(t, json.Unmarshal(data, s))
	s.Ops = nil
	require.True(t, s.Verified, "the rows could not be read back")
	require.Zero(t, s.Lost, "acknowledged writes are missing: %+v", s.LostSamples)
	require.Zero(t, s.FailedPresent, "writes that failed are there")
	require.Positive(t, s.Acked)
	errors := s.Failed + s.Unknown
	for _, code := range allowed {
		errors -= s.Errors[code]
	}
	require.LessOrEqual(t, errors, mostErrors, "errors seen by clients: %v, for example %+v", s.Errors, s.Samples)
	measured(t, "%d acknowledged in %.0f s, longest stall %.0f ms, latency p50 %.1f p99 %.1f ms, %d failed, %d unknown, 0 lost",
		s.Acked, s.Seconds, s.LongestStallMS, s.LatencyMS.P50, s.LatencyMS.P99, s.Failed, s.Unknown)
	return s
}

// appURI is the application user's connection string, without checking the server's name: the load runs beside the
// nodes, where the authority's file is not.
func (f *fixture) appURI() string {
	f.t.Helper()
	uri, err := kit.AppURI(f.ctx, f.namespace, f.database)
	require.NoError(f.t, err)
	return withSSLMode(f.t, uri)
}

// directURI goes to the primary without a gateway.
func (f *fixture) directURI() string {
	f.t.Helper()
	u, err := url.Parse(f.appURI())
	require.NoError(f.t, err)
	u.Host = fmt.Sprintf("%s-direct.%s.svc:5432", f.shard().Name, f.namespace)
	return u.String()
}

func withSSLMode(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	require.NoError(t, err)
	q := u.Query()
	q.Set("sslmode", "require")
	q.Del("sslrootcert")
	u.RawQuery = q.Encode()
	return u.String()
}
