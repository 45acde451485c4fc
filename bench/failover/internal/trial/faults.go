package trial

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Lab runs verbs of the lab and returns what they print.
type Lab interface {
	Lab(ctx context.Context, args ...string) (string, error)
}

// Fault is something that is done to the primary of a system, and what undoes it.
type Fault struct {
	ID, Title, About string
	// Inject does it and returns when it is done.
	Inject func(ctx context.Context, lab Lab, s System, victim Instance) error
	// Mend undoes it, so far as people would; the system's own part is in WaitHealthy. nil: there is nothing to undo.
	Mend func(ctx context.Context, lab Lab, s System, victim Instance) error
	// MustMove: the repetition says nothing when the primary has not changed.
	MustMove bool
	// Newcomers are who this fault hurts: sessions that are open may go on. So a client that comes after the fault
	// is tried as well.
	Newcomers bool
}

// Faults are all there are, in the order of reports.
func Faults() []Fault {
	return []Fault{
		{
			ID: "switchover", Title: "Planned switchover", About: "the system is asked, in its own way, to move the primary; nothing is broken", MustMove: true,
			Inject: func(ctx context.Context, _ Lab, s System, _ Instance) error { return s.SwitchOver(ctx) },
		},
		{
			ID: "kill", Title: "kill -9 of the postmaster", About: "SIGKILL to the primary's postmaster inside its container, nothing else",
			Inject: func(ctx context.Context, _ Lab, s System, v Instance) error { return s.Signal(ctx, v.Name, "KILL") },
		},
		{
			ID: "pod", Title: "Pod deleted, no grace", About: "the primary's Pod is deleted with a grace period of 0; whoever makes Pods in that system makes it again at once, on its volume",
			Inject: func(ctx context.Context, _ Lab, s System, v Instance) error { return s.DeletePod(ctx, v.Name) },
		},
		{
			ID: "stop", Title: "SIGSTOP of the postmaster", About: "the primary's postmaster stops where it is: sessions that are open go on, and no new one begins; afterwards it is continued", Newcomers: true,
			Inject: func(ctx context.Context, _ Lab, s System, v Instance) error { return s.Signal(ctx, v.Name, "STOP") },
			Mend: func(ctx context.Context, _ Lab, s System, v Instance) error {
				_ = s.Signal(ctx, v.Name, "CONT") // a system that noticed has killed it, or the whole Pod; one that did not heal shows in WaitHealthy
				return nil
			},
		},
		{
			ID: "stall", Title: "Stalled volume", About: "every write and fsync on the primary's data volume hangs; afterwards they go on",
			Inject: func(ctx context.Context, lab Lab, s System, v Instance) error {
				_, err := lab.Lab(ctx, "volume", "stall", s.Claim(v.Name))
				return err
			},
			Mend: func(ctx context.Context, lab Lab, s System, v Instance) error {
				_, _ = lab.Lab(ctx, "volume", "resume", s.Claim(v.Name)) // a volume that was replaced is gone; one that still stalls shows in WaitHealthy
				return nil
			},
		},
		{
			ID: "power", Title: "Node power cut", About: "every process of the primary's node is gone at once and its link is down; afterwards a fresh node is added",
			Inject: node("kill"),
			Mend: func(ctx context.Context, lab Lab, _ System, v Instance) error {
				if _, err := lab.Lab(ctx, "node", "remove", v.Node); err != nil {
					return err
				}
				_, err := lab.Lab(ctx, "node", "add")
				return err
			},
		},
		{
			ID: "freeze", Title: "Node freeze", About: "every process of the primary's node stops where it is while its kernel still answers; afterwards they all go on",
			Inject: node("freeze"), Mend: node("thaw"),
		},
		{
			ID: "cut", Title: "Network cut", About: "the primary's node can neither send nor receive, and everything on it runs on; afterwards the link is back",
			Inject: node("cut"), Mend: node("heal"),
		},
	}
}

func node(verb string) func(context.Context, Lab, System, Instance) error {
	return func(ctx context.Context, lab Lab, _ System, v Instance) error {
		_, err := lab.Lab(ctx, "node", verb, v.Node)
		return err
	}
}

// Select picks faults by their IDs, in the order of Faults; an empty list is all.
func Select(list string) ([]Fault, error) {
	all := Faults()
	if list == "" {
		return all, nil
	}
	wanted := map[string]bool{}
	for id := range strings.SplitSeq(list, ",") {
		wanted[strings.TrimSpace(id)] = true
	}
	var out []Fault
	for _, f := range all {
		if wanted[f.ID] {
			out = append(out, f)
			delete(wanted, f.ID)
		}
	}
	for id := range wanted {
		return nil, fmt.Errorf("there is no fault %q", id)
	}
	return out, nil
}

// Bounds of the steps of a repetition. None but Jitter may be zero.
type Bounds struct {
	// Steady is how long there is undisturbed load before the fault at least. Jitter is how much longer at most, at random:
	// a system with a loop of its own becomes healthy on a beat of that loop, and a fault must not always hit the
	// same moment between two beats.
	Steady, Jitter time.Duration
	// Watch is how long after the fault the harness looks at least, for a fault may take effect late.
	Watch time.Duration
	// Limit is how long after the fault it waits for writes at most.
	Limit time.Duration
	// Newcomer is how long a client that comes after the fault, and after Watch, may take to write.
	Newcomer time.Duration
	// Healthy is how long the system may take to become healthy again.
	Healthy time.Duration
	// Step bounds everything else: a fault, its repair, a look at the system.
	Step time.Duration
}

// DefaultBounds fit systems that recover within two minutes.
func DefaultBounds() Bounds {
	return Bounds{Steady: 3 * time.Second, Jitter: 10 * time.Second, Watch: 4 * time.Second, Limit: 2 * time.Minute, Newcomer: 15 * time.Second, Healthy: 4 * time.Minute, Step: 90 * time.Second}
}
