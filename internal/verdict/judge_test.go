package verdict

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/quorum"
)

const sec = time.Second

// three is a healthy shard: p with standbys a and b in term 5, heard 100 ms ago.
func three() Observed { return shardOf(1, "a", "b") }

func shardOf(acks int, standbys ...string) Observed {
	c := quorum.Cohort{Term: 5, Primary: "p", Members: standbys, Acks: acks}
	p := Instance{Name: "p", Age: sec / 10, Heard: true, Role: RolePrimary, Term: 5, Established: true, DiskUsed: 0.5, Peers: map[string]Peer{}}
	out := []Instance{p}
	for _, name := range standbys {
		p.Peers[name] = Peer{Streaming: true, ReplyAge: sec / 10}
		out = append(out, Instance{
			Name: name, Age: sec / 10, Heard: true, Role: RoleStandby, Term: 5, DiskUsed: 0.5,
			Receiver: Receiver{Streaming: true, Source: "p", MessageAge: sec / 10, AdvanceAge: sec / 10},
		})
	}
	return Observed{Record: quorum.Record{Established: 5, Cohorts: []quorum.Cohort{c}}, EstablishedFor: time.Hour, Instances: out}
}

func (o *Observed) at(name string) *Instance { return shard{o: *o}.instance(name) }

// lose makes a standby report that its receiver is gone, as a reset connection does.
func (o *Observed) lose(names ...string) {
	for _, n := range names {
		o.at(n).Receiver.Streaming = false
		if p := o.at("p"); p != nil {
			delete(p.Peers, n)
		}
	}
}

// quiet makes receivers stay connected and hear nothing, as frozen or unplugged machines do.
func (o *Observed) quiet(names ...string) {
	for _, n := range names {
		o.at(n).Receiver.MessageAge = 2 * sec
		if p := o.at("p"); p != nil {
			p.Peers[n] = Peer{Streaming: true, ReplyAge: 2 * sec}
		}
	}
}

func (o *Observed) silent(names ...string) {
	for _, n := range names {
		o.at(n).Age = 2 * sec
	}
}

// used is how full the volumes of p, a and b are.
func (o *Observed) used(p, a, b float64) {
	o.at("p").DiskUsed, o.at("a").DiskUsed, o.at("b").DiskUsed = p, a, b
}

func (o *Observed) remove(name string) {
	for i := range o.Instances {
		if o.Instances[i].Name == name {
			o.Instances = append(o.Instances[:i:i], o.Instances[i+1:]...)
			return
		}
	}
}

type row struct {
	name    string
	o       func(o *Observed)
	verdict Verdict
	subject string
	action  Action
}

func check(t *testing.T, base func() Observed, rows []row) {
	t.Helper()
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			o := base()
			tt.o(&o)
			j := Judge(o, DefaultParams())
			require.NotEmpty(t, j.Why)
			require.Equal(t, []any{tt.verdict, tt.subject, tt.action}, []any{j.Verdict, j.Subject, j.Action}, j.Why)
		})
	}
}

