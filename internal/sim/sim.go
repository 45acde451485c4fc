// Package sim is a deterministic simulation of a shard. The rules are the real ones: packages quorum, cohort, verdict and
// reparent run unchanged. What they run on is simulated: agents with their disks, PostgreSQL with its log, timelines, WAL
// receivers and walsenders, a network, clocks, an API server, two operator replicas; and what goes wrong with them.
//
// A run is determined by its seed. Blocking code runs in coroutines that a single-threaded scheduler switches between
// (sched.go), so nothing depends on Go's own scheduling, and a run takes no longer than its events do. Checked at every
// step (check.go):
//
//   - every acknowledged commit is in the log of every later primary, from its promotion on;
//   - acknowledged commits lie on one line;
//   - what is acknowledged is acknowledged by a recorded cohort, and by the word of standbys that have it, and had it when
//     they promised a higher term;
//   - a term is established after its row in the journal was acknowledged;
//   - nothing that the record names is destroyed, and the record names nothing that is being destroyed;
//   - no two primaries are able to acknowledge, even if every obstacle of the network went away now;
//   - an agent's term never goes back, across crashes and power cuts;
//   - when the faults are over, the shard is in order again within a time.
//
// What PostgreSQL does wrong is modelled on purpose: two failed promotions can pick the same number for their
// timelines, and then neither the server nor a standby that goes on streaming notices that the logs differ; a restarted
// primary shows commits that nobody acknowledged; an acknowledgement counts by whatever list of names is loaded.
package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

func (c Config) withDefaults() Config {
	if c.Instances == 0 {
		c.Instances = 3 + 2*int(c.Seed%2)
		if c.Seed%7 == 6 {
			c.Instances = 4
		}
	}
	if c.Trouble == 0 {
		c.Trouble = 40 * time.Second
	}
	if c.Quiet == 0 {
		c.Quiet = 90 * time.Second
	}
	if c.Faults == nil {
		c.Faults = draw(c.Seed, c.Trouble, c.Plot)
	}
	return c
}

// Run simulates one shard through its faults and their end.
func Run(conf Config) Result {
	conf = conf.withDefaults()
	w := newWorld(conf)
	defer w.s.shutdown()
	for _, f := range conf.Faults {
		w.s.after(f.At, nil, func() { w.arm(f) })
	}
	w.s.after(0, nil, w.client)
	healed := conf.Trouble + 10*time.Second
	w.s.after(healed, nil, w.heal)
	w.advance(healed)
	acked := w.ackCount
	var why string
	for w.violation == "" && w.s.now < healed+conf.Quiet {
		w.advance(w.s.now + time.Second)
		if why = w.healthy(); why == "" && w.ackCount > acked {
			break
		}
	}
	if stuck := w.hopeless(); w.violation == "" && why != "" && stuck != "" {
		w.count("hopeless: " + stuck)
		why, acked = "", -1
	}
	if w.violation == "" && (why != "" || w.ackCount == acked) {
		w.fail("the shard has not recovered %v after the last fault: %s; %d commits acknowledged since; the operators say %s and %s", conf.Quiet, cmp.Or(why, "it looks well"), w.ackCount-acked, w.operators[0].last.Why, w.operators[1].last.Why)
	}
	return Result{Seed: conf.Seed, Violation: w.violation, At: w.s.now, Steps: w.s.steps, Acked: w.ackCount, Faults: conf.Faults, Counts: w.counts}
}

// advance runs events until end or a violation.
func (w *world) advance(end time.Duration) {
	for w.violation == "" && w.s.next(end) {
		w.atMostOne()
	}
	if w.violation == "" {
		w.s.now = end
	}
}

// Shrink finds a smaller schedule of faults that violates something too, by leaving out ever smaller parts and
// shortening what is left. It tries at most tries runs.
func Shrink(conf Config, tries int) Config {
	conf = conf.withDefaults()
	fails := func(faults []Fault) bool {
		if tries <= 0 {
			return false
		}
		tries--
		c := conf
		c.Faults, c.Trace = faults, nil
		return Run(c).Violation != ""
	}
	for part := len(conf.Faults) / 2; part >= 1; part /= 2 {
		for at := 0; at+part <= len(conf.Faults); {
			without := slices.Delete(slices.Clone(conf.Faults), at, at+part)
			if len(without) > 0 && fails(without) {
				conf.Faults = without
			} else {
				at += part
			}
		}
	}
	for n := range conf.Faults {
		shorter := slices.Clone(conf.Faults)
		shorter[n].For /= 4
		if fails(shorter) {
			conf.Faults = shorter
		}
	}
	return conf
}

// String is a line for people.
func (r Result) String() string {
	verdict := "ok"
	if r.Violation != "" {
		verdict = "VIOLATION: " + r.Violation
	}
	return fmt.Sprintf("seed %d: %d steps, %d commits acknowledged, %v: %s", r.Seed, r.Steps, r.Acked, r.At.Round(time.Millisecond), verdict)
}
