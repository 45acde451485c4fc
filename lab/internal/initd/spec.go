// Package initd is pid 1 of a machine: it turns a bare set of namespaces into
// something that looks like a freshly booted computer (its own /run, /etc, /tmp,
// /var/lib and /proc), starts the machine's services, restarts them when they
// exit, reaps orphans, and stops everything in order when asked to.
//
// Killing it is a power cut: the kernel ends every process of a pid namespace
// with its pid 1, and the mounts go with the last process.
package initd

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Paths inside a machine.
const (
	// BinDir holds the lab's executables.
	BinDir = "/run/lab/bin"
	// MachineDir is the machine's own directory of configuration and logs.
	MachineDir = "/run/lab/machine"
)

// Spec is what a machine consists of.
type Spec struct {
	Hostname string `json:"hostname"`
	// JoinCgroups are the files pid 1 writes itself into before anything else.
	JoinCgroups []string `json:"joinCgroups"`
	// Binds are directories of the host to be seen at places of the machine.
	// They are resolved before anything is hidden.
	Binds []Bind `json:"binds"`
	// Etc are files of /etc, by path below it, laid over the host's.
	Etc map[string]string `json:"etc"`
	// MaskedSysctls are files below /proc/sys replaced by plain ones with this
	// content: kernel-wide settings that a service of the machine must not touch.
	MaskedSysctls map[string]string `json:"maskedSysctls"`
	Services      []Service         `json:"services"`
	// StopGrace is how long a service may take to end on SIGTERM.
	StopGrace time.Duration `json:"stopGrace"`
}

// Bind shows the host's From at the machine's To.
type Bind struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Service is one process that is kept running.
type Service struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	// WaitFor is awaited before the first start: the path of a unix socket, or
	// host:port of a TCP one. Empty means start at once.
	WaitFor string `json:"waitFor,omitempty"`
}

// LogFile is where a service's output goes, below the machine's directory.
func LogFile(service string) string { return "log/" + service + ".log" }

// ReadSpec loads a spec from a file.
func ReadSpec(path string) (*Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the machine's spec: %w", err)
	}
	var s Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode the machine's spec %s: %w", path, err)
	}
	return &s, nil
}
