// Package trial does one fault to one system under write load and measures what clients see. It knows the systems by a
// small interface only, and treats all of them alike: same lab, same client, same moments.
package trial

import (
	"context"
	"strings"
	"time"
)

// Instance is a PostgreSQL server of a system.
type Instance struct {
	// Name is that of its Pod.
	Name string
	// Node it runs on.
	Node string
}

// System is a highly available PostgreSQL of three members that is to be compared. Every method is bounded by its context.
type System interface {
	// ID names it in results.
	ID() string
	// Install sets up a fresh one and waits until it is healthy.
	Install(ctx context.Context) error
	// Uninstall removes it, data included. It succeeds when there is nothing to remove.
	Uninstall(ctx context.Context) error
	// URI is where clients write; it holds for the repetition that follows.
	URI(ctx context.Context) (string, error)
	// Primary is the member that accepts writes, as the system itself sees it.
	Primary(ctx context.Context) (Instance, error)
	// SwitchOver has the system move the primary elsewhere in an orderly way, and returns when it says that it has.
	SwitchOver(ctx context.Context) error
	// Signal sends a signal, such as KILL, to the postmaster of an instance, and to nothing else.
	Signal(ctx context.Context, instance, signal string) error
	// DeletePod deletes the Pod of an instance with a grace period of 0. Where no part of the system makes Pods, it makes the
	// Pod again at once, as the controller of a StatefulSet would.
	DeletePod(ctx context.Context, instance string) error
	// Claim is the claim of an instance's data volume, as NAMESPACE/NAME.
	Claim(instance string) string
	// WaitHealthy waits for three members of which two can take over at once. It first mends what is left to people
	// (or to their tools) with this system, such as members whose node does not exist any more.
	WaitHealthy(ctx context.Context) error
	// Collect saves what one needs to understand a repetition that went wrong into a directory. It does its best.
	Collect(ctx context.Context, dir string)
}

// Phase is a step of a system's own account of a failover.
type Phase struct {
	Name       string
	Start, End time.Time
}

// Explainer is a System that can account for what it did since a moment.
type Explainer interface {
	Explain(ctx context.Context, since time.Time) ([]Phase, error)
}

// Setter is a System that can tell the PostgreSQL parameters its primary runs with.
type Setter interface {
	Settings(ctx context.Context, names []string) (map[string]string, error)
}

// ShowQuery asks for parameters in one statement, so that its answer is from one server at one moment.
func ShowQuery(names []string) string {
	return "SELECT n || '=' || current_setting(n) FROM unnest(ARRAY['" + strings.Join(names, "','") + "']) n"
}

// ParseShown reads psql's unaligned answer to ShowQuery.
func ParseShown(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[name] = value
		}
	}
	return out
}
