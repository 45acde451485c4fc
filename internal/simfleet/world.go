package simfleet

import (
	"slices"
	"time"
)

// room draws a node with room in a zone: the scheduler knows nothing of ages. All it is told is to prefer those that do not
// go soon themselves.
func (f *fleet) room(zone int8) int32 {
	if f.cfg.Mode == Instances && f.short[zone] {
		return -1 // machines that stay are never packed again: without this there would always be room on one of them
	}
	kept, lasting, fading := f.open[zone][:0], f.lasting[:0], f.fading[:0]
	for _, n := range f.open[zone] {
		nd := &f.nodes[n]
		if !nd.alive || nd.zone != zone || nd.dead || nd.going || int(nd.used) >= f.cfg.PerNode {
			continue
		}
		kept = append(kept, n)
		switch {
		case nd.dark:
		case f.fades(nd):
			fading = append(fading, n)
		default:
			lasting = append(lasting, n)
		}
	}
	f.open[zone], f.lasting, f.fading = kept, lasting, fading
	if len(lasting) == 0 {
		lasting = fading
	}
	if len(lasting) == 0 {
		return -1
	}
	return lasting[f.rng.IntN(len(lasting))]
}

// fades is true for a node in the last eighth of its life.
func (f *fleet) fades(nd *node) bool {
	return f.cfg.Mode == Nodes && f.now-nd.born > int64(f.cfg.MaxAge/time.Second)*7/8
}

func (f *fleet) put(id, n int32) {
	in, nd := &f.instances[id], &f.nodes[n]
	in.node, in.waits = n, false
	nd.used++
	nd.on = append(nd.on, id)
}

// place finds a machine for a new instance, or makes it wait.
func (f *fleet) place(id int32) {
	in := &f.instances[id]
	z := in.zone
	n := f.room(z)
	if n < 0 {
		if f.short[z] || f.dark[z] {
			in.waits = true
			f.waiting[z] = append(f.waiting[z], id)
			return
		}
		n = f.newNode(z)
		f.q.push(event{at: f.now + f.draw(nodeBoot), kind: evNodeUp, id: n, gen: f.nodes[n].gen})
	}
	f.put(id, n)
	if f.nodes[n].up {
		f.q.push(event{at: f.now + f.draw(podStart), kind: evRunning, id: id, gen: in.gen})
	}
}

// serve lets what waits for a machine try again.
func (f *fleet) serve(z int8) {
	queue := f.waiting[z]
	f.waiting[z] = nil
	for _, id := range queue {
		if in := &f.instances[id]; in.pod && in.waits && !in.terminating && in.zone == z {
			f.place(id)
		}
	}
}

func (f *fleet) nodeEvent(e event) {
	nd := &f.nodes[e.id]
	switch e.kind {
	case evNodeUp:
		nd.up = true
		for _, id := range nd.on {
			f.q.push(event{at: f.now + f.draw(podStart), kind: evRunning, id: id, gen: f.instances[id].gen})
		}
	case evNodeGone:
		if nd.used > 0 {
			return
		}
		if nd.going && !nd.dead {
			f.report.rotated(f.now-nd.born, nd.born)
		}
		nd.alive = false
		nd.gen++
		f.freeNode = append(f.freeNode, e.id)
	}
}

// progress of one instance.
func (f *fleet) progress(e event) {
	in := &f.instances[e.id]
	stopped := !in.pod || in.terminating || in.dead
	switch e.kind {
	case evRunning:
		if stopped || f.nodes[in.node].dark {
			return
		}
		in.running = true
		if !in.seeded {
			f.q.push(event{at: f.now + f.seedTime(), kind: evSeeded, id: e.id, gen: in.gen})
		}
	case evSeeded:
		if stopped {
			return
		}
		in.seeded = true
		f.q.push(event{at: f.now + f.draw(catchUp), kind: evHealthy, id: e.id, gen: in.gen})
	case evHealthy:
		if stopped {
			return
		}
		in.healthy = true
	case evPodGone:
		f.gone(e.id)
	case evDetected:
		if in.dead && in.pod {
			f.condemn(e.id)
		}
	}
	f.lead(in.shard)
	f.keep(in.shard)
	f.touch(in.shard)
}

