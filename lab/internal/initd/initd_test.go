package initd

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestSpecSurvivesTheFile(t *testing.T) {
	spec := &Spec{
		Hostname: "node-a", JoinCgroups: []string{"/sys/fs/cgroup/x/cgroup.procs"},
		Binds: []Bind{{From: "/a", To: "/b"}}, Etc: map[string]string{"hosts": "127.0.0.1 localhost\n"},
		MaskedSysctls: map[string]string{"kernel/panic": "10"},
		Services:      []Service{{Name: "kubelet", Argv: []string{"/k", "--x"}, WaitFor: "/s"}}, StopGrace: time.Second,
	}
	b, err := json.Marshal(spec)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "spec.json")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	again, err := ReadSpec(path)
	require.NoError(t, err)
	require.Equal(t, spec, again)
	_, err = ReadSpec(path + ".missing")
	require.Error(t, err)
}

func TestAwaitReturnsOnceSomebodyListens(t *testing.T) {
	await("") // at once
	path := filepath.Join(t.TempDir(), "s")
	done := make(chan struct{})
	go func() { await(path); close(done) }()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it still waits")
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer tcp.Close()
	await(tcp.Addr().String())
}

func TestExitsAreDescribed(t *testing.T) {
	require.Equal(t, "code 3", describe(unix.WaitStatus(3<<8)))
	require.Equal(t, "signal killed", describe(unix.WaitStatus(unix.SIGKILL)))
}
