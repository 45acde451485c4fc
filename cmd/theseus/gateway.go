package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"theseus.dev/theseus/internal/gateway"
)

func init() { commands = append(commands, newGatewayCommand) }

// newGatewayCommand runs a gateway. Flags win over the environment, which is how its Pod is configured.
func newGatewayCommand() *cobra.Command {
	var c gateway.Config
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run a gateway: PgBouncer that follows its shard's primary",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := gatewayEnvironment(cmd, &c); err != nil {
				return err
			}
			if c.InstancesHost == "" && c.Shard.Name != "" {
				c.InstancesHost = c.Shard.Name + "-instances"
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			c.Log = slog.New(slog.NewJSONHandler(os.Stdout, nil))
			return gateway.Run(ctx, c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Shard.Namespace, "namespace", "", "namespace of the shard (THESEUS_NAMESPACE)")
	f.StringVar(&c.Shard.Name, "shard", "", "name of the shard (THESEUS_SHARD)")
	f.StringVar(&c.Name, "name", "", "name of this gateway (POD_NAME, default the host name)")
	f.StringVar(&c.InstancesHost, "instances-host", "", "DNS name of all instances (THESEUS_INSTANCES_HOST, default <shard>-instances)")
	f.StringSliceVar(&c.Instances, "instances", nil, "addresses (host:port) of agents to begin with, besides those found by name")
	f.IntVar(&c.AgentPort, "agent-port", 0, "port of the agents (default 7420)")
	f.IntVar(&c.PoolSize, "pool-size", 0, "server connections per user and database (THESEUS_POOL_SIZE, default 20)")
	f.IntVar(&c.MaxClients, "max-clients", 0, "client connections (THESEUS_MAX_CLIENTS, default 2000)")
	f.DurationVar(&c.MaxPause, "max-pause", 0, "how long clients are held while there is no primary (THESEUS_MAX_PAUSE, default 15s)")
	f.StringVar(&c.ListenHost, "listen", "", "address for clients (default all)")
	f.IntVar(&c.ListenPort, "listen-port", 0, "port for clients (default 5432)")
	f.StringVar(&c.HealthHost, "health-host", "", "address of /livez, /readyz and /metrics (default all)")
	f.IntVar(&c.HealthPort, "health-port", 0, "port of /livez, /readyz and /metrics (default 7431)")
	f.StringVar(&c.RunDir, "run-dir", "", "private directory for configuration and sockets (default /run/theseus)")
	f.StringVar(&c.TLSDir, "tls-dir", "", "directory with ca.crt, tls.crt and tls.key of the gateway (default /etc/theseus/tls)")
	f.StringVar(&c.ClientTLSDir, "client-tls-dir", "", "directory with tls.crt and tls.key that clients are shown (default: tls-dir)")
	f.StringVar(&c.ClientTLS, "client-tls", "", "TLS with clients: disable, allow, prefer or require (default require)")
	f.StringVar(&c.PgBouncer, "pgbouncer", "", "the executable (default /usr/sbin/pgbouncer)")
	f.DurationVar(&c.ShutdownDelay, "shutdown-delay", 0, "how long to go on after SIGTERM, not ready (default 2s)")
	f.DurationVar(&c.DrainTimeout, "drain-timeout", 0, "how long running transactions may then take (default 20s)")
	return cmd
}

// gatewayEnvironment fills what no flag has set.
func gatewayEnvironment(cmd *cobra.Command, c *gateway.Config) error {
	text := func(flag, name string, v *string) {
		if value := os.Getenv(name); value != "" && !cmd.Flags().Changed(flag) {
			*v = value
		}
	}
	text("namespace", "THESEUS_NAMESPACE", &c.Shard.Namespace)
	text("shard", "THESEUS_SHARD", &c.Shard.Name)
	text("name", "POD_NAME", &c.Name)
	text("instances-host", "THESEUS_INSTANCES_HOST", &c.InstancesHost)
	text("client-tls", "THESEUS_CLIENT_TLS", &c.ClientTLS)
	for _, n := range []struct {
		flag, name string
		v          *int
	}{{"pool-size", "THESEUS_POOL_SIZE", &c.PoolSize}, {"max-clients", "THESEUS_MAX_CLIENTS", &c.MaxClients}} {
		value := ""
		if text(n.flag, n.name, &value); value == "" {
			continue
		}
		i, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		*n.v = i
	}
	value := ""
	if text("max-pause", "THESEUS_MAX_PAUSE", &value); value != "" {
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("THESEUS_MAX_PAUSE: %w", err)
		}
		c.MaxPause = d
	}
	return nil
}
