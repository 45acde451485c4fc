package reparent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/internal/quorum"
)

// fault is what goes wrong with one call.
type fault string

const (
	refuses fault = "refuses" // an error, nothing done
	hangs   fault = "hangs"   // no answer, nothing done
	loses   fault = "loses"   // done, the answer is lost
	late    fault = "late"    // no answer in time, done afterwards
	slow    fault = "slow"    // done, after 300 ms
)

type fakeInstance struct {
	Status
	cohort  quorum.Cohort
	drained bool
	dead    bool
}

// fakeShard implements the ports in memory, with a millisecond of latency per call. It runs in a synctest bubble.
type fakeShard struct {
	t       *testing.T
	mu      sync.Mutex
	inst    map[string]*fakeInstance
	record  quorum.Record
	version int
	opened  map[uint64]string
	phases  []Phase
	closed  []Result
	calls   []string
	// faults by "Method instance"; each strikes once unless sticky.
	faults map[string]fault
	sticky bool
	// open are the transactions that do not end, overdue is what the last Drain was told of them.
	open    int
	overdue time.Time
	// onStore runs in the middle of a Store, before it looks at the version.
	onStore func()
}

func newFake(t *testing.T, names ...string) *fakeShard {
	f := &fakeShard{t: t, inst: map[string]*fakeInstance{}, opened: map[uint64]string{}, faults: map[string]fault{}}
	c := quorum.Cohort{Term: 5, Primary: names[0], Members: names[1:], Acks: quorum.DefaultAcks(len(names))}.Normalize()
	f.record = quorum.Record{Established: 5, Cohorts: []quorum.Cohort{c}}
	for i, n := range names {
		s := Status{Role: RoleStandby, Term: 5, Position: quorum.Position{WALTerm: 5, LSN: 1000}, Replayed: 1000, Source: names[0]}
		if i == 0 {
			s.Role, s.Established, s.Source = RolePrimary, true, ""
		}
		f.inst[n] = &fakeInstance{Status: s, cohort: c}
	}
	return f
}

