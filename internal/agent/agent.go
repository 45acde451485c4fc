package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/postgres"
	"theseus.dev/theseus/internal/quorum"
)

// Agent is the process. Run it once.
type Agent struct {
	agentpb.UnimplementedAgentServer

	conf  Config
	log   *slog.Logger
	clock clock.WithTickerAndDelayedExecution
	id    agentapi.Identity
	pg    *postgres.Server
	procs *postgres.Processes
	logs  *postgres.Logs
	own   *postgres.Logs // the agent's own
	store *Store
	boot  string

	commands commands
	probes   probes

	// persisting orders changes of the state; mu is never held while a disk is touched.
	persisting chan struct{}

	mu    sync.Mutex
	state State
	live  live

	hub  hub
	kick chan struct{} // asks the observer to look at once
	wake chan struct{} // asks the supervisor to look at once

	operators operators
	loop      atomic.Int64 // unix ms at which the supervisor last went round
	outgrown  atomic.Bool  // PostgreSQL has paused its replay: its primary has more of some setting
}

// live is what the agent knows and need not remember.
type live struct {
	role        agentpb.Role
	established bool
	draining    bool
	drains      int // how often a drain was begun, or overtaken by a stop
	exit        string
	message     string
	started     time.Time
	cohort      *quorum.Cohort
	cohortAt    time.Time    // when the cohort came into force
	cohortSince postgres.LSN // the end of the WAL, first seen after that; 0 is not seen yet
	obs         postgres.Observation
	obsAt       time.Time
	heard       map[string]heard // by standby
	seed        *seeding
	restarts    backoff
	stuck       stuck
	diskFree    [2]uint64 // size, available
	stopping    bool
	halting     bool      // PostgreSQL is being stopped, and not to be looked at
	left        uint64    // the term of this primary that others were seen to have left
	waiting     time.Time // since when a former primary that is down waits to be told what to be
	lastFlushed postgres.Position
}

// use notes that the cohort is in force from now on. What a look had begun before says of the WAL is too old to count: a commit
// may have been acknowledged under the cohort before in between.
func (l *live) use(c *quorum.Cohort, now time.Time) { l.cohort, l.cohortAt, l.cohortSince = c, now, 0 }

// New makes an agent of its configuration. stdout gets its own log (JSON) and PostgreSQL's (lines with a prefix). Neither
// ever waits for it.
func New(conf Config, stdout io.Writer) (*Agent, error) {
	conf.Defaults()
	if err := conf.Validate(); err != nil {
		return nil, err
	}
	id, err := agentapi.NewFileIdentity(conf.TLSDir)
	if err != nil {
		return nil, err
	}
	store, err := NewStore(conf.stateDir())
	if err != nil {
		return nil, err
	}
	state, err := store.Load()
	if err != nil {
		return nil, err
	}
	own := postgres.NewLogs(stdout, "", nil)
	log := slog.New(slog.NewJSONHandler(own, nil))
	a := &Agent{
		conf: conf, log: log, own: own, clock: clock.RealClock{}, id: id, store: store, state: state, boot: randomHex(),
		persisting: make(chan struct{}, 1), kick: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		procs: postgres.NewProcesses(),
	}
	a.live.heard = map[string]heard{}
	a.hub.word = make(chan struct{}, 1)
	a.logs = postgres.NewLogs(stdout, "postgres: ", a.logLine)
	a.pg = postgres.NewServer(a.serverConfig(), a.procs, a.logs, log)
	return a, nil
}

func randomHex() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (a *Agent) serverConfig() postgres.Config {
	return postgres.Config{
		Bin: a.conf.Bin, Data: a.conf.pgdata(), Run: a.conf.RunDir, Instance: a.conf.Instance,
		Listen: cmp.Or(a.conf.Listen, "*"), Port: a.conf.PostgresPort,
		AgentCN:    agentapi.CommonName(agentapi.RoleAgent, a.conf.Shard),
		GatewayCN:  agentapi.CommonName(agentapi.RoleGateway, a.conf.Shard),
		ServerName: agentapi.ServerName(a.conf.Shard), MemoryLimit: a.conf.MemoryLimit,
		Parameters: mergeParameters(a.state.Parameters, a.conf.Parameters),
	}
}

