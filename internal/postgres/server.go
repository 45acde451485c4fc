package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Server is one PostgreSQL server and its data directory. Its methods may be called from several goroutines, but
// whoever changes what the server is (Start, Stop, Promote, Seed, Rewind …) must do so one after the other: package
// agent serialises its commands.
type Server struct {
	conf  Config
	procs *Processes
	logs  *Logs
	log   *slog.Logger

	mu         sync.Mutex
	parameters map[string]string // instead of conf.Parameters, which does not change
	running    *process          // the last one started; nil before the first
	runtime    Runtime
	written    int // how often runtime was changed
	// gate guards the files conf.gateKey(): see StopReceiver.
	gate    sync.Mutex
	gateway bool // whether the gate is open
	key     int  // the number of the key that opens it, now or next
	// silent is the postmaster of which StopReceiver has proven that it receives nothing; nil when the gate was touched since.
	silent *process

	sync applied
	warm *warm
}

// process is one life of a postmaster.
type process struct {
	cmd     *exec.Cmd
	pid     int
	started time.Time
	// exited is closed the moment the postmaster has exited; cleaned when nothing of it is left.
	exited, cleaned chan struct{}
	exit            string
	leftovers       error
}

// NewServer makes a Server; nothing is touched.
func NewServer(conf Config, procs *Processes, logs *Logs, log *slog.Logger) *Server {
	return &Server{conf: conf, procs: procs, logs: logs, log: log, runtime: Runtime{Sync: Nobody}, warm: newWarm(), parameters: conf.Parameters}
}

// SetParameters replaces the user's parameters from the next start on.
func (s *Server) SetParameters(p map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parameters = p
}

// config is a copy with the parameters of this moment.
func (s *Server) config() Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	conf := s.conf
	conf.Parameters = s.parameters
	return conf
}

// Initialised says whether there is a data directory.
func (s *Server) Initialised() bool {
	_, err := os.Stat(filepath.Join(s.conf.Data, "PG_VERSION"))
	return err == nil
}

// Version is the major version of the data directory, "" without one.
func (s *Server) Version() string {
	data, _ := os.ReadFile(filepath.Join(s.conf.Data, "PG_VERSION"))
	return strings.TrimSpace(string(data))
}

// walSegment is the size of a WAL file in MB. A promotion copies one and flushes it before it takes writes, and a standby
// that reconnects is sent its current one again from the beginning before it can acknowledge anything: a quarter of
// PostgreSQL's 16 MB takes a quarter of that time from every reparent, for four times as many files.
const walSegment = "4"

// Init creates an empty data directory. What an interrupted Init left behind must be removed before (see Discard).
func (s *Server) Init(ctx context.Context) error {
	cmd := exec.Command(s.bin("initdb"), "--pgdata="+s.conf.Data, "--username="+Superuser, "--data-checksums",
		"--encoding=UTF8", "--locale=C.UTF-8", "--wal-segsize="+walSegment, "--auth-local=trust", "--auth-host=reject")
	cmd.Env = toolEnv()
	_, err := s.procs.Run(ctx, cmd)
	return err
}

// Discard removes the data directory and what an interrupted seeding left. The server must be down.
func (s *Server) Discard() error {
	if s.Running() {
		return errors.New("the server is running")
	}
	// Half removed it would still look like one.
	if err := os.RemoveAll(s.discarded()); err != nil {
		return err
	}
	if err := os.Rename(s.conf.Data, s.discarded()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Dir(s.conf.Data)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(s.discarded()), os.RemoveAll(s.seeding()))
}

// Mode is what a server starts as.
type Mode int

// The modes. A standby with no upstream replays what it has and waits.
const (
	AsStandby Mode = iota
	AsPrimary
)

