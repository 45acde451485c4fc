// Package theseus runs Theseus in the lab as one of the systems that are compared: the chart as a user installs it, one
// Database of three instances, clients at its read-write endpoint.
package theseus

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/bench/failover/internal/trial"
	"theseus.dev/theseus/internal/labkit"
)

const (
	// id names it in results.
	id        = "theseus"
	namespace = "bench-theseus"
	database  = "db"
	// size is the number of instances.
	size = 3
)

// Config of a Theseus.
type Config struct {
	// Storage of each instance, as a quantity.
	Storage string
	// Images of the operator and the operand.
	Images labkit.Images
}

// Theseus is a trial.System.
type Theseus struct {
	kit    *labkit.Kit
	config Config
}

// New makes one on a kit that is connected.
func New(kit *labkit.Kit, c Config) *Theseus { return &Theseus{kit: kit, config: c} }

// ID implements trial.System.
func (*Theseus) ID() string { return id }

// Install implements trial.System.
func (t *Theseus) Install(ctx context.Context) error {
	if err := t.Uninstall(ctx); err != nil {
		return err
	}
	if err := t.kit.Install(ctx, t.config.Images); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if err := t.kit.Client.Create(ctx, ns); err != nil {
		return err
	}
	storage, err := resource.ParseQuantity(t.config.Storage)
	if err != nil {
		return err
	}
	db := &v1alpha1.Database{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: database},
		Spec: v1alpha1.DatabaseSpec{
			Instances: size,
			Storage:   v1alpha1.StorageSpec{Size: storage},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("256Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi")},
			},
		},
	}
	if err := t.kit.Client.Create(ctx, db); err != nil {
		return err
	}
	return t.WaitHealthy(ctx)
}

// Uninstall implements trial.System.
func (t *Theseus) Uninstall(ctx context.Context) error {
	db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: database}}
	if err := t.kit.Client.Delete(ctx, db); err != nil && !meta.IsNoMatchError(err) && client.IgnoreNotFound(err) != nil {
		return err
	}
	err := gone(ctx, t.kit.Client, db)
	if err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if err := t.kit.Client.Delete(ctx, ns); client.IgnoreNotFound(err) != nil {
		return err
	}
	if err := gone(ctx, t.kit.Client, ns); err != nil {
		return err
	}
	// The operator goes too: what is measured next shall not share the machine with it.
	operator := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: labkit.OperatorNamespace}}
	if err := t.kit.Client.Get(ctx, client.ObjectKeyFromObject(operator), operator); err != nil {
		return client.IgnoreNotFound(err)
	}
	_, err = t.kit.Run(ctx, t.kit.Bin("helm"), "uninstall", "theseus", "--namespace", labkit.OperatorNamespace, "--ignore-not-found", "--wait", "--timeout", "1m")
	return err
}

// gone waits until an object does not exist.
func gone(ctx context.Context, c client.Client, o client.Object) error {
	return labkit.Poll(ctx, 300*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		err := c.Get(ctx, client.ObjectKeyFromObject(o), o)
		if meta.IsNoMatchError(err) {
			return true, "", nil
		}
		return err != nil && client.IgnoreNotFound(err) == nil, fmt.Sprintf("%T %s is still there", o, o.GetName()), client.IgnoreNotFound(err)
	})
}

// URI implements trial.System: the application's, as in its Secret, without a check of the server's name, since the
// authority's file is not where the client runs.
func (t *Theseus) URI(ctx context.Context) (string, error) {
	uri, err := t.kit.AppURI(ctx, namespace, database)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("sslmode", "require")
	q.Del("sslrootcert")
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// shard is the only one of the Database.
func (t *Theseus) shard(ctx context.Context) (*v1alpha1.Shard, error) {
	shards, err := t.kit.Shards(ctx, namespace, database)
	if err != nil {
		return nil, err
	}
	if len(shards) != 1 {
		return nil, fmt.Errorf("%d shards", len(shards))
	}
	return &shards[0], nil
}

// Primary implements trial.System.
func (t *Theseus) Primary(ctx context.Context) (trial.Instance, error) {
	s, err := t.shard(ctx)
	if err != nil {
		return trial.Instance{}, err
	}
	for _, in := range s.Status.Instances {
		if in.Name == s.Status.Primary {
			return trial.Instance{Name: in.Name, Node: in.Node}, nil
		}
	}
	return trial.Instance{}, errors.New("the shard has no primary")
}

// SwitchOver implements trial.System: a planned reparent, as a user asks for one.
func (t *Theseus) SwitchOver(ctx context.Context) error {
	s, err := t.shard(ctx)
	if err != nil {
		return err
	}
	term := s.Status.Term + 1
	r := &v1alpha1.Reparent{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s-%d", s.Name, term)},
		Spec:       v1alpha1.ReparentSpec{Shard: s.Name, Term: term, Kind: v1alpha1.ReparentPlanned, ExpectPrimary: s.Status.Primary, Reason: "Requested"},
	}
	if err := t.kit.Client.Create(ctx, r); err != nil {
		return err
	}
	err = labkit.Poll(ctx, 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		err := t.kit.Client.Get(ctx, client.ObjectKeyFromObject(r), r)
		return r.Status.Outcome != "", "the reparent is in phase " + r.Status.Phase, err
	})
	if err == nil && r.Status.Outcome != v1alpha1.OutcomeSucceeded {
		err = fmt.Errorf("the reparent ended as %s: %s", r.Status.Outcome, r.Status.Message)
	}
	return err
}

