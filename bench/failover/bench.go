package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"theseus.dev/theseus/bench/failover/internal/patroni"
	"theseus.dev/theseus/bench/failover/internal/result"
	"theseus.dev/theseus/bench/failover/internal/theseus"
	"theseus.dev/theseus/bench/failover/internal/trial"
	"theseus.dev/theseus/internal/labkit"
)

// storage of each member of every system.
const storage = "1Gi"

// bench is the whole comparison.
type bench struct {
	options
	kit     *labkit.Kit
	say     func(string)
	systems []candidate
	faults  []trial.Fault
	runs    []result.Run
	facts   facts
}

// candidate is a system that can be made once there is a lab.
type candidate struct {
	result.Named
	make func() (trial.System, error)
}

// known lists every candidate.
func (b *bench) known() []candidate {
	return []candidate{
		{
			result.Named{ID: "theseus", Title: "Theseus", About: "the chart with its defaults (two operators), a Database of three instances, durability Required (any one of two standbys), clients through its two gateways over TLS"},
			func() (trial.System, error) {
				return theseus.New(b.kit, theseus.Config{Storage: storage, Images: labkit.LabImages()}), nil
			},
		},
		b.patroni("patroni", "Patroni, defaults", patroni.Defaults),
		b.patroni("patroni-tuned", "Patroni, tuned", patroni.Fastest),
	}
}

func (b *bench) patroni(id, title string, t patroni.Timing) candidate {
	where := "clients at the Service that follows the leader"
	if b.endpoint == "hosts" {
		where = "clients with the list of members and target_session_attrs=read-write"
	}
	about := fmt.Sprintf("ttl %d, loop_wait %d, retry_timeout %d (seconds); synchronous_mode %s; state in the Kubernetes API as endpoints; %s; no TLS, no pooler",
		t.TTL, t.LoopWait, t.RetryTimeout, b.synchronous, where)
	mode := "true"
	if b.synchronous == "quorum" {
		mode = "quorum"
	}
	return candidate{result.Named{ID: id, Title: title, About: about}, func() (trial.System, error) {
		return patroni.New(b.kit, patroni.Config{
			Name: id, Image: b.patroniImage, Major: 17, Storage: storage, Timing: t, SynchronousMode: mode,
			Parameters: patroniParameters(), Hosts: b.endpoint == "hosts", Password: "bench-only-in-the-lab",
		})
	}}
}

// patroniParameters are what Theseus runs PostgreSQL with on a volume and a memory limit of this size, so far as they
// can matter here. The report shows what the servers themselves say.
func patroniParameters() []patroni.Parameter {
	return []patroni.Parameter{
		{Name: "shared_buffers", Value: "128MB"},
		{Name: "huge_pages", Value: "off"},
		{Name: "max_connections", Value: "100"},
		{Name: "max_wal_senders", Value: "24"},
		{Name: "max_replication_slots", Value: "24"},
		{Name: "max_wal_size", Value: "128MB"},
		{Name: "min_wal_size", Value: "80MB"},
		{Name: "checkpoint_timeout", Value: "5min"},
		{Name: "wal_compression", Value: "on"},
		{Name: "wal_log_hints", Value: "on"},
		{Name: "wal_keep_size", Value: "100MB"},
		{Name: "wal_sender_timeout", Value: "5s"},
		{Name: "wal_receiver_timeout", Value: "3s"},
		{Name: "wal_receiver_status_interval", Value: "1s"},
		{Name: "wal_retrieve_retry_interval", Value: "100ms"},
		{Name: "max_standby_streaming_delay", Value: "3s"},
		{Name: "tcp_keepalives_idle", Value: "2"},
		{Name: "tcp_keepalives_interval", Value: "1"},
		{Name: "tcp_keepalives_count", Value: "3"},
		{Name: "tcp_user_timeout", Value: "5s"},
		{Name: "random_page_cost", Value: "1.1"},
		{Name: "jit", Value: "off"},
		{Name: "log_checkpoints", Value: "on"},
	}
}