// Start starts the server and returns when it accepts the agent's sessions. A standby accepts them once it is
// consistent, which after a crash of its upstream can need WAL it does not have yet: then ctx decides, and the server
// goes on.
func (s *Server) Start(ctx context.Context, mode Mode, r Runtime) error {
	if s.Running() {
		return errors.New("the server is running already")
	}
	if err := s.awaitCleaned(ctx); err != nil {
		return err
	}
	// Processes of an earlier agent's server; the kernel would refuse a second server on the same shared memory.
	if err := s.procs.KillWithin(ctx, s.conf.Data); err != nil {
		return err
	}
	var least map[string]int
	if mode == AsStandby {
		var err error
		if least, err = s.floorsOf(ctx); err != nil {
			return err
		}
	}
	if err := s.prepare(mode, r, least); err != nil {
		return err
	}
	if err := s.launch(); err != nil {
		return err
	}
	return s.AwaitReady(ctx)
}

// prepare writes configuration and the files that decide the mode.
func (s *Server) prepare(mode Mode, r Runtime, least map[string]int) error {
	var err error
	if r.key, err = s.setGate(r.Upstream != nil); err != nil {
		return err
	}
	s.mu.Lock()
	s.runtime = r
	s.written++
	s.sync = appliedAtStart(r.Sync)
	s.mu.Unlock()
	conf := s.config()
	conf.least = least
	if err := conf.writeConfig(r); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	// A volume that was mounted with another fsGroup has had its modes changed, and PostgreSQL refuses that.
	if err := os.Chmod(conf.Data, 0o700); err != nil {
		return err
	}
	// ALTER SYSTEM's file would be read last and override ours.
	if err := os.WriteFile(filepath.Join(conf.Data, "postgresql.auto.conf"), nil, 0o600); err != nil {
		return err
	}
	signal := filepath.Join(conf.Data, "standby.signal")
	for _, stale := range []string{signal, filepath.Join(conf.Data, "recovery.signal"), filepath.Join(conf.Data, "promote")} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if mode == AsStandby {
		if err := os.WriteFile(signal, nil, 0o600); err != nil {
			return err
		}
	}
	return syncDir(conf.Data)
}

func (s *Server) launch() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(s.bin("postgres"), "-D", s.conf.Data, "-c", "config_file="+filepath.Join(s.conf.confDir(), "postgresql.conf"))
	cmd.Env = toolEnv()
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = s.procs.Start(cmd)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return err
	}
	go s.logs.collect(r)
	p := &process{cmd: cmd, pid: cmd.Process.Pid, started: time.Now(), exited: make(chan struct{}), cleaned: make(chan struct{})}
	s.mu.Lock()
	s.running = p
	s.mu.Unlock()
	go s.supervise(p)
	return nil
}

// supervise waits for the postmaster's end and then kills whatever it left: a backend that was stopped with SIGSTOP
// does not notice the postmaster's death, keeps its shared memory, and would go on where it was once continued.
func (s *Server) supervise(p *process) {
	err := s.procs.Wait(p.cmd)
	p.exit = "exit status 0"
	if err != nil {
		p.exit = err.Error()
	}
	close(p.exited)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if p.leftovers = s.procs.KillWithin(ctx, s.conf.Data); p.leftovers != nil {
		s.log.Error("processes of a dead postmaster survive", "error", p.leftovers)
	}
	close(p.cleaned)
}

