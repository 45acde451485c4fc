//go:build integration

package agent

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestIdleCost says what three instances cost while nothing happens. It asserts nothing a busy machine could break.
func TestIdleCost(t *testing.T) {
	s := newShard(t, "a", "b", "c")
	s.bootstrap("a", "b", "c")
	time.Sleep(2 * time.Second)
	before := s.cpu()
	const span = 10 * time.Second
	time.Sleep(span)
	after := s.cpu()
	for _, kind := range []string{"agent", "postgres"} {
		used := after[kind] - before[kind]
		t.Logf("%s: %.2f %% of a core per instance", kind, 100*used.Seconds()/span.Seconds()/3)
	}
	require.NotZero(t, after["agent"])
}

// cpu is the processor time used so far by agents and by everything below them, the dead included.
func (s *shardUnderTest) cpu() map[string]time.Duration {
	used := map[string]time.Duration{}
	for _, n := range s.nodes {
		own, _ := ticks(n.cmd.Process.Pid)
		used["agent"] += own
		for _, pid := range descendants(n.cmd.Process.Pid) {
			own, waited := ticks(pid)
			used["postgres"] += own + waited
		}
	}
	return used
}

// ticks is the time a process has used itself, and that of its children it has waited for.
func ticks(pid int) (own, waited time.Duration) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	var t [4]int64
	for i := range t {
		_, _ = fmt.Sscan(string(fields[11+i]), &t[i])
	}
	const tick = 10 * time.Millisecond
	return time.Duration(t[0]+t[1]) * tick, time.Duration(t[2]+t[3]) * tick
}
