//go:build e2e

package robustness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/test/faults"
	"theseus.dev/theseus/test/robustness/history"
)

// run is one schedule under way.
type run struct {
	t      *testing.T
	dir    string
	target faults.Target
	report report

	clients *exec.Cmd
	stderr  bytes.Buffer
	exited  chan error
}

// report is what is said of a run.
type report struct {
	Schedule Schedule     `json:"schedule"`
	Steps    []stepReport `json:"steps"`
	// Complaints are promises about the shard itself that were broken.
	Complaints []string        `json:"complaints,omitempty"`
	History    *history.Report `json:"history,omitempty"`
}

type stepReport struct {
	Fault     string `json:"fault"`
	Primary   string `json:"primary"`
	Successor string `json:"successor,omitempty"`
	// Second fault on top of it, and on whom.
	Second string    `json:"second,omitempty"`
	Began  time.Time `json:"began"`
	Undone time.Time `json:"undone"`
	// Whole is when the shard was whole again.
	Whole time.Time `json:"whole"`
	// Stalls are how long no client of an endpoint was acknowledged anything, from the fault until the shard was whole.
	Stalls map[string]Duration `json:"stalls,omitempty"`
}

// complain notes a broken promise and goes on: the rest of the schedule may tell more.
func (r *run) complain(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.report.Complaints = append(r.report.Complaints, text)
	r.t.Error(text)
}

// create makes a namespace and a Database in it and waits until it is ready.
func (r *run) create(ctx context.Context) {
	t := r.t
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "robustness-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	require.NoError(t, kit.Client.Create(ctx, ns))
	db := &v1alpha1.Database{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "db"},
		Spec:       v1alpha1.DatabaseSpec{Instances: 3, Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")}},
	}
	require.NoError(t, kit.Client.Create(ctx, db))
	t.Cleanup(r.remove)
	r.target = faults.Target{Kit: kit, Namespace: ns.Name, Shard: names.Shard(db.Name, 0)}
	_, err := kit.WaitReady(ctx, ns.Name, db.Name)
	require.NoError(t, err)
	require.NoError(t, r.target.WaitWhole(ctx))
}

// watch keeps logs and objects until the test ends.
func (r *run) watch(ctx context.Context) {
	w, err := newWatcher(kit, r.target.Namespace, r.dir)
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		if !r.t.Failed() && os.Getenv("SAVE") == "" {
			_ = os.RemoveAll(filepath.Join(r.dir, "logs"))
			_ = os.Remove(filepath.Join(r.dir, "objects.jsonl"))
			_ = os.Remove(r.path("history.jsonl"))
		}
	})
}

func (r *run) path(name string) string { return filepath.Join(r.dir, name) }

// begin starts the clients, beside the nodes.
func (r *run) begin(ctx context.Context) {
	t := r.t
	uri, err := kit.AppURI(ctx, r.target.Namespace, "db")
	require.NoError(t, err)
	r.clients = exec.Command(kit.Bin("lab"), "--name", kit.LabName, "client", "--", kit.Bin("robustness-clients"),
		"--seed", fmt.Sprint(r.report.Schedule.Seed), "--out", r.path("history.jsonl"))
	// The password travels in the environment, where other users cannot read it.
	r.clients.Env = append(os.Environ(),
		"GATEWAY_URL="+endpoint(t, uri, ""), "DIRECT_URL="+endpoint(t, uri, fmt.Sprintf("%s.%s.svc:5432", names.Direct(r.target.Shard), r.target.Namespace)))
	r.clients.Stderr = &r.stderr
	r.clients.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r.exited = make(chan error, 1)
	require.NoError(t, r.clients.Start())
	go func() { r.exited <- r.clients.Wait() }()
	t.Cleanup(func() { _ = r.clients.Process.Kill() })
}

// endpoint is the application's connection string for another host, if one is given, without checking the server's name: the
// authority's file is in the cluster.
func endpoint(t *testing.T, uri, host string) string {
	t.Helper()
	u, err := url.Parse(uri)
	require.NoError(t, err)
	if host != "" {
		u.Host = host
	}
	q := u.Query()
	q.Set("sslmode", "require")
	q.Del("sslrootcert")
	u.RawQuery = q.Encode()
	return u.String()
}

