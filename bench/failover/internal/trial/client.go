package trial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"theseus.dev/theseus/internal/load"
)

// ClientConfig is how the write load is run; it is the same for every system.
type ClientConfig struct {
	// Command is what runs a program beside the nodes, and the load client with it.
	Command []string
	// Writers, Interval, Timeout and ConnectTimeout are those of package load.
	Writers                           int
	Interval, Timeout, ConnectTimeout time.Duration
}

func (c ClientConfig) args(out string) []string {
	return append(append([]string(nil), c.Command...),
		"--writers", fmt.Sprint(c.Writers), "--interval", c.Interval.String(), "--timeout", c.Timeout.String(),
		"--connect-timeout", c.ConnectTimeout.String(), "--verify-timeout", "1m", "--ops", "--out", out)
}

// String describes the client for a report.
func (c ClientConfig) String() string {
	return fmt.Sprintf("Client: `theseus-load` beside the nodes, %d writers, one insertion every %s each, "+
		"each its own transaction; %s for one write and %s for one attempt to connect, then a new connection; after a failed attempt the next begins 10 ms later.",
		c.Writers, c.Interval, c.Timeout, c.ConnectTimeout)
}

// client is a running load.
type client struct {
	cmd    *exec.Cmd
	out    string
	exited chan error
	said   load.Follower
}

// startClient begins to write. The password travels in the environment, where other users cannot read it.
func startClient(c ClientConfig, uri, dir string) (*client, error) {
	r := &client{out: filepath.Join(dir, "load.json"), exited: make(chan error, 1)}
	_ = os.Remove(r.out)
	args := c.args(r.out)
	r.cmd = exec.Command(args[0], args[1:]...)
	r.cmd.Env = append(os.Environ(), "DATABASE_URL="+uri)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	r.cmd.Stderr = &r.said
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { r.exited <- r.cmd.Wait() }()
	return r, nil
}

// errClientEnded is a load that did not wait to be told to stop.
var errClientEnded = errors.New("the load ended by itself")

// waitWriting waits for three seconds in a row with writes, all after a moment. It reports false at the deadline.
func (r *client) waitWriting(ctx context.Context, after time.Time, bound time.Duration) (bool, error) {
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if r.said.Writing(3, after) {
			return true, nil
		}
		select {
		case err := <-r.exited:
			r.exited <- err
			return false, fmt.Errorf("%w (%v):\n%s", errClientEnded, err, r.said.String())
		case <-ctx.Done():
			return false, ctx.Err()
		case <-deadline.C:
			return false, nil
		case <-tick.C:
		}
	}
}

// stop ends the load and returns its account. A load that found writes missing, or could not read them back, ends with
// a status that says so; both are in the account too.
func (r *client) stop(bound time.Duration) (*load.Summary, error) {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	var ended error
	select {
	case ended = <-r.exited:
	case <-time.After(bound):
		_ = r.cmd.Process.Kill()
		return nil, errors.New("the load did not end:\n" + r.said.String())
	}
	data, err := os.ReadFile(r.out)
	if err != nil {
		return nil, fmt.Errorf("the load left no account: %w\n%s", errors.Join(ended, err), r.said.String())
	}
	s := &load.Summary{}
	return s, json.Unmarshal(data, s)
}
