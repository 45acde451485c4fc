package condemned

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/evidence"
)

var errNoAddress = errors.New("its address is not known any more")

// objects are the Kubernetes objects that have to do with the instance.
func (c *Collector) objects() []evidence.Source {
	object := func(name string, get func(ctx context.Context, s evidence.Subject) (client.Object, error)) evidence.Source {
		return evidence.Func{Called: name, Do: func(ctx context.Context, s evidence.Subject, put evidence.Put) error {
			o, err := get(ctx, s)
			if err != nil {
				return err
			}
			return putJSON(put, name+".json", tidy(o))
		}}
	}
	named := func(o client.Object, name func(evidence.Subject) string) func(context.Context, evidence.Subject) (client.Object, error) {
		return func(ctx context.Context, s evidence.Subject) (client.Object, error) {
			key := client.ObjectKey{Namespace: s.Namespace, Name: name(s)}
			if key.Name == "" {
				return nil, errors.New("nobody told its name")
			}
			return o, c.Live.Get(ctx, key, o)
		}
	}
	instance := func(s evidence.Subject) string { return s.Instance }
	return []evidence.Source{
		object("pod", named(&corev1.Pod{}, instance)),
		object("claim", named(&corev1.PersistentVolumeClaim{}, instance)),
		object("shard", named(&v1alpha1.Shard{}, func(s evidence.Subject) string { return s.Shard })),
		object("replacement", named(&v1alpha1.Replacement{}, func(s evidence.Subject) string { return s.Replacement })),
		object("node", func(ctx context.Context, s evidence.Subject) (client.Object, error) {
			name, err := c.nodeName(ctx, s)
			if err != nil {
				return nil, err
			}
			n := &corev1.Node{}
			return n, c.Live.Get(ctx, client.ObjectKey{Name: name}, n)
		}),
		c.reparents(),
	}
}

// nodeName is the subject's, or the Pod's.
func (c *Collector) nodeName(ctx context.Context, s evidence.Subject) (string, error) {
	if s.Node != "" {
		return s.Node, nil
	}
	p := &corev1.Pod{}
	if err := c.Live.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: s.Instance}, p); err != nil {
		return "", err
	}
	if p.Spec.NodeName == "" {
		return "", errors.New("it has no node")
	}
	return p.Spec.NodeName, nil
}

// reparents are the journals of the shard.
func (c *Collector) reparents() evidence.Source {
	return evidence.Func{Called: "reparents", Do: func(ctx context.Context, s evidence.Subject, put evidence.Put) error {
		list := &v1alpha1.ReparentList{}
		if err := c.Live.List(ctx, list, client.InNamespace(s.Namespace)); err != nil {
			return err
		}
		of := slices.DeleteFunc(list.Items, func(r v1alpha1.Reparent) bool { return r.Spec.Shard != s.Shard })
		for i := range of {
			tidy(&of[i])
		}
		return putJSON(put, "reparents.json", of)
	}}
}

// events of the instance (its Pod and its claim have one name), of the shard and of the node.
func (c *Collector) events() []evidence.Source {
	list := func(ctx context.Context, fields client.MatchingFields, in ...client.ListOption) ([]corev1.Event, error) {
		l := &corev1.EventList{}
		err := c.Live.List(ctx, l, append(in, fields)...)
		for i := range l.Items {
			l.Items[i].ManagedFields = nil
		}
		return l.Items, err
	}
	return []evidence.Source{
		evidence.Func{Called: "events", Do: func(ctx context.Context, s evidence.Subject, put evidence.Put) error {
			var all []corev1.Event
			for _, name := range []string{s.Instance, s.Shard, s.Replacement} {
				if name == "" {
					continue
				}
				some, err := list(ctx, client.MatchingFields{"involvedObject.name": name}, client.InNamespace(s.Namespace))
				if err != nil {
					return err
				}
				all = append(all, some...)
			}
			return putJSON(put, "events.json", all)
		}},
		evidence.Func{Called: "node-events", Do: func(ctx context.Context, s evidence.Subject, put evidence.Put) error {
			node, err := c.nodeName(ctx, s)
			if err != nil {
				return err
			}
			// What is told about objects without a namespace is told here; the operator need not be allowed to read all others.
			some, err := list(ctx, client.MatchingFields{"involvedObject.kind": "Node", "involvedObject.name": node}, client.InNamespace(metav1.NamespaceDefault))
			if err != nil {
				return err
			}
			return putJSON(put, "node-events.json", some)
		}},
	}
}

