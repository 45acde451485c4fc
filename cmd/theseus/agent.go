package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"theseus.dev/theseus/internal/agent"
)

func init() { commands = append(commands, newAgent) }

func newAgent() *cobra.Command {
	var conf agent.Config
	var parameters, memory string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "PID 1 of an instance: run and supervise PostgreSQL",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if parameters != "" {
				if err := json.Unmarshal([]byte(parameters), &conf.Parameters); err != nil {
					return fmt.Errorf("parameters: %w", err)
				}
			}
			if memory != "" {
				limit, err := strconv.ParseInt(memory, 10, 64)
				if err != nil {
					return fmt.Errorf("memory limit: %w", err)
				}
				conf.MemoryLimit = limit
			}
			conf.Release = release
			a, err := agent.New(conf, os.Stdout)
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	env := func(target *string, name, variable, usage string) {
		f.StringVar(target, name, os.Getenv(variable), usage+" ("+variable+")")
	}
	env(&conf.Shard.Namespace, "namespace", "THESEUS_NAMESPACE", "namespace of the shard")
	env(&conf.Shard.Name, "shard", "THESEUS_SHARD", "name of the Shard")
	env(&conf.Instance, "instance", "THESEUS_INSTANCE", "name of this instance, its Pod's")
	env(&conf.PodUID, "pod-uid", "POD_UID", "UID of the Pod")
	env(&conf.Advertise, "address", "POD_IP", "address other members reach this instance at")
	env(&conf.Node, "node", "NODE_NAME", "name of the node")
	env(&conf.Zone, "zone", "THESEUS_ZONE", "zone of the node")
	env(&parameters, "parameters", "THESEUS_PARAMETERS", "PostgreSQL parameters as a JSON object of strings")
	env(&memory, "memory-limit", "THESEUS_MEMORY_LIMIT", "memory limit in bytes; a quarter becomes shared_buffers")
	f.StringVar(&conf.DataDir, "data-dir", "/var/lib/theseus", "the volume")
	f.StringVar(&conf.RunDir, "run-dir", "/run/theseus", "a directory in memory")
	f.StringVar(&conf.TLSDir, "tls-dir", "/etc/theseus/tls", "directory of ca.crt, tls.crt and tls.key")
	f.StringVar(&conf.Bin, "pgbin", "/usr/lib/theseus/pgbin", "directory of PostgreSQL's programs")
	f.StringVar(&conf.Listen, "listen", "", "address of all listeners (default all)")
	f.IntVar(&conf.PostgresPort, "postgres-port", 0, "port of PostgreSQL (default 5432)")
	f.IntVar(&conf.AgentPort, "agent-port", 0, "port of the agent's API (default 7420)")
	f.IntVar(&conf.HealthPort, "health-port", 0, "port of /livez, /readyz and /metrics (default 7421)")
	f.DurationVar(&conf.Heartbeat, "heartbeat", 0, "longest time between two statuses (default 500ms)")
	f.DurationVar(&conf.Probe, "probe-interval", 0, "time between two probes of a kind (default 500ms)")
	f.DurationVar(&conf.FenceAfter, "fence-after", 0, "how long a primary may hear neither operator nor quorum (default 2s)")
	f.DurationVar(&conf.StopTimeout, "stop-timeout", 0, "how long a fast stop may take before it becomes immediate (default 10s)")
	return cmd
}
