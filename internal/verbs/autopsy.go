package verbs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/evidence"
)

// Autopsy shows what is known of an instance that was condemned, or of one that left a trail.
type Autopsy struct {
	Archive Archive
	// Client of the cluster, for what was decided since; nil when there is none.
	Client    client.Reader
	Out       io.Writer
	Namespace string
	// Name of an instance, a Replacement or a case; empty lists.
	Name string
	// Dir gets all files; empty writes none.
	Dir string
	// Lines of each log in the timeline.
	Lines int
}

// Run lists, or shows one.
func (v *Autopsy) Run(ctx context.Context) error {
	if v.Name == "" {
		return v.list(ctx)
	}
	if strings.Count(v.Name, "/") == 2 {
		v.Namespace, _, _ = strings.Cut(v.Name, "/") // the full name of a case
	}
	name, replacement := v.resolve(ctx)
	found, err := v.Archive.Fetch(ctx, v.Namespace, name)
	if errors.Is(err, ErrNothingFound) {
		found, err = v.fetchReplaced(ctx, err)
	}
	if err != nil {
		return err
	}
	text, err := v.report(ctx, found, replacement)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(v.Out, text); err != nil {
		return err
	}
	if v.Dir == "" {
		return nil
	}
	return v.save(found, text)
}

// resolve finds the instance of a Replacement of that name.
func (v *Autopsy) resolve(ctx context.Context) (string, *v1alpha1.Replacement) {
	if v.Client != nil {
		r := &v1alpha1.Replacement{}
		if err := v.Client.Get(ctx, client.ObjectKey{Namespace: v.Namespace, Name: v.Name}, r); err == nil {
			return r.Spec.Instance, r
		}
	}
	return v.Name, nil // the archive may know it all the same
}

// fetchReplaced finds the case of a Replacement that is deleted: the case still names it.
func (v *Autopsy) fetchReplaced(ctx context.Context, nothing error) (*Found, error) {
	l, err := v.Archive.List(ctx, v.Namespace)
	if err != nil {
		return nil, err
	}
	for _, c := range l.Cases {
		if c.Subject != nil && c.Subject.Replacement == v.Name {
			return v.Archive.Fetch(ctx, v.Namespace, c.Name)
		}
	}
	return nil, nothing
}

func (v *Autopsy) list(ctx context.Context) error {
	l, err := v.Archive.List(ctx, v.Namespace)
	if err != nil {
		return err
	}
	tw := tabwriter.NewWriter(v.Out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "CONDEMNED\tNAMESPACE\tINSTANCE\tREASON\tVERDICT\tNODE\tEVIDENCE")
	condemned := map[string]bool{}
	for _, c := range l.Cases {
		parts := strings.Split(c.Name, "/")
		_, instance, _ := strings.Cut(parts[len(parts)-1], "-")
		condemned[parts[0]+"/"+instance] = true
		s := evidence.Subject{Verdict: "-", Node: "-"}
		if c.Subject != nil {
			s = *c.Subject
		}
		held := fmt.Sprintf("%d items", c.Items)
		if c.Missing > 0 {
			held += fmt.Sprintf(", %d missing", c.Missing)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%.60s\t%s\t%s\n", c.At.Format(time.RFC3339), parts[0], instance, s.Reason, verdictOf(s), s.Node, held)
	}
	var others []string
	for _, w := range l.Trails {
		if !condemned[w.Namespace+"/"+w.Instance] {
			others = append(others, w.Namespace+"/"+w.Instance)
		}
	}
	err = tw.Flush()
	if len(others) > 0 {
		fmt.Fprintf(v.Out, "\nThere are trails of %s\n", strings.Join(others, ", "))
	}
	for _, p := range l.Problems {
		fmt.Fprintln(v.Out, "!", p)
	}
	return err
}

// report is the text for people.
func (v *Autopsy) report(ctx context.Context, f *Found, replacement *v1alpha1.Replacement) (string, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "Instance %s of shard %s/%s\n", f.Walker.Instance, f.Walker.Namespace, f.Walker.Shard)
	if f.Manifest != nil {
		describeCase(&out, f)
	} else {
		fmt.Fprintln(&out, "It was not condemned as far as the archive knows; this is the end of its trail.")
	}
	for _, p := range f.Problems {
		fmt.Fprintln(&out, "!", p)
	}
	t := &timeline{}
	t.trail(v.allOf(f), v.Lines)
	v.decisions(ctx, t, f, replacement)
	fmt.Fprintf(&out, "\nTimeline\n%s", t)
	return out.String(), nil
}

// verdictOf is the verdict and why, as far as they are known.
func verdictOf(s evidence.Subject) string {
	if s.Verdict == "" {
		return s.Why
	}
	return s.Verdict + following(": ", s.Why)
}