// lead sees to it that a shard that lost its primary gets one as soon as anybody can take over.
func (f *fleet) lead(s int32) {
	if p := f.shards[s].primary; p < 0 || f.instances[p].dead || !f.instances[p].pod {
		f.q.push(event{at: f.now + f.draw(reparentIn), kind: evEmergency, id: s})
	}
}

// touch lets every replacement of a shard look again.
func (f *fleet) touch(s int32) {
	for _, r := range f.shards[s].repairs {
		f.wake(r, 1)
	}
}

// gone takes a Pod away, and the instance when its volume is gone, too.
func (f *fleet) gone(id int32) {
	in := &f.instances[id]
	in.pod, in.terminating, in.running, in.healthy, in.record = false, false, false, false, false
	if in.waits {
		in.waits = false
		f.waiting[in.zone] = slices.DeleteFunc(f.waiting[in.zone], func(o int32) bool { return o == id })
	}
	if in.node >= 0 {
		nd := &f.nodes[in.node]
		nd.used--
		nd.on = slices.DeleteFunc(nd.on, func(o int32) bool { return o == id })
		if nd.used == 0 {
			f.q.push(event{at: f.now + nodeGoneIn, kind: evNodeGone, id: in.node, gen: nd.gen})
		} else if !nd.going && !nd.dead && !slices.Contains(f.open[nd.zone], in.node) {
			f.open[nd.zone] = append(f.open[nd.zone], in.node)
			f.serve(nd.zone)
		}
		in.node = -1
	}
	f.forget(id)
}

// forget frees the instance once nothing of it is left.
func (f *fleet) forget(id int32) {
	in := &f.instances[id]
	if in.pod || in.volume {
		return
	}
	sh := &f.shards[in.shard]
	sh.instances = slices.DeleteFunc(sh.instances, func(o int32) bool { return o == id })
	if sh.primary == id {
		sh.primary = -1
		f.q.push(event{at: f.now + f.draw(reparentIn), kind: evEmergency, id: in.shard})
	}
	in.gen++
	f.freeInst = append(f.freeInst, id)
}

func (f *fleet) nodeFails() {
	for range 50 {
		n := f.rng.IntN(len(f.nodes))
		nd := &f.nodes[n]
		if !nd.alive || !nd.up || nd.dead {
			continue
		}
		nd.dead = true
		f.report.NodeFailures++
		for _, id := range nd.on {
			f.kill(id)
		}
		return
	}
}

func (f *fleet) fallsSick() {
	for range 50 {
		id := int32(f.rng.IntN(len(f.instances)))
		if in := &f.instances[id]; in.pod && !in.dead && !in.terminating && in.running {
			f.report.Sicknesses++
			f.kill(id)
			return
		}
	}
}

// kill makes an instance dead; it is detected later.
func (f *fleet) kill(id int32) {
	in := &f.instances[id]
	if in.dead || !in.pod {
		return
	}
	in.dead, in.healthy = true, false
	f.q.push(event{at: f.now + f.draw(detectIn), kind: evDetected, id: id, gen: in.gen})
	f.lost(id)
}

// lost is what the shard makes of a dead instance at once.
func (f *fleet) lost(id int32) {
	s := f.instances[id].shard
	sh := &f.shards[s]
	if sh.primary == id {
		f.q.push(event{at: f.now + f.draw(reparentIn), kind: evEmergency, id: s})
	}
	if f.healthy(s) < 2 {
		f.report.BelowQuorum++
	}
	f.keep(s)
	f.touch(s)
}

