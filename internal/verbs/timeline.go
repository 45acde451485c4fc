package verbs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/postgres"
)

// moment is one line of a timeline.
type moment struct {
	at   time.Time
	who  string
	what string
}

// timeline puts in order what is known of an instance.
type timeline struct{ moments []moment }

func (t *timeline) add(at time.Time, who, format string, args ...any) {
	if !at.IsZero() {
		t.moments = append(t.moments, moment{at: at.UTC(), who: who, what: fmt.Sprintf(format, args...)})
	}
}

// trail adds the statuses that say something new, the last one, what happened to the connection, and the last lines of
// each log.
func (t *timeline) trail(entries []evidence.Entry, lines int) {
	left := map[evidence.Kind]int{}
	for _, e := range entries {
		left[e.Kind]++
	}
	var last *agentpb.Status
	for _, e := range entries {
		left[e.Kind]--
		switch e.Kind {
		case evidence.KindStatus:
			s := &agentpb.Status{}
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Status, s); err != nil {
				t.add(e.At, "status", "cannot be read: %v", err)
				continue
			}
			if last == nil || left[e.Kind] == 0 || !observer.SameMeaning(last, s) {
				t.add(e.At, "status", "%s", describe(s))
			}
			last = s
		case evidence.KindStream:
			t.add(e.At, "operator", "%s (%s)", e.Text, e.By)
		default:
			if left[e.Kind] < lines {
				t.add(e.At, string(e.Kind), "%s", logLine(e))
			}
		}
	}
}

