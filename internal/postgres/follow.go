package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// InstallTLS copies ca.crt, tls.crt and tls.key from dir, with the modes PostgreSQL and libpq insist on, and has a
// running server read them.
func (s *Server) InstallTLS(dir string) error {
	conf := s.config()
	if err := os.MkdirAll(conf.tlsDir(), 0o700); err != nil {
		return err
	}
	for _, name := range []string{"ca.crt", "tls.crt", "tls.key"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(conf.tlsDir(), name), data, 0o600); err != nil {
			return err
		}
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.gateway {
		if err := s.openGate(); err != nil {
			return err
		}
	}
	if s.Running() {
		return s.Signal(syscall.SIGHUP)
	}
	return nil
}

// setGate opens or shuts the gate: the client key that only the WAL receiver uses. Once shut it opens to another key, whose
// number is returned, so that who was told of the one before never gets in.
func (s *Server) setGate(open bool) (key int, err error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.silent = nil
	if open {
		s.gateway = true
		return s.key, s.openGate()
	}
	left, err := filepath.Glob(s.conf.gateKeys()) // an earlier agent's, too
	if err != nil {
		return 0, err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
	}
	if s.gateway {
		s.gateway = false
		s.key++
	}
	return s.key, nil
}

func (s *Server) openGate() error {
	key, err := os.ReadFile(filepath.Join(s.conf.tlsDir(), "tls.key"))
	if err != nil {
		return err
	}
	return replaceFile(s.conf.gateKey(s.key), key, 0o600)
}

// apply writes theseus.conf and has the server read it.
func (s *Server) apply(r Runtime) error {
	s.mu.Lock()
	err := s.rewrite(r)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.reload()
}

// rewrite is to be called with mu held.
func (s *Server) rewrite(r Runtime) error {
	s.runtime = r
	s.written++
	return replaceFile(filepath.Join(s.conf.confDir(), "theseus.conf"), []byte(s.conf.dynamic(r)), 0o600)
}

// reload has the server read its configuration. Besides the postmaster, which tells its children, the startup process and the
// checkpointer are told directly: the postmaster may be stopped or busy.
func (s *Server) reload() error {
	if err := s.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	for _, pid := range s.auxiliaries("startup", "checkpointer") {
		_ = syscall.Kill(pid, syscall.SIGHUP)
	}
	return nil
}

// applySoonAfter is when what is not urgent is applied.
const applySoonAfter = 25 * time.Millisecond

// applySoon is apply, a little later, unless something else is applied first. To read the configuration costs every process of
// the server a millisecond or two.
func (s *Server) applySoon(r Runtime) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runtime = r
	s.written++
	mine := s.written
	time.AfterFunc(applySoonAfter, func() {
		s.mu.Lock()
		superseded := s.written != mine
		var err error
		if !superseded {
			err = s.rewrite(s.runtime)
		}
		s.mu.Unlock()
		if superseded {
			return
		}
		if err == nil {
			err = s.reload()
		}
		if err != nil && !errors.Is(err, ErrDown) {
			s.log.Warn("the configuration is not applied", "error", err)
		}
	})
}

func (s *Server) runtimeNow() Runtime {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runtime
}

// Runtime is the changeable configuration last written.
func (s *Server) Runtime() Runtime { return s.runtimeNow() }

// kind is what the title of one of this server's processes says it is and does, such as "walreceiver streaming 0/3000060";
// empty for a process of somebody else's, or one that has ended.
func (s *Server) kind(pid int) string {
	kind, ok := strings.CutPrefix(s.procs.title(pid), "postgres: "+s.conf.Instance+": ")
	if !ok {
		return ""
	}
	return kind
}

// is says that a kind is among those that begin with the given words.
func is(kind string, words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return kind == w || strings.HasPrefix(kind, w+" ") })
}

// auxiliaries finds PostgreSQL's own processes of the given kinds. They are children of the postmaster.
func (s *Server) auxiliaries(kinds ...string) []int {
	return s.auxiliariesAmong(s.procs.children, kinds...)
}

func (s *Server) auxiliariesAmong(children func(parent int) []int, kinds ...string) []int {
	life := s.current()
	if life == nil || closed(life.exited) {
		return nil
	}
	return slices.DeleteFunc(children(life.pid), func(pid int) bool { return !is(s.kind(pid), kinds...) })
}

// Follow makes a running standby stream from u. It is a reload: replay and readers go on.
func (s *Server) Follow(u Upstream) error {
	r := s.runtimeNow()
	r.Upstream = &u
	var err error
	if r.key, err = s.setGate(true); err != nil {
		return err
	}
	return s.apply(r)
}

// receiverGrace is how long a WAL receiver may take to end after SIGTERM before it is also continued (SIGCONT), in
// case somebody stopped it.
const receiverGrace = 50 * time.Millisecond