func (f *fakeShard) instances() []Instance {
	var out []Instance
	for n, i := range f.inst {
		out = append(out, Instance{Name: n, Zone: "zone-" + n, Reachable: !i.dead, Term: i.Term, Current: true, TimeLeft: 20 * 24 * time.Hour})
	}
	slices.SortFunc(out, func(a, b Instance) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

func (f *fakeShard) run(req Request) Result {
	if req.Instances == nil {
		req.Instances = f.instances()
	}
	req.Size = len(req.Instances) - 1
	c := Coordinator{Records: f, Agents: f, Journal: f, Runtime: newRealRuntime()}
	res := c.Run(context.Background(), req)
	// Tests look at the fields afterwards; order that after the calls that were given up.
	f.mu.Lock()
	defer f.mu.Unlock()
	return res
}

// call applies the fault to one call and carries it out.
func (f *fakeShard) call(ctx context.Context, method, name string, act func() error) error {
	key := method
	if name != "" {
		key += " " + name
	}
	f.mu.Lock()
	fl := f.faults[key]
	if !f.sticky {
		delete(f.faults, key)
	}
	i := f.inst[name]
	dead := i != nil && i.dead
	f.calls = append(f.calls, key)
	f.mu.Unlock()
	locked := func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		return act()
	}
	time.Sleep(time.Millisecond)
	switch {
	case dead, fl == hangs:
		<-ctx.Done()
		return ctx.Err()
	case fl == slow:
		time.Sleep(300 * time.Millisecond)
	case fl == refuses:
		return fmt.Errorf("%s refused", key)
	case fl == loses:
		_ = locked()
		<-ctx.Done()
		return ctx.Err()
	case fl == late:
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // nobody waits for this call any more
		_ = locked()
		return ctx.Err()
	}
	return locked()
}

func (f *fakeShard) accept(name string, term uint64) (*fakeInstance, error) {
	i := f.inst[name]
	if term < i.Term {
		return nil, &OvertakenError{name, i.Term}
	}
	return i, nil
}

func (f *fakeShard) Load(ctx context.Context) (r quorum.Record, v Version, err error) {
	err = f.call(ctx, "Load", "", func() error { r, v = f.record.Clone(), Version(fmt.Sprint(f.version)); return nil })
	return r, v, err
}

func (f *fakeShard) Store(ctx context.Context, at Version, r quorum.Record) (v Version, err error) {
	err = f.call(ctx, "Store", "", func() error {
		if f.onStore != nil {
			f.onStore()
		}
		if at != Version(fmt.Sprint(f.version)) {
			return ErrConflict
		}
		require.NoError(f.t, r.Validate())
		f.record, f.version = r.Clone(), f.version+1
		v = Version(fmt.Sprint(f.version))
		return nil
	})
	return v, err
}

func (f *fakeShard) Status(ctx context.Context, name string) (s Status, err error) {
	err = f.call(ctx, "Status", name, func() error { s = f.inst[name].Status; return nil })
	return s, err
}

func (f *fakeShard) Promise(ctx context.Context, name string, term uint64, after time.Duration) (p quorum.Promise, err error) {
	method := "Promise"
	if after > 0 {
		method = "PromiseAfter"
	}
	err = f.call(ctx, method, name, func() error {
		i, err := f.accept(name, term)
		for end := time.Now().Add(after); err == nil && i.Source != "" && ctx.Err() == nil && time.Now().Before(end); {
			f.mu.Unlock()
			time.Sleep(time.Millisecond)
			f.mu.Lock()
			i, err = f.accept(name, term)
		}
		if err != nil {
			return err
		}
		if i.Term == term && (i.Role == RolePrimary || i.Source != "") {
			return errors.New("promised and moved on")
		}
		p = quorum.Promise{Instance: name, Term: term, Position: i.Position, WasPrimary: i.Role != RoleStandby}
		if i.Role == RolePrimary {
			i.Role, i.Established = RoleStopped, false
		}
		i.Term, i.Source, i.drained = term, "", false
		return nil
	})
	return p, err
}

func (f *fakeShard) Demote(ctx context.Context, name string, term uint64, _ string, _ time.Duration) (p quorum.Promise, err error) {
	err = f.call(ctx, "Demote", name, func() error {
		i, err := f.accept(name, term)
		if err != nil {
			return err
		}
		i.Position.LSN += 10 // the shutdown record, shipped to whoever streams
		for _, s := range f.inst {
			if s.Source == name && !s.dead {
				s.Position = i.Position
				s.Source = ""
			}
		}
		i.Role, i.Established, i.Term, i.drained = RoleStopped, false, term, false
		p = quorum.Promise{Instance: name, Term: term, Position: i.Position, WasPrimary: true}
		return nil
	})
	return p, err
}

func (f *fakeShard) Promote(ctx context.Context, name string, c quorum.Cohort) (tl []Timeline, err error) {
	err = f.call(ctx, "Promote", name, func() error {
		i, err := f.accept(name, c.Term)
		if err != nil {
			return err
		}
		latest, _ := f.record.Latest()
		require.Equal(f.t, c, latest, "recorded before it is used")
		require.Equal(f.t, name, c.Primary)
		i.Role, i.Term, i.cohort, i.Source = RolePrimary, c.Term, c, ""
		i.Position = quorum.Position{WALTerm: c.Term, LSN: i.Position.LSN + 10}
		tl = []Timeline{{ID: 1, Term: 1}, {ID: 2, Term: c.Term}}
		return nil
	})
	return tl, err
}

func (f *fakeShard) Establish(ctx context.Context, name string, term uint64, _ Kind, _ string) error {
	acked := false
	return f.call(ctx, "Establish", name, func() error {
		i, err := f.accept(name, term)
		if err != nil {
			return err
		}
		for !acked && i.Role == RolePrimary && i.Term == term {
			n := 0
			for _, m := range i.cohort.Members {
				if s := f.inst[m]; s.Source == name && !s.dead {
					s.Position = i.Position
					n++
				}
			}
			if acked = n >= i.cohort.Acks; acked {
				break
			}
			f.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
			f.mu.Lock()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if !acked {
			return errors.New("not primary")
		}
		i.Established = true
		return nil
	})
}

func (f *fakeShard) Follow(ctx context.Context, name string, term uint64, primary string, _ []Timeline) error {
	return f.call(ctx, "Follow", name, func() error {
		i, err := f.accept(name, term)
		if err != nil {
			return err
		}
		p := f.inst[primary]
		if i.Role == RolePrimary || i.Position.WALTerm == p.Position.WALTerm && i.Position.LSN > p.Position.LSN {
			return errors.New("diverged")
		}
		i.Role, i.Term, i.Source = RoleStandby, term, primary
		if p.Role == RoleStandby {
			i.Position = p.Position
		}
		return nil
	})
}

func (f *fakeShard) Checkpoint(ctx context.Context, name string, term uint64) error {
	return f.call(ctx, "Checkpoint", name, func() error { _, err := f.accept(name, term); return err })
}

// Await takes the whole time when there are transactions that do not end.
func (f *fakeShard) Await(ctx context.Context, name string, term uint64, timeout time.Duration) (open int, asked time.Time, err error) {
	f.mu.Lock()
	open = f.open
	f.mu.Unlock()
	asked = time.Now()
	if open > 0 {
		time.Sleep(timeout)
	}
	return open, asked, f.call(ctx, "Await", name, func() error { _, err := f.accept(name, term); return err })
}

func (f *fakeShard) Drain(ctx context.Context, name string, term uint64, _ time.Duration, overdue time.Time) (int, error) {
	return 2, f.call(ctx, "Drain", name, func() error {
		i, err := f.accept(name, term)
		f.overdue = overdue
		if err == nil {
			i.drained = true
		}
		return err
	})
}

func (f *fakeShard) Undrain(ctx context.Context, name string, term uint64) error {
	return f.call(ctx, "Undrain", name, func() error {
		i, err := f.accept(name, term)
		if err == nil {
			i.drained = false
		}
		return err
	})
}

func (f *fakeShard) Open(ctx context.Context, o Opening) error {
	return f.call(ctx, "Open", "", func() error {
		if f.opened[o.Term] != "" {
			return ErrTermTaken
		}
		f.opened[o.Term] = "me"
		return nil
	})
}

func (f *fakeShard) Phase(p Phase) { f.phases = append(f.phases, p) }

func (f *fakeShard) Close(ctx context.Context, r Result) error {
	return f.call(ctx, "Close", "", func() error { f.closed = append(f.closed, r); return nil })
}

// serving lists the established primaries.
func (f *fakeShard) serving() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for n, i := range f.inst {
		if i.Role == RolePrimary && i.Established && !i.dead {
			out = append(out, n)
		}
	}
	return out
}

func (f *fakeShard) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}
