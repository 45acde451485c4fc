package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi"
)

// Config of one gateway. The zero value of a field means its default, where one is given.
type Config struct {
	// Name of this gateway, unlike any other of the shard's. Default: the host name, which is the Pod's.
	Name string
	// Shard whose primary is served.
	Shard agentapi.Shard
	// InstancesHost is the DNS name of all instances of the shard. Empty: addresses come from Instances only.
	InstancesHost string
	// Instances are addresses (host:port of agents) to begin with, besides those found by name.
	Instances []string
	// AgentPort of the addresses found by name. Default agentapi.AgentPort.
	AgentPort int
	// PoolSize is the number of server connections per user and database. Default 20.
	PoolSize int
	// MaxClients is how many client connections are taken. Default 2000.
	MaxClients int
	// MaxPause is how long clients are held while there is no primary. Default 15 s.
	MaxPause time.Duration
	// ListenHost and ListenPort are PgBouncer's, for clients. Defaults "*" and 5432.
	ListenHost string
	ListenPort int
	// HealthHost and HealthPort serve /livez, /readyz and /metrics. Defaults: all addresses, 7431.
	HealthHost string
	HealthPort int
	// RunDir is a private directory for configuration and sockets. Default /run/theseus.
	RunDir string
	// TLSDir has ca.crt, tls.crt and tls.key of the gateway. Default /etc/theseus/tls.
	TLSDir string
	// ClientTLSDir has tls.crt and tls.key that clients are shown. Default TLSDir.
	ClientTLSDir string
	// ClientTLS is PgBouncer's client_tls_sslmode: disable, allow, prefer or require (the default).
	ClientTLS string
	// PgBouncer is the executable, 1.21 or later. Default /usr/sbin/pgbouncer.
	PgBouncer string
	// ShutdownDelay is how long a gateway that was told to end goes on as if it was not, for its clients' Service to
	// notice. Default 2 s. Negative means none.
	ShutdownDelay time.Duration
	// DrainTimeout is how long clients may then take to leave. For three quarters of it everything goes on as before, but
	// connections that are idle for a second are ended; then new transactions are refused and running ones may finish.
	// Default 20 s.
	DrainTimeout time.Duration
	// PoolerLog takes what PgBouncer logs. Default: standard error.
	PoolerLog io.Writer
	// Log of the gateway itself. Default slog.Default().
	Log *slog.Logger
	// Clock. Default: the real one.
	Clock clock.WithTicker
}

// HealthPort is where a gateway serves its health and metrics.
const HealthPort = 7431

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Complete sets the defaults and says what is wrong.
func (c *Config) Complete() error {
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		c.Name = name
	}
	orDefault(&c.AgentPort, agentapi.AgentPort)
	orDefault(&c.PoolSize, 20)
	orDefault(&c.MaxClients, 2000)
	orDefault(&c.MaxPause, 15*time.Second)
	orDefault(&c.ListenHost, "*")
	orDefault(&c.ListenPort, agentapi.PostgresPort)
	orDefault(&c.HealthPort, HealthPort)
	orDefault(&c.RunDir, "/run/theseus")
	orDefault(&c.TLSDir, "/etc/theseus/tls")
	orDefault(&c.ClientTLSDir, c.TLSDir)
	orDefault(&c.ClientTLS, "require")
	orDefault(&c.PgBouncer, "/usr/sbin/pgbouncer")
	orDefault(&c.ShutdownDelay, 2*time.Second)
	orDefault(&c.DrainTimeout, 20*time.Second)
	orDefault[io.Writer](&c.PoolerLog, os.Stderr)
	orDefault(&c.Log, slog.Default())
	orDefault[clock.WithTicker](&c.Clock, clock.RealClock{})
	switch {
	case c.Shard.Namespace == "" || c.Shard.Name == "":
		return errors.New("namespace and shard must be set")
	case c.InstancesHost == "" && len(c.Instances) == 0:
		return errors.New("a host name of the instances must be set")
	case c.PoolSize < 1 || c.MaxClients < 1:
		return errors.New("pool size and the number of clients must be at least 1")
	case c.MaxPause < time.Second:
		return errors.New("max pause must be at least 1s")
	}
	switch c.ClientTLS {
	case "disable", "allow", "prefer", "require":
	default:
		return fmt.Errorf("client TLS mode %q is none of disable, allow, prefer, require", c.ClientTLS)
	}
	return nil
}

