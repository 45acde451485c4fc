package machine

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"theseus.dev/theseus/lab/internal/state"
)

// A pid that was reused is not the machine: nothing may be run in, or signalled to, whoever has it now.
func TestExecRefusesAMachineThatIsGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone, err := state.Identify(cmd.Process.Pid)
	_ = cmd.Wait()
	if err != nil {
		t.Skipf("it ended before it was looked at: %v", err)
	}
	self, err := state.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	reused := self
	reused.Start++
	for name, p := range map[string]state.Process{"ended": gone, "reused": reused, "never started": {}} {
		if _, err := Exec(t.Context(), &state.Machine{Name: "node-a", Init: p}, "true"); err == nil || !strings.Contains(err.Error(), "node-a is not running") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExecEntersEveryNamespace(t *testing.T) {
	self, err := state.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := Exec(t.Context(), &state.Machine{Name: "node-a", Init: self}, "kubectl", "version")
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(cmd.Args, " ")
	for _, want := range []string{"--mount", "--uts", "--ipc", "--net", "--pid", "-- env PATH=", " kubectl version"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q lacks %q", line, want)
		}
	}
}
