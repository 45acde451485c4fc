package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/utils/clock"
)

// Bounds of supervising PgBouncer. It starts within 20 ms; one that keeps ending is tried ever more slowly.
const (
	firstRestart = 100 * time.Millisecond
	lastRestart  = 5 * time.Second
	steadyAfter  = 30 * time.Second
)

// child is the PgBouncer process, started again whenever it ends by itself.
type child struct {
	config  Config
	clock   clock.WithTicker
	log     *slog.Logger
	metrics *metrics

	process atomic.Pointer[os.Process]
}

// run keeps PgBouncer going until the context ends, and returns when it has ended. up runs while a process lives, with
// a context that ends with it. Ending the context does not end the process: signal does.
func (c *child) run(ctx context.Context, up func(ctx context.Context)) {
	pause := firstRestart
	for ctx.Err() == nil {
		begin := c.clock.Now()
		err := c.once(up)
		if ctx.Err() != nil {
			return
		}
		c.metrics.restarts.Inc()
		c.log.Error("PgBouncer has ended by itself", "error", err, "lived", c.clock.Since(begin))
		if c.clock.Since(begin) > steadyAfter {
			pause = firstRestart
		}
		select {
		case <-ctx.Done():
		case <-c.clock.After(pause):
			pause = min(2*pause, lastRestart)
		}
	}
}

// raiseFiles lets this process, and with it PgBouncer, open as many files as it may. Go does so for itself but gives its
// children the lower limit back, unless it is set by hand.
func raiseFiles() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) // the lower one does for most
	}
}

func (c *child) once(up func(ctx context.Context)) error {
	// Left by a predecessor that was killed; PgBouncer would take it for one that runs.
	_ = os.Remove(filepath.Join(c.config.RunDir, consoleDir, fmt.Sprintf(".s.PGSQL.%d", c.config.ListenPort)))
	cmd := exec.Command(c.config.PgBouncer, filepath.Join(c.config.RunDir, iniFile)) //nolint:gosec // the path is configuration
	cmd.Stdout, cmd.Stderr = c.config.PoolerLog, c.config.PoolerLog
	// Signals of a terminal are for this process, which decides how PgBouncer ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.process.Store(cmd.Process)
	defer c.process.Store(nil)
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		up(ctx)
	}()
	err := cmd.Wait()
	end()
	<-done
	if err == nil {
		return fmt.Errorf("status 0")
	}
	return err
}

// signal sends one to the process, if there is one.
func (c *child) signal(sig os.Signal) {
	if p := c.process.Load(); p != nil {
		_ = p.Signal(sig)
	}
}
