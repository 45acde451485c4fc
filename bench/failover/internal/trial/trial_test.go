package trial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/load"
)

// TestMain is also the load client of the tests: started with an address of theirs it prints what a load prints and
// leaves the account a load leaves.
func TestMain(m *testing.M) {
	if mode := os.Getenv("DATABASE_URL"); strings.HasPrefix(mode, "fake:") {
		fakeClient(strings.TrimPrefix(mode, "fake:"))
		return
	}
	os.Exit(m.Run())
}

// system is a fake whose primary moves when it is told to, and which writes down what happens to it.
type system struct {
	mu      sync.Mutex
	did     []string
	primary string
	uri     string
	sick    error
	fail    error
}

func (s *system) log(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, what)
}

func (s *system) ID() string                          { return "fake" }
func (s *system) Install(context.Context) error       { return nil }
func (s *system) Uninstall(context.Context) error     { return nil }
func (s *system) URI(context.Context) (string, error) { return s.uri, nil }
func (s *system) Claim(instance string) string        { return "ns/" + instance }
func (s *system) DeletePod(_ context.Context, instance string) error {
	s.log("deleted " + instance)
	return s.fail
}
func (s *system) Collect(context.Context, string) { s.log("collected") }
func (s *system) Primary(context.Context) (Instance, error) {
	return Instance{Name: s.primary, Node: "node-" + s.primary}, nil
}

func (s *system) Signal(_ context.Context, instance, signal string) error {
	s.log(signal + " " + instance)
	return s.fail
}

func (s *system) SwitchOver(context.Context) error {
	s.log("switched")
	return s.fail
}

func (s *system) WaitHealthy(context.Context) error {
	s.log("healthy")
	return s.sick
}

func (s *system) Explain(context.Context, time.Time) ([]Phase, error) {
	s.log("explained")
	return []Phase{{Name: "elect", Start: time.Now(), End: time.Now().Add(time.Millisecond)}}, nil
}

// Lab makes the fake a lab too.
func (s *system) Lab(_ context.Context, args ...string) (string, error) {
	s.log(strings.Join(args, " "))
	return "", nil
}

func harness(t *testing.T, s *system, uri string) *Harness {
	t.Helper()
	s.uri, s.primary = "fake:"+uri, "a"
	self, err := os.Executable()
	require.NoError(t, err)
	return &Harness{
		Lab: s, Dir: filepath.Join(t.TempDir(), "not there yet"), Out: func(string) {}, Random: func() float64 { return 0.5 },
		Client: ClientConfig{Command: []string{self}, Writers: 1, Interval: time.Millisecond, Timeout: time.Second, ConnectTimeout: time.Second},
		Bounds: Bounds{Steady: 10 * time.Millisecond, Watch: 100 * time.Millisecond, Limit: 6 * time.Second, Newcomer: 5 * time.Second, Healthy: time.Second, Step: 10 * time.Second},
	}
}

func fault(t *testing.T, id string) Fault {
	t.Helper()
	f, err := Select(id)
	require.NoError(t, err)
	require.Len(t, f, 1)
	return f[0]
}

func TestRepeat(t *testing.T) {
	t.Parallel()
	s := &system{}
	run, err := harness(t, s, "fine").Repeat(t.Context(), s, fault(t, "freeze"), 3)
	require.NoError(t, err)
	require.True(t, run.Measured)
	require.True(t, run.Recovered)
	require.True(t, run.Verified)
	require.Equal(t, "fake", run.System)
	require.Equal(t, 3, run.Rep)
	require.Equal(t, "node-a", run.Node)
	require.Len(t, run.Phases, 1)
	require.Empty(t, run.Note)
	require.Equal(t, []string{"healthy", "node freeze node-a", "explained", "node thaw node-a", "healthy"}, s.did)
}

// A system that does not recover is measured all the same, and the fault is undone.
func TestRepeatUnrecovered(t *testing.T) {
	t.Parallel()
	s := &system{}
	h := harness(t, s, "stalls")
	h.Bounds.Limit = 500 * time.Millisecond
	run, err := h.Repeat(t.Context(), s, fault(t, "cut"), 1)
	require.NoError(t, err)
	require.True(t, run.Measured)
	require.False(t, run.Recovered)
	require.Contains(t, s.did, "node heal node-a")
}

// Where only those who come later are hurt, one of them is asked; the writers that were there say nothing of it.
func TestRepeatNewcomers(t *testing.T) {
	t.Parallel()
	for uri, welcome := range map[string]bool{"fine": true, "one only": false, "one only, who ends": false} {
		t.Run(uri, func(t *testing.T) {
			t.Parallel()
			s := &system{}
			h := harness(t, s, uri)
			if !welcome {
				h.Bounds.Newcomer = time.Second
			}
			run, err := h.Repeat(t.Context(), s, fault(t, "stop"), 1)
			require.NoError(t, err)
			require.True(t, run.Measured)
			require.True(t, run.Recovered)
			require.Equal(t, !welcome, run.Closed)
			require.Equal(t, !welcome, strings.Contains(run.Note, "a client that came later could not write within 1s"), run.Note)
			require.Equal(t, []string{"healthy", "STOP a", "explained", "CONT a", "healthy"}, s.did)
		})
	}
}

// A volume is named by its claim, and goes on whatever became of it.
func TestRepeatStalledVolume(t *testing.T) {
	t.Parallel()
	s := &system{}
	run, err := harness(t, s, "fine").Repeat(t.Context(), s, fault(t, "stall"), 1)
	require.NoError(t, err)
	require.True(t, run.Recovered)
	require.Equal(t, []string{"healthy", "volume stall ns/a", "explained", "volume resume ns/a", "healthy"}, s.did)
}

