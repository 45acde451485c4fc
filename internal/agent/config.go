// Package agent is PID 1 of an instance: it starts and supervises PostgreSQL, obeys the commands of the shard's
// coordinator in the order of their terms, remembers what it has promised, and reports what it sees the moment it sees it.
//
// What it does by itself is little: restart a standby; restart a primary whose cohort says that its term still stands;
// stop a primary that nobody hears any more. It never creates data, promotes, or chooses whom to follow by itself.
//
// A stalled volume must not silence the agent. Nothing on the way of a status touches a disk: probes run in goroutines
// of their own and leave behind when they began, and the term is kept in memory once it is persisted.
package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/verdict"
)

// Config is an agent's whole configuration.
type Config struct {
	Shard    agentapi.Shard
	Instance string
	PodUID   string
	Node     string
	Zone     string
	Release  string

	// DataDir is the volume, RunDir a directory in memory, TLSDir has ca.crt, tls.crt and tls.key, Bin PostgreSQL's tools.
	DataDir, RunDir, TLSDir, Bin string

	// Listen is the address of all listeners, empty for every address of every family; Advertise the one others are told.
	Listen, Advertise                   string
	PostgresPort, AgentPort, HealthPort int

	// Parameters are the user's PostgreSQL parameters; MemoryLimit is in bytes, 0 unknown.
	Parameters  map[string]string
	MemoryLimit int64

	// Heartbeat is the longest time between two statuses, Probe that between two probes of one kind.
	Heartbeat, Probe time.Duration
	// FenceAfter is how long a primary may hear neither from the operator nor from enough standbys.
	FenceAfter time.Duration
	// StartTimeout is how long a start is waited for before its failing is reported; PostgreSQL goes on recovering.
	StartTimeout time.Duration
	// StopTimeout bounds the fast stop when the Pod is deleted; then it is immediate.
	StopTimeout time.Duration
}

// Defaults fills what is zero: heartbeat and probes 500 ms, fence 2 s, start 60 s, stop 10 s, and the usual ports.
func (c *Config) Defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Heartbeat, 500*time.Millisecond)
	set(&c.Probe, 500*time.Millisecond)
	set(&c.FenceAfter, verdict.FenceAfter)
	set(&c.StartTimeout, time.Minute)
	set(&c.StopTimeout, 10*time.Second)
	port := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	port(&c.PostgresPort, agentapi.PostgresPort)
	port(&c.AgentPort, agentapi.AgentPort)
	port(&c.HealthPort, agentapi.HealthPort)
	if c.Advertise == "" {
		c.Advertise = c.Listen
	}
}

// Validate says what is missing.
func (c *Config) Validate() error {
	var errs []error
	for _, need := range []struct{ name, value string }{
		{"namespace (THESEUS_NAMESPACE)", c.Shard.Namespace},
		{"shard (THESEUS_SHARD)", c.Shard.Name},
		{"instance (THESEUS_INSTANCE)", c.Instance},
		{"data-dir", c.DataDir},
		{"run-dir", c.RunDir},
		{"tls-dir", c.TLSDir},
		{"pgbin", c.Bin},
		{"address (POD_IP)", c.Advertise},
	} {
		if need.value == "" {
			errs = append(errs, fmt.Errorf("%s is not set", need.name))
		}
	}
	if c.FenceAfter < 3*c.Heartbeat {
		errs = append(errs, fmt.Errorf("fence-after %v is less than three heartbeats of %v", c.FenceAfter, c.Heartbeat))
	}
	return errors.Join(errs...)
}

func (c *Config) pgdata() string   { return filepath.Join(c.DataDir, "pgdata") }
func (c *Config) stateDir() string { return filepath.Join(c.DataDir, "agent") }
