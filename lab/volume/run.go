package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"theseus.dev/theseus/lab/volume/internal/disk"
)

const (
	// stepDeadline bounds one step about one volume.
	stepDeadline = 30 * time.Second
	// sweepPeriod is how often everything is looked at, for what no event tells of.
	sweepPeriod = 5 * time.Second
	// workers make volumes at the same time; more would only queue for the one disk.
	workers = 4
	// A failed step is tried again after the first of these, doubling to the second.
	retryAfter, retryAtMost = 250 * time.Millisecond, 10 * time.Second
	// The watch is tried again after the first of these, growing to the second: the
	// control plane of a lab is stopped and started often, and client-go's own default
	// of up to a minute would leave claims waiting after each start.
	watchAfter, watchAtMost = 200 * time.Millisecond, 2 * time.Second

	byVolume = "volume"
)

// Config is what Run needs.
type Config struct {
	// Kubeconfig is the path of a kubeconfig of a cluster administrator.
	Kubeconfig string
	// StateDir holds one directory per volume, file included. It is made if need be.
	StateDir string
	// Nodes returns the machines that are up. It is called often and must be quick.
	Nodes func() []Node
	// Log defaults to nowhere.
	Log *slog.Logger
	// Clock defaults to the real one.
	Clock clock.PassiveClock
}

// Run makes the StorageClass and serves its claims until ctx ends. An API server that is
// not there yet, or goes away, is waited for. What a former Run left half-done is taken up
// where it stopped. The error is nil when ctx ended it.
func Run(ctx context.Context, c Config) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return fmt.Errorf("volume provisioner: %w", err)
	}
	config.QPS, config.Burst = 100, 200
	config.Timeout = 0 // A watch is one long request; steps have deadlines of their own.
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("volume provisioner: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	return run(ctx, client, c)
}

// run is Run with a client.
func run(ctx context.Context, client kubernetes.Interface, c Config) error {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	p := newProvisioner(client, c, broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: Provisioner}))

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer p.queue.ShutDown()
	defer cancel()
	rest := client.CoreV1().RESTClient()
	reflect := func(resource string, kind any, store *notifier) {
		lw := cache.NewListWatchFromClient(rest, resource, corev1.NamespaceAll, fields.Everything())
		options := cache.ReflectorOptions{Name: Provisioner, Backoff: &wait.Backoff{
			Duration: watchAfter, Cap: watchAtMost, Factor: 1.5, Jitter: 0.2, Steps: 8,
		}}
		running.Go(func() { cache.NewReflectorWithOptions(lw, kind, store, options).RunWithContext(ctx) })
	}
	claims, volumes := newNotifier(p.claims, p.noticeClaim), newNotifier(p.volumes, p.noticeVolume)
	reflect("persistentvolumeclaims", &corev1.PersistentVolumeClaim{}, claims)
	reflect("persistentvolumes", &corev1.PersistentVolume{}, volumes)

	// Before both lists are complete, a volume whose claim is merely not listed yet would
	// look like one that nobody wants.
	for _, n := range []*notifier{claims, volumes} {
		select {
		case <-n.listed:
		case <-ctx.Done():
			return nil
		}
	}
	for range workers {
		running.Go(func() { p.work(ctx) })
	}
	p.sweep(ctx)
	return nil
}

// newProvisioner returns a provisioner with empty stores.
func newProvisioner(client kubernetes.Interface, c Config, events record.EventRecorder) *provisioner {
	index := cache.Indexers{byVolume: func(obj any) ([]string, error) {
		claim, ok := obj.(*corev1.PersistentVolumeClaim)
		if !ok {
			return nil, errors.New("not a claim")
		}
		return []string{claimKey(claim)}, nil
	}}
	return &provisioner{
		client:  client,
		store:   disk.Store{Dir: c.StateDir},
		nodes:   c.Nodes,
		claims:  cache.NewIndexer(cache.MetaNamespaceKeyFunc, index),
		volumes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryAfter, retryAtMost)),
		events: events,
		clock:  c.Clock,
		log:    c.Log,
	}
}

// sweep makes the StorageClass and looks at everything again and again until ctx ends.
func (p *provisioner) sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepPeriod)
	defer ticker.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, stepDeadline)
		if err := p.ensureClass(bounded); err != nil && ctx.Err() == nil {
			p.log.Warn("cannot make the StorageClass", "error", err)
		}
		cancel()
		p.enqueueAll()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *provisioner) noticeClaim(obj any) {
	if claim, ok := obj.(*corev1.PersistentVolumeClaim); ok {
		p.queue.Add(claimKey(claim))
	}
}

func (p *provisioner) noticeVolume(obj any) {
	if volume, ok := obj.(*corev1.PersistentVolume); ok {
		p.queue.Add(volume.Name)
	}
}

// notifier is a store that tells of every change made to it.
type notifier struct {
	cache.Store
	notice func(obj any)
	// listed is closed once the store has been filled for the first time.
	listed chan struct{}
	once   sync.Once
}

func newNotifier(store cache.Store, notice func(any)) *notifier {
	return &notifier{Store: store, notice: notice, listed: make(chan struct{})}
}

// Add implements cache.ReflectorStore.
func (n *notifier) Add(obj any) error {
	defer n.notice(obj)
	return n.Store.Add(obj)
}

// Update implements cache.ReflectorStore.
func (n *notifier) Update(obj any) error {
	defer n.notice(obj)
	return n.Store.Update(obj)
}

// Delete implements cache.ReflectorStore.
func (n *notifier) Delete(obj any) error {
	defer n.notice(obj)
	return n.Store.Delete(obj)
}

// Replace implements cache.ReflectorStore. What it removes is told of as well.
func (n *notifier) Replace(list []any, version string) error {
	before := n.List()
	if err := n.Store.Replace(list, version); err != nil {
		return err
	}
	n.once.Do(func() { close(n.listed) })
	for _, obj := range append(before, list...) {
		n.notice(obj)
	}
	return nil
}