func TestPrimary(t *testing.T) {
	check(t, three, []row{
		{"all is well", func(*Observed) {}, Healthy, "p", None},
		{"postmaster killed: the agent says so at once", func(o *Observed) {
			o.at("p").Role, o.at("p").Exited = RoleStopped, "signal 9"
			o.lose("a", "b")
		}, PrimaryDead, "p", ERS},
		{"it fenced itself", func(o *Observed) {
			o.at("p").Role, o.at("p").Fenced = RoleStopped, "heard nobody for 1.25 s"
		}, PrimaryDead, "p", ERS},
		{"its container restarted", func(o *Observed) { o.at("p").Role = RoleStopped }, PrimaryDead, "p", ERS},
		{"Pod deleted with grace 0: no patience", func(o *Observed) {
			p := o.at("p")
			p.PodGone, p.Disconnected, p.Age = true, true, sec/5
		}, PrimaryDead, "p", ERS},
		{"Pod and instance are gone from the API", func(o *Observed) { o.lose("a", "b"); o.remove("p") }, PrimaryDead, "p", ERS},
		{"Pod gone, it still serves for a moment", func(o *Observed) { o.at("p").PodGone = true }, Healthy, "p", None},
		{"Pod gone, it still serves", func(o *Observed) { o.at("p").PodGone, o.at("p").PodGoneFor = true, 2*sec }, PrimarySick, "p", PRS},
		{"Pod gone and silent, standbys still stream: a cut node", func(o *Observed) {
			o.at("p").PodGone = true
			o.silent("p")
		}, PrimaryDead, "p", ERS},
		{"power cut: nothing from it, standbys lost it", func(o *Observed) {
			o.silent("p")
			o.lose("a", "b")
		}, PrimaryDead, "p", ERS},
		{"power cut or network cut without a reset", func(o *Observed) {
			o.silent("p")
			o.quiet("a", "b")
		}, PrimaryDead, "p", ERS},
		{"frozen machine", func(o *Observed) {
			o.silent("p")
			o.quiet("a", "b")
			o.at("p").NodeNotReadyFor = 1
		}, PrimaryDead, "p", ERS},
		{"silent for two heartbeats only", func(o *Observed) { o.at("p").Age = 1400 * time.Millisecond; o.lose("a", "b") }, Healthy, "p", None},
		{"cut off from the operator only: it serves", func(o *Observed) { o.silent("p") }, AgentDead, "p", Alert},
		{"agent dead, PostgreSQL lives", func(o *Observed) {
			o.at("p").Age = 10 * time.Minute
			o.at("a").PrimaryPostgres, o.at("b").PrimaryPostgres = Reached, Reached
		}, AgentDead, "p", Alert},
		{"agent dead, an idle PostgreSQL that can be reached", func(o *Observed) {
			o.at("p").Age = 10 * time.Minute
			o.at("a").Receiver.AdvanceAge, o.at("b").Receiver.AdvanceAge = 20*sec, 20*sec
			o.at("a").PrimaryPostgres, o.at("b").PrimaryPostgres = NotReached, Reached
		}, AgentDead, "p", Alert},
		{"agent dead, walsenders live on a dead disk", func(o *Observed) {
			o.at("p").Age = 20 * sec
			o.at("a").Receiver.AdvanceAge, o.at("b").Receiver.AdvanceAge = 20*sec, 20*sec
			o.at("a").PrimaryPostgres, o.at("b").PrimaryPostgres = NotReached, NotReached
		}, PrimaryStalled, "p", ERS},
		{"one standby still hears it: it can commit", func(o *Observed) { o.silent("p"); o.lose("a") }, AgentDead, "p", Alert},
		{"dead together with a standby: the other may not have everything", func(o *Observed) {
			o.silent("p", "b")
			o.lose("a")
		}, PrimaryDead, "p", Alert},
		{"dead, a standby with a hanging disk cannot promise", func(o *Observed) {
			o.silent("p")
			o.lose("a", "b")
			o.at("b").DiskProbe.Pending = 3 * sec
		}, PrimaryDead, "p", Alert},
		{"dead, a diverged standby can promise but not follow", func(o *Observed) {
			o.silent("p")
			o.lose("a", "b")
			o.at("b").Diverged = true
		}, PrimaryDead, "p", Alert},
		{"down, and everybody else lost: to be a standby that others can be seeded from", func(o *Observed) {
			o.at("p").Role = RoleStopped
			o.silent("a", "b")
		}, PrimaryDead, "p", ERS},
		{"down, everybody else has diverged", func(o *Observed) {
			o.at("p").Role = RoleStopped
			o.at("a").Diverged, o.at("b").Diverged = true, true
		}, PrimaryDead, "p", ERS},
		{"never heard since this observer began to watch", func(o *Observed) {
			*o.at("p") = Instance{Name: "p", Age: 2 * sec}
			o.lose("a", "b")
		}, PrimaryDead, "p", ERS},
		{"this observer has only begun to watch", func(o *Observed) {
			*o.at("p") = Instance{Name: "p", Age: sec}
		}, Unknown, "p", None},
		{"it has heard nobody yet", func(o *Observed) {
			for _, n := range []string{"p", "a", "b"} {
				*o.at(n) = Instance{Name: n, Age: sec}
			}
		}, Unknown, "p", None},
		{"it has not heard a standby yet", func(o *Observed) { *o.at("a") = Instance{Name: "a", Age: sec} }, Healthy, "p", None},
		{"SIGSTOP of the postmaster: open sessions go on, new ones hang", func(o *Observed) {
			o.at("p").ConnectProbe.Pending = 2 * sec
		}, PrimaryStalled, "p", ERS},
		{"SIGSTOP of all of PostgreSQL", func(o *Observed) {
			p := o.at("p")
			p.ConnectProbe.Pending, p.WriteProbe.Pending, p.CommitProbe.Pending = 2*sec, 2*sec, 2*sec
			o.quiet("a", "b")
		}, PrimaryStalled, "p", ERS},
		{"stalled disk: fsync hangs", func(o *Observed) { o.at("p").DiskProbe.Pending = 2 * sec }, PrimaryStalled, "p", ERS},
		{"stalled disk: a commit hangs in its flush", func(o *Observed) { o.at("p").WriteProbe.Pending = 1950 * time.Millisecond }, PrimaryStalled, "p", ERS},
		{"a slow fsync is not a stall yet", func(o *Observed) { o.at("p").DiskProbe.Pending = sec }, Healthy, "p", None},
		{"cut off from its standbys only", func(o *Observed) {
			o.at("p").CommitProbe.Pending = 2 * sec
			o.lose("a", "b")
		}, PrimaryIsolated, "p", ERS},
		{"cut off from its standbys without a reset", func(o *Observed) {
			o.at("p").CommitProbe.Pending = 2 * sec
			o.quiet("a", "b")
		}, PrimaryIsolated, "p", ERS},
		{"quiet standbys of a primary whose writes hang: not cut off", func(o *Observed) {
			p := o.at("p")
			p.CommitProbe.Pending, p.WriteProbe.Pending, p.DiskProbe.Pending = 1900*time.Millisecond, 1200*time.Millisecond, 900*time.Millisecond
			o.quiet("a", "b")
		}, Healthy, "p", None},
		{"… and soon stalled", func(o *Observed) {
			p := o.at("p")
			p.CommitProbe.Pending, p.WriteProbe.Pending, p.DiskProbe.Pending = 2700*time.Millisecond, 2*sec, 1700*time.Millisecond
			o.quiet("a", "b")
		}, PrimaryStalled, "p", ERS},
		{"cut off on a busy disk", func(o *Observed) {
			p := o.at("p")
			p.CommitProbe.Pending, p.WriteProbe.Pending = 2*sec, 100*time.Millisecond
			o.quiet("a", "b")
		}, PrimaryIsolated, "p", ERS},
		{"standbys gone for a moment", func(o *Observed) { o.at("p").CommitProbe.Pending = sec; o.lose("a", "b") }, Healthy, "p", None},
		{"both standbys are dead: nobody better", func(o *Observed) {
			o.at("p").CommitProbe.Pending = 2 * sec
			o.lose("a", "b")
			o.silent("a", "b")
		}, CannotCommit, "p", Alert},
		{"one standby is dead, the other cut off: a new primary could not commit either", func(o *Observed) {
			o.at("p").CommitProbe.Pending = 2 * sec
			o.lose("a", "b")
			o.silent("b")
		}, CannotCommit, "p", Alert},
		{"commits hang though standbys are connected: their disks", func(o *Observed) {
			o.at("p").CommitProbe.Pending = 2 * sec
			o.at("a").DiskProbe.Pending, o.at("b").DiskProbe.Pending = 3*sec, 3*sec
		}, StandbyStuck, "a", Shrink},
		{"write errors", func(o *Observed) { o.at("p").WriteProbe = Probe{Failures: 3, Error: "read-only file system"} }, PrimarySick, "p", PRS},
		{"refuses sessions", func(o *Observed) { o.at("p").ConnectProbe = Probe{Failures: 3, Error: "out of memory"} }, PrimarySick, "p", PRS},
		{"two failures are bad luck", func(o *Observed) { o.at("p").WriteProbe.Failures = 2 }, Healthy, "p", None},
		{"slow counts as failed", func(o *Observed) { o.at("p").WriteProbe.SlowFor = time.Minute }, PrimarySick, "p", PRS},
		{"sick, and nobody to take over", func(o *Observed) {
			o.at("p").WriteProbe.Failures = 3
			o.silent("a", "b")
		}, PrimarySick, "p", Alert},
		{"volume full", func(o *Observed) { o.at("p").DiskUsed = 0.98 }, DiskFull, "p", PRS},
		{"every volume full: the data has grown", func(o *Observed) { o.used(0.98, 0.975, 0.97) }, DiskFull, "p", Alert},
		{"no other has much more room", func(o *Observed) { o.used(0.98, 0.93, 0.96) }, DiskFull, "p", Alert},
		{"one other has", func(o *Observed) { o.used(0.98, 0.91, 0.96) }, DiskFull, "p", PRS},
		{"only one that cannot be asked has", func(o *Observed) { o.used(0.98, 0.5, 0.96); o.at("a").Diverged = true }, StandbyDiverged, "a", Shrink},
		{"every volume full, and writes fail: a new primary could not write either", func(o *Observed) {
			o.used(1, 1, 1)
			o.at("p").WriteProbe.Failures, o.at("p").DiskProbe.Failures = 9, 9
		}, DiskFull, "p", Alert},
		{"every volume full, and a standby is dead", func(o *Observed) {
			o.used(0.98, 0.98, 0.98)
			o.silent("a")
			o.lose("a")
		}, StandbyDead, "a", Shrink},
		{"every volume full, and PostgreSQL ended", func(o *Observed) {
			o.used(1, 1, 1)
			o.at("p").Exited = "panic"
		}, PrimaryDead, "p", ERS},
		{"a standby's volume is full, as the others' will be soon", func(o *Observed) { o.used(0.94, 0.95, 0.975) }, DiskFull, "b", Alert},
		{"volume full, so that writes fail", func(o *Observed) { o.at("p").DiskUsed, o.at("p").WriteProbe.Failures = 1, 5 }, DiskFull, "p", PRS},
		{"node not ready, yet it serves", func(o *Observed) { o.at("p").NodeNotReadyFor = 2 * sec }, Healthy, "p", None},
		{"node not ready for long", func(o *Observed) { o.at("p").NodeNotReadyFor = 2 * time.Minute }, NodeNotReady, "p", Replace},
		{"and being replaced", func(o *Observed) {
			o.at("p").NodeNotReadyFor = 2 * time.Minute
			o.at("p").Leaving = true
		}, Healthy, "p", None},
		{"it reports to be a standby", func(o *Observed) { o.at("p").Role = RoleStandby }, NoPrimary, "p", ERS},
		{"it is not established", func(o *Observed) { o.at("p").Established = false }, NoPrimary, "p", ERS},
		{"it is established by the record, but was last heard before", func(o *Observed) {
			o.at("p").Established, o.EstablishedFor = false, sec/20
		}, Unknown, "p", None},
		{"or even before it was promoted", func(o *Observed) {
			*o.at("p") = Instance{Name: "p", Age: sec / 10, Heard: true, Role: RoleStandby, Term: 4}
			o.EstablishedFor = sec / 20
		}, Unknown, "p", None},
		{"or since, when its status may have been under way", func(o *Observed) {
			o.at("p").Established, o.EstablishedFor = false, sec/2
		}, Unknown, "p", None},
		{"not established for certain", func(o *Observed) {
			o.at("p").Established, o.EstablishedFor = false, sec*6/10
		}, NoPrimary, "p", ERS},
		{"established and fallen within a moment", func(o *Observed) {
			o.at("p").Established, o.at("p").Role, o.at("p").Exited, o.EstablishedFor = false, RoleStopped, "signal 9", sec/20
		}, PrimaryDead, "p", ERS},
		{"established and fenced within a moment", func(o *Observed) {
			o.at("p").Established, o.at("p").Fenced, o.EstablishedFor = false, "cut off", sec/20
		}, PrimaryDead, "p", ERS},
		{"established and passed within a moment", func(o *Observed) {
			o.at("p").Established, o.at("p").Term, o.EstablishedFor = false, 6, sec/20
		}, NoPrimary, "p", ERS},
		{"established, and its members passed it within a moment", func(o *Observed) {
			o.at("p").Established, o.at("a").Term, o.at("b").Term, o.EstablishedFor = false, 6, 6, sec/20
			o.lose("a", "b")
		}, NoPrimary, "p", ERS},
		{"established and silent since", func(o *Observed) {
			o.at("p").Established, o.EstablishedFor = false, sec
			o.silent("p")
			o.lose("a", "b")
		}, PrimaryDead, "p", ERS},
		{"it promised a higher term", func(o *Observed) { o.at("p").Term = 6 }, NoPrimary, "p", ERS},
		{"its members promised a higher term and their coordinator died", func(o *Observed) {
			o.at("a").Term, o.at("b").Term = 6, 6
			o.lose("a", "b")
		}, NoPrimary, "p", ERS},
		{"one member promised a higher term", func(o *Observed) { o.at("a").Term = 6 }, Healthy, "p", None},
		{"everything is silent: the observer is cut off", func(o *Observed) { o.silent("p", "a", "b") }, Unknown, "", Alert},
	})
}