func (s *Server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Running says whether the postmaster is alive.
func (s *Server) Running() bool {
	p := s.current()
	return p != nil && !closed(p.exited)
}

// Life describes the postmaster last started.
type Life struct {
	Started time.Time
	// Exited is closed when it ends; nil when there was none.
	Exited <-chan struct{}
	// Exit says how it ended, "" while it runs.
	Exit string
}

// Life is the present or the last postmaster.
func (s *Server) Life() Life {
	p := s.current()
	if p == nil {
		return Life{}
	}
	l := Life{Started: p.started, Exited: p.exited}
	if closed(p.exited) {
		l.Exit = p.exit
	}
	return l
}

func (s *Server) awaitCleaned(ctx context.Context) error {
	p := s.current()
	if p == nil {
		return nil
	}
	select {
	case <-p.cleaned:
		return p.leftovers
	case <-ctx.Done():
		return fmt.Errorf("waiting for leftovers to go: %w", context.Cause(ctx))
	}
}

// AwaitReady waits until the server takes sessions, its postmaster exits, or ctx ends.
func (s *Server) AwaitReady(ctx context.Context) error {
	p := s.current()
	if p == nil {
		return ErrDown
	}
	for {
		if s.pidfileStatus() == "ready" {
			sessions, err := s.acquire(ctx)
			if err == nil {
				sessions.done(nil)
				return nil
			}
		}
		select {
		case <-p.exited:
			return fmt.Errorf("PostgreSQL did not start (%s): %s", p.exit, lastLine(s.logs.Tail(2<<10)))
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not take sessions (it says %q): %w", s.pidfileStatus(), context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// pidfileStatus is the postmaster's own word in postmaster.pid: starting, standby, ready, stopping.
func (s *Server) pidfileStatus() string {
	data, err := os.ReadFile(filepath.Join(s.conf.Data, "postmaster.pid"))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 8 {
		return ""
	}
	return strings.TrimSpace(lines[7])
}

// StopMode is how to stop.
type StopMode int

// Fast ends sessions, writes a shutdown checkpoint and ships all WAL to connected standbys. Immediate does none of it.
const (
	Fast StopMode = iota
	Immediate
)

// killAfter is what an immediate stop may take before everything is killed: backends have nothing to do but exit.
const killAfter = 700 * time.Millisecond

// Stop stops the server and returns when no process of it is left. A fast stop that is not done when ctx ends becomes
// an immediate one, which becomes SIGKILL. clean says that the shutdown checkpoint was written. The error is about
// processes that cannot be killed; a server that was down is no error.
func (s *Server) Stop(ctx context.Context, mode StopMode) (clean bool, err error) {
	p := s.current()
	if p == nil {
		return false, nil
	}
	if mode == Fast {
		_ = syscall.Kill(p.pid, syscall.SIGINT)
		if s.awaitExit(ctx, p) {
			clean = p.cmd.ProcessState.Success()
		}
	}
	if !closed(p.exited) {
		s.kill(p)
	}
	timeout := time.NewTimer(5 * time.Second)
	defer timeout.Stop()
	select {
	case <-p.cleaned:
		return clean, p.leftovers
	case <-timeout.C:
		return false, errors.New("processes of PostgreSQL cannot be killed: is the volume stalled?")
	}
}

// awaitExit waits for the end of a fast stop, and says whether it came before that of ctx.
//
// Once the shutdown checkpoint is written the postmaster waits for three kinds of processes: walsenders and the archiver, which
// finish, and one for everybody who connected meanwhile, only to be told that the server is shutting down. Such a one first
// reads what its client has to say, at the client's pace and for as long as authentication_timeout (a minute). Those are ended: nobody
// is served by them, and somebody always connects, standbys that have lost their stream for one.
func (s *Server) awaitExit(ctx context.Context, p *process) bool {
	// Looked for with certainty, because nobody may be ended before it has gone; it is never started again in a stop.
	checkpointers := s.auxiliariesAmong(s.procs.childrenOf, "checkpointer")
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.exited:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
			if !slices.ContainsFunc(checkpointers, s.procs.lives) {
				s.endHandshakes(p)
			}
		}
	}
}

func (s *Server) endHandshakes(p *process) {
	for _, pid := range s.procs.children(p.pid) {
		if !is(s.kind(pid), "walsender", "archiver") {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	}
}

func (s *Server) kill(p *process) {
	// Continue a stopped postmaster, or it never sees the signal.
	_ = syscall.Kill(p.pid, syscall.SIGQUIT)
	_ = syscall.Kill(p.pid, syscall.SIGCONT)
	timer := time.NewTimer(killAfter)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		for _, pid := range s.procs.Within(s.conf.Data) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// ErrDown says that the server is not running.
var ErrDown = errors.New("PostgreSQL is down")

// Signal sends a signal to the postmaster; tests use it.
func (s *Server) Signal(sig syscall.Signal) error {
	if !s.Running() {
		return ErrDown
	}
	return syscall.Kill(s.current().pid, sig)
}

func (s *Server) bin(name string) string { return filepath.Join(s.conf.Bin, name) }

func (s *Server) discarded() string { return s.conf.Data + ".discard" }

func (s *Server) seeding() string { return s.conf.Data + ".seeding" }

// toolEnv is the environment of PostgreSQL and its tools: nothing of the agent's own, no PG* variable of an image.
func toolEnv() []string {
	return []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/nonexistent"}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