func describeCase(out *strings.Builder, f *Found) {
	s := f.Manifest.Subject
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "  %-10s %s\n", name, value)
		}
	}
	line("Case", f.Case)
	line("Pod", s.PodUID)
	line("Node", strings.TrimSpace(s.Node+" "+s.Zone))
	line("Reason", string(s.Reason))
	line("Verdict", verdictOf(s))
	line("Replaced", s.Replacement)
	m := f.Manifest
	how := "complete"
	if m.Incomplete {
		how = "incomplete: the deadline passed"
	}
	if m.FinishedAt.IsZero() {
		how = "still being taken, or its collector died"
	} else {
		how += fmt.Sprintf(", taken in %v", m.FinishedAt.Sub(m.StartedAt).Round(time.Millisecond))
	}
	line("Evidence", how)
	for _, i := range m.Items {
		text := fmt.Sprintf("%d bytes", i.Size)
		if i.Truncated {
			text += ", shortened"
		}
		if i.Error != "" {
			text = "MISSING: " + i.Error
			if i.Size > 0 {
				text = fmt.Sprintf("%d bytes, then: %s", i.Size, i.Error)
			}
		}
		fmt.Fprintf(out, "    %-32s %s\n", i.Name, strings.ReplaceAll(text, "\n", "; "))
	}
}

// allOf is the trail as fetched and as kept in the case.
func (v *Autopsy) allOf(f *Found) []evidence.Entry {
	kept, err := evidence.ReadEntries(strings.NewReader(string(f.Files[trailFile])))
	if err != nil {
		f.Problems = append(f.Problems, trailFile+": "+err.Error())
	}
	return evidence.Merge(append(kept, f.Trail...))
}

// decisions adds what was decided, from the case and, newer, from the cluster.
func (v *Autopsy) decisions(ctx context.Context, t *timeline, f *Found, replacement *v1alpha1.Replacement) {
	if f.Manifest != nil {
		s := f.Manifest.Subject
		t.add(s.DecidedAt, "condemned", "%s%s", s.Reason, following(": ", verdictOf(s)))
	}
	var reparents []v1alpha1.Reparent
	load(f, "reparents.json", &reparents)
	if v.Client != nil {
		live := &v1alpha1.ReparentList{}
		if err := v.Client.List(ctx, live, client.InNamespace(f.Walker.Namespace)); err == nil {
			reparents = newest(reparents, live.Items, f.Walker.Shard)
		}
	}
	from, to := span(f)
	reparents = slices.DeleteFunc(reparents, func(r v1alpha1.Reparent) bool {
		at := r.CreationTimestamp.Time
		return at.Before(from) || at.After(to)
	})
	t.reparents(reparents)
	if replacement == nil {
		kept := &v1alpha1.Replacement{}
		if load(f, "replacement.json", kept) {
			replacement = kept
			if v.Client != nil {
				live := &v1alpha1.Replacement{}
				if err := v.Client.Get(ctx, client.ObjectKeyFromObject(kept), live); err == nil && live.UID == kept.UID {
					replacement = live
				}
			}
		}
	}
	if replacement != nil {
		t.replacement(replacement)
	}
	for _, name := range []string{"events.json", "node-events.json"} {
		var events []corev1.Event
		load(f, name, &events)
		t.events(events)
	}
	node, pod := &corev1.Node{}, &corev1.Pod{}
	if load(f, "node.json", node) {
		t.node(node)
	}
	if load(f, "pod.json", pod) {
		t.pod(pod)
	}
}

// span is the time a report is about.
func span(f *Found) (from, to time.Time) {
	if at, err := evidence.CaseTime(f.Case); err == nil {
		return at.Add(-before), at.Add(after)
	}
	if len(f.Trail) == 0 {
		return from, to
	}
	return f.Trail[0].At.Add(-time.Minute), f.Trail[len(f.Trail)-1].At.Add(after)
}

// newest joins journals, those of the cluster before those of the case.
func newest(kept, live []v1alpha1.Reparent, shard string) []v1alpha1.Reparent {
	out := slices.DeleteFunc(live, func(r v1alpha1.Reparent) bool { return r.Spec.Shard != shard })
	for _, k := range kept {
		if !slices.ContainsFunc(out, func(r v1alpha1.Reparent) bool { return r.UID == k.UID }) {
			out = append(out, k)
		}
	}
	return out
}

// load reads a file of the case; false when it is not there or damaged.
func load(f *Found, name string, into any) bool {
	data := f.Files[name]
	if len(data) == 0 {
		return false
	}
	if err := json.Unmarshal(data, into); err != nil {
		f.Problems = append(f.Problems, name+": "+err.Error())
		return false
	}
	return true
}

// save writes everything into the directory.
func (v *Autopsy) save(f *Found, text string) error {
	if err := os.MkdirAll(v.Dir, 0o700); err != nil {
		return err
	}
	var trail strings.Builder
	if err := evidence.WriteEntries(&trail, v.allOf(f)); err != nil {
		return err
	}
	index, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	errs := []error{
		v.write("autopsy.txt", []byte(text)), v.write(indexFile, index), v.write(trailFile, []byte(trail.String())),
	}
	for name, data := range f.Files {
		if name != trailFile {
			errs = append(errs, v.write(name, data))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = fmt.Fprintf(v.Out, "\n%d files are in %s\n", len(f.Files)+3, v.Dir)
	return err
}

// write stores one file. Names come from an archive: none may lead out of the directory.
func (v *Autopsy) write(name string, data []byte) error {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return fmt.Errorf("%q is no name for a file", name)
	}
	return os.WriteFile(filepath.Join(v.Dir, name), data, 0o600)
}