// StopReceiver stops the WAL receiver and proves that none receives or acknowledges anything any more, until Follow.
//
// Clearing primary_conninfo is not a proof. The startup process may have read the old value just before, put it into
// shared memory and asked the postmaster for a receiver; the postmaster, stopped or starved, may fork it much later.
// Nobody outside can see whether such a request is under way. So the proof does not rest on the configuration, which is
// cleared a little later, unless a Follow or a promotion changes it first:
//
//   - primary_conninfo names a client key that nothing else uses and that exists once, and servers of the shard accept
//     replication by certificate alone. Removing the key first means that a receiver which has not read it by now never connects,
//     not even when a later Follow has made the next key.
//   - A receiver that has read it had its title set long before (the title is set when the process starts, the key is
//     read when it connects), so one look at all processes afterwards finds it by its title. It is terminated and waited for;
//     one that is started later has no key. Should the postmaster have died, its receiver is found in the data directory
//     instead, and killed with all that is left there.
//
// A receiver that does not go (it sleeps in an fsync on a stalled device) is an error: after the device answers it could
// still send an acknowledgement. Never use SIGKILL here: the postmaster takes that for a crash and stops everything.
// Acknowledgements already handed to the kernel may still arrive, but they are of WAL flushed before, which is in the
// position measured afterwards.
//
// The proof holds as long as the gate stays shut and the postmaster lives: asked again it is not made again.
func (s *Server) StopReceiver(ctx context.Context) error {
	life := s.current()
	if s.isSilent(life) {
		return nil
	}
	if _, err := s.setGate(false); err != nil {
		return err
	}
	r := s.runtimeNow()
	r.Upstream = nil
	s.applySoon(r)
	// Not the kernel's own list of children: that there is no other one has to be certain.
	receivers := s.auxiliariesAmong(s.procs.childrenOf, "walreceiver")
	begun := time.Now()
	for {
		receivers = slices.DeleteFunc(receivers, func(pid int) bool { return !is(s.kind(pid), "walreceiver") })
		if len(receivers) == 0 {
			break
		}
		for _, pid := range receivers {
			_ = syscall.Kill(pid, syscall.SIGTERM)
			if time.Since(begun) > receiverGrace {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the WAL receiver does not end: %w", context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
	// One that died just before the look had no children any more, whoever they belong to now.
	if life == nil || closed(life.exited) || !s.procs.lives(life.pid) {
		return s.awaitCleaned(ctx)
	}
	s.gate.Lock()
	s.silent = life
	s.gate.Unlock()
	return nil
}

// isSilent says that StopReceiver has proven of this postmaster what it proves, and that nothing has changed since.
func (s *Server) isSilent(life *process) bool {
	s.gate.Lock()
	defer s.gate.Unlock()
	return life != nil && s.silent == life && !s.gateway && !closed(life.exited)
}

// AwaitReceiverEnd waits until the WAL receiver that runs now has ended by itself, as it does when its upstream was stopped
// in order and has sent everything. None is an end, too. It returns false when that takes longer than within, or ctx ends.
// A receiver that PostgreSQL starts in its place is another one.
func (s *Server) AwaitReceiverEnd(ctx context.Context, within time.Duration) bool {
	pids := s.auxiliaries("walreceiver")
	return await(ctx, within, time.Millisecond, func() bool {
		return !slices.ContainsFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) == nil })
	})
}

// AwaitStreaming waits until a WAL receiver streams, by its title, which costs the server nothing. It returns false when that takes
// longer than within, or ctx ends.
func (s *Server) AwaitStreaming(ctx context.Context, within time.Duration) bool {
	return await(ctx, within, 5*time.Millisecond, func() bool { return len(s.auxiliaries("walreceiver streaming")) > 0 })
}

// await asks every so often until something is so. It returns false when that takes longer than within, or ctx ends.
func await(ctx context.Context, within, every time.Duration, so func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !so() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(every):
		}
	}
	return true
}

// Promote ends recovery. It returns as soon as the server takes writes; the checkpoint comes later by itself. The
// position's timeline is the new one.
func (s *Server) Promote(ctx context.Context) (pos Position, err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return Position{}, err
	}
	defer func() { warm.done(err) }()
	// Readers on a standby can hold up replay, and promotion waits for replay. Their sessions end with their role.
	_, err = warm.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'
		AND pid <> pg_backend_pid() AND application_name NOT LIKE $1`, applicationPrefix+"%")
	if err != nil {
		return Position{}, err
	}
	asked := false
	for {
		var recovering bool
		if err := warm.QueryRow(ctx, "SELECT pg_is_in_recovery()", prepared).Scan(&recovering); err != nil {
			return Position{}, err
		}
		if !recovering {
			return position(ctx, warm)
		}
		if !asked {
			if _, err := warm.Exec(ctx, "SELECT pg_promote(wait => false)"); err != nil {
				return Position{}, err
			}
			asked = true
		}
		select {
		case <-ctx.Done():
			return Position{}, fmt.Errorf("promotion is under way but not done: %w", context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}