// Run serves until the context ends, then lets clients go (see Config.ShutdownDelay and DrainTimeout) and returns. The
// error is that of a start that failed; nothing that happens later ends a gateway.
func Run(ctx context.Context, c Config) error {
	if err := c.Complete(); err != nil {
		return err
	}
	raiseFiles()
	g, err := build(c)
	if err != nil {
		return err
	}
	return g.run(ctx)
}

type gateway struct {
	config   Config
	gate     *gate
	hop      *hop
	steer    *steer
	follower *follower
	child    *child
	console  *console
	health   *health
	metrics  *metrics
	listener net.Listener
}

func build(c Config) (*gateway, error) {
	identity, err := agentapi.NewFileIdentity(c.TLSDir)
	if err != nil {
		return nil, err
	}
	g := &gateway{config: c, gate: newGate(c.Clock)}
	g.hop = &hop{gate: g.gate, tls: agentapi.ClientTLS(identity, c.Shard), maxPause: c.MaxPause, clock: c.Clock, log: c.Log}
	// Records of the full size at once: a gateway on the same network gains nothing from small first records.
	g.hop.tls.DynamicRecordSizingDisabled = true
	g.hop.refused = g.refused
	g.metrics = newMetrics(func() float64 { return float64(g.hop.open.Load()) })
	g.hop.metrics = g.metrics
	password := rand.Text()
	if err := prepare(c, password); err != nil {
		return nil, err
	}
	if g.console, err = newConsole(c, password); err != nil {
		return nil, err
	}
	g.steer = &steer{
		gate: g.gate, hop: g.hop, console: g.console, metrics: g.metrics, clock: c.Clock, log: c.Log,
		maxPause: c.MaxPause, poolSize: c.PoolSize, wake: make(chan struct{}, 1),
	}
	g.follower = &follower{
		name: c.Name, shard: c.Shard, identity: identity, host: c.InstancesHost, port: c.AgentPort,
		lookup: net.DefaultResolver.LookupHost, apply: g.steer.apply, metrics: g.metrics, clock: c.Clock, log: c.Log,
		nudge: make(chan struct{}, 1), seen: map[string]*sighting{}, streams: map[string]*stream{}, named: map[string]time.Time{},
	}
	g.steer.paused = g.follower.paused
	for _, addr := range c.Instances {
		g.follower.named[addr] = c.Clock.Now()
	}
	g.child = &child{config: c, clock: c.Clock, log: c.Log, metrics: g.metrics}
	g.health = &health{gate: g.gate, maxPause: c.MaxPause, clock: c.Clock}
	g.health.answered.Store(c.Clock.Now().UnixMilli())
	g.listener, err = listenHop(c.RunDir)
	return g, err
}

// prepare writes PgBouncer's files.
func prepare(c Config, consolePassword string) error {
	for _, dir := range []string{consoleDir, hopDir} {
		if err := os.MkdirAll(filepath.Join(c.RunDir, dir), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.RunDir, authFile), []byte(poolerUsers(consolePassword, rand.Text())), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.RunDir, iniFile), []byte(poolerConfig(c)), 0o600)
}

