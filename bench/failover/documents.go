package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"theseus.dev/theseus/bench/failover/internal/result"
	"theseus.dev/theseus/bench/failover/internal/trial"
	"theseus.dev/theseus/internal/labkit"
)

// facts are what the systems said of themselves.
type facts struct {
	// Settings by system and parameter.
	Settings map[string]map[string]string `json:"settings"`
	// Versions by system.
	Versions map[string]string `json:"versions"`
}

// parameters are what the report compares.
var parameters = []string{
	"server_version", "data_checksums", "fsync", "full_page_writes", "synchronous_commit", "wal_level", "wal_log_hints", "wal_compression",
	"shared_buffers", "max_wal_size", "checkpoint_timeout", "max_connections", "wal_sender_timeout", "wal_receiver_timeout", "wal_segment_size", "wal_init_zero", "jit",
}

func (b *bench) factsFile() string { return filepath.Join(b.out, "facts.json") }

func loadFacts(path string) facts {
	var f facts
	if data, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(data, &f) // what cannot be read is learnt again
	}
	return f
}

// learn asks a system that was just installed for its facts, once.
func (b *bench) learn(ctx context.Context, c candidate, s trial.System) error {
	if b.facts.Settings[c.ID] != nil {
		return nil
	}
	if b.facts.Settings == nil {
		b.facts = facts{Settings: map[string]map[string]string{}, Versions: map[string]string{}}
	}
	if setter, ok := s.(trial.Setter); ok {
		// A server may still be restarted for its own reasons when it has just been made.
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err := labkit.Poll(ctx, 2*time.Second, func(ctx context.Context) (bool, string, error) {
			settings, err := setter.Settings(ctx, parameters)
			if err != nil {
				return false, err.Error(), nil
			}
			b.facts.Settings[c.ID] = settings
			return true, "", nil
		})
		if err != nil {
			return fmt.Errorf("its settings: %w", err)
		}
	}
	if v, ok := s.(interface {
		Version(ctx context.Context) (string, error)
	}); ok {
		version, err := v.Version(ctx)
		if err != nil {
			return fmt.Errorf("its version: %w", err)
		}
		b.facts.Versions[c.ID] = version
	}
	data, err := json.MarshalIndent(b.facts, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.factsFile(), append(data, '\n'), 0o644)
}

// setup is what a reader must know to judge the figures.
func (b *bench) setup() []string {
	return []string{
		fmt.Sprintf("Cluster: the lab of this repository, %d nodes in three zones, all on one machine, one system at a time. A node that says nothing is NotReady after 10 s (Kubernetes' default is about 50 s). etcd does not fsync.", b.nodes),
		fmt.Sprintf("Every member: a volume of %s (a loop file with ext4) on its node, PostgreSQL from the same Debian package, 512 MiB of memory.", storage),
		fmt.Sprintf("A repetition: healthy system, load, 3 to 13 s undisturbed (at random, so that the fault hits any moment of a system's own loop), fault, wait for three seconds in a row with writes, repair, wait for three healthy members, stop, read every row back. The systems take turns, in rotating order; each is installed afresh for every %d rounds of faults.", b.each),
		"A member that Patroni does not bring back by itself gets a fresh volume from the harness (there is no operator that would); that is after the measurement and not part of the stall.",
		"A Pod of Patroni's that was deleted is made again by the harness at once, as a StatefulSet would; its claim stays. Theseus does so itself.",
		fmt.Sprintf("After SIGSTOP of the postmaster, open sessions go on as if nothing were. So another client comes 4 s after the fault and is given %s to write.", b.bounds.Newcomer),
		"The client gives a connection up whose server turns out to be read-only (25006) and connects again. One that keeps it, as a pool does that is not told better, can stay on a former primary for as long as that lives.",
		"Errors: every operation that was not acknowledged, attempts to connect included. A client that keeps trying counts more of them the longer it lasts.",
		"Power cut: processes are gone at once, but the page cache of the machine survives: writes that were never fsynced are not lost this way.",
		"Patroni's watchdog is off (the lab has no such device), its failsafe mode too (the default).",
		"The machine's load average at each fault is in the results, should it have been shared.",
	}
}

// write makes the documents from what there is.
func (b *bench) write() error {
	r := &result.Report{
		Generated: time.Now(), Machine: machine(), Client: b.client.String(), Setup: b.setup(), Wanted: b.n, Runs: b.runs,
		Versions: b.versions(),
	}
	for _, f := range b.faults {
		r.Faults = append(r.Faults, result.Named{ID: f.ID, Title: f.Title, About: f.About})
	}
	for _, c := range b.systems {
		r.Systems = append(r.Systems, c.Named)
	}
	for _, name := range parameters {
		s := result.Setting{Name: name}
		for _, c := range b.systems {
			s.Values = append(s.Values, b.facts.Settings[c.ID][name])
		}
		r.Settings = append(r.Settings, s)
	}
	r.Complete()
	return errors.Join(
		document(filepath.Join(b.out, "failover.md"), func(w io.Writer) error { return r.Markdown(w, "failover.svg") }),
		document(filepath.Join(b.out, "failover.json"), r.JSON),
		document(filepath.Join(b.out, "failover.svg"), r.Plot),
	)
}

// document replaces a file as a whole.
func document(path string, render func(io.Writer) error) error {
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	if err := errors.Join(render(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (b *bench) versions() []string {
	var out []string
	if b.version != "" {
		out = append(out, "Theseus "+b.version)
	}
	for _, c := range b.systems {
		if v := b.facts.Versions[c.ID]; v != "" {
			out = append(out, c.Title+": "+v)
		}
	}
	return out
}

// machine describes this one.
func machine() string {
	text := fmt.Sprintf("One machine with %d cores", runtime.NumCPU())
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int64
		if _, err := fmt.Sscanf(string(data), "MemTotal: %d kB", &kib); err == nil {
			text += fmt.Sprintf(" and %d GiB of memory", (kib+1<<19)>>20)
		}
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		text += ", Linux " + strings.TrimSpace(string(data))
	}
	return text + "."
}
