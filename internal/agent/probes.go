package agent

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// probes are the agent's own clients. Each runs in a goroutine of its own and leaves behind when it began, so that one
// which hangs is seen to hang by everybody else.
type probes struct {
	write, disk, connect, commit probe
}

// probe is the record of one kind of probe.
type probe struct {
	mu       sync.Mutex
	success  time.Time
	latency  time.Duration
	failures uint32
	err      string
	pending  time.Time
}

func (p *probe) status() *agentpb.Probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &agentpb.Probe{LatencyUs: p.latency.Microseconds(), Failures: p.failures, Error: p.err}
	if !p.success.IsZero() {
		st.LastSuccessUnixMs = p.success.UnixMilli()
	}
	if !p.pending.IsZero() {
		st.PendingSinceUnixMs = p.pending.UnixMilli()
	}
	return st
}

// begin marks a probe as under way.
func (p *probe) begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending = now
}

// end records the outcome and says whether it differs in kind from the one before.
func (p *probe) end(now time.Time, err error) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	took := now.Sub(p.pending)
	p.pending = time.Time{}
	if err != nil {
		p.failures++
		p.err = err.Error()
		return p.failures == 1
	}
	news = p.failures > 0
	p.success, p.latency, p.failures, p.err = now, took, 0, ""
	return news
}

// reset forgets everything: the probe does not apply at present.
func (p *probe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.success, p.latency, p.failures, p.err, p.pending = time.Time{}, 0, 0, "", time.Time{}
}

const (
	// connectTimeout ends an attempt to open a session. It is long on purpose: a stopped postmaster shows as a probe
	// that has been under way for seconds, and giving up early would only make it look young again.
	connectTimeout = time.Minute
	// connectSlow is when an instance stops being ready because a new session takes that long.
	connectSlow = 1500 * time.Millisecond
)

// runProbes runs all probes until ctx ends.
func (a *Agent) runProbes(ctx context.Context) {
	var all sync.WaitGroup
	always := func() bool { return true }
	all.Go(func() { a.every(ctx, &a.probes.disk, a.conf.Probe, always, a.probeDisk) })
	// A new session is a new process: half as often.
	all.Go(func() { a.every(ctx, &a.probes.connect, 2*a.conf.Probe, a.pg.Running, a.probeConnect) })
	for _, p := range []struct {
		probe   *probe
		durable string
	}{{&a.probes.write, "local"}, {&a.probes.commit, "on"}} {
		session := &probeSession{agent: a, durable: p.durable}
		all.Go(func() { a.every(ctx, p.probe, a.conf.Probe, a.isPrimary, session.write) })
	}
	all.Wait()
}

// every runs one kind of probe again and again, an interval apart, while it applies.
func (a *Agent) every(ctx context.Context, p *probe, interval time.Duration, applies func() bool, run func(context.Context) error) {
	ticker := a.clock.NewTicker(interval)
	defer ticker.Stop()
	for {
		if applies() {
			p.begin(a.now())
			stop := a.announceStall(p)
			err := run(ctx)
			stop()
			if !applies() {
				p.reset() // PostgreSQL was stopped under it
			} else if p.end(a.now(), err) {
				a.publish()
			}
		} else {
			p.reset()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// announceStall publishes once when a probe has been under way for two periods, without waiting for the heartbeat.
func (a *Agent) announceStall(p *probe) (stop func()) {
	timer := a.clock.AfterFunc(2*a.conf.Probe, func() { a.publish() })
	return func() { timer.Stop() }
}

func (a *Agent) probeConnect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := a.pg.Connect(ctx, "probe")
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// probeDisk writes and flushes a file beside the data, and measures the space. It cannot be given up: a thread that
// waits for a stalled device stays until the device answers.
func (a *Agent) probeDisk(context.Context) error {
	f, err := os.OpenFile(filepath.Join(a.conf.stateDir(), "probe"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var block [512]byte
	copy(block[:], a.now().Format(time.RFC3339Nano))
	if _, err := f.WriteAt(block[:], 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(a.conf.DataDir, &st); err != nil {
		return err
	}
	a.mu.Lock()
	a.live.diskFree = [2]uint64{st.Blocks * uint64(st.Bsize), st.Bavail * uint64(st.Bsize)}
	a.mu.Unlock()
	return nil
}
