package quorum

import (
	"fmt"
	"slices"
)

// chooser is where the model takes its decisions from: rapid in property tests, a plain generator when a broken rule is
// hunted over many seeds.
type chooser interface{ Intn(n int) int }

// rules are the ones under test; a broken variant replaces one of them.
type rules struct {
	elect        func(Record, []Promise) ([]Promise, error)
	beginChange  func(Record, []string, int) (Record, error)
	finishChange func(Record, InUse) (Record, error)
	// accepts decides at the primary whether an order to use next replaces used.
	accepts func(used, next Cohort) bool
	// begin keeps or forgets the cohorts of older terms when a new one begins.
	beginTerm func(Record, Cohort) (Record, error)
}

func realRules() rules {
	electable := func(r Record, ps []Promise) ([]Promise, error) {
		if _, err := Elect(r, ps); err != nil {
			return nil, err
		}
		return Electable(r, ps), nil
	}
	return rules{
		elect: electable, beginChange: BeginChange, finishChange: FinishChange, beginTerm: BeginTerm,
		accepts: func(used, next Cohort) bool { return next.Revision >= used.Revision },
	}
}

type entry struct {
	term uint64
	id   int
}

type node struct {
	log      []entry
	promised uint64 // highest term accepted
	follows  string // whose WAL it takes
	primary  bool
	uses     Cohort
	since    uint64
	flushed  map[string]uint64
}

// model is a shard with instant disks and no clock: logs, promises, cohorts. What it explores is orders of events.
type model struct {
	rules
	c       chooser
	nodes   map[string]*node
	names   []string
	record  Record
	acked   []entry
	nextID  int
	late    []Cohort // orders to configure that were sent and may arrive at any time
	journal map[uint64]int
}

func newModel(c chooser, r rules, instances int) *model {
	m := &model{rules: r, c: c, nodes: map[string]*node{}, journal: map[uint64]int{}}
	for i := range instances {
		name := fmt.Sprintf("i%d", i)
		m.names = append(m.names, name)
		m.nodes[name] = &node{follows: "i0", promised: 1, flushed: map[string]uint64{}}
	}
	m.record = Bootstrap("i0")
	first := m.nodes["i0"]
	first.primary, first.follows, first.uses = true, "", m.record.Cohorts[0]
	m.write("i0")
	m.record, _ = Establish(m.record, 1)
	return m
}

func (m *model) pick(names []string) string { return names[m.c.Intn(len(names))] }

func (m *model) subset(names []string) []string {
	var out []string
	for _, n := range names {
		if m.c.Intn(2) == 1 {
			out = append(out, n)
		}
	}
	return out
}

func (m *model) position(name string) Position {
	log := m.nodes[name].log
	if len(log) == 0 {
		return Position{}
	}
	return Position{WALTerm: log[len(log)-1].term, LSN: uint64(len(log))}
}

func (m *model) primaries() []string {
	var out []string
	for _, n := range m.names {
		if m.nodes[n].primary {
			out = append(out, n)
		}
	}
	return out
}

func (m *model) write(name string) {
	n := m.nodes[name]
	m.nextID++
	n.log = append(n.log, entry{n.uses.Term, m.nextID})
	m.ack(name)
}

// ack acknowledges whatever the primary may acknowledge now, by the positions it has been told. What it inherited from
// earlier terms is not acknowledged by being flushed on k members, but only together with the first record of its own
// term (Raft, section 5.4.2): nobody waits for it in PostgreSQL either, since its sessions died with their primary.
func (m *model) ack(name string) {
	n := m.nodes[name]
	var heard []uint64
	for _, member := range n.uses.Members {
		heard = append(heard, n.flushed[member])
	}
	slices.Sort(heard)
	upTo := uint64(len(n.log))
	if k := n.uses.Acks; k > 0 {
		if len(heard) < k {
			return
		}
		upTo = min(upTo, heard[len(heard)-k])
	}
	if upTo == 0 || n.log[upTo-1].term != n.uses.Term {
		return
	}
	for _, e := range n.log[:upTo] {
		if !slices.Contains(m.acked, e) {
			m.acked = append(m.acked, e)
		}
	}
}

// stream lets a standby flush some of its primary's WAL and report it. A diverged standby is cut back first, which is
// allowed only once the primary's term is established.
func (m *model) stream() {
	name := m.pick(m.names)
	n := m.nodes[name]
	p := m.nodes[n.follows]
	if n.primary || p == nil || !p.primary || p.promised != n.promised {
		return
	}
	common := 0
	for common < len(n.log) && common < len(p.log) && n.log[common] == p.log[common] {
		common++
	}
	if common < len(n.log) {
		if m.record.Established != p.uses.Term {
			return
		}
		n.log = n.log[:common]
	}
	n.log = slices.Clone(p.log[:common+m.c.Intn(len(p.log)-common+1)])
	p.flushed[name] = uint64(len(n.log))
	m.ack(n.follows)
}

