// Package controller wires every controller of the operator together. Each is a package of its own below.
package controller

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/controller/certificates"
	"theseus.dev/theseus/internal/controller/database"
	"theseus.dev/theseus/internal/controller/evictions"
	"theseus.dev/theseus/internal/controller/gateways"
	"theseus.dev/theseus/internal/controller/lifetime"
	"theseus.dev/theseus/internal/controller/observe"
	"theseus.dev/theseus/internal/controller/reparent"
	"theseus.dev/theseus/internal/controller/replacement"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/ledger"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/observer"
	replacementrules "theseus.dev/theseus/internal/replacement"
	"theseus.dev/theseus/internal/verdict"
)

// Options of Setup.
type Options struct {
	// OperandImage is the image of instances; "%d" in it becomes the PostgreSQL major.
	OperandImage string
	// ClusterDomain is the cluster's DNS domain. Default cluster.local.
	ClusterDomain string
	// Namespaces that are watched; empty is all. CacheOptions must be given the same.
	Namespaces []string
	// Workers is how many objects of a kind are worked on at once. Default 8.
	Workers int
	// Clock is the source of all time.
	Clock clock.WithTicker
	// Name of this replica, for journals.
	Name string
	// NoEmergencies keeps this replica from starting reparents by itself. For tests.
	NoEmergencies bool
	// Params of the shard controller; zero means the defaults.
	Params shard.Params
	// Timeouts of replacements and Limits of the ledger; zero fields are the defaults.
	Timeouts replacementrules.Timeouts
	Limits   ledger.Limits
	// ReplacementPoint is called at the fault points of replacements. For tests.
	ReplacementPoint func(rp *v1alpha1.Replacement, point string) error
	// Agents calls agents; nil means over the network with certificates of the database. Tests replace it.
	Agents shard.Agents
	// Own is the namespace the operator runs in: its other replicas, and the Secrets that NodePolicies name, are there. Empty
	// when it runs outside of the cluster.
	Own string
	// Evictions is the webhook that hears of drains. Without a namespace it is not served.
	Evictions evictions.Options
	// Machines are the providers (Karpenter, ClusterAPI) whose objects in the cluster the operator may use; nil means all.
	// Others are never asked: without the permission every question fails.
	Machines []v1alpha1.MachineProvider
	// Stream watches an agent; nil means over the network.
	Stream observer.Stream
	// Keep says where evidence and the flight recorder's trails are kept; nil keeps none.
	Keep *Keep
	// Evidence of condemned instances is taken by; nil means by what Keep says.
	Evidence replacement.EvidenceCollector
}

// Scheme knows Kubernetes' kinds and ours.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	return s
}

// CacheOptions keep in memory only what carries our labels, and of nodes only what is looked at.
func CacheOptions(namespaces []string) cache.Options {
	ours, err := labels.NewRequirement(v1alpha1.LabelDatabase, selection.Exists, nil)
	utilruntime.Must(err) // a constant key is valid or no test passes
	selector := cache.ByObject{Label: labels.NewSelector().Add(*ours)}
	opts := cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: selector, &corev1.PersistentVolumeClaim{}: selector,
			&corev1.Secret{}: selector, &corev1.Service{}: selector,
			&corev1.Node{}: {Transform: slimNode},
		},
	}
	if len(namespaces) > 0 {
		opts.DefaultNamespaces = map[string]cache.Config{}
		for _, ns := range namespaces {
			opts.DefaultNamespaces[ns] = cache.Config{}
		}
	}
	return opts
}

// slimNode drops what makes nodes large: the list of images and the volumes.
func slimNode(o any) (any, error) {
	if n, ok := o.(*corev1.Node); ok {
		n.ManagedFields = nil
		n.Status.Images, n.Status.VolumesAttached, n.Status.VolumesInUse = nil, nil, nil
	}
	return o, nil
}

