package shard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/controller/certificates"
	"theseus.dev/theseus/internal/controller/gateways"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/pki"
)

// gatewayEnabled reports whether the shard has gateways; the default is yes.
func gatewayEnabled(spec *v1alpha1.DatabaseSpec) bool { return ptr.Deref(spec.Gateway.Enabled, true) }

// MutateService makes svc a Service for PostgreSQL clients with that selector. Fields the API server defaults are
// left alone.
func MutateService(svc *corev1.Service, labels, selector map[string]string) {
	owned.SetLabels(svc, labels)
	svc.Spec.Selector = selector
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	port := corev1.ServicePort{Name: "postgres", Protocol: corev1.ProtocolTCP, Port: agentapi.PostgresPort, TargetPort: intstr.FromString("postgres")}
	if len(svc.Spec.Ports) != 1 || svc.Spec.Ports[0] != port {
		svc.Spec.Ports = []corev1.ServicePort{port}
	}
}

// Selectors of a shard's Services: for reading and writing, reading only, and the primary itself. The first selects
// the gateways when there are any.
func Selectors(shard string, spec *v1alpha1.DatabaseSpec) (readWrite, readOnly, direct map[string]string) {
	direct = map[string]string{v1alpha1.LabelShard: shard, v1alpha1.LabelRole: v1alpha1.RolePrimary}
	readOnly = map[string]string{v1alpha1.LabelShard: shard, v1alpha1.LabelRole: v1alpha1.RoleStandby}
	readWrite = direct
	if gatewayEnabled(spec) {
		readWrite = map[string]string{v1alpha1.LabelShard: shard, v1alpha1.LabelComponent: v1alpha1.ComponentGateway}
	}
	return readWrite, readOnly, direct
}

func shardLabels(shard *v1alpha1.Shard) map[string]string {
	return map[string]string{
		v1alpha1.LabelDatabase: shard.Spec.Database, v1alpha1.LabelShard: shard.Name,
		"app.kubernetes.io/managed-by": "theseus",
	}
}

// ensureObjects makes what a shard has besides instances: certificates, Services, disruption budget, gateways. It says
// when a certificate is to be looked at again.
func (r *Reconciler) ensureObjects(ctx context.Context, shard *v1alpha1.Shard) (next time.Time, err error) {
	set, err := certificates.Authority(ctx, r.Client, shard.Namespace, shard.Spec.Database)
	if err != nil {
		return time.Time{}, fmt.Errorf("the database's certificate authority: %w", err)
	}
	now := r.Clock.Now()
	next, err = certificates.EnsureLeaf(ctx, r.Client, r.Live, shard, names.AgentTLS(shard.Name), set, agentRequest(shard, r.ClusterDomain), now)
	if err != nil {
		return next, err
	}
	if err := r.ensureServices(ctx, shard); err != nil {
		return next, err
	}
	if err := r.ensureBudget(ctx, shard); err != nil {
		return next, err
	}
	if !gatewayEnabled(&shard.Spec.Template) {
		return next, r.removeGateway(ctx, shard)
	}
	other, err := certificates.EnsureLeaf(ctx, r.Client, r.Live, shard, names.GatewayTLS(shard.Name), set, gatewayRequest(shard, r.ClusterDomain), now)
	if err != nil {
		return next, err
	}
	if other.Before(next) {
		next = other
	}
	return next, errors.Join(r.ensureGateway(ctx, shard), gateways.RemoveOrphaned(ctx, r.Client, r.Clock, client.ObjectKeyFromObject(shard)))
}

func agentRequest(shard *v1alpha1.Shard, domain string) pki.Request {
	key := agentapi.Shard{Namespace: shard.Namespace, Name: shard.Name}
	hosts := append(clientHosts(shard, domain, names.Direct, names.ReadOnly, names.ReadWrite), agentapi.ServerName(key))
	headless := names.Instances(shard.Name) + "." + shard.Namespace + ".svc"
	hosts = append(hosts, "*."+headless)
	if domain != "" {
		hosts = append(hosts, "*."+headless+"."+domain)
	}
	return pki.Request{
		CommonName: agentapi.CommonName(agentapi.RoleAgent, key), URI: agentapi.URI(key, agentapi.RoleAgent).String(),
		DNSNames: append(hosts, "localhost"), Server: true, Client: true,
	}
}