// step leaves the shard alone for a moment, breaks its primary, lets that last, undoes it, and waits until the shard is whole.
func (r *run) step(ctx context.Context, i int, step Step) {
	t := r.t
	fault, err := faults.Named(step.Fault)
	require.NoError(t, err)
	r.alive()
	pause(ctx, time.Duration(step.After))
	primary, err := r.target.Primary(ctx)
	require.NoError(t, err)
	s := stepReport{Fault: fault.Name, Primary: primary, Began: time.Now().UTC()}
	kit.Out(fmt.Sprintf("fault %d of %d: %s on %s for %v", i+1, len(r.report.Schedule.Steps), fault.Name, primary, time.Duration(step.Holds)))
	undo, err := fault.Inject(ctx, r.target, primary)
	require.NoErrorf(t, err, "injecting %s", fault.Name)
	undos := []faults.Undo{undo}
	if step.Second != nil {
		undos = append(undos, r.second(ctx, *step.Second, &s))
	}
	pause(ctx, time.Until(s.Began.Add(time.Duration(step.Holds))))
	r.undo(ctx, undos, s)
	s.Undone = time.Now().UTC()
	// A fault that is undone before it was noticed may leave everything as it was; one that cannot be undone may not.
	if fault.Effect == faults.Moves && (undo == nil || fault.Gone) && s.Second == "" {
		r.waitMoved(ctx, fault, primary)
	}
	r.waitWhole(ctx, &s)
	if fault.Effect == faults.Stays && s.Successor != primary && s.Second == "" {
		r.complain("%s made the shard reparent from %s to %s", fault.Name, primary, s.Successor)
	}
	r.report.Steps = append(r.report.Steps, s)
	save(t, r.dir, "report.json", r.report)
}

// second breaks whoever is the primary by then. With everything that may be broken already it may be impossible to do.
func (r *run) second(ctx context.Context, second Second, s *stepReport) faults.Undo {
	fault, err := faults.Named(second.Fault)
	require.NoError(r.t, err)
	pause(ctx, time.Until(s.Began.Add(time.Duration(second.After))))
	ctx, cancel := context.WithTimeout(ctx, secondLimit)
	defer cancel()
	primary, err := r.target.Primary(ctx)
	if err != nil {
		kit.Out(fmt.Sprintf("  no second fault: %v", err))
		return nil
	}
	s.Second = fmt.Sprintf("%s on %s", fault.Name, primary)
	kit.Out("  and " + s.Second)
	undo, err := fault.Inject(ctx, r.target, primary)
	if err != nil {
		s.Second += ", which failed"
		kit.Out(fmt.Sprintf("  which failed: %v", err))
	}
	return undo
}

// undo takes back what can be taken back. One may be in the way of another, so all are tried until all have succeeded.
func (r *run) undo(ctx context.Context, undos []faults.Undo, s stepReport) {
	ctx, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	undos = slices.DeleteFunc(undos, func(u faults.Undo) bool { return u == nil })
	slices.Reverse(undos)
	err := labkit.Poll(ctx, time.Second, func(ctx context.Context) (bool, string, error) {
		var last error
		undos = slices.DeleteFunc(undos, func(u faults.Undo) bool {
			// A look into a machine that cannot be reached hangs.
			one, cancel := context.WithTimeout(ctx, undoOne)
			defer cancel()
			err := u(one)
			if err != nil {
				last = err
			}
			return err == nil
		})
		return last == nil, fmt.Sprint(last), nil
	})
	if err != nil {
		r.complain("undoing %s on %s %s: %v", s.Fault, s.Primary, s.Second, err)
	}
}

func (r *run) waitMoved(ctx context.Context, fault faults.Fault, primary string) {
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	err := labkit.Poll(ctx, 100*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		now, err := r.target.Primary(ctx)
		return err == nil && now != primary, primary + " is the primary still", nil
	})
	if err != nil {
		r.complain("%s on %s did not make another one primary in %v", fault.Name, primary, moveLimit)
	}
}