func TestPrimaryOfFive(t *testing.T) {
	check(t, func() Observed { return shardOf(2, "a", "b", "c", "d") }, []row{
		{"silent, one member still hears it: not enough to commit", func(o *Observed) {
			o.silent("p")
			o.lose("a", "b", "c")
		}, PrimaryDead, "p", ERS},
		{"silent, two members hear it", func(o *Observed) { o.silent("p"); o.lose("a", "b") }, AgentDead, "p", Alert},
		{"dead with one member", func(o *Observed) { o.silent("p", "d"); o.lose("a", "b", "c") }, PrimaryDead, "p", ERS},
		{"dead with two members", func(o *Observed) { o.silent("p", "c", "d"); o.lose("a", "b") }, PrimaryDead, "p", Alert},
		{"cut off from three of four standbys", func(o *Observed) {
			o.at("p").CommitProbe.Pending = 2 * sec
			o.lose("a", "b", "c")
		}, PrimaryIsolated, "p", ERS},
	})
}

func TestPrimaryOfOne(t *testing.T) {
	check(t, func() Observed { return shardOf(0) }, []row{
		{"well", func(*Observed) {}, Healthy, "p", None},
		{"crashed: promoted again in a new term", func(o *Observed) { o.at("p").Role, o.at("p").Exited = RoleStopped, "signal 6" }, PrimaryDead, "p", ERS},
		{"silent: nobody can take over", func(o *Observed) { o.silent("p") }, PrimaryDead, "p", Alert},
		{"stalled: its own promise would hang too", func(o *Observed) { o.at("p").DiskProbe.Pending = 3 * sec }, PrimaryStalled, "p", Alert},
	})
}

