package simfleet

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/lifetime"
	"theseus.dev/theseus/internal/replacement"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func clock(at int64) time.Time { return epoch.Add(time.Duration(at) * time.Second) }

// instance of the model. gen changes when the place in the slice is used again.
type instance struct {
	name        string
	gen         uint32
	shard       int32
	node        int32 // -1: none yet
	zone        int8
	born        int64
	pod, volume bool
	terminating bool
	running     bool
	waits       bool // no machine has room
	seeded      bool
	healthy     bool
	dead        bool
	record      bool
	leaving     *repair // the replacement that takes it away, once it may
	repair      *repair // the replacement that it is the target of
}

// node of the model.
type node struct {
	name  string
	gen   uint32
	zone  int8
	born  int64
	alive bool // exists
	up    bool
	dark  bool
	dead  bool
	going bool // on its way out
	since int64
	used  int32
	on    []int32
}

// shard of the model.
type shard struct {
	primary   int32 // -1: none
	instances []int32
	reparent  bool  // under way
	to        int32 // whom it prefers
	repairs   []*repair
	name      string
}

// repair is one replacement.
type repair struct {
	id        int32
	gen       uint32
	request   replacement.Request
	status    replacement.Status
	shard     int32
	target    int32
	targetGen uint32
	zone      int8
	node      string
	successor int32
	deadline  time.Time
	fresh     string
	over      bool
	verdict   ledger.Verdict
	storm     bool  // it is one of too many condemnations
	wakeAt    int64 // when it is looked at next; 0: nothing is scheduled
}

// thing is a node or an instance by its place and generation.
type thing struct {
	id  int32
	gen uint32
}

// rotation is a node that began to go.
type rotation struct {
	thing
	zone  int8
	begun int64
}

// fleet is the whole world.
type fleet struct {
	cfg Config
	rng *rand.Rand
	q   queue
	now int64

	instances []instance
	freeInst  []int32
	nodes     []node
	freeNode  []int32
	shards    []shard
	repairs   []*repair // waiting, in flight, or finished recently
	byID      map[int32]*repair
	waiting   [zones][]int32 // instances without a machine
	open      [zones][]int32 // nodes with room
	lasting   []int32        // scratch
	fading    []int32        // scratch
	dark      [zones]bool
	short     [zones]bool
	names     int

	plan    lifetime.Plan
	objects []lifetime.Object
	planned []thing
	planAt  int64

	leavingNodes []rotation
	lastRepair   int32
	observed     []replacement.Instance // scratch
	report       *Report
}

// Run simulates and returns what was seen.
func Run(cfg Config) *Report {
	f := newFleet(cfg)
	end := int64(cfg.Days) * 86400
	for len(f.q.items) > 0 {
		e := f.q.pop()
		if e.at > end {
			break
		}
		f.now = e.at
		f.handle(e)
	}
	f.report.finish(f)
	return f.report
}

// newFleet makes everything in the first hour: the worst case for a flat rate.
func newFleet(cfg Config) *fleet {
	f := &fleet{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x7e5e05)), byID: map[int32]*repair{},
		shards: make([]shard, cfg.Shards), report: newReport(cfg),
	}
	for s := range f.shards {
		f.shards[s].primary, f.shards[s].name = -1, "s"+strconv.Itoa(s)
		for z := range zones {
			id := f.newInstance(int32(s), int8(z))
			in := &f.instances[id]
			in.pod, in.volume, in.running, in.seeded, in.healthy, in.record = true, true, true, true, true, true
			in.born = f.rng.Int64N(3600)
			n := f.room(int8(z))
			if n < 0 {
				n = f.newNode(int8(z))
				f.nodes[n].up, f.nodes[n].born = true, in.born
			}
			f.put(id, n)
		}
		f.shards[s].primary = f.shards[s].instances[s%zones]
	}
	for i, t := range cfg.Troubles {
		f.q.push(event{at: int64(t.From / time.Second), kind: evTroubleBegins, id: int32(i)})
		f.q.push(event{at: int64(t.End() / time.Second), kind: evTroubleEnds, id: int32(i)})
	}
	f.q.push(event{at: 3600, kind: evTick})
	f.q.push(event{at: 3600, kind: evHour})
	f.schedule(evNodeFails)
	f.schedule(evSick)
	return f
}

func (f *fleet) draw(b between) int64 { return b.least + f.rng.Int64N(b.most-b.least) }

func (f *fleet) name(prefix string) string {
	f.names++
	return prefix + strconv.Itoa(f.names)
}

// schedule draws when the next failure of a kind is, over the whole fleet.
func (f *fleet) schedule(k kind) {
	perYear := f.cfg.Sicknesses * float64(f.cfg.Shards*zones)
	if k == evNodeFails {
		perYear = f.cfg.NodeFailures * float64(f.cfg.Shards*zones) / float64(f.cfg.PerNode)
	}
	if perYear <= 0 {
		return
	}
	in := f.rng.ExpFloat64() * 365 * 86400 / perYear
	f.q.push(event{at: f.now + 1 + int64(in), kind: k})
}

func (f *fleet) seedTime() int64 {
	return min(int64(seedMedian*math.Exp(seedSigma*f.rng.NormFloat64()))+30, seedMost)
}

func (f *fleet) newInstance(s int32, zone int8) int32 {
	var id int32
	if n := len(f.freeInst); n > 0 {
		id, f.freeInst = f.freeInst[n-1], f.freeInst[:n-1]
	} else {
		f.instances = append(f.instances, instance{})
		id = int32(len(f.instances) - 1)
	}
	f.instances[id] = instance{
		name: f.name("i"), gen: f.instances[id].gen + 1, shard: s, node: -1, zone: zone, born: f.now, pod: true, volume: true,
	}
	f.shards[s].instances = append(f.shards[s].instances, id)
	return id
}

func (f *fleet) newNode(zone int8) int32 {
	var id int32
	if n := len(f.freeNode); n > 0 {
		id, f.freeNode = f.freeNode[n-1], f.freeNode[:n-1]
	} else {
		f.nodes = append(f.nodes, node{})
		id = int32(len(f.nodes) - 1)
	}
	on := f.nodes[id].on[:0]
	f.nodes[id] = node{name: f.name("n"), gen: f.nodes[id].gen + 1, zone: zone, born: f.now, alive: true, on: on}
	f.open[zone] = append(f.open[zone], id)
	return id
}

// handle dispatches an event.
func (f *fleet) handle(e event) {
	switch e.kind {
	case evStep:
		if r := f.byID[e.id]; r != nil && r.gen == e.gen {
			f.step(r)
		}
	case evRunning, evSeeded, evHealthy, evPodGone, evDetected:
		if f.instances[e.id].gen == e.gen {
			f.progress(e)
		}
	case evNodeUp, evNodeGone:
		if f.nodes[e.id].gen == e.gen {
			f.nodeEvent(e)
		}
	case evNodeFails:
		f.nodeFails()
		f.schedule(evNodeFails)
	case evSick:
		f.fallsSick()
		f.schedule(evSick)
	case evEmergency:
		f.emergency(e.id)
	case evReparented:
		f.reparented(e.id)
	case evTroubleBegins, evTroubleEnds:
		f.trouble(f.cfg.Troubles[e.id], e.kind == evTroubleBegins)
	case evTick:
		f.tick()
		f.q.push(event{at: f.now + tickEvery, kind: evTick})
	case evHour:
		f.report.hour(f)
		f.q.push(event{at: f.now + 3600, kind: evHour})
	default:
		panic(fmt.Sprint("no such event: ", e.kind))
	}
}
