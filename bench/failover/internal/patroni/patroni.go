// Package patroni runs Patroni in the lab as one of the systems that are compared. Its state is kept in the Kubernetes
// API (use_endpoints): what Patroni's documentation recommends on Kubernetes, what its operators do, and the kinder
// choice here: the store lies on the control plane's machine, which no fault touches, while members of an etcd of its own
// would have to live on the nodes that are broken.
package patroni

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/bench/failover/internal/trial"
	"theseus.dev/theseus/internal/labkit"
)

//go:embed manifests.yaml
var manifests string

//go:embed member.yaml
var member string

// scope is the name of Patroni's cluster, and of the Service and the Endpoints it keeps.
const scope = "pg"

// size is the number of members.
const size = 3

// Timing is what decides how fast Patroni reacts, in seconds.
type Timing struct{ TTL, LoopWait, RetryTimeout int }

// Defaults are Patroni's own; Fastest is the least its documentation allows for each.
var (
	Defaults = Timing{TTL: 30, LoopWait: 10, RetryTimeout: 10}
	Fastest  = Timing{TTL: 20, LoopWait: 1, RetryTimeout: 3}
)

// Parameter is one line of postgresql.conf.
type Parameter struct{ Name, Value string }

// Config of a Patroni.
type Config struct {
	// Name is its ID in results; its namespace is made from it.
	Name string
	// Image of the members and the PostgreSQL major in it.
	Image string
	Major int
	// Storage of each member, as a quantity.
	Storage string
	Timing  Timing
	// SynchronousMode is on or quorum; see Patroni's documentation.
	SynchronousMode string
	Parameters      []Parameter
	// Hosts has clients connect to the list of members with target_session_attrs=read-write, in place of the Service.
	Hosts bool
	// Password of every role. The lab is reachable from this machine alone.
	Password string
}

// Patroni is a trial.System.
type Patroni struct {
	kit    *labkit.Kit
	api    kubernetes.Interface
	config Config
	// stuckAfter is how long a member may take to come back before it is made anew.
	stuckAfter time.Duration
}

// New makes one on a kit that is connected.
func New(kit *labkit.Kit, c Config) (*Patroni, error) {
	quiet := rest.CopyConfig(kit.REST)
	quiet.WarningHandler = rest.NoWarnings{} // that Endpoints are deprecated, at every look
	api, err := kubernetes.NewForConfig(quiet)
	if err != nil {
		return nil, err
	}
	return &Patroni{kit: kit, api: api, config: c, stuckAfter: 60 * time.Second}, nil
}

// ID implements trial.System.
func (p *Patroni) ID() string { return p.config.Name }

func (p *Patroni) namespace() string { return "bench-" + p.config.Name }

// values is what the templates see.
type values struct {
	Config
	Namespace, Scope, Name string
}

func (p *Patroni) render(text, name string) (string, error) {
	t, err := template.New("manifest").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Execute(&b, values{Config: p.config, Namespace: p.namespace(), Scope: scope, Name: name})
	return b.String(), err
}

func (p *Patroni) apply(ctx context.Context, text, name string) error {
	manifest, err := p.render(text, name)
	if err != nil {
		return err
	}
	_, err = p.kit.KubectlApply(ctx, manifest)
	return err
}

func names() []string {
	out := make([]string, size)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", scope, i)
	}
	return out
}

// Install implements trial.System.
func (p *Patroni) Install(ctx context.Context) error {
	if err := p.Uninstall(ctx); err != nil {
		return err
	}
	if err := p.apply(ctx, manifests, ""); err != nil {
		return err
	}
	for _, name := range names() {
		if err := p.apply(ctx, member, name); err != nil {
			return err
		}
	}
	if err := p.WaitHealthy(ctx); err != nil {
		return err
	}
	leader, err := p.Primary(ctx)
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"CREATE ROLE app LOGIN PASSWORD '" + p.config.Password + "'",
		"CREATE DATABASE app OWNER app",
	} {
		if _, err := p.psql(ctx, leader.Name, sql); err != nil {
			return err
		}
	}
	return nil
}

// Uninstall implements trial.System.
func (p *Patroni) Uninstall(ctx context.Context) error {
	// Pods without grace: what they have to say is of no interest any more, and one may be on a node that is gone.
	err := p.kit.Client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(p.namespace()), client.GracePeriodSeconds(0))
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.namespace()}}
	if err := p.kit.Client.Delete(ctx, ns); err != nil {
		return client.IgnoreNotFound(err)
	}
	return labkit.Poll(ctx, 500*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		err := p.kit.Client.Get(ctx, client.ObjectKey{Name: p.namespace()}, ns)
		return apierrors.IsNotFound(err), "namespace " + p.namespace() + " is still there", client.IgnoreNotFound(err)
	})
}

