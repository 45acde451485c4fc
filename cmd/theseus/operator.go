package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	crconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller"
)

func init() { commands = append(commands, newOperator) }

// operatorFlags are what the operator can be told.
type operatorFlags struct {
	controller.Options
	metricsAddress string
	healthAddress  string
	logLevel       string
	leaderElection bool
	qps            float32
	evidence       evidenceFlags
}

func newOperator() *cobra.Command {
	var o operatorFlags
	cmd := &cobra.Command{
		Use:   "operator",
		Short: "Run the controllers",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.OperandImage, "operand-image", "theseus.local/operand:pg%d", "image of instances and gateways; %d is the PostgreSQL major")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster, for certificates")
	f.StringSliceVar(&o.Namespaces, "namespace-watch", nil, "namespaces to watch (default: all)")
	f.StringVar(&o.metricsAddress, "metrics-address", ":8080", "address of /metrics, plain HTTP; 0 turns it off")
	f.StringVar(&o.healthAddress, "health-address", ":8081", "address of /healthz and /readyz")
	f.StringVar(&o.Evictions.Namespace, "webhook-namespace", os.Getenv("POD_NAMESPACE"), "namespace of the Service of the webhook that hears of drains (POD_NAMESPACE); empty turns it off")
	f.IntVar(&o.Evictions.Port, "webhook-port", 9443, "port of that webhook")
	f.Var((*machines)(&o.Machines), "machines", "whose machines the operator may read and remove: karpenter, clusterapi, both, or neither (default: both)")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.leaderElection, "leader-election", true, "elect a leader among replicas; emergencies do not wait for it")
	f.StringVar(&o.Own, "own-namespace", os.Getenv("POD_NAMESPACE"), "namespace the operator runs in: the leader's Lease, its other replicas, Secrets that NodePolicies name (POD_NAMESPACE)")
	registerLimits(f, &o.Limits)
	f.IntVar(&o.Workers, "workers", 8, "objects of a kind worked on at once")
	f.StringVar(&o.Name, "name", cmp.Or(os.Getenv("POD_NAME"), hostname()), "name of this replica in journals (POD_NAME)")
	o.evidence.register(f)
	f.Float32Var(&o.qps, "api-qps", 100, "requests per second to the API server")
	return cmd
}

func (o *operatorFlags) run(cmd *cobra.Command) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	log := logr.FromSlogHandler(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{Level: level}))
	ctrl.SetLogger(log)
	klog.SetLogger(log)

	if err := checkLimits(o.Limits); err != nil {
		return err
	}
	keep, err := o.evidence.options()
	if err != nil {
		return err
	}
	o.Keep = keep
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("no cluster to run against: %w", err)
	}
	config.QPS, config.Burst = o.qps, int(2*o.qps)
	config.UserAgent = "theseus-operator/" + release
	log.Info("operator", "release", release, "operandImage", o.OperandImage, "namespaces", strings.Join(o.Namespaces, ","))
	stop, err := startTracing(cmd.Context(), o.Name)
	if err != nil {
		return err
	}
	defer stop()
	return o.keepRunning(cmd.Context(), config, log)
}

// retryAfter is how long to wait before the controllers are started again.
const retryAfter = time.Second

// keepRunning starts the controllers again whenever they end before ctx does: when the API server cannot be reached or
// the leader's lease was lost to it. Left to the kubelet, the restarts of an outage would add up to a back-off of
// minutes, and an emergency right after the outage would wait for it.
func (o *operatorFlags) keepRunning(ctx context.Context, config *rest.Config, log logr.Logger) error {
	h := &health{}
	stop, err := h.serve(ctx, o.healthAddress)
	if err != nil {
		return err
	}
	defer stop()
	for {
		err := o.runManager(ctx, config, log, h)
		h.ready.Store(false)
		if ctx.Err() != nil {
			return nil
		}
		log.Error(err, "the controllers ended, starting them again", "after", retryAfter.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
	}
}

func (o *operatorFlags) runManager(ctx context.Context, config *rest.Config, log logr.Logger, h *health) error {
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: controller.Scheme(), Logger: log, Cache: controller.CacheOptions(o.Namespaces),
		Metrics:                metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress: "0", // see health
		LeaderElection:         o.leaderElection, LeaderElectionID: "theseus-operator", LeaderElectionNamespace: o.Own,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 ptr.To(15 * time.Second),
		RenewDeadline:                 ptr.To(10 * time.Second),
		RetryPeriod:                   ptr.To(2 * time.Second),
		GracefulShutdownTimeout:       ptr.To(10 * time.Second),
		// Names are registered once per process, managers may come several times.
		Controller: crconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	if err != nil {
		return err
	}
	if err := h.follow(mgr); err != nil {
		return err
	}
	if err := controller.Setup(ctx, mgr, o.Options); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "operator"
	}
	return name
}

// machines is the flag of the providers whose objects the operator may use.
type machines []v1alpha1.MachineProvider

// providers are the words of that flag.
func providers() map[string]v1alpha1.MachineProvider {
	return map[string]v1alpha1.MachineProvider{"karpenter": v1alpha1.MachineKarpenter, "clusterapi": v1alpha1.MachineClusterAPI}
}

// String implements pflag.Value.
func (m *machines) String() string {
	var words []string
	for word, p := range providers() {
		if slices.Contains(*m, p) {
			words = append(words, word)
		}
	}
	slices.Sort(words)
	return strings.Join(words, ",")
}

// Type implements pflag.Value.
func (*machines) Type() string { return "whose" }

// Set implements pflag.Value. The empty string is nobody, which is not what the flag's absence is.
func (m *machines) Set(s string) error {
	out := machines{}
	for word := range strings.SplitSeq(s, ",") {
		if word == "" {
			continue
		}
		p, ok := providers()[word]
		if !ok {
			return fmt.Errorf("%q is neither karpenter nor clusterapi", word)
		}
		out = append(out, p)
	}
	*m = out
	return nil
}