func TestBegunTerms(t *testing.T) {
	begun := func() Observed {
		o := three()
		o.Record.Cohorts = append(o.Record.Cohorts, quorum.Cohort{Term: 6, Primary: "a", Members: []string{"b"}, Acks: 1})
		return o
	}
	check(t, begun, []row{
		{"nobody is established in it", func(o *Observed) {
			o.at("p").Role, o.at("p").Term = RoleStopped, 6
			o.at("a").Term, o.at("b").Term = 6, 6
		}, NoPrimary, "", ERS},
		{"its primary is up and not established", func(o *Observed) {
			o.at("p").Role, o.at("p").Term = RoleStopped, 6
			o.at("a").Role, o.at("a").Term, o.at("b").Term = RolePrimary, 6, 6
		}, NoPrimary, "", ERS},
		{"established, only the record does not say so", func(o *Observed) {
			a, b := o.at("a"), o.at("b")
			a.Role, a.Term, a.Established, b.Term = RolePrimary, 6, true, 6
			a.Peers = map[string]Peer{"b": {Streaming: true}}
			b.Receiver.Source = "a"
			o.remove("p")
		}, Healthy, "a", None},
		{"the coordinator died before it stopped the old primary", func(*Observed) {}, PrimarySick, "p", PRS},
		{"the coordinator died after it revoked", func(o *Observed) { o.at("a").Term, o.at("b").Term = 6, 6 }, NoPrimary, "", ERS},
	})
	o := begun()
	o.at("p").Role, o.at("p").Term = RoleStopped, 6
	o.Reparent = &InFlight{Term: 6, Phase: "Promote", PhaseAge: sec, PhaseLimit: 2 * sec}
	j := Judge(o, DefaultParams())
	require.Equal(t, NoPrimary, j.Verdict)
	require.Equal(t, None, j.Action, "a coordinator at work is left alone")
	o.Reparent.PhaseAge = 3 * sec
	require.Equal(t, ERS, Judge(o, DefaultParams()).Action, "a dead one is overtaken")
	o.Reparent = &InFlight{Term: 6, Failures: 1, PhaseAge: sec / 4}
	require.Equal(t, None, Judge(o, DefaultParams()).Action, "failed a moment ago")
	o.Reparent.PhaseAge = sec
	require.Equal(t, ERS, Judge(o, DefaultParams()).Action)
	o.Reparent.Failures = 3
	require.Equal(t, None, Judge(o, DefaultParams()).Action, "again and again")
	o.Reparent.Failures, o.Reparent.PhaseAge = 1000, time.Hour
	require.Equal(t, ERS, Judge(o, DefaultParams()).Action, "but never given up")
}

