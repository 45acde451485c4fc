package trial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"theseus.dev/theseus/bench/failover/internal/result"
)

// Harness does repetitions.
type Harness struct {
	Lab    Lab
	Client ClientConfig
	Bounds Bounds
	// Random is where the jitter comes from: a number in [0, 1).
	Random func() float64
	// Dir is for what is kept while a repetition runs, and of those that went wrong.
	Dir string
	// Out receives the progress.
	Out func(string)
}

// attempt is one repetition under way.
type attempt struct {
	*Harness
	system System
	fault  Fault
	run    result.Run
	uri    string
	client *client
	victim Instance
	when   result.Moments
	mended bool
}

// Repeat does a fault to a healthy system once. The error is for what makes further repetitions pointless without a
// fresh system; what went wrong is in the Run's note in any case. A context that ends leaves the fault undone.
func (h *Harness) Repeat(ctx context.Context, s System, f Fault, rep int) (result.Run, error) {
	a := &attempt{Harness: h, system: s, fault: f, run: result.Run{System: s.ID(), Fault: f.ID, Rep: rep, At: time.Now().UTC()}}
	err := a.do(ctx)
	if err != nil {
		a.note(err.Error())
		a.collect()
	}
	return a.run, err
}

func (a *attempt) note(text string) {
	if a.run.Note != "" {
		a.run.Note += "; "
	}
	a.run.Note += text
}

func (a *attempt) do(ctx context.Context) error {
	if err := a.healthy(ctx); err != nil {
		return fmt.Errorf("before the fault: %w", err)
	}
	if err := a.begin(ctx); err != nil {
		return err
	}
	defer a.cleanUp()
	if err := a.hit(ctx); err != nil {
		return err
	}
	explained := a.explain(ctx) // before the repair adds to it
	a.when.Mend = time.Now()
	mending := a.mendAndHeal(ctx)
	time.Sleep(2 * time.Second) // whatever the repair sets off belongs to the measurement
	summary, err := a.client.stop(a.Bounds.Step)
	if err != nil {
		return errors.Join(err, mending)
	}
	a.run.Fill(summary, a.when)
	a.run.Measured = true
	a.judge(ctx)
	a.run.Phases = append(a.run.Phases, explained...)
	if a.run.Lost > 0 {
		a.note(fmt.Sprintf("%d acknowledged writes are missing", a.run.Lost))
		a.collect()
	}
	return mending
}

// begin starts the load and waits until it flows.
func (a *attempt) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.Bounds.Step)
	defer cancel()
	var err error
	if a.uri, err = a.system.URI(ctx); err != nil {
		return fmt.Errorf("its address: %w", err)
	}
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		return err
	}
	if a.client, err = startClient(a.Client, a.uri, a.Dir); err != nil {
		return err
	}
	began := time.Now()
	ok, err := a.client.waitWriting(ctx, began, a.Bounds.Step/2)
	if err == nil && !ok {
		err = errors.New("no writes before the fault:\n" + a.client.said.String())
	}
	if err == nil {
		jitter := time.Duration(a.Random() * float64(a.Bounds.Jitter))
		err = pause(ctx, a.Bounds.Steady+jitter-time.Since(began))
	}
	if err == nil {
		a.victim, err = a.system.Primary(ctx)
	}
	if err != nil {
		_, _ = a.client.stop(a.Bounds.Step)
		return err
	}
	a.run.OldPrimary, a.run.Node = a.victim.Name, a.victim.Node
	return nil
}

// hit does the fault and waits until writes have come back, or long enough.
func (a *attempt) hit(ctx context.Context) error {
	a.run.MachineLoad = loadAverage()
	a.when.Fault = time.Now()
	err := within(ctx, a.Bounds.Step, func(ctx context.Context) error { return a.fault.Inject(ctx, a.Lab, a.system, a.victim) })
	if err != nil {
		return fmt.Errorf("doing the fault: %w", err)
	}
	a.Out(fmt.Sprintf("    %s: done to %s on %s", a.fault.ID, a.victim.Name, a.victim.Node))
	if err := pause(ctx, a.Bounds.Watch); err != nil {
		return err
	}
	a.run.Recovered, err = a.client.waitWriting(ctx, a.when.Fault, a.Bounds.Limit-a.Bounds.Watch)
	if err != nil || !a.fault.Newcomers {
		return err
	}
	welcome, err := a.newcomer(ctx)
	if err == nil && !welcome {
		a.run.Closed = true
		a.note(fmt.Sprintf("a client that came later could not write within %s", a.Bounds.Newcomer))
	}
	return err
}