// URI implements trial.System.
func (p *Patroni) URI(ctx context.Context) (string, error) {
	where, query := fmt.Sprintf("%s.%s.svc:5432", scope, p.namespace()), "sslmode=disable"
	if p.config.Hosts {
		pods, err := p.pods(ctx)
		if err != nil {
			return "", err
		}
		var hosts []string
		for _, pod := range pods {
			hosts = append(hosts, pod.Status.PodIP+":5432")
		}
		where, query = strings.Join(hosts, ","), query+"&target_session_attrs=read-write"
	}
	return fmt.Sprintf("postgresql://app:%s@%s/app?%s", p.config.Password, where, query), nil
}

func (p *Patroni) pods(ctx context.Context) ([]corev1.Pod, error) {
	list := &corev1.PodList{}
	err := p.kit.Client.List(ctx, list, client.InNamespace(p.namespace()), client.MatchingLabels{"application": "patroni"})
	return list.Items, err
}

// Primary implements trial.System: the leader in Patroni's store.
func (p *Patroni) Primary(ctx context.Context) (trial.Instance, error) {
	//nolint:staticcheck // Endpoints are what Patroni uses.
	e, err := p.api.CoreV1().Endpoints(p.namespace()).Get(ctx, scope, metav1.GetOptions{})
	if err != nil {
		return trial.Instance{}, err
	}
	leader := e.Annotations["leader"]
	if leader == "" {
		return trial.Instance{}, errors.New("patroni has no leader")
	}
	pod, err := p.api.CoreV1().Pods(p.namespace()).Get(ctx, leader, metav1.GetOptions{})
	if err != nil {
		return trial.Instance{}, err
	}
	return trial.Instance{Name: leader, Node: pod.Spec.NodeName}, nil
}

// call calls Patroni's API on a member through the API server.
func (p *Patroni) call(ctx context.Context, method, name, path string, body any) ([]byte, error) {
	r := p.api.CoreV1().RESTClient().Verb(method).
		AbsPath("/api/v1/namespaces", p.namespace(), "pods", name+":8008", "proxy", path)
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = r.SetHeader("Content-Type", "application/json").Body(data)
	}
	out, err := r.DoRaw(ctx)
	if err != nil {
		return out, fmt.Errorf("%s %s of %s: %w: %s", method, path, name, err, strings.TrimSpace(string(out)))
	}
	return out, nil
}

// SwitchOver implements trial.System, through the call that patronictl uses too.
func (p *Patroni) SwitchOver(ctx context.Context) error {
	leader, err := p.Primary(ctx)
	if err != nil {
		return err
	}
	_, err = p.call(ctx, "POST", leader.Name, "switchover", map[string]string{"leader": leader.Name})
	return err
}

// Signal implements trial.System.
func (p *Patroni) Signal(ctx context.Context, instance, signal string) error {
	return p.exec(ctx, instance, "kill -"+signal+" $(head -n 1 /data/pgdata/postmaster.pid)")
}

// DeletePod implements trial.System. The members are bare Pods, which nobody makes again; a StatefulSet would, in an instant.
func (p *Patroni) DeletePod(ctx context.Context, instance string) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace(), Name: instance}}
	if err := p.delete(ctx, pod); err != nil {
		return err
	}
	return p.apply(ctx, member, instance) // the claim is there and stays as it is
}

// Claim implements trial.System: it is named like its member.
func (p *Patroni) Claim(instance string) string { return p.namespace() + "/" + instance }

func (p *Patroni) exec(ctx context.Context, pod, script string) error {
	_, err := p.kit.Kubectl(ctx, "-n", p.namespace(), "exec", pod, "--", "bash", "-c", script)
	return err
}

func (p *Patroni) psql(ctx context.Context, pod, sql string) (string, error) {
	out, err := p.kit.Kubectl(ctx, "-n", p.namespace(), "exec", pod, "--", "psql", "-U", "postgres", "-d", "postgres", "-qtAX", "-v", "ON_ERROR_STOP=1", "-c", sql)
	return strings.TrimSpace(out), err
}

// Settings implements trial.Setter.
func (p *Patroni) Settings(ctx context.Context, wanted []string) (map[string]string, error) {
	leader, err := p.Primary(ctx)
	if err != nil {
		return nil, err
	}
	text, err := p.psql(ctx, leader.Name, trial.ShowQuery(wanted))
	if err != nil {
		return nil, err
	}
	return trial.ParseShown(text), nil
}

// Version is what its image says of itself.
func (p *Patroni) Version(ctx context.Context) (string, error) {
	out, err := p.kit.Kubectl(ctx, "-n", p.namespace(), "exec", names()[0], "--", "patroni", "--version")
	return strings.TrimSpace(out), err
}

// Collect implements trial.System.
func (p *Patroni) Collect(ctx context.Context, dir string) {
	save := func(file string, args ...string) {
		out, err := p.kit.Kubectl(ctx, append([]string{"-n", p.namespace()}, args...)...)
		if err != nil {
			out += "\n" + err.Error()
		}
		_ = os.WriteFile(filepath.Join(dir, file), []byte(out), 0o644)
	}
	save("objects.yaml", "get", "pods,pvc,endpoints,endpointslices", "-o", "yaml")
	save("events.txt", "get", "events", "--sort-by=.lastTimestamp")
	for _, name := range names() {
		save(name+".log", "logs", name, "--tail=2000")
	}
}