// A planned reparent that only prepares holds no emergency back: it may wait for the primary's checkpoint for as long as that
// is frozen.
func TestAnEmergencyDoesNotWaitForPreparations(t *testing.T) {
	dead := func() Observed {
		o := three()
		o.silent("p")
		o.lose("a", "b")
		o.Reparent = &InFlight{Term: 6, Phase: "Prepare", Planned: true, PhaseAge: sec, PhaseLimit: 40 * sec}
		return o
	}
	for name, tt := range map[string]struct {
		edit   func(o *Observed)
		action Action
	}{
		"a checkpoint of a dead primary":       {func(*Observed) {}, ERS},
		"just opened":                          {func(o *Observed) { o.Reparent.Phase = "Check" }, ERS},
		"an emergency's journal says the same": {func(o *Observed) { o.Reparent.Planned = false }, None},
		"its term is recorded: clients may wait": {func(o *Observed) {
			o.Record.Cohorts = append(o.Record.Cohorts, quorum.Cohort{Term: 6, Primary: "a", Members: []string{"b"}, Acks: 1})
		}, None},
		"it has stopped the primary":                {func(o *Observed) { o.at("p").Term = 6 }, None},
		"it has been promised":                      {func(o *Observed) { o.at("a").Term = 6 }, None},
		"it failed, and the next one waits a while": {func(o *Observed) { o.Reparent.Failures, o.Reparent.PhaseAge = 1, sec/10 }, None},
		"the primary is only sick": {func(o *Observed) {
			r := o.Reparent
			*o = three()
			o.at("p").DiskUsed, o.Reparent = 0.99, r
		}, None},
	} {
		t.Run(name, func(t *testing.T) {
			o := dead()
			tt.edit(&o)
			j := Judge(o, DefaultParams())
			require.NotEqual(t, Healthy, j.Verdict)
			require.Equal(t, tt.action, j.Action, j.Why)
		})
	}
}