// newcomer says whether a client that comes only now can write.
func (a *attempt) newcomer(ctx context.Context) (bool, error) {
	dir := filepath.Join(a.Dir, "newcomer")
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	config := a.Client
	config.Writers = 1
	c, err := startClient(config, a.uri, dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.cmd.Process.Kill() }() // what it wrote is nobody's account
	ok, err := c.waitWriting(ctx, time.Now(), a.Bounds.Newcomer)
	if errors.Is(err, errClientEnded) {
		return false, nil // it gave up
	}
	return ok, err
}

// mendAndHeal undoes the fault and waits for the system to be whole again.
func (a *attempt) mendAndHeal(ctx context.Context) error {
	if err := a.mend(ctx); err != nil {
		return fmt.Errorf("undoing the fault: %w", err)
	}
	if err := a.healthy(ctx); err != nil {
		return fmt.Errorf("after the fault: %w", err)
	}
	a.run.HealthyMS = float64(time.Since(a.when.Mend).Milliseconds())
	return nil
}

func (a *attempt) mend(ctx context.Context) error {
	if a.mended || a.fault.Mend == nil || a.when.Fault.IsZero() {
		return nil
	}
	a.mended = true
	return within(ctx, a.Bounds.Step, func(ctx context.Context) error { return a.fault.Mend(ctx, a.Lab, a.system, a.victim) })
}

func (a *attempt) healthy(ctx context.Context) error {
	return within(ctx, a.Bounds.Healthy, a.system.WaitHealthy)
}

// cleanUp leaves no load and no fault behind, whatever happened; both are no-ops after a whole repetition.
func (a *attempt) cleanUp() {
	if a.client != nil {
		_ = a.client.cmd.Process.Kill() // of one that has ended this is an error that nobody needs
	}
	if err := a.mend(context.Background()); err != nil {
		a.note("undoing the fault: " + err.Error())
	}
}

// judge finds out who took over, and whether that makes the repetition worthless.
func (a *attempt) judge(ctx context.Context) {
	now, err := a.successor(ctx)
	if err != nil {
		a.note("who is the primary now: " + err.Error())
		return
	}
	a.run.NewPrimary = now.Name
	if a.fault.MustMove && now.Name == a.victim.Name {
		a.run.Measured = false
		a.note("the primary did not move")
	}
	if !a.run.Verified {
		a.note("the rows could not be read back")
	}
}

// successor asks who the primary is. What a system says of itself may lag behind what it did, so that it is asked again
// for a while when nothing seems to have changed but must have.
func (a *attempt) successor(ctx context.Context) (Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Bounds.Step)
	defer cancel()
	for try := 0; ; try++ {
		now, err := a.system.Primary(ctx)
		if try == 5 || err == nil && (now.Name != a.victim.Name || !a.fault.MustMove) {
			return now, err
		}
		if err := pause(ctx, time.Second); err != nil {
			return now, err
		}
	}
}

// explain asks the system for its own account.
func (a *attempt) explain(ctx context.Context) []result.Phase {
	e, ok := a.system.(Explainer)
	if !ok {
		return nil
	}
	var phases []Phase
	err := within(ctx, a.Bounds.Step, func(ctx context.Context) (err error) { phases, err = e.Explain(ctx, a.when.Fault); return err })
	if err != nil {
		a.note("its own account: " + err.Error())
	}
	var out []result.Phase
	for _, p := range phases {
		out = append(out, result.Phase{Name: p.Name, StartMS: since(a.when.Fault, p.Start), EndMS: since(a.when.Fault, p.End)})
	}
	return out
}

func since(from, to time.Time) float64 { return float64(to.Sub(from).Microseconds()) / 1000 }

// collect keeps what one needs to understand this repetition.
func (a *attempt) collect() {
	dir := filepath.Join(a.Dir, fmt.Sprintf("%s-%s-%d-%d", a.run.System, a.run.Fault, a.run.Rep, a.run.At.Unix()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		a.note(err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.Bounds.Step)
	defer cancel()
	a.system.Collect(ctx, dir)
	if a.client != nil {
		_ = os.WriteFile(filepath.Join(dir, "client.txt"), []byte(a.client.said.String()), 0o644)
		_ = os.Rename(a.client.out, filepath.Join(dir, "load.json"))
	}
	a.Out("    what happened is in " + dir)
}

func within(ctx context.Context, bound time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return f(ctx)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// loadAverage is the machine's, over one minute; 0 when it cannot be had.
func loadAverage() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}