func mergeParameters(base, over map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range base {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

// Run serves until ctx ends, then stops PostgreSQL within StopTimeout and returns.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.conf.RunDir, 0o700); err != nil {
		return err
	}
	if err := a.pg.InstallTLS(a.conf.TLSDir); err != nil {
		return err
	}
	a.initialRole()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	server, err := a.listen(background)
	if err != nil {
		return err
	}
	for _, run := range []func(context.Context){a.procs.Reap, a.supervise, a.observe, a.runProbes, a.watchTLS, a.heartbeat} {
		go run(background)
	}
	a.log.Info("agent started", "shard", a.conf.Shard.String(), "instance", a.conf.Instance, "term", a.state.Term, "role", a.live.role.String())
	<-ctx.Done()
	a.shutdown()
	time.Sleep(lastWord)
	server.Stop()
	return nil
}

func (a *Agent) initialRole() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live.role = agentpb.Role_STOPPED
	if a.state.Halted == haltedSeeding && a.pg.Initialised() && a.pg.SeedMark() == a.state.Seed {
		a.state.Halted, a.state.Seed = "", "" // the copy was complete; only this word of it was missing
	}
	if !a.pg.Initialised() || a.state.Bootstrapping || a.state.Halted == haltedSeeding {
		a.live.role = agentpb.Role_EMPTY
		a.live.message = "waiting for Bootstrap or Seed"
	}
	if a.state.Rewinding {
		a.state.Diverged = "a rewind was interrupted"
	}
	if a.state.Primary != nil {
		c := a.state.Primary.Cohort
		a.live.use(&c, a.now())
	}
}

func (a *Agent) listen(ctx context.Context) (*grpc.Server, error) {
	auth := &agentapi.Authorizer{Instance: a.conf.Instance, Heard: a.heardFrom}
	server := grpc.NewServer(agentapi.ServerOptions(a.id, a.conf.Shard, auth)...)
	agentpb.RegisterAgentServer(server, a)
	listener, err := net.Listen("tcp", net.JoinHostPort(a.conf.Listen, strconv.Itoa(a.conf.AgentPort)))
	if err != nil {
		return nil, err
	}
	go func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			a.log.Error("agent API ended", "error", err)
		}
	}()
	return server, a.serveHealth(ctx)
}

// lastWord is how long watchers have to be sent the last status.
const lastWord = 50 * time.Millisecond

// shutdown is a bounded fast stop. New commands are refused from here on.
func (a *Agent) shutdown() {
	a.log.Info("stopping", "timeout", a.conf.StopTimeout.String())
	ctx, cancel := context.WithTimeout(context.Background(), a.conf.StopTimeout)
	defer cancel()
	_, done, err := a.commands.begin(ctx, ^uint64(0), "shutdown")
	if err == nil {
		defer done()
	}
	a.mu.Lock()
	a.live.stopping, a.live.draining = true, a.live.role == agentpb.Role_PRIMARY
	a.mu.Unlock()
	a.publish()
	if clean, err := a.pg.Stop(ctx, postgres.Fast); err != nil {
		a.log.Error("PostgreSQL did not stop", "error", err)
	} else {
		a.log.Info("PostgreSQL stopped", "clean", clean)
	}
	a.mu.Lock()
	a.live.role, a.live.established = agentpb.Role_STOPPED, false
	a.mu.Unlock()
	a.publish()
}

// now is the time by the injected clock.
func (a *Agent) now() time.Time { return a.clock.Now() }

// snapshot is a copy of the persisted state.
func (a *Agent) snapshot() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.clone()
}

// persistTimeout bounds a write of the state: on a stalled volume a promise is refused, not awaited.
const persistTimeout = 2 * time.Second

// update changes the state: change works on a copy, which becomes the state once it is on the device. An error of change
// is passed on and nothing is written. An unchanged state is not written.
func (a *Agent) update(ctx context.Context, change func(*State) error) error {
	ctx, cancel := context.WithTimeout(ctx, persistTimeout)
	defer cancel()
	select {
	case a.persisting <- struct{}{}:
		defer func() { <-a.persisting }()
	case <-ctx.Done():
		return fmt.Errorf("state: another change hangs: %w", context.Cause(ctx))
	}
	old := a.snapshot()
	next := old.clone()
	if err := change(&next); err != nil {
		return err
	}
	if equalState(old, next) {
		return nil
	}
	if err := a.store.Save(ctx, next); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	a.mu.Lock()
	a.state = next
	a.mu.Unlock()
	return nil
}

// lookAgain asks the observer to look now.
func (a *Agent) lookAgain() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// reconsider asks the supervisor to look now.
func (a *Agent) reconsider() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// say sets the message for people.
func (a *Agent) say(format string, args ...any) {
	a.mu.Lock()
	a.live.message = fmt.Sprintf(format, args...)
	a.mu.Unlock()
}