// An outage begins when the primary was last known to serve, not when somebody noticed.
func TestOutage(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(o *Observed)
		want time.Duration
	}{
		"its agent says that PostgreSQL ended": {func(o *Observed) { o.at("p").Role, o.at("p").Exited = RoleStopped, "signal 9"; o.lose("a", "b") }, sec / 10},
		"a power cut":                          {func(o *Observed) { o.silent("p"); o.lose("a", "b") }, 2 * sec},
		"frozen, and a standby heard from it last": {func(o *Observed) {
			o.at("p").Age = 2500 * time.Millisecond
			o.quiet("a", "b")
		}, 2100 * time.Millisecond},
		"frozen amid a probe": {func(o *Observed) { o.silent("p"); o.at("p").WriteProbe.Pending = sec / 100; o.lose("a", "b") }, 2 * sec},
		"the last standby lost its stream since": {func(o *Observed) {
			o.at("p").Age = 2500 * time.Millisecond
			o.quiet("a", "b")
			o.lose("a", "b")
		}, 2500 * time.Millisecond},
		"a stalled disk, while standbys stream": {func(o *Observed) { o.at("p").DiskProbe.Pending = 3 * sec }, 3100 * time.Millisecond},
		"a commit that hangs":                   {func(o *Observed) { o.at("p").CommitProbe.Pending = 2 * sec }, 2100 * time.Millisecond},
		"nobody ever heard it":                  {func(o *Observed) { *o.at("p") = Instance{Name: "p", Age: time.Minute} }, 0},
		"it is gone":                            {func(o *Observed) { o.remove("p") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := three()
			tt.edit(&o)
			require.Equal(t, tt.want, o.Outage())
		})
	}
	for v, want := range map[Verdict][]bool{Healthy: {false, true}, NoPrimary: {true, true}, PrimarySick: {false, true}, AgentDead: {false, true}, Unknown: {false, false}} {
		yes, ok := v.Unwritable()
		require.Equal(t, want, []bool{yes, ok}, v)
	}
}