func (r *run) waitWhole(ctx context.Context, s *stepReport) {
	waiting, cancel := context.WithTimeout(ctx, wholeLimit)
	defer cancel()
	if err := r.target.WaitWhole(waiting); err != nil {
		r.complain("%v after %s on %s %s was undone the shard is not whole: %v", wholeLimit, s.Fault, s.Primary, s.Second, err)
	}
	s.Whole = time.Now().UTC()
	var err error
	if s.Successor, err = r.target.Primary(ctx); err != nil {
		r.complain("after %s on %s: %v", s.Fault, s.Primary, err)
	}
	kit.Out(fmt.Sprintf("  %s → %s; whole %.1f s after the fault, %.1f s after it was undone",
		s.Primary, s.Successor, s.Whole.Sub(s.Began).Seconds(), s.Whole.Sub(s.Undone).Seconds()))
}

// alive requires that the clients still work: without them nothing is shown.
func (r *run) alive() {
	select {
	case err := <-r.exited:
		r.t.Fatalf("the clients ended: %v\n%s", err, lastLines(r.stderr.String()))
	default:
	}
}

// end has the clients finish and read everything once more.
func (r *run) end(ctx context.Context) {
	t := r.t
	require.NoError(t, r.clients.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-r.exited:
		if err != nil {
			r.complain("the clients ended badly: %v\n%s", err, lastLines(r.stderr.String()))
		}
	case <-ctx.Done():
		r.complain("the clients did not end:\n%s", lastLines(r.stderr.String()))
	}
}

// remove takes the Database away, so that a run after this one has the machine to itself. With KEEP set, what failed stays.
func (r *run) remove() {
	if r.t.Failed() && os.Getenv("KEEP") != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: r.target.Namespace, Name: "db"}}
	err := client.IgnoreNotFound(kit.Client.Delete(ctx, db))
	if err == nil {
		err = labkit.Poll(ctx, time.Second, func(ctx context.Context) (bool, string, error) {
			err := kit.Client.Get(ctx, client.ObjectKeyFromObject(db), db)
			return apierrors.IsNotFound(err), "the Database is still there", nil
		})
	}
	if err == nil {
		err = kit.Client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.target.Namespace}})
	}
	if err != nil {
		r.t.Errorf("removing what the run made: %v", err)
	}
}

// judge says what the history shows, and saves what it takes to understand it.
func (r *run) judge() {
	t := r.t
	f, err := os.Open(r.path("history.jsonl"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	h, err := history.ReadFrom(f)
	require.NoError(t, err)
	require.NotEmpty(t, h.Ops)
	start := time.Now()
	judged := history.Check(h, checkLimit)
	r.report.History = judged
	for i := range r.report.Steps {
		s := &r.report.Steps[i]
		s.Stalls = map[string]Duration{}
		for _, e := range []string{"gateway", "direct"} {
			s.Stalls[e] = Duration(h.Stall(e, s.Began.Sub(h.Began).Nanoseconds(), s.Whole.Sub(h.Began).Nanoseconds()))
		}
	}
	save(t, r.dir, "report.json", r.report)
	r.print(judged, time.Since(start))
	if !h.Audited {
		t.Error("the clients could not read everything back at the end")
	}
	require.NoError(t, judged.Draw(r.dir))
	if err := judged.Err(); err != nil {
		t.Errorf("%v", err)
	}
	if t.Failed() {
		t.Logf("everything is in %s; again with SCHEDULE=%s", r.dir, r.path("schedule.json"))
	}
}

func (r *run) print(j *history.Report, took time.Duration) {
	round := func(d Duration) time.Duration { return time.Duration(d).Round(time.Millisecond) }
	for _, s := range r.report.Steps {
		name := s.Fault
		if s.Second != "" {
			name += ", " + s.Second
		}
		r.t.Logf("MEASURED %-36s no write acknowledged for %7v (gateway) %7v (direct); whole after %.1f s", name, round(s.Stalls["gateway"]), round(s.Stalls["direct"]), s.Whole.Sub(s.Began).Seconds())
	}
	r.t.Logf("%d operations acknowledged, %d failed, %d of unknown outcome (%d of them successes with a warning): %v", j.Acked, j.Failed, j.Unknown, j.Warned, j.Codes)
	for e, n := range j.Old {
		r.t.Logf("%d plain reads (%s) showed what had been overwritten, for at most %v: this is allowed", n, e, j.Oldest[e].Round(time.Millisecond))
	}
	r.t.Logf("judged in %v: %d violations, %d objects undecided", took.Round(time.Millisecond), len(j.Violations), len(j.Undecided))
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func save(t *testing.T, dir, name string, v any) {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), append(data, '\n'), 0o644))
}

func lastLines(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
