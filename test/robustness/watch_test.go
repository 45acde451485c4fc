//go:build e2e

package robustness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
)

// watcher keeps what would be gone by the time somebody asks: the log of every container from its beginning, and every
// version of the objects that it gets to see.
type watcher struct {
	kit       *labkit.Kit
	kube      kubernetes.Interface
	namespace string
	dir       string

	followers sync.WaitGroup
	followed  map[string]bool   // containers by their ID
	versions  map[string]string // resource versions by kind and name
	objects   *json.Encoder
}

// watchEvery is the pause between two looks at all objects.
const watchEvery = 300 * time.Millisecond

func newWatcher(kit *labkit.Kit, namespace, dir string) (*watcher, error) {
	kube, err := kubernetes.NewForConfig(kit.REST)
	if err != nil {
		return nil, err
	}
	return &watcher{kit: kit, kube: kube, namespace: namespace, dir: dir, followed: map[string]bool{}, versions: map[string]string{}}, nil
}

// run watches until the context ends.
func (w *watcher) run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(w.dir, "logs"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(w.dir, "objects.jsonl"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	w.objects = json.NewEncoder(f)
	defer w.followers.Wait()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look is best effort: what cannot be had now is there the next time, or not at all.
func (w *watcher) look(ctx context.Context) {
	for _, namespace := range []string{w.namespace, labkit.OperatorNamespace} {
		pods := &corev1.PodList{}
		if err := w.kit.Client.List(ctx, pods, client.InNamespace(namespace)); err != nil {
			return
		}
		for i := range pods.Items {
			w.keep("Pod", &pods.Items[i])
			w.follow(ctx, &pods.Items[i])
		}
	}
	shards, reparents, replacements := &v1alpha1.ShardList{}, &v1alpha1.ReparentList{}, &v1alpha1.ReplacementList{}
	for _, list := range []client.ObjectList{shards, reparents, replacements} {
		if err := w.kit.Client.List(ctx, list, client.InNamespace(w.namespace)); err != nil {
			return
		}
	}
	for i := range shards.Items {
		w.keep("Shard", &shards.Items[i])
	}
	for i := range reparents.Items {
		w.keep("Reparent", &reparents.Items[i])
	}
	for i := range replacements.Items {
		w.keep("Replacement", &replacements.Items[i])
	}
}

func (w *watcher) keep(kind string, obj client.Object) {
	key := kind + " " + obj.GetNamespace() + "/" + obj.GetName()
	if w.versions[key] == obj.GetResourceVersion() {
		return
	}
	w.versions[key] = obj.GetResourceVersion()
	obj.SetManagedFields(nil)
	_ = w.objects.Encode(map[string]any{"seen": time.Now().UTC(), "kind": kind, "object": obj})
}

// follow copies a container's log to a file for as long as there is one.
func (w *watcher) follow(ctx context.Context, pod *corev1.Pod) {
	for _, cs := range pod.Status.ContainerStatuses {
		if cs.State.Running == nil || w.followed[cs.ContainerID] {
			continue
		}
		w.followed[cs.ContainerID] = true
		namespace, name := pod.Namespace, pod.Name
		path := filepath.Join(w.dir, "logs", fmt.Sprintf("%s.%s.%d.log", name, cs.Name, cs.RestartCount))
		options := &corev1.PodLogOptions{Container: cs.Name, Follow: true, Timestamps: true}
		w.followers.Go(func() {
			f, err := os.Create(path)
			if err != nil {
				return
			}
			defer func() { _ = f.Close() }()
			stream, err := w.kube.CoreV1().Pods(namespace).GetLogs(name, options).Stream(ctx)
			if err != nil {
				_, _ = fmt.Fprintln(f, "no log:", err)
				return
			}
			defer func() { _ = stream.Close() }()
			_, _ = io.Copy(f, stream)
		})
	}
}