func (f *fleet) healthy(s int32) int {
	n := 0
	for _, id := range f.shards[s].instances {
		if in := &f.instances[id]; in.healthy && !in.dead && !in.terminating {
			n++
		}
	}
	return n
}

// emergency promotes whoever is left, if a majority is.
func (f *fleet) emergency(s int32) {
	sh := &f.shards[s]
	if sh.primary >= 0 {
		if p := &f.instances[sh.primary]; p.pod && !p.dead {
			return
		}
	}
	f.promote(s, -1)
	f.touch(s)
}

// reparented ends a reparent that a replacement asked for. They succeed unless nobody can take over.
func (f *fleet) reparented(s int32) {
	sh := &f.shards[s]
	sh.reparent = false
	f.promote(s, sh.to)
	f.touch(s)
}

// promote the preferred instance if it is healthy, else the youngest that stays.
func (f *fleet) promote(s, to int32) bool {
	sh := &f.shards[s]
	best := int32(-1)
	for _, id := range sh.instances {
		in := &f.instances[id]
		if !in.healthy || in.dead || in.terminating || id == sh.primary {
			continue
		}
		if best < 0 || id == to || best != to && f.better(in, &f.instances[best]) {
			best = id
		}
	}
	if best < 0 {
		return false
	}
	for _, id := range sh.instances {
		f.instances[id].record = false
	}
	sh.primary = best
	f.report.Reparents++
	f.keep(s)
	return true
}

func (f *fleet) better(a, b *instance) bool {
	if (a.leaving == nil) != (b.leaving == nil) {
		return a.leaving == nil
	}
	return a.born > b.born
}

// keep is the cohort keeper: dead members out, the leaving one swapped for a learner, learners in.
func (f *fleet) keep(s int32) {
	sh := &f.shards[s]
	if sh.primary < 0 {
		return
	}
	if p := &f.instances[sh.primary]; p.dead || !p.pod {
		return
	}
	members, out := 0, int32(-1)
	for _, id := range sh.instances {
		in := &f.instances[id]
		if id == sh.primary {
			in.record = true
			continue
		}
		if in.record && (in.dead || !in.pod) {
			in.record = false
		}
		if in.record {
			members++
			if in.leaving != nil {
				out = id
			}
		}
	}
	for _, id := range sh.instances {
		in := &f.instances[id]
		if in.record || !in.healthy || in.dead || in.terminating || in.leaving != nil {
			continue
		}
		switch {
		case members < zones-1:
			in.record = true
			members++
		case out >= 0:
			in.record, f.instances[out].record = true, false
			out = -1
		}
	}
}

// trouble begins or ends.
func (f *fleet) trouble(t Trouble, begins bool) {
	for z := range int8(zones) {
		if t.Zone >= 0 && int8(t.Zone) != z {
			continue
		}
		if !t.Dark {
			f.short[z] = begins
			if !begins {
				f.serve(z)
			}
			continue
		}
		f.darken(z, begins)
	}
}

func (f *fleet) darken(z int8, begins bool) {
	f.dark[z] = begins
	for n := range f.nodes {
		nd := &f.nodes[n]
		if !nd.alive || nd.zone != z || nd.dead {
			continue
		}
		nd.dark = begins
		for _, id := range slices.Clone(nd.on) {
			if begins {
				f.kill(id)
				continue
			}
			f.revive(id)
		}
	}
	if !begins {
		f.serve(z)
	}
}

// revive brings an instance back with what it had.
func (f *fleet) revive(id int32) {
	in := &f.instances[id]
	if !in.dead || !in.pod {
		return
	}
	in.dead = false
	switch {
	case in.seeded:
		in.running = true
		f.q.push(event{at: f.now + f.draw(catchUp), kind: evHealthy, id: id, gen: in.gen})
	default:
		f.q.push(event{at: f.now + f.draw(podStart), kind: evRunning, id: id, gen: in.gen})
	}
	f.touch(in.shard)
}
