package state

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestStateSurvivesARoundTrip(t *testing.T) {
	s := Open(t.TempDir(), "x")
	empty, err := s.Load()
	require.NoError(t, err, "a lab that does not exist is an empty one")
	require.Equal(t, &Lab{Name: "x"}, empty)

	lab := &Lab{
		Name: "x", APIPort: 16443, LastIndex: 2, Names: []string{"node-a", "node-b"},
		Machines: []*Machine{
			{Name: "control-plane", Kind: ControlPlane, Phase: Stopped},
			{Name: "node-b", Kind: Node, Index: 2, Zone: "z2", Phase: Killed, Requested: true},
			{Name: "node-a", Kind: Node, Index: 1, Zone: "z1", Phase: Running, Init: Process{PID: 5, Start: 6, Boot: "b"}, Images: []string{"d"}},
		},
		Cuts: []Cut{{From: "node-a", To: Everyone}},
	}
	require.NoError(t, s.Save(lab))
	again, err := s.Load()
	require.NoError(t, err)
	require.Equal(t, lab, again)
	require.Equal(t, "node-a", again.Nodes()[0].Name, "by index")
	require.Len(t, again.RunningNodes(), 1)
	require.Nil(t, again.Machine("node-c"))
}

func TestDamagedStateSaysWhatToDo(t *testing.T) {
	s := Open(t.TempDir(), "x")
	require.NoError(t, WriteFile(s.Dir("lab.json"), []byte("{"), 0o644))
	_, err := s.Load()
	require.ErrorContains(t, err, "lab clean")
}

func TestCutsAreASetAndHealAsAsked(t *testing.T) {
	l := &Lab{}
	all := []Cut{{"a", Everyone}, {Everyone, "a"}, {"a", "b"}, {"b", "a"}, {"b", "c"}}
	l.AddCuts(all...)
	l.AddCuts(all...)
	require.Equal(t, all, l.Cuts)
	l.Heal("a", "b")
	require.Equal(t, []Cut{{"a", Everyone}, {Everyone, "a"}, {"b", "c"}}, l.Cuts)
	l.Heal("a", "")
	require.Equal(t, []Cut{{"b", "c"}}, l.Cuts)
	l.Machines = []*Machine{{Name: "c"}}
	l.Forget("c")
	require.Empty(t, l.Cuts)
	require.Empty(t, l.Machines)
}

func TestANewArchiveFromTheSameFileReplacesTheOldEverywhere(t *testing.T) {
	node := &Machine{Kind: Node, Images: []string{"one", "other"}}
	l := &Lab{Machines: []*Machine{node}, Images: []Image{{Digest: "one", Source: "/f"}, {Digest: "other", Source: "/g"}}}
	l.Loaded(Image{Digest: "two", Source: "/f"})
	require.Equal(t, []string{"other"}, node.Images, "loading the old archive again has to reach the node")
	require.Equal(t, []Image{{Digest: "other", Source: "/g"}, {Digest: "two", Source: "/f"}}, l.Images)
}

func TestStatIsParsedWhateverTheCommandIsCalled(t *testing.T) {
	const rest = " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2"
	for _, c := range []struct {
		stat   string
		zombie bool
	}{
		{"12 (sh) S" + rest, false},
		{"12 (a) Z (b) R" + rest, false},
		{"12 (done) Z" + rest, true},
	} {
		start, zombie, err := parseStat(c.stat)
		require.NoError(t, err)
		require.Equal(t, uint64(987654), start)
		require.Equal(t, c.zombie, zombie)
	}
	for _, bad := range []string{"", "12 sh S 1", "12 (sh) S 1 2 3"} {
		_, _, err := parseStat(bad)
		require.Error(t, err)
	}
}

func TestAReusedPIDIsSomebodyElse(t *testing.T) {
	me, err := Identify(os.Getpid())
	require.NoError(t, err)
	require.True(t, me.Alive())
	for _, other := range []Process{
		{},
		{PID: me.PID, Start: me.Start + 1, Boot: me.Boot},
		{PID: me.PID, Start: me.Start, Boot: "another boot"},
	} {
		require.False(t, other.Alive())
		require.NoError(t, other.Signal(unix.SIGKILL), "and is never signalled")
	}
}

func TestStopAsksBeforeItKills(t *testing.T) {
	start := func(script string) Process {
		cmd := exec.Command("sh", "-c", script)
		require.NoError(t, cmd.Start())
		p, err := Identify(cmd.Process.Pid)
		require.NoError(t, err)
		return p
	}
	polite := start("exec sleep 100")
	require.NoError(t, polite.Stop(t.Context(), 10*time.Second))
	require.False(t, polite.Alive())

	stubborn := start("trap '' TERM; while :; do sleep 1; done")
	time.Sleep(100 * time.Millisecond) // for the trap to be set
	require.NoError(t, stubborn.Stop(t.Context(), 200*time.Millisecond))
	require.False(t, stubborn.Alive())
	require.NoError(t, stubborn.Kill(t.Context()), "killing the dead succeeds")
}

func TestOneCommandAtATime(t *testing.T) {
	s := Open(t.TempDir(), "x")
	unlock, err := s.Lock(t.Context(), "up", func(string) { t.Fatal("nobody holds it") })
	require.NoError(t, err)

	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	told := ""
	_, err = s.Lock(short, "down", func(holder string) { told = holder })
	require.ErrorContains(t, err, "lab up", "the error names who holds it")
	require.Contains(t, told, "lab up")

	unlock()
	unlock, err = s.Lock(t.Context(), "down", func(string) {})
	require.NoError(t, err)
	unlock()
}

func TestLockOnARemovedDirectoryIsTakenAnew(t *testing.T) {
	s := Open(t.TempDir(), "x")
	unlock, err := s.Lock(t.Context(), "clean", func(string) {})
	require.NoError(t, err)
	waiting, got := make(chan struct{}), make(chan error, 1)
	go func() {
		second, err := s.Lock(t.Context(), "up", func(string) { close(waiting) })
		if err == nil {
			defer second()
			_, err = os.Stat(filepath.Join(s.Dir(), "lock"))
		}
		got <- err
	}()
	<-waiting
	require.NoError(t, os.RemoveAll(s.Dir()))
	unlock()
	require.NoError(t, <-got, "the lock it holds is the one that others will see")
}

func TestEveryLabWithFilesIsFound(t *testing.T) {
	root := t.TempDir()
	none, err := Labs(filepath.Join(root, "never made"))
	require.NoError(t, err)
	require.Empty(t, none)
	for _, name := range []string{"theseus", "theseus-bench"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, name), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "a-file"), nil, 0o600))
	names, err := Labs(root)
	require.NoError(t, err)
	require.Equal(t, []string{"theseus", "theseus-bench"}, names)
}