func TestUnknown(t *testing.T) {
	require.Equal(t, Unknown, Judge(Observed{}, DefaultParams()).Verdict)
	o := three()
	o.Record.Established = 0
	require.Equal(t, Unknown, Judge(o, DefaultParams()).Verdict, "bootstrap is not our business")
	o = three()
	o.Record.Cohorts[0].Acks = 7
	require.Equal(t, Alert, Judge(o, DefaultParams()).Action)
}

func TestTwoPrimaries(t *testing.T) {
	check(t, three, []row{
		{"an old primary came back", func(o *Observed) { o.at("a").Role, o.at("a").Term = RolePrimary, 4 }, TwoPrimaries, "a", Replace},
		{"it is silent again", func(o *Observed) {
			o.at("a").Role, o.at("a").Term = RolePrimary, 4
			o.silent("a")
			o.lose("a")
		}, StandbyDead, "a", Shrink},
		{"of the same term: impossible", func(o *Observed) { o.at("a").Role = RolePrimary }, TwoPrimaries, "a", Alert},
		{"the real one is dead: that comes first", func(o *Observed) {
			o.at("a").Role, o.at("a").Term = RolePrimary, 4
			o.at("p").Exited = "signal 9"
		}, PrimaryDead, "p", ERS},
	})
}

func TestStandbys(t *testing.T) {
	outside := func(o *Observed, name string) { // a learner
		o.Record.Cohorts[0].Members = []string{"a", "b"}
		for i := range o.Record.Cohorts[0].Members {
			if o.Record.Cohorts[0].Members[i] == name {
				o.Record.Cohorts[0].Members = append(o.Record.Cohorts[0].Members[:i:i], o.Record.Cohorts[0].Members[i+1:]...)
				return
			}
		}
	}
	check(t, three, []row{
		{"dead member", func(o *Observed) { o.silent("a"); o.lose("a") }, StandbyDead, "a", Shrink},
		{"dead member, Pod gone", func(o *Observed) { o.at("a").PodGone, o.at("a").Disconnected = true, true; o.lose("a") }, StandbyDead, "a", Shrink},
		{"dead and out of the cohort", func(o *Observed) { outside(o, "a"); o.silent("a"); o.lose("a") }, StandbyDead, "a", None},
		{"for long", func(o *Observed) { outside(o, "a"); o.lose("a"); o.at("a").Age = time.Minute }, StandbyDead, "a", Replace},
		{"Pod gone and out of the cohort", func(o *Observed) {
			outside(o, "a")
			o.lose("a")
			o.silent("a")
			o.at("a").PodGone = true
		}, StandbyDead, "a", Replace},
		{"the only member of its cohort", func(o *Observed) { outside(o, "b"); o.silent("a"); o.lose("a") }, StandbyDead, "a", Replace},
		{"its agent is dead, it streams", func(o *Observed) { o.silent("a") }, AgentDead, "a", None},
		{"for long", func(o *Observed) { o.at("a").Age = time.Minute }, AgentDead, "a", Replace},
		{"diverged", func(o *Observed) { o.at("b").Diverged = true; o.lose("b") }, StandbyDiverged, "b", Shrink},
		{"diverged and out", func(o *Observed) { outside(o, "b"); o.at("b").Diverged = true; o.lose("b") }, StandbyDiverged, "b", Replace},
		{"volume full", func(o *Observed) { o.at("b").DiskUsed = 0.99 }, DiskFull, "b", Shrink},
		{"disk hangs", func(o *Observed) { o.at("b").DiskProbe.Pending = 3 * sec }, StandbyStuck, "b", Shrink},
		{"receives nothing", func(o *Observed) { o.lose("b"); o.at("b").Receiver.AdvanceAge = 11 * sec }, StandbyStuck, "b", Shrink},
		{"idle but connected", func(o *Observed) { o.at("b").Receiver.AdvanceAge = time.Hour }, Healthy, "p", None},
		{"seeding", func(o *Observed) { outside(o, "b"); o.lose("b"); o.at("b").Role = RoleSeeding }, Healthy, "p", None},
		{"a leaving one is looked after already", func(o *Observed) { o.at("b").Leaving = true; o.silent("b"); o.lose("b") }, Healthy, "p", None},
		{"node not ready for long", func(o *Observed) { o.at("b").NodeNotReadyFor = time.Hour }, NodeNotReady, "b", Replace},
		{"one waits, the other needs something now", func(o *Observed) { o.silent("a"); o.at("b").Diverged = true }, StandbyDiverged, "b", Shrink},
	})
}