// postgresTime is what PostgreSQL's lines begin with; the timeline says it already.
var postgresTime = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \S+ `)

// logLine is a line as people read it: without the time, and the agent's JSON as words.
func logLine(e evidence.Entry) string {
	if e.Kind == evidence.KindPostgres {
		return postgresTime.ReplaceAllString(e.Text, "")
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(e.Text), &fields); err != nil || fields["msg"] == nil {
		return e.Text
	}
	out := fmt.Sprintf("%v: %v", fields["level"], fields["msg"])
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		switch name {
		case "time", "level", "msg", "shard", "instance":
		default:
			out += fmt.Sprintf(", %s %v", name, fields[name])
		}
	}
	return out
}

// reparents adds the journals of the shard.
func (t *timeline) reparents(list []v1alpha1.Reparent) {
	for i := range list {
		r := &list[i]
		t.add(r.CreationTimestamp.Time, "reparent", "%s asked for: %s, %s", r.Name, r.Spec.Kind, r.Spec.Reason)
		if r.Status.FinishedAt == nil {
			continue
		}
		what := fmt.Sprintf("%s %s", r.Name, r.Status.Outcome)
		if r.Status.NewPrimary != "" {
			what += fmt.Sprintf(": %s → %s", cmp.Or(r.Status.OldPrimary, "nobody"), r.Status.NewPrimary)
		}
		if w := r.Status.WriteUnavailable; w != nil {
			what += fmt.Sprintf(", no writes for %v", w.Round(time.Millisecond))
		}
		if r.Status.Message != "" {
			what += "; " + r.Status.Message
		}
		t.add(r.Status.FinishedAt.Time, "reparent", "%s", what)
	}
}

func (t *timeline) replacement(r *v1alpha1.Replacement) {
	t.add(r.CreationTimestamp.Time, "replacement", "%s asked for: %s%s", r.Name, r.Spec.Reason, following("; ", r.Spec.Message))
	for _, s := range r.Status.Steps {
		t.add(s.StartedAt.Time, "replacement", "%s%s", s.Phase, following(": ", s.Message))
	}
	if r.Status.FinishedAt != nil {
		t.add(r.Status.FinishedAt.Time, "replacement", "%s%s", cmp.Or(r.Status.Outcome, "ended"), following(": ", r.Status.Message))
	}
}

func (t *timeline) events(list []corev1.Event) {
	for i := range list {
		e := &list[i]
		at := e.LastTimestamp.Time
		if e.Series != nil {
			at = e.Series.LastObservedTime.Time
		}
		if at.IsZero() {
			at = e.EventTime.Time
		}
		t.add(at, "event", "%s %s: %s %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
}

// node adds when its conditions last changed.
func (t *timeline) node(n *corev1.Node) {
	for _, c := range n.Status.Conditions {
		t.add(c.LastTransitionTime.Time, "node", "%s %s=%s %s", n.Name, c.Type, c.Status, c.Message)
	}
}

func (t *timeline) pod(p *corev1.Pod) {
	t.add(p.CreationTimestamp.Time, "pod", "%s made for node %s", p.Name, p.Spec.NodeName)
	for _, c := range p.Status.ContainerStatuses {
		if x := c.LastTerminationState.Terminated; x != nil {
			t.add(x.FinishedAt.Time, "pod", "container %s ended: %s, exit code %d", c.Name, x.Reason, x.ExitCode)
		}
		if x := c.State.Terminated; x != nil {
			t.add(x.FinishedAt.Time, "pod", "container %s ended: %s, exit code %d", c.Name, x.Reason, x.ExitCode)
		}
	}
}

// String is the timeline as text, one line a moment.
func (t *timeline) String() string {
	slices.SortStableFunc(t.moments, func(a, b moment) int { return a.at.Compare(b.at) })
	var out strings.Builder
	day := ""
	for i, m := range t.moments {
		if i > 0 && m == t.moments[i-1] {
			continue
		}
		if d := m.at.Format(time.DateOnly); d != day {
			day = d
			fmt.Fprintf(&out, "%s (UTC)\n", day)
		}
		fmt.Fprintf(&out, "  %s  %-11s  %s\n", m.at.Format("15:04:05.000"), m.who, strings.ReplaceAll(m.what, "\n", " "))
	}
	return out.String()
}

func following(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

// describe says in a line what a status says.
func describe(s *agentpb.Status) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s, term %d", s.GetRole(), s.GetTerm())
	is := func(yes bool, word string) {
		if yes {
			out.WriteString(", " + word)
		}
	}
	is(s.GetEstablished(), "established")
	is(s.GetDraining(), "draining")
	is(s.GetDiverged(), "diverged")
	is(s.GetFenced() != "", "fenced: "+s.GetFenced())
	is(s.GetHalted() != "", "halted: "+s.GetHalted())
	is(s.GetPostgresExit() != "", "PostgreSQL ended: "+s.GetPostgresExit())
	if f := s.GetFlushed(); f.GetLsn() != 0 {
		fmt.Fprintf(&out, ", flushed %s of term %d on timeline %d", postgres.LSN(f.GetLsn()), f.GetWalTerm(), f.GetTimeline())
	}
	if r := s.GetReceiver(); r != nil && r.GetSource() != "" {
		is(r.GetStreaming(), "streams from "+r.GetSource())
		is(!r.GetStreaming(), "does not stream from "+r.GetSource())
	}
	for _, p := range s.GetPeers() {
		fmt.Fprintf(&out, ", %s %s", p.GetInstance(), p.GetState())
	}
	for _, p := range []struct {
		name  string
		probe *agentpb.Probe
	}{{"write", s.GetWriteProbe()}, {"commit", s.GetCommitProbe()}, {"disk", s.GetDiskProbe()}, {"connect", s.GetConnectProbe()}} {
		is(p.probe.GetFailures() > 0, fmt.Sprintf("%s probe failed %d times: %s", p.name, p.probe.GetFailures(), p.probe.GetError()))
	}
	if d := s.GetDisk(); d.GetSizeBytes() > 0 && d.GetAvailableBytes() < d.GetSizeBytes()/10 {
		fmt.Fprintf(&out, ", %d MiB of %d MiB free", d.GetAvailableBytes()>>20, d.GetSizeBytes()>>20)
	}
	is(s.GetMessage() != "", s.GetMessage())
	return out.String()
}
