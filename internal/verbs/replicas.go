package verbs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/names"
)

// Run runs a program in a container of a Pod and returns its standard output. The error holds the end of standard error.
type Run func(ctx context.Context, pod *corev1.Pod, args []string) ([]byte, error)

// Replicas asks every replica of the operator, by running `theseus evidence` in its Pod: it has the bucket and the keys to
// it, which a laptop need not have; and where each replica keeps evidence for itself, all of it is found.
type Replicas struct {
	Client client.Client
	Run    Run
	// Namespace of the operator.
	Namespace string
	// Grace is how long the others are waited for once one has answered: the machine of one may be the one that is gone.
	// Default 5s.
	Grace time.Duration
}

// askTimeout bounds one replica's answer.
const askTimeout = 30 * time.Second

// List implements Archive.
func (a Replicas) List(ctx context.Context, namespace string) (Listing, error) {
	var all Listing
	problems, err := a.ask(ctx, []string{"list", "--namespace=" + namespace}, func(out []byte) error {
		var l Listing
		if err := json.Unmarshal(out, &l); err != nil {
			return err
		}
		all.add(l)
		return nil
	})
	all.Problems = append(all.Problems, problems...)
	return all, err
}

func (l *Listing) add(more Listing) {
	for _, c := range more.Cases {
		if !slices.ContainsFunc(l.Cases, func(x CaseSummary) bool { return x.Name == c.Name }) {
			l.Cases = append(l.Cases, c)
		}
	}
	slices.SortFunc(l.Cases, func(a, b CaseSummary) int { return cmp.Or(b.At.Compare(a.At), strings.Compare(a.Name, b.Name)) })
	for _, w := range more.Trails {
		if !slices.Contains(l.Trails, w) {
			l.Trails = append(l.Trails, w)
		}
	}
	for _, p := range more.Problems {
		if !slices.Contains(l.Problems, p) {
			l.Problems = append(l.Problems, p)
		}
	}
}

// Fetch implements Archive.
func (a Replicas) Fetch(ctx context.Context, namespace, name string) (*Found, error) {
	var best *Found
	problems, err := a.ask(ctx, []string{"export", "--namespace=" + namespace, name}, func(out []byte) error {
		f, err := Unpack(bytes.NewReader(out))
		if err != nil {
			return err
		}
		best = best.with(f)
		return nil
	})
	if best == nil {
		if err == nil {
			err = fmt.Errorf("%s/%s: %w", namespace, name, ErrNothingFound)
		}
		return nil, errors.Join(append([]error{err}, texts(problems)...)...)
	}
	if best.Case == "" && len(best.Trail) == 0 {
		return best, fmt.Errorf("%s/%s: %w", namespace, name, ErrNothingFound)
	}
	best.Problems = append(best.Problems, problems...)
	return best, nil
}

// with joins what two replicas know: the trails of both, and the case that has more.
func (f *Found) with(other *Found) *Found {
	if f == nil {
		return other
	}
	if other.Case != "" && (f.Case == "" || len(other.Files) > len(f.Files)) {
		f, other = other, f
	}
	f.Trail = evidence.Merge(append(f.Trail, other.Trail...))
	f.Problems = append(f.Problems, other.Problems...)
	return f
}

// ask runs the verb in every replica that runs. The error is that of finding them, or that none could answer.
func (a Replicas) ask(ctx context.Context, args []string, answer func([]byte) error) (problems []string, err error) {
	pods := &corev1.PodList{}
	if err := a.Client.List(ctx, pods, client.InNamespace(a.Namespace), client.MatchingLabels(names.OperatorLabels())); err != nil {
		return nil, err
	}
	type reply struct {
		from string
		out  []byte
		err  error
	}
	replies := make(chan reply, len(pods.Items))
	answered, running := 0, 0
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		running++
		go func() { // all at once: one on a machine that is gone costs its timeout
			asking, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			out, err := a.Run(asking, p, append([]string{"theseus", "evidence"}, args...))
			replies <- reply{p.Name, out, err}
		}()
	}
	grace := (<-chan time.Time)(nil)
	for asked := running; asked > 0; asked-- {
		var r reply
		select {
		case r = <-replies:
		case <-grace:
			problems = append(problems, fmt.Sprintf("%d of %d replicas of the operator did not answer in time", asked, running))
			asked = 1
			continue
		}
		if r.err == nil {
			r.err = answer(r.out)
		}
		if r.err != nil {
			problems = append(problems, fmt.Sprintf("%s could not be asked: %v", r.from, r.err))
			continue
		}
		if answered++; grace == nil {
			grace = time.After(cmp.Or(a.Grace, 5*time.Second))
		}
	}
	slices.Sort(problems)
	switch {
	case running == 0:
		return problems, fmt.Errorf("no operator runs in namespace %s (see --operator-namespace, or read the bucket itself with --bucket)", a.Namespace)
	case answered == 0:
		return nil, fmt.Errorf("no replica of the operator could answer: %w", errors.Join(texts(problems)...))
	}
	return problems, nil
}

func texts(problems []string) []error {
	var out []error
	for _, p := range problems {
		out = append(out, errors.New(p))
	}
	return out
}

// Exec runs programs as `kubectl exec` does.
func Exec(config *rest.Config) (Run, error) {
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, pod *corev1.Pod, args []string) ([]byte, error) {
		url := core.RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
			VersionedParams(&corev1.PodExecOptions{Container: "operator", Command: args, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
		old, err := remotecommand.NewSPDYExecutor(config, "POST", url)
		if err != nil {
			return nil, err
		}
		modern, err := remotecommand.NewWebSocketExecutor(config, "GET", url.String())
		if err != nil {
			return nil, err
		}
		executor, err := remotecommand.NewFallbackExecutor(modern, old, func(err error) bool {
			return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
		})
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		errs := &lastBytes{limit: 2 << 10}
		if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: errs}); err != nil {
			return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(errs.data)))
		}
		return out.Bytes(), nil
	}, nil
}

// lastBytes keeps the end of what is written.
type lastBytes struct {
	limit int
	data  []byte
}

var _ io.Writer = (*lastBytes)(nil)

func (l *lastBytes) Write(b []byte) (int, error) {
	l.data = append(l.data, b...)
	if over := len(l.data) - l.limit; over > 0 {
		l.data = append(l.data[:0], l.data[over:]...)
	}
	return len(b), nil
}