// Signal implements trial.System.
func (t *Theseus) Signal(ctx context.Context, instance, signal string) error {
	_, err := t.kit.Kubectl(ctx, "-n", namespace, "exec", instance, "--", "bash", "-c", `kill -`+signal+` $(head -n 1 "$PGDATA/postmaster.pid")`)
	return err
}

// DeletePod implements trial.System.
func (t *Theseus) DeletePod(ctx context.Context, instance string) error {
	return t.kit.Client.Delete(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: instance}}, client.GracePeriodSeconds(0))
}

// Claim implements trial.System: it is named like its instance.
func (*Theseus) Claim(instance string) string { return namespace + "/" + instance }

// WaitHealthy implements trial.System: nothing is left to people, so that there is nothing to mend.
func (t *Theseus) WaitHealthy(ctx context.Context) error {
	if _, err := t.kit.WaitReady(ctx, namespace, database); err != nil {
		return err
	}
	return labkit.Poll(ctx, 300*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		s, err := t.shard(ctx)
		if err != nil {
			return false, err.Error(), nil
		}
		why := ailing(s.Status)
		return why == "", why, nil
	})
}

// ailing says what keeps a shard from having three members of which two can take over; empty when nothing does.
func ailing(s v1alpha1.ShardStatus) string {
	cohorts := s.Record.Cohorts
	switch {
	case len(cohorts) != 1:
		return fmt.Sprintf("%d cohorts are recorded", len(cohorts))
	case cohorts[0].Term != s.Term || s.Record.EstablishedTerm != s.Term:
		return fmt.Sprintf("term %d is not established", s.Term)
	case s.Primary != cohorts[0].Primary:
		return fmt.Sprintf("%s is named as the primary, not %s", s.Primary, cohorts[0].Primary)
	case len(cohorts[0].Members) != size-1:
		return fmt.Sprintf("the cohort has %d members", len(cohorts[0].Members))
	case len(s.Instances) != size:
		return fmt.Sprintf("there are %d instances", len(s.Instances))
	}
	for _, in := range s.Instances {
		if !in.Ready {
			return in.Name + " is not ready: " + in.Message
		}
	}
	return ""
}

// Explain implements trial.Explainer: the phases of the reparents since then.
func (t *Theseus) Explain(ctx context.Context, since time.Time) ([]trial.Phase, error) {
	list := &v1alpha1.ReparentList{}
	if err := t.kit.Client.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return nil, err
	}
	var out []trial.Phase
	for _, r := range list.Items {
		for _, p := range r.Status.Phases {
			if p.StartedAt.After(since) && p.FinishedAt != nil {
				out = append(out, trial.Phase{Name: string(r.Spec.Kind) + ": " + p.Name, Start: p.StartedAt.Time, End: p.FinishedAt.Time})
			}
		}
	}
	return out, nil
}

// Settings implements trial.Setter.
func (t *Theseus) Settings(ctx context.Context, wanted []string) (map[string]string, error) {
	text, err := t.kit.Psql(ctx, namespace, database, "-qtAX", "-c", trial.ShowQuery(wanted))
	if err != nil {
		return nil, err
	}
	return trial.ParseShown(text), nil
}

// Collect implements trial.System.
func (t *Theseus) Collect(ctx context.Context, dir string) {
	save := func(file string, args ...string) {
		out, err := t.kit.Kubectl(ctx, args...)
		if err != nil {
			out += "\n" + err.Error()
		}
		_ = os.WriteFile(filepath.Join(dir, file), []byte(out), 0o644)
	}
	save("objects.yaml", "-n", namespace, "get", "databases,shards,reparents,replacements,pods,pvc,services", "-o", "yaml")
	save("events.txt", "-n", namespace, "get", "events", "--sort-by=.lastTimestamp")
	save("operator.log", "-n", labkit.OperatorNamespace, "logs", "-l", "app.kubernetes.io/name=theseus", "--tail=-1", "--prefix")
	pods := &corev1.PodList{}
	if err := t.kit.Client.List(ctx, pods, client.InNamespace(namespace)); err != nil {
		return
	}
	for i := range pods.Items {
		save(pods.Items[i].Name+".log", "-n", namespace, "logs", pods.Items[i].Name, "--tail=-1")
	}
}
