package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Lock takes the lab's lock, so that two commands do not change it at the same
// time. It waits while another command holds it, calling waiting once with who
// that is, until ctx ends. The kernel releases the lock if the holder dies.
func (s *Store) Lock(ctx context.Context, command string, waiting func(holder string)) (unlock func(), err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	f, err := os.OpenFile(s.Dir("lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lab's lock: %w", err)
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && s.stillNamed(f) {
			break
		}
		if err == nil {
			// `clean` removed the directory while we waited: lock the new file.
			_ = f.Close()
			return s.Lock(ctx, command, waiting)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("lock the lab: %w", err)
		}
		if !told {
			told = true
			waiting(s.holder())
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another lab command still runs (%s): %w", s.holder(), ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(fmt.Sprintf("pid %d: lab %s", os.Getpid(), command)), 0)
	return func() { _ = f.Close() }, nil
}

func (s *Store) stillNamed(f *os.File) bool {
	ours, err1 := f.Stat()
	named, err2 := os.Stat(s.Dir("lock"))
	return err1 == nil && err2 == nil && os.SameFile(ours, named)
}

func (s *Store) holder() string {
	b, _ := os.ReadFile(s.Dir("lock"))
	if h := strings.TrimSpace(string(b)); h != "" {
		return h
	}
	return "unknown"
}