// Whatever goes wrong once a fault may have been done, it is undone, the error says what it was, and evidence is kept.
func TestRepeatFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		uri, want string
		fault     string
		change    func(*system)
		undone    string
	}{
		"sick before":           {"fine", "before the fault", "freeze", func(s *system) { s.sick = errors.New("ill") }, ""},
		"client ends":           {"ends", "the load ended by itself", "freeze", nil, ""},
		"client never writes":   {"silent", "no writes before the fault", "freeze", nil, ""},
		"client ends too early": {"ends later", "the load ended by itself", "freeze", nil, "node thaw node-a"},
		"fault fails":           {"fine", "doing the fault: refused", "kill", func(s *system) { s.fail = errors.New("refused") }, ""},
		"no account":            {"no account", "left no account", "power", nil, "node remove node-a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &system{}
			if c.change != nil {
				c.change(s)
			}
			run, err := harness(t, s, c.uri).Repeat(t.Context(), s, fault(t, c.fault), 1)
			require.ErrorContains(t, err, c.want)
			require.False(t, run.Measured)
			require.Contains(t, run.Note, c.want)
			require.Contains(t, s.did, "collected")
			if c.undone != "" {
				require.Contains(t, s.did, c.undone)
			}
		})
	}
}

// A switchover that moved nothing says nothing, and lost writes are kept as evidence.
func TestRepeatJudges(t *testing.T) {
	t.Parallel()
	s := &system{}
	run, err := harness(t, s, "fine").Repeat(t.Context(), s, fault(t, "switchover"), 1)
	require.NoError(t, err)
	require.False(t, run.Measured)
	require.Contains(t, run.Note, "did not move")

	s = &system{}
	run, err = harness(t, s, "loses").Repeat(t.Context(), s, fault(t, "kill"), 1)
	require.NoError(t, err)
	require.True(t, run.Measured)
	require.EqualValues(t, 7, run.Lost)
	require.Contains(t, run.Note, "7 acknowledged writes are missing")
	require.Contains(t, s.did, "collected")
}

// An interrupted comparison leaves no fault behind.
func TestRepeatInterrupted(t *testing.T) {
	t.Parallel()
	s := &system{}
	ctx, cancel := context.WithCancel(t.Context())
	f := fault(t, "freeze")
	inject := f.Inject
	f.Inject = func(ctx context.Context, lab Lab, s System, v Instance) error {
		defer cancel()
		return inject(ctx, lab, s, v)
	}
	_, err := harness(t, s, "fine").Repeat(ctx, s, f, 1)
	require.ErrorIs(t, err, context.Canceled)
	require.Contains(t, s.did, "node thaw node-a")
}

func TestSelect(t *testing.T) {
	all, err := Select("")
	require.NoError(t, err)
	require.Len(t, all, 8)
	two, err := Select("cut, kill")
	require.NoError(t, err)
	require.Equal(t, "kill", two[0].ID, "in the order of reports")
	require.Equal(t, "cut", two[1].ID)
	_, err = Select("kill,earthquake")
	require.ErrorContains(t, err, "earthquake")
	for _, f := range all {
		require.NotEmpty(t, f.Title)
		require.NotEmpty(t, f.About)
		require.NotNil(t, f.Inject)
	}
}

// fakeClient prints its lines faster than once a second, which only makes the tests shorter.
func fakeClient(mode string) {
	out := os.Args[slices.Index(os.Args, "--out")+1]
	start := time.Now()
	done := waitForTerm()
	newcomer := filepath.Base(filepath.Dir(out)) == "newcomer"
	tick := time.NewTicker(400 * time.Millisecond)
	defer tick.Stop()
	s := load.Summary{Started: start, Verified: true}
	for n := 1; ; n++ {
		select {
		case <-done:
			if mode == "loses" {
				s.Lost = 7
			}
			s.Seconds = time.Since(start).Seconds()
			if mode == "no account" {
				return
			}
			data, _ := json.Marshal(s)
			_ = os.WriteFile(out, data, 0o600)
			return
		case <-tick.C:
		}
		writes := 100
		switch {
		case mode == "ends", mode == "ends later" && n > 6, mode == "one only, who ends" && newcomer:
			return
		case mode == "silent", mode == "one only" && newcomer, mode == "stalls" && n > 8:
			writes = 0
		}
		fmt.Fprintln(os.Stderr, load.Progress{Seconds: time.Since(start).Seconds(), PerSecond: int64(writes)})
		s.Ops = append(s.Ops, load.Op{Start: time.Now(), End: time.Now(), Outcome: load.Acked})
	}
}

func waitForTerm() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	return c
}

func TestClientArguments(t *testing.T) {
	c := ClientConfig{Command: []string{"lab", "client", "--", "theseus-load"}, Writers: 4, Interval: 10 * time.Millisecond, Timeout: 5 * time.Second, ConnectTimeout: time.Second}
	args := c.args(filepath.Join("x", "load.json"))
	require.Equal(t, []string{"lab", "client", "--", "theseus-load"}, args[:4])
	require.Contains(t, strings.Join(args, " "), "--interval 10ms --timeout 5s --connect-timeout 1s")
	require.Contains(t, c.String(), "4 writers")
}

func TestShown(t *testing.T) {
	require.Equal(t, "SELECT n || '=' || current_setting(n) FROM unnest(ARRAY['fsync','jit']) n", ShowQuery([]string{"fsync", "jit"}))
	require.Equal(t, map[string]string{"fsync": "on", "search_path": "a=b, c", "jit": ""}, ParseShown("fsync=on\nsearch_path=a=b, c\n\njit=\n"))
}
