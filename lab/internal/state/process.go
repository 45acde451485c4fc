package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process for good: a pid alone would, after it has been
// reused, name somebody else's.
type Process struct {
	// PID in the namespace the lab command runs in; 0 means never started.
	PID int `json:"pid"`
	// Start is the process' start time in clock ticks since boot (field 22 of
	// /proc/PID/stat).
	Start uint64 `json:"start"`
	// Boot is the kernel's boot id: ticks since boot mean nothing after another.
	Boot string `json:"boot"`
}

// Identify reads who pid is now. It fails when there is no such process.
func Identify(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	start, zombie, err := parseStat(string(stat))
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	if zombie {
		return Process{}, fmt.Errorf("identify process %d: it has exited", pid)
	}
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start, Boot: boot}, nil
}

// parseStat takes the start time and whether the process is a zombie from the
// text of /proc/PID/stat. The command name in it may itself contain blanks and
// parentheses, so fields are counted from the last one.
func parseStat(stat string) (start uint64, zombie bool, err error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, false, errors.New("stat has no command name")
	}
	fields := strings.Fields(stat[i+1:])
	if len(fields) < 20 {
		return 0, false, errors.New("stat is cut short")
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0] == "Z" || fields[0] == "X", err
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Alive reports whether exactly this process still runs (a zombie does not).
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := Identify(p.PID)
	return err == nil && now == p
}

// Signal sends a signal if the process still lives, through a pidfd so that the
// check and the signal concern the same process. A dead process is not an error.
func (p Process) Signal(sig unix.Signal) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// WaitGone waits until the process is gone or ctx ends, and says which by its error.
func (p Process) WaitGone(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.Alive() {
		// Reap it when it happens to be our own child.
		_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d is still there: %w", p.PID, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// Stop asks with SIGTERM, waits up to grace, then kills. It fails only when the
// process survives SIGKILL for another 30 s.
func (p Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	asked, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if p.WaitGone(asked) == nil {
		return nil
	}
	return p.Kill(ctx)
}

// Kill sends SIGKILL and waits up to 30 s for the process to be gone.
func (p Process) Kill(ctx context.Context) error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	killed, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return p.WaitGone(killed)
}
