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

// setGate opens or shuts the gate: the client key that only the WAL receiver uses.
func (s *Server) setGate(open bool) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.gateway, s.silent = open, nil
	if open {
		return s.openGate()
	}
	if err := os.Remove(s.conf.gateKey()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *Server) openGate() error {
	key, err := os.ReadFile(filepath.Join(s.conf.tlsDir(), "tls.key"))
	if err != nil {
		return err
	}
	return replaceFile(s.conf.gateKey(), key, 0o600)
}

// apply writes theseus.conf and has the server read it. Besides the postmaster, which tells its children, the startup
// process and the checkpointer are told directly: the postmaster may be stopped or busy.
func (s *Server) apply(r Runtime) error {
	s.mu.Lock()
	s.runtime = r
	text := s.conf.dynamic(r)
	path := filepath.Join(s.conf.confDir(), "theseus.conf")
	err := replaceFile(path, []byte(text), 0o600)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	for _, pid := range s.auxiliaries("startup", "checkpointer") {
		_ = syscall.Kill(pid, syscall.SIGHUP)
	}
	return nil
}

func (s *Server) runtimeNow() Runtime {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runtime
}

// Runtime is the changeable configuration last written.
func (s *Server) Runtime() Runtime { return s.runtimeNow() }

// auxiliaries finds PostgreSQL's own processes of the given kinds by their titles ("postgres: NAME: walreceiver …"). They
// are children of the postmaster.
func (s *Server) auxiliaries(kinds ...string) []int {
	return s.auxiliariesAmong(s.procs.children, kinds...)
}

func (s *Server) auxiliariesAmong(children func(parent int) []int, kinds ...string) []int {
	life := s.current()
	if life == nil || closed(life.exited) {
		return nil
	}
	prefix := "postgres: " + s.conf.Instance + ": "
	var pids []int
	for _, pid := range children(life.pid) {
		title, ok := strings.CutPrefix(s.procs.title(pid), prefix)
		if !ok {
			continue
		}
		for _, kind := range kinds {
			if title == kind || strings.HasPrefix(title, kind+" ") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Follow makes a running standby stream from u. It is a reload: replay and readers go on.
func (s *Server) Follow(u Upstream) error {
	if err := s.setGate(true); err != nil {
		return err
	}
	r := s.runtimeNow()
	r.Upstream = &u
	return s.apply(r)
}

// receiverGrace is how long a WAL receiver may take to end after SIGTERM before it is also continued (SIGCONT), in
// case somebody stopped it.
const receiverGrace = 50 * time.Millisecond

// StopReceiver stops the WAL receiver and proves that none receives or acknowledges anything any more, until Follow.
//
// Clearing primary_conninfo is not a proof. The startup process may have read the old value just before, put it into
// shared memory and asked the postmaster for a receiver; the postmaster, stopped or starved, may fork it much later.
// Nobody outside can see whether such a request is under way. So the proof does not rest on the configuration:
//
//   - primary_conninfo names a client key that nothing else uses, and servers of the shard accept replication by
//     certificate alone. Removing the key first means that a receiver which has not read it by now never connects.
//   - A receiver that has read it had its title set long before (the title is set when the process starts, the key is
//     read when it connects), so it is found by its title. It is terminated and waited for. Should the postmaster have
//     died, its receiver is found in the data directory instead, and killed with all that is left there.
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
	if err := s.setGate(false); err != nil {
		return err
	}
	r := s.runtimeNow()
	r.Upstream = nil
	if err := s.apply(r); err != nil {
		if errors.Is(err, ErrDown) {
			return s.awaitCleaned(ctx)
		}
		return err
	}
	begun := time.Now()
	for {
		pids := s.auxiliaries("walreceiver")
		if len(pids) == 0 {
			pids = s.auxiliariesAmong(s.procs.childrenOf, "walreceiver") // that there is none has to be certain
		}
		if len(pids) == 0 {
			if s.Running() {
				s.gate.Lock()
				s.silent = life
				s.gate.Unlock()
				return nil
			}
			return s.awaitCleaned(ctx)
		}
		for _, pid := range pids {
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
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	pids := s.auxiliaries("walreceiver")
	for slices.ContainsFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) == nil }) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Millisecond):
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
		if err := warm.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering); err != nil {
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
