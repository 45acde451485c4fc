package simfleet

import (
	"slices"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/replacement"
)

// observe is what a controller would see of a replacement.
func (f *fleet) observe(r *repair) replacement.Observed {
	sh := &f.shards[r.shard]
	list := f.observed[:0]
	for _, id := range sh.instances {
		in := &f.instances[id]
		list = append(list, replacement.Instance{
			Name: in.name, PodExists: in.pod, VolumeExists: in.volume, Terminating: in.terminating, Running: in.running,
			Unschedulable: in.waits, Seeded: in.seeded, Healthy: in.healthy && !in.dead, Dead: in.dead, InRecord: in.record,
			Leaving: in.leaving != nil && in.leaving != r,
		})
	}
	f.observed = list
	o := replacement.Observed{
		Now: clock(f.now), Request: r.request, Status: r.status, Wanted: zones, Instances: list, FreshName: r.fresh,
		Reparent: replacement.Reparent{InFlight: sh.reparent},
		Ledger:   replacement.Ledger{Allowed: r.verdict.Allowed, Storm: r.storm, Message: r.verdict.Message, Retry: r.verdict.Retry},
		Writable: f.writable(r.shard),
	}
	if sh.primary >= 0 {
		o.Primary = f.instances[sh.primary].name
	}
	if !r.status.EvidenceAt.IsZero() && o.Now.Sub(r.status.EvidenceAt) >= evidenceTakes*time.Second {
		o.Status.EvidenceDone = true
	}
	return o
}

func (f *fleet) writable(s int32) bool {
	sh := &f.shards[s]
	if sh.primary < 0 || sh.reparent || f.instances[sh.primary].dead {
		return false
	}
	for _, id := range sh.instances {
		if in := &f.instances[id]; id != sh.primary && in.record && in.pod && !in.dead {
			return true
		}
	}
	return false
}

// step is one round of the replacement controller.
func (f *fleet) step(r *repair) {
	if r.over {
		return
	}
	r.wakeAt = 0
	d := replacement.Next(f.observe(r), replacement.Timeouts{Seed: 12 * time.Hour})
	f.report.Decisions++
	before := r.status
	r.status = d.Status
	if before.AdmittedAt.IsZero() && !d.Status.AdmittedAt.IsZero() {
		f.report.admitted(f, r)
	}
	if d.Status.Successor != before.Successor {
		r.successor = -1
		if d.Status.Successor == r.fresh {
			r.fresh = f.name("i")
		}
	}
	f.leave(r, d.Leaving)
	if d.Status.Phase.Finished() {
		f.finish(r)
		return
	}
	f.act(r, d.Action)
	if !d.Status.AdmittedAt.IsZero() {
		f.wake(r, max(1, int64(d.Recheck.Sub(clock(f.now))/time.Second)+1))
	}
	if d.Evidence {
		f.wake(r, evidenceTakes+1)
	}
}

// leave tells the cohort keeper who leaves.
func (f *fleet) leave(r *repair, name string) {
	changed := false
	for _, id := range f.shards[r.shard].instances {
		in := &f.instances[id]
		switch {
		case in.name == name && in.leaving != r:
			in.leaving, changed = r, true
		case in.name != name && in.leaving == r:
			in.leaving, changed = nil, true
		}
	}
	if changed {
		f.keep(r.shard)
		f.wake(r, f.draw(swapIn))
	}
}

func (f *fleet) find(s int32, name string) int32 {
	for _, id := range f.shards[s].instances {
		if f.instances[id].name == name {
			return id
		}
	}
	return -1
}

func (f *fleet) act(r *repair, a replacement.Action) {
	sh := &f.shards[r.shard]
	id := f.find(r.shard, a.Instance)
	switch a.Kind {
	case replacement.Surge:
		if id < 0 {
			id = f.newInstance(r.shard, r.zone)
			f.instances[id].name = a.Instance
			r.successor = id
			f.report.Surges++
			f.place(id)
			f.wake(r, 1)
		}
	case replacement.Planned, replacement.Emergency:
		if !sh.reparent {
			sh.reparent, sh.to = true, f.find(r.shard, a.To)
			f.q.push(event{at: f.now + f.draw(reparentIn), kind: evReparented, id: r.shard})
		}
	case replacement.Stop:
		if id >= 0 {
			f.stop(r, id, a.Force)
		}
	case replacement.DeleteVolume:
		if id >= 0 && f.instances[id].volume {
			f.check(f.writable(r.shard) && f.healthy(r.shard) > 0, "a volume was deleted while it might have been needed")
			f.instances[id].volume = false
			if !f.instances[id].pod {
				f.forget(id)
			}
			f.wake(r, 1)
		}
	case replacement.RetireSurge:
		if id >= 0 {
			f.retireSurge(r, id)
		}
	}
}

// stop checks, independently of the code that decided, that nothing is stopped that is needed.
func (f *fleet) stop(r *repair, id int32, force bool) {
	in := &f.instances[id]
	if !in.pod || in.terminating {
		return
	}
	f.check(f.shards[r.shard].primary != id, "a primary was stopped")
	f.check(!in.record, "an instance was stopped that a cohort names")
	rest := f.healthy(r.shard)
	if in.healthy && !in.dead {
		rest--
	}
	if !in.dead && r.request.Reason != v1alpha1.ReasonCondemned {
		f.check(rest >= zones, "a planned stop left a shard with too few copies")
	}
	if !in.dead {
		f.check(rest >= zones/2+1, "a stop left a shard below its quorum")
	}
	in.terminating = true
	f.report.died(f.now - in.born)
	after := f.draw(podStop)
	if force {
		after = 1
	}
	f.q.push(event{at: f.now + after, kind: evPodGone, id: id, gen: in.gen})
}

func (f *fleet) retireSurge(r *repair, id int32) {
	in := &f.instances[id]
	f.check(f.shards[r.shard].primary != id && !in.record, "a surge was taken away that is in use")
	if in.healthy && !in.dead && !in.terminating {
		f.check(f.healthy(r.shard)-1 >= zones, "a surge was taken away that is needed")
	}
	in.volume = false
	switch {
	case !in.pod:
		f.forget(id)
	case !in.terminating:
		in.terminating = true
		f.q.push(event{at: f.now + 1, kind: evPodGone, id: id, gen: in.gen})
	}
	f.wake(r, 2)
}

// finish files a replacement away, and sees to what it left undone.
func (f *fleet) finish(r *repair) {
	r.over = true
	r.status.FinishedAt = clock(f.now)
	f.leave(r, "")
	delete(f.byID, r.id)
	sh := &f.shards[r.shard]
	sh.repairs = slices.DeleteFunc(sh.repairs, func(o *repair) bool { return o == r })
	f.report.finished(f, r)
	if in := &f.instances[r.target]; in.gen == r.targetGen {
		in.repair = nil
		if in.dead && in.pod {
			f.q.push(event{at: f.now + 2*tickEvery, kind: evDetected, id: r.target, gen: in.gen})
		}
	} else if r.status.Phase == replacement.Failed {
		f.report.MissingCopies++
	}
	f.keep(r.shard)
	f.touch(r.shard)
}

// check records what must not happen.
func (f *fleet) check(ok bool, what string) {
	if !ok {
		f.report.violate(f.now, what)
	}
}