// containerLogs asks the kubelet for the logs of every container, and of its previous run when there was one.
func (c *Collector) containerLogs() evidence.Source {
	return evidence.Func{Called: "container-logs", Do: func(ctx context.Context, s evidence.Subject, put evidence.Put) error {
		ctx, cancel := context.WithTimeout(ctx, kubeletTimeout)
		defer cancel()
		p := &corev1.Pod{}
		if err := c.Live.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: s.Instance}, p); err != nil {
			return err
		}
		var missing []error
		for _, of := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			missing = append(missing, c.containerLog(ctx, s, of.Name, false, put))
			if of.RestartCount > 0 || of.LastTerminationState.Terminated != nil {
				missing = append(missing, c.containerLog(ctx, s, of.Name, true, put))
			}
		}
		return errors.Join(missing...)
	}}
}

func (c *Collector) containerLog(ctx context.Context, s evidence.Subject, container string, previous bool, put evidence.Put) error {
	name := "container-" + strings.ToLower(container) + ".log"
	if previous {
		name = "container-" + strings.ToLower(container) + ".previous.log"
	}
	r, err := c.Pods.Pods(s.Namespace).GetLogs(s.Instance, &corev1.PodLogOptions{
		Container: container, Previous: previous, Timestamps: true, TailLines: ptr.To[int64](logTail),
	}).Stream(ctx)
	if apierrors.IsBadRequest(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: the kubelet has none: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer func() { _ = r.Close() }()
	return put(name, "", r)
}

// trail is what the flight recorder remembers here and what any replica has stored, as one.
func (c *Collector) trail() evidence.Source {
	return evidence.Func{Called: "trail", Do: func(ctx context.Context, s evidence.Subject, put evidence.Put) error {
		who := evidence.Walker{Namespace: s.Namespace, Shard: s.Shard, Instance: s.Instance}
		from := c.Clock.Now().Add(-trailSpan)
		entries := c.Recorder.Entries(who, from)
		stored, problems, err := c.stored(ctx, who, from)
		entries = evidence.Merge(append(entries, stored...))
		var out bytes.Buffer
		missing := append(problems, err)
		if err := evidence.WriteEntries(&out, entries); err != nil {
			missing = append(missing, err)
		}
		missing = append(missing, put("trail.jsonl", "application/jsonl", &out))
		if len(entries) == 0 {
			missing = append(missing, errors.New("it left no trail in the last "+trailSpan.String()))
		}
		return errors.Join(missing...)
	}}
}

// stored reads the trail back. A bucket that hangs is left behind, so that what is remembered is kept at least.
func (c *Collector) stored(ctx context.Context, who evidence.Walker, from time.Time) ([]evidence.Entry, []error, error) {
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	type answer struct {
		entries  []evidence.Entry
		problems []error
		err      error
	}
	answers := make(chan answer, 1)
	go func() {
		e, p, err := c.Bucket.Trails().Read(ctx, who, from, c.Clock.Now().Add(time.Minute))
		answers <- answer{e, p, err}
	}()
	select {
	case a := <-answers:
		return a.entries, a.problems, a.err
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("the stored trail: %w", context.Cause(ctx))
	}
}

// observation is an observer.Observation as it is kept.
type observation struct {
	Instance     string          `json:"instance"`
	PodUID       string          `json:"podUID"`
	Address      string          `json:"address,omitempty"`
	Connected    bool            `json:"connected"`
	FailingSince *time.Time      `json:"failingSince,omitempty"`
	LastError    string          `json:"lastError,omitempty"`
	Refused      bool            `json:"refused,omitempty"`
	ReceivedAt   *time.Time      `json:"receivedAt,omitempty"`
	Status       json.RawMessage `json:"status,omitempty"`
}

// observations are what the verdict was taken from: the last word of every instance of the shard.
func (c *Collector) observations() evidence.Source {
	return evidence.Func{Called: "observations", Do: func(_ context.Context, s evidence.Subject, put evidence.Put) error {
		var out []observation
		for _, o := range c.Observer.Observations(shardKey(s)) {
			kept := observation{
				Instance: o.Instance, PodUID: string(o.UID), Address: o.Endpoint.GetHost(), Connected: o.Connected,
				LastError: o.LastError, Refused: o.Refused, FailingSince: when(o.FailingSince), ReceivedAt: when(o.ReceivedAt),
			}
			if o.Status != nil {
				text, err := protojson.Marshal(o.Status)
				if err != nil {
					return err
				}
				kept.Status = text
			}
			out = append(out, kept)
		}
		slices.SortFunc(out, func(a, b observation) int { return strings.Compare(a.Instance, b.Instance) })
		return putJSON(put, "observations.json", out)
	}}
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return ptr.To(t.UTC())
}

func putJSON(put evidence.Put, name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return put(name, "application/json", bytes.NewReader(append(text, '\n')))
}

// tidy drops what nobody reads.
func tidy(o client.Object) client.Object {
	o.SetManagedFields(nil)
	if n, ok := o.(*corev1.Node); ok {
		n.Status.Images = nil
	}
	annotations := o.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	o.SetAnnotations(annotations)
	return o
}