// chosen picks systems by ID, in the order of the list.
func chosen(all []candidate, list string) ([]candidate, error) {
	var out []candidate
	for id := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(c candidate) bool { return c.ID == strings.TrimSpace(id) })
		if i < 0 {
			return nil, fmt.Errorf("there is no system %q", id)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// turn is the order of the systems in a visit. It rotates, so that none always runs on the freshest lab.
func turn(systems []candidate, visit int) []candidate {
	k := (visit - 1) % len(systems)
	return slices.Concat(systems[k:], systems[:k])
}

func (b *bench) runsFile() string { return filepath.Join(b.out, "runs.jsonl") }

// open reads the results to go on with, or puts them aside.
func (b *bench) open() error {
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	if b.resume || b.report {
		var err error
		if b.runs, err = result.Load(b.runsFile()); err != nil {
			return err
		}
		b.facts = loadFacts(b.factsFile())
		return nil
	}
	err := os.Rename(b.runsFile(), strings.TrimSuffix(b.runsFile(), ".jsonl")+".before.jsonl")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// attempts is how often a repetition that could not be measured is tried in one visit.
const attempts = 2

// measure does what is missing, visit by visit: each system is installed, gets some repetitions, and makes way.
func (b *bench) measure(ctx context.Context) (err error) {
	free, err := lock(b.options.lab)
	if err != nil {
		return err
	}
	defer free()
	if !b.keepLab {
		defer func() {
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			_, downErr := b.kit.Lab(down, "down")
			err = errors.Join(err, downErr)
		}()
	}
	if err := b.lab(ctx); err != nil {
		return err
	}
	for visit := 1; (visit-1)*b.each < b.n; visit++ {
		for _, c := range turn(b.systems, visit) {
			if err := b.block(ctx, c, min(visit*b.each, b.n)); err != nil {
				return err
			}
			if err := b.write(); err != nil {
				return err
			}
		}
	}
	return nil
}

// lock keeps a second comparison off the lab: each would remove what the other measures.
func lock(lab string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "theseus-failover-"+lab+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s is used by another comparison: %w", lab, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// lab brings the lab to what every block begins with.
func (b *bench) lab(ctx context.Context) error {
	archives := []string{filepath.Join(b.root, "build/images/operator.tar"), filepath.Join(b.root, "build/images/operand-pg17.tar"), b.patroniTar}
	return b.kit.Step("lab "+b.options.lab, func() error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		if err := b.kit.LoadImages(ctx, archives...); err != nil {
			return err
		}
		return b.kit.Up(ctx, b.nodes)
	})
}

// missing lists the faults of a system that are still needed until there are this many repetitions, in turns.
func (b *bench) missing(system string, repetitions int) []trial.Fault {
	var out []trial.Fault
	for more := range repetitions {
		for _, f := range b.faults {
			if result.Count(b.runs, system, f.ID)+more < repetitions {
				out = append(out, f)
			}
		}
	}
	return out
}

// block installs a system, does to it what is missing until there are this many repetitions, and removes it. Only what makes going on pointless
// is an error.
func (b *bench) block(ctx context.Context, c candidate, repetitions int) error {
	faults := b.missing(c.ID, repetitions)
	if len(faults) == 0 {
		return nil
	}
	b.say(fmt.Sprintf("%s, to %d repetitions of %d", c.Title, repetitions, b.n))
	s, err := b.install(ctx, c)
	if err != nil {
		return err
	}
	for _, f := range faults {
		for try := 1; try <= attempts; try++ {
			run, broken := b.harness().Repeat(ctx, s, f, result.Count(b.runs, c.ID, f.ID)+1)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.runs = append(b.runs, run)
			if err := result.Append(b.runsFile(), run); err != nil {
				return err
			}
			b.tell(c, run)
			if broken != nil {
				if s, err = b.install(ctx, c); err != nil {
					return err
				}
			}
			if run.Measured {
				break
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return b.kit.Step("remove "+c.Title, func() error { return s.Uninstall(ctx) })
}

func (b *bench) tell(c candidate, r result.Run) {
	text := fmt.Sprintf("  %s, %s: stall %s, %d errors, %d lost; healthy after %s", c.Title, r.Fault, result.Human(r.StallMS), r.ClientErrors(), r.Lost, result.Human(r.HealthyMS))
	if r.Measured && !r.Recovered {
		text += "; NOT recovered by itself"
	}
	if r.Note != "" {
		text += "; " + r.Note
	}
	b.say(text)
}

func (b *bench) harness() *trial.Harness {
	return &trial.Harness{Lab: b.kit, Client: b.client, Bounds: b.bounds, Random: rand.Float64, Dir: filepath.Join(b.out, "failed"), Out: b.say}
}

// install makes a system on a lab that is whole; when that fails, once more on a new lab.
func (b *bench) install(ctx context.Context, c candidate) (trial.System, error) {
	var s trial.System
	try := func() error {
		ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
		defer cancel()
		err := b.kit.Up(ctx, b.nodes)
		if err == nil {
			s, err = c.make()
		}
		if err == nil {
			err = s.Install(ctx)
		}
		if err == nil {
			err = b.learn(ctx, c, s)
		}
		return err
	}
	err := b.kit.Step("install "+c.Title, try)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	b.say("once more, on a new lab: " + err.Error())
	b.keep(s, c)
	return s, b.kit.Step("install "+c.Title, func() error {
		if _, err := b.kit.Lab(ctx, "down"); err != nil {
			return err
		}
		return try()
	})
}

// keep saves why a system could not be installed.
func (b *bench) keep(s trial.System, c candidate) {
	dir := filepath.Join(b.out, "failed", fmt.Sprintf("install-%s-%d", c.ID, time.Now().Unix()))
	if s == nil || os.MkdirAll(dir, 0o755) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.Collect(ctx, dir)
}