func listenHop(runDir string) (net.Listener, error) {
	path := hopSocket(runDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

func (g *gateway) run(ctx context.Context) error {
	// Everything but PgBouncer lives until PgBouncer is gone: its last transactions need the hop and the route.
	parts, endParts := context.WithCancel(context.WithoutCancel(ctx))
	defer endParts()
	group, parts := errgroup.WithContext(parts)
	group.Go(func() error { return g.hop.serve(parts, g.listener) })
	group.Go(func() error {
		return serveHTTP(parts, g.config.HealthHost, g.config.HealthPort, g.health.handler(g.metrics))
	})
	group.Go(func() error { g.follower.run(parts); return nil })

	serving, leave := context.WithCancel(context.Background())
	defer leave()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.child.run(serving, g.attend)
	}()
	select {
	case <-ctx.Done():
		g.shutdown(leave, ended)
	case <-parts.Done(): // a listener could not be opened
		leave()
		g.child.signal(syscall.SIGQUIT)
		<-ended
	}
	endParts()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// shutdown lets clients go. First the Service stops sending new ones. Then those that are there may leave by themselves:
// a connection can only be ended without an error for its client while nothing is under way on it in either
// direction, and only the client knows that. So idle connections are ended, which every pool notices before it uses
// one, and busy ones are given time to reach the end of the life that their pool gives them; the route is
// followed meanwhile like ever. Last, PgBouncer takes no new transactions and ends when the running ones have (SIGINT:
// wait for servers), then it is ended.
func (g *gateway) shutdown(leave func(), ended <-chan struct{}) {
	log := g.config.Log
	log.Info("shutting down", "delay", g.config.ShutdownDelay, "drain", g.config.DrainTimeout)
	g.health.leaving.Store(true)
	if g.config.ShutdownDelay > 0 {
		<-g.config.Clock.After(g.config.ShutdownDelay)
	}
	leave()
	patience := g.config.DrainTimeout * 3 / 4
	g.awaitClients(patience, ended)
	g.child.signal(syscall.SIGINT)
	select {
	case <-ended:
		return
	case <-g.config.Clock.After(g.config.DrainTimeout - patience):
	}
	log.Warn("transactions are still running; ending them")
	g.child.signal(syscall.SIGQUIT)
	select {
	case <-ended:
	case <-g.config.Clock.After(time.Second):
		g.child.signal(syscall.SIGKILL)
		<-ended
	}
}

// awaitClients returns when no client is connected any more, or after limit.
func (g *gateway) awaitClients(limit time.Duration, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	timeout := g.config.Clock.After(limit)
	told := false
	for {
		if !told {
			told = g.console.endIdle(ctx) == nil
		}
		if pools, err := g.console.pools(ctx); err == nil && pools["cl_active"]+pools["cl_waiting"] == 0 {
			return
		}
		select {
		case <-timeout:
			return
		case <-ended:
			return
		case <-g.config.Clock.After(100 * time.Millisecond):
		}
	}
}

// attend steers, watches and reloads one PgBouncer process until it ends.
func (g *gateway) attend(ctx context.Context) {
	g.console.reset()
	var steering sync.WaitGroup
	defer steering.Wait()
	answered := false
	stamp := g.stamp()
	for ctx.Err() == nil {
		pools, err := g.console.pools(ctx)
		switch {
		case err == nil:
			g.health.poolerAnswered()
			for column, sum := range pools {
				g.metrics.pool.WithLabelValues(column).Set(sum)
			}
			if !answered {
				answered = true
				steering.Go(func() { g.steer.run(ctx) })
			}
		case answered && ctx.Err() == nil:
			g.metrics.consoleFailures.Inc()
			g.config.Log.Error("asking PgBouncer for its pools", "error", err)
		}
		if now := g.stamp(); answered && now != stamp && g.console.reload(ctx) == nil {
			stamp = now
			g.metrics.poolerReloads.Inc()
			g.config.Log.Info("PgBouncer was given the new certificate")
		}
		wait := pollEvery
		if !answered {
			wait = pollStart
		}
		select {
		case <-ctx.Done():
		case <-g.config.Clock.After(wait):
		}
	}
}

// refused makes PgBouncer begin the next login of the pool that looks names up at once, to wait in the hop for the
// primary. Otherwise the first client to come after a long outage would be told of the last failure, since PgBouncer
// remembers it until a login has succeeded. In the other pools their own clients see to that by coming back.
func (g *gateway) refused(startup []byte) {
	if looksUp(startup) {
		go g.console.knock(context.Background())
	}
}

// stamp changes when the certificate that clients are shown does. Pair and key are replaced at once by the kubelet.
func (g *gateway) stamp() string {
	stamp := ""
	for _, name := range []string{agentapi.CertFile, agentapi.KeyFile} {
		if info, err := os.Stat(filepath.Join(g.config.ClientTLSDir, name)); err == nil {
			stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
		}
	}
	return stamp
}