func gatewayRequest(shard *v1alpha1.Shard, domain string) pki.Request {
	key := agentapi.Shard{Namespace: shard.Namespace, Name: shard.Name}
	return pki.Request{
		CommonName: agentapi.CommonName(agentapi.RoleGateway, key), URI: agentapi.URI(key, agentapi.RoleGateway).String(),
		DNSNames: append(clientHosts(shard, domain, names.ReadWrite), "localhost"), Server: true, Client: true,
	}
}

// clientHosts are the names clients may verify: of the shard's Services and, with one shard, of the database's.
func clientHosts(shard *v1alpha1.Shard, domain string, services ...func(string) string) []string {
	var hosts []string
	for _, service := range services {
		hosts = append(hosts, names.Hosts(service(shard.Name), shard.Namespace, domain)...)
		if shard.Spec.Template.Shards == 1 {
			hosts = append(hosts, names.Hosts(service(shard.Spec.Database), shard.Namespace, domain)...)
		}
	}
	return hosts
}

func (r *Reconciler) ensureServices(ctx context.Context, shard *v1alpha1.Shard) error {
	readWrite, readOnly, direct := Selectors(shard.Name, &shard.Spec.Template)
	for name, selector := range map[string]map[string]string{
		names.ReadWrite(shard.Name): readWrite, names.ReadOnly(shard.Name): readOnly, names.Direct(shard.Name): direct,
	} {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: name}}
		if _, err := owned.Apply(ctx, r.Client, r.Live, shard, svc, func() { MutateService(svc, shardLabels(shard), selector) }); err != nil {
			return fmt.Errorf("Service %s: %w", name, err)
		}
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.Instances(shard.Name)}}
	_, err := owned.Apply(ctx, r.Client, r.Live, shard, svc, func() {
		owned.SetLabels(svc, shardLabels(shard))
		if svc.ResourceVersion == "" {
			svc.Spec.ClusterIP = corev1.ClusterIPNone // immutable afterwards
		}
		svc.Spec.Selector = instanceSelector(shard.Name)
		// Agents and gateways must find instances that are not ready: those are what needs their attention.
		svc.Spec.PublishNotReadyAddresses = true
		svc.Spec.Ports = []corev1.ServicePort{
			{Name: "postgres", Protocol: corev1.ProtocolTCP, Port: agentapi.PostgresPort, TargetPort: intstr.FromString("postgres")},
			{Name: "agent", Protocol: corev1.ProtocolTCP, Port: agentapi.AgentPort, TargetPort: intstr.FromString("agent")},
		}
	})
	return err
}

// ensureBudget keeps evictions from breaking the quorum: of n instances n-1 must stay, so that one may go at a time and
// only when all are healthy. With one instance none may: a drain waits until Theseus has moved it.
func (r *Reconciler) ensureBudget(ctx context.Context, shard *v1alpha1.Shard) error {
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: shard.Name}}
	_, err := owned.Apply(ctx, r.Client, r.Live, shard, budget, func() {
		owned.SetLabels(budget, shardLabels(shard))
		budget.Spec.MinAvailable = ptr.To(intstr.FromInt32(max(shard.Spec.Template.Instances-1, 1)))
		budget.Spec.Selector = &metav1.LabelSelector{MatchLabels: instanceSelector(shard.Name)}
		// While the others are not all healthy even a Pod that is not ready stays: its volume may be needed.
		budget.Spec.UnhealthyPodEvictionPolicy = ptr.To(policyv1.IfHealthyBudget)
	})
	if err != nil {
		return fmt.Errorf("PodDisruptionBudget %s: %w", budget.Name, err)
	}
	return nil
}

func gatewayLabels(shard *v1alpha1.Shard) map[string]string {
	l := shardLabels(shard)
	l[v1alpha1.LabelComponent] = v1alpha1.ComponentGateway
	l["app.kubernetes.io/name"] = "pgbouncer"
	return l
}