// Setup registers every controller with the manager.
func Setup(ctx context.Context, mgr ctrl.Manager, opts Options) error {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Workers == 0 {
		opts.Workers = 8
	}
	if opts.Params == (shard.Params{}) {
		opts.Params = shard.DefaultParams()
	}
	if err := index(ctx, mgr); err != nil {
		return err
	}
	identities := certificates.NewIdentities(mgr.GetClient(), opts.Clock)
	recording, err := opts.record(mgr)
	if err != nil {
		return err
	}
	if opts.Stream == nil {
		opts.Stream = observer.AgentStream(identities.ForShard, recording.Beside())
	}
	opts.Stream = recording.Stream(opts.Stream)
	if opts.Agents == nil {
		opts.Agents = DialAgents(identities)
	}
	watching := observer.New(observer.Options{Stream: opts.Stream, Clock: opts.Clock, Log: mgr.GetLogger().WithName("observer")})
	if err := mgr.Add(closer{watching}); err != nil {
		return err
	}
	if opts.Evidence == nil {
		if opts.Evidence, err = opts.collector(mgr, watching, recording); err != nil {
			return err
		}
	}
	recorder := mgr.GetEventRecorder("theseus")
	runner := &reparent.Runner{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Observer: watching, Agents: opts.Agents, Recorder: recorder,
		Clock: opts.Clock, Log: mgr.GetLogger().WithName("reparent"), Name: opts.Name, Params: verdict.DefaultParams(),
	}
	shards := &shard.Reconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Observer: watching, Agents: opts.Agents, Recorder: recorder,
		Clock: opts.Clock, Params: opts.Params, ClusterDomain: opts.ClusterDomain,
	}
	if !opts.NoEmergencies {
		e := &reparent.Emergency{
			Runner: runner, Leading: leading(mgr), Dead: opts.lost(mgr).Dead, Changed: shards.Wake,
		}
		shards.Suspects = e.Suspects
		if err := mgr.Add(e); err != nil {
			return err
		}
	}
	replacements := &replacement.Reconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Namespaces: opts.Namespaces, Observer: watching, Recorder: recorder, Clock: opts.Clock,
		Params: opts.Params, Timeouts: opts.Timeouts, Limits: opts.Limits, Evidence: opts.Evidence,
		Point: opts.ReplacementPoint, Suspects: shards.Suspects,
	}
	expiry := &lifetime.Expiry{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: recorder, Clock: opts.Clock,
		Account: replacements.Account, Freeze: frozen(opts.Limits), Changed: shards.Wake,
	}
	replacements.PerHour, shards.Lifetimes = expiry.PerHour, expiry.Conditions
	for name, setup := range map[string]func(ctrl.Manager, int) error{
		"observe":  (&observe.Reconciler{Client: mgr.GetClient(), Observer: watching, Clock: opts.Clock}).SetupWithManager,
		"reparent": (&reparent.Reconciler{Runner: runner}).SetupWithManager,
		"database": (&database.Reconciler{
			Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: recorder, Clock: opts.Clock, ClusterDomain: opts.ClusterDomain,
			Image: func(major int32) string { return OperandImage(opts.OperandImage, major) },
		}).SetupWithManager,
		"shard":       shards.SetupWithManager,
		"replacement": replacements.SetupWithManager, "lifetime": expiry.SetupWithManager,
	} {
		if err := setup(mgr, opts.Workers); err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
	}
	return setupNodes(ctx, mgr, opts)
}

// lost looks after what was on dead machines; without a namespace of its own the operator is not among it.
func (o *Options) lost(mgr ctrl.Manager) *gateways.Lost {
	l := &gateways.Lost{Client: mgr.GetClient(), Clock: o.Clock, Log: mgr.GetLogger().WithName("gateways")}
	if ns := o.Own; ns != "" {
		l.Live = mgr.GetAPIReader()
		l.Operators = []client.ListOption{client.InNamespace(ns), client.MatchingLabels(names.OperatorLabels())}
	}
	return l
}

// frozen is why nothing planned may begin by the ledger's switch.
func frozen(l ledger.Limits) string {
	if l.Freeze == ledger.FreezeNone {
		return ""
	}
	return "the freeze switch is set: " + cmp.Or(l.FreezeWhy, "no reason given")
}

// leading reports whether this replica is the elected leader.
func leading(mgr ctrl.Manager) func() bool {
	return func() bool {
		select {
		case <-mgr.Elected():
			return true
		default:
			return false
		}
	}
}

// index adds the indexes of the cache that controllers list by.
func index(ctx context.Context, mgr ctrl.Manager) error {
	if err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.Replacement{}, shard.IndexReplacementShard, func(o client.Object) []string {
		rp, ok := o.(*v1alpha1.Replacement)
		if !ok {
			return nil
		}
		return []string{rp.Spec.Shard}
	}); err != nil {
		return err
	}
	return mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.Reparent{}, shard.IndexReparentShard, func(o client.Object) []string {
		rp, ok := o.(*v1alpha1.Reparent)
		if !ok {
			return nil
		}
		return []string{rp.Spec.Shard}
	})
}

// OperandImage is the template with the major filled in.
func OperandImage(template string, major int32) string {
	return strings.ReplaceAll(template, "%d", fmt.Sprint(major))
}

// closer ends the observer with the manager, on every replica.
type closer struct{ o *observer.Observer }

// Start implements manager.Runnable.
func (c closer) Start(ctx context.Context) error {
	<-ctx.Done()
	c.o.Close()
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica observes.
func (closer) NeedLeaderElection() bool { return false }

// connectTimeout bounds the attempt to reach an agent for a command.
const connectTimeout = 500 * time.Millisecond

// DialAgents calls agents over the network. Every call dials afresh: a handshake costs milliseconds, a connection to a
// Pod that is gone can cost half a minute.
func DialAgents(identities *certificates.Identities) shard.Agents {
	return func(ctx context.Context, key types.NamespacedName, endpoint *agentpb.Endpoint) (agentpb.AgentClient, func(), error) {
		id, err := identities.ForShard(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		dialCtx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		c, err := agentapi.Dial(dialCtx, endpoint, agentapi.Shard{Namespace: key.Namespace, Name: key.Name}, id)
		if err != nil {
			return nil, nil, err
		}
		return c, func() { _ = c.Close() }, nil
	}
}