func (m *model) change() {
	cur, _ := m.record.Latest()
	var others []string
	for _, n := range m.names {
		if n != cur.Primary {
			others = append(others, n)
		}
	}
	members := m.subset(others)
	acks := min(len(members), 1+m.c.Intn(2))
	if r, err := m.beginChange(m.record, members, acks); err == nil {
		m.record = r
		next, _ := r.Latest()
		m.late = append(m.late, next)
	}
}

// apply delivers an order to configure, perhaps an old one, perhaps again.
func (m *model) apply() {
	if len(m.late) == 0 {
		return
	}
	c := m.late[m.c.Intn(len(m.late))]
	p := m.nodes[c.Primary]
	if !p.primary || p.promised != c.Term || !m.accepts(p.uses, c) || p.uses.Equal(c) {
		return
	}
	p.uses, p.since = c, uint64(len(p.log))
	m.ack(c.Primary)
}

func (m *model) finish() {
	cur, _ := m.record.Latest()
	p := m.nodes[cur.Primary]
	if !p.primary {
		return
	}
	if r, err := m.finishChange(m.record, InUse{Cohort: p.uses, Since: p.since, Flushed: p.flushed}); err == nil {
		m.record = r
	}
}

// reparent collects promises from some instances and promotes if it may.
func (m *model) reparent() {
	term := m.record.Term()
	for _, n := range m.nodes {
		term = max(term, n.promised)
	}
	term++
	var promises []Promise
	for _, name := range m.subset(m.names) {
		n := m.nodes[name]
		promises = append(promises, Promise{Instance: name, Term: term, Position: m.position(name), WasPrimary: n.primary})
		n.promised, n.primary, n.follows = term, false, ""
	}
	winners, err := m.elect(m.record, promises)
	if err != nil {
		return
	}
	w := winners[m.c.Intn(len(winners))].Instance
	var members []string
	for _, p := range promises {
		if p.Instance != w {
			members = append(members, p.Instance)
		}
	}
	if len(members) == 0 {
		return
	}
	r, err := m.beginTerm(m.record, Cohort{Term: term, Primary: w, Members: members, Acks: 1})
	if err != nil {
		panic(err)
	}
	m.record = r
	if m.c.Intn(4) == 0 {
		return // the coordinator died
	}
	n := m.nodes[w]
	n.primary, n.uses, n.since, n.flushed = true, Cohort{Term: term, Primary: w, Members: members, Acks: 1}.Normalize(), 0, map[string]uint64{}
	m.write(w)
	m.journal[term] = m.nextID
	for _, p := range promises {
		if p.Instance != w {
			m.nodes[p.Instance].follows = w
		}
	}
}

// rejoin lets an instance that was left behind follow the newest primary.
func (m *model) rejoin() {
	cur, _ := m.record.Latest()
	name := m.pick(m.names)
	if n := m.nodes[name]; name != cur.Primary && n.promised <= cur.Term && m.nodes[cur.Primary].primary && m.nodes[cur.Primary].promised == cur.Term {
		n.promised, n.primary, n.follows = cur.Term, false, cur.Primary
	}
}

func (m *model) establish() {
	cur, _ := m.record.Latest()
	id, ok := m.journal[cur.Term]
	if ok && slices.Contains(m.acked, entry{cur.Term, id}) {
		m.record, _ = Establish(m.record, cur.Term)
	}
}

func (m *model) actions() []func() {
	write := func() {
		if p := m.primaries(); len(p) > 0 {
			m.write(m.pick(p))
		}
	}
	return []func(){write, write, m.stream, m.stream, m.stream, m.change, m.apply, m.apply, m.finish, m.finish, m.reparent, m.rejoin, m.establish}
}

// violation checks the theorem itself: whoever could be elected now, by any set of promises, has every acknowledged
// commit; and the record is valid.
func (m *model) violation() error {
	if err := m.record.Validate(); err != nil {
		return err
	}
	for set := 1; set < 1<<len(m.names); set++ {
		var promises []Promise
		for i, name := range m.names {
			if set&(1<<i) != 0 {
				promises = append(promises, Promise{Instance: name, Term: 1 << 40, Position: m.position(name)})
			}
		}
		winners, err := m.elect(m.record, promises)
		if err != nil {
			continue
		}
		for _, w := range winners {
			for _, e := range m.acked {
				if !slices.Contains(m.nodes[w.Instance].log, e) {
					return fmt.Errorf("commit %v is lost when %s is elected by %v; record %v", e, w.Instance, promises, m.record)
				}
			}
		}
	}
	return nil
}

// run takes random actions until one violates. It looks at every third step: what is lost once mostly stays lost.
func (m *model) run(steps int) error {
	actions := m.actions()
	for n := range steps {
		actions[m.c.Intn(len(actions))]()
		if n%3 != 2 {
			continue
		}
		if err := m.violation(); err != nil {
			return err
		}
	}
	return nil
}