func (r *Reconciler) ensureGateway(ctx context.Context, shard *v1alpha1.Shard) error {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.Gateway(shard.Name)}}
	_, err := owned.Apply(ctx, r.Client, r.Live, shard, d, func() {
		owned.SetLabels(d, gatewayLabels(shard))
		d.Spec.Replicas = ptr.To(shard.Spec.Template.Gateway.Replicas)
		d.Spec.RevisionHistoryLimit = ptr.To(int32(2))
		// A ready gateway takes clients once every node has it in its Service rules, a second or so later. Until then it
		// counts neither for the Shard's readiness nor as the successor of one that is rolled away.
		d.Spec.MinReadySeconds = 2
		if d.Spec.Selector == nil {
			d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{
				v1alpha1.LabelShard: shard.Name, v1alpha1.LabelComponent: v1alpha1.ComponentGateway,
			}}
		}
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
			MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(1)),
		}}
		// The API server fills in defaults, so the template read back never equals ours: a hash of ours is compared.
		template := gatewayTemplate(shard)
		if hash := templateHash(&template); d.Annotations[templateHashAnnotation] != hash {
			d.Spec.Template = template
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations[templateHashAnnotation] = hash
		}
	})
	if err != nil {
		return fmt.Errorf("Deployment %s: %w", d.Name, err)
	}
	return r.gatewayBudget(ctx, shard)
}

const templateHashAnnotation = "theseus.dev/template-hash"

func templateHash(t *corev1.PodTemplateSpec) string {
	data, err := json.Marshal(t)
	if err != nil {
		panic(err) // a typed object is always encodable
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

func (r *Reconciler) removeGateway(ctx context.Context, shard *v1alpha1.Shard) error {
	for _, obj := range []client.Object{
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.Gateway(shard.Name)}},
		&policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.Gateway(shard.Name)}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: names.GatewayTLS(shard.Name)}},
	} {
		if _, err := owned.Delete(ctx, r.Client, shard, obj); err != nil {
			return err
		}
	}
	return nil
}

func gatewayTemplate(shard *v1alpha1.Shard) corev1.PodTemplateSpec {
	t := shard.Spec.Template
	selector := map[string]string{v1alpha1.LabelShard: shard.Name, v1alpha1.LabelComponent: v1alpha1.ComponentGateway}
	env := append(podEnv(shard.Name),
		corev1.EnvVar{Name: "THESEUS_INSTANCES_HOST", Value: names.Instances(shard.Name)},
		corev1.EnvVar{Name: "THESEUS_POOL_SIZE", Value: fmt.Sprint(t.Gateway.PoolSize)},
		corev1.EnvVar{Name: "THESEUS_MAX_PAUSE", Value: t.Gateway.MaxPause.Duration.String()})
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: gatewayLabels(shard)},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(grace)),
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			SecurityContext:               podSecurity(),
			PriorityClassName:             t.Scheduling.PriorityClassName,
			NodeSelector:                  t.Scheduling.NodeSelector,
			// Gateways hold no data: Kubernetes may move them off a node that is gone, and soon.
			Tolerations: append(shortTolerations(), t.Scheduling.Tolerations...),
			Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
				Weight:          100,
				PodAffinityTerm: corev1.PodAffinityTerm{LabelSelector: &metav1.LabelSelector{MatchLabels: selector}, TopologyKey: corev1.LabelHostname},
			}}}},
			TopologySpreadConstraints: spread(selector),
			Containers: []corev1.Container{{
				Name: "gateway", Image: cmp.Or(shard.Spec.GatewayImage, shard.Spec.Image), ImagePullPolicy: corev1.PullIfNotPresent,
				Args: []string{"gateway"}, Env: env, SecurityContext: containerSecurity(),
				Resources: ptr.Deref(t.Gateway.Resources.DeepCopy(), corev1.ResourceRequirements{}),
				Ports: []corev1.ContainerPort{
					{Name: "postgres", ContainerPort: agentapi.PostgresPort},
					{Name: "health", ContainerPort: gatewayHealthPort},
				},
				LivenessProbe:  probe("/livez", "health", 5, 2, 6),
				ReadinessProbe: probe("/readyz", "health", 1, 1, 2),
				VolumeMounts: []corev1.VolumeMount{
					{Name: "tls", MountPath: tlsPath, ReadOnly: true},
					{Name: "run", MountPath: runPath},
				},
			}},
			Volumes: []corev1.Volume{secretVolume("tls", names.GatewayTLS(shard.Name)), memoryVolume("run", "16Mi")},
		},
	}
}

// gatewayHealthPort is where a gateway answers probes.
const gatewayHealthPort = 7431

func shortTolerations() []corev1.Toleration {
	var out []corev1.Toleration
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		out = append(out, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To(int64(10))})
	}
	return out
}