// TestJudgeIsTotal feeds it anything: it never panics, always explains itself, and never proposes an emergency that the
// record does not allow with those it heard.
func TestJudgeIsTotal(t *testing.T) {
	duration := rapid.SampledFrom([]time.Duration{0, sec / 2, 2 * sec, time.Hour})
	probe := rapid.Custom(func(t *rapid.T) Probe {
		return Probe{Pending: duration.Draw(t, "pending"), Failures: rapid.IntRange(0, 4).Draw(t, "failures"), SlowFor: duration.Draw(t, "slow")}
	})
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"p", "a", "b", "c"}
		o := Observed{}
		for _, n := range names {
			if rapid.IntRange(0, 5).Draw(t, "absent") == 0 {
				continue
			}
			i := Instance{
				Name: n, Age: duration.Draw(t, "age"), Heard: rapid.Bool().Draw(t, "heard"), Term: rapid.Uint64Range(4, 7).Draw(t, "term"),
				Role:        rapid.SampledFrom([]Role{RoleUnknown, RoleEmpty, RoleSeeding, RoleStandby, RolePrimary, RoleStopped}).Draw(t, "role"),
				Established: rapid.Bool().Draw(t, "established"), Diverged: rapid.IntRange(0, 5).Draw(t, "diverged") == 0,
				PodGone: rapid.IntRange(0, 3).Draw(t, "gone") == 0, Disconnected: rapid.Bool().Draw(t, "disconnected"),
				Receiver:   Receiver{Streaming: rapid.Bool().Draw(t, "streaming"), Source: rapid.SampledFrom(names).Draw(t, "source"), MessageAge: duration.Draw(t, "message")},
				WriteProbe: probe.Draw(t, "write"), DiskProbe: probe.Draw(t, "disk"), CommitProbe: probe.Draw(t, "commit"),
			}
			o.Instances = append(o.Instances, i)
		}
		o.Record = quorum.Record{Established: 5, Cohorts: []quorum.Cohort{{Term: 5, Primary: "p", Members: []string{"a", "b"}, Acks: rapid.IntRange(0, 2).Draw(t, "acks")}}}
		if rapid.Bool().Draw(t, "begun") {
			o.Record.Cohorts = append(o.Record.Cohorts, quorum.Cohort{Term: 6, Primary: "a", Members: []string{"b", "c"}, Acks: 1})
		}
		j := Judge(o, DefaultParams())
		require.NotEmpty(t, j.Verdict)
		require.NotEmpty(t, j.Action)
		require.NotEmpty(t, j.Why)
		if j.Action == ERS {
			var heard []string
			for _, i := range o.Instances {
				if i.Heard && i.Age < DefaultParams().SilentAfter {
					heard = append(heard, i.Name)
				}
			}
			require.NoError(t, quorum.Revocable(o.Record, heard))
		}
	})
}

func TestAStalePrimaryAnswersNoReadsForLong(t *testing.T) {
	p := DefaultParams()
	require.Less(t, FenceAfter, p.SilentAfter+time.Second, "a stale primary answers no reads for longer beside its successor")
}
