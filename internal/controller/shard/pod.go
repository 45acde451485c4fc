package shard

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/names"
)

const (
	// operandID is user, group and fsGroup of the operand image.
	operandID = 10001
	// grace is what a Pod gets to stop: the agent stops PostgreSQL fast within 10 s and immediately after that.
	grace = 30

	dataPath = "/var/lib/theseus"
	runPath  = "/run/theseus"
	tlsPath  = "/etc/theseus/tls"
)

// instanceLabels are on the Pod and the claim of an instance.
func instanceLabels(shard *v1alpha1.Shard, instance string) map[string]string {
	return map[string]string{
		v1alpha1.LabelDatabase:         shard.Spec.Database,
		v1alpha1.LabelShard:            shard.Name,
		v1alpha1.LabelInstance:         instance,
		v1alpha1.LabelComponent:        v1alpha1.ComponentInstance,
		"app.kubernetes.io/name":       "postgresql",
		"app.kubernetes.io/instance":   shard.Spec.Database,
		"app.kubernetes.io/component":  v1alpha1.ComponentInstance,
		"app.kubernetes.io/managed-by": "theseus",
	}
}

// instanceSelector matches the Pods of a shard's instances.
func instanceSelector(shard string) map[string]string {
	return map[string]string{v1alpha1.LabelShard: shard, v1alpha1.LabelComponent: v1alpha1.ComponentInstance}
}

func newClaim(shard *v1alpha1.Shard, instance string) *corev1.PersistentVolumeClaim {
	storage := shard.Spec.Template.Storage
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: instance, Labels: instanceLabels(shard, instance)},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: storage.ClassName,
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: storage.Size}},
		},
	}
}

// newPod is the Pod of an instance, which takes another one's place when surge is not nil.
func newPod(shard *v1alpha1.Shard, instance string, surge *Surge) *corev1.Pod {
	t := shard.Spec.Template
	labels := instanceLabels(shard, instance)
	if surge != nil {
		labels[v1alpha1.LabelReplacement] = surge.Replacement
	} else {
		labels[v1alpha1.LabelSettled] = "true"
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: shard.Namespace, Name: instance, Labels: labels,
			Annotations: map[string]string{"kubectl.kubernetes.io/default-container": "postgres"},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: ptr.To(int64(grace)),
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			Hostname:                      instance,
			Subdomain:                     names.Instances(shard.Name),
			SecurityContext:               podSecurity(),
			NodeSelector:                  maps.Clone(t.Scheduling.NodeSelector),
			Tolerations:                   tolerations(t.Scheduling.Tolerations),
			RuntimeClassName:              t.Scheduling.RuntimeClassName,
			PriorityClassName:             t.Scheduling.PriorityClassName,
			Affinity:                      affinity(shard, surge),
			TopologySpreadConstraints:     spread(instanceSelector(shard.Name)),
			Containers:                    []corev1.Container{instanceContainer(shard)},
			Volumes: []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: instance}}},
				secretVolume("tls", names.AgentTLS(shard.Name)),
				memoryVolume("run", "16Mi"),
				memoryVolume("shm", "1Gi"),
				{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("64Mi"))}}},
			},
		},
	}
}

func instanceContainer(shard *v1alpha1.Shard) corev1.Container {
	t := shard.Spec.Template
	env := append(podEnv(shard.Name),
		fieldEnv("THESEUS_INSTANCE", "metadata.name"), fieldEnv("POD_UID", "metadata.uid"),
		fieldEnv("POD_IP", "status.podIP"), fieldEnv("NODE_NAME", "spec.nodeName"))
	if len(t.Postgres.Parameters) > 0 {
		data, err := json.Marshal(t.Postgres.Parameters) // sorted by name, so equal parameters give equal Pods
		if err != nil {
			panic(err) // a map of strings is always encodable
		}
		env = append(env, corev1.EnvVar{Name: "THESEUS_PARAMETERS", Value: string(data)})
	}
	if _, ok := t.Resources.Limits[corev1.ResourceMemory]; ok {
		env = append(env, corev1.EnvVar{Name: "THESEUS_MEMORY_LIMIT", ValueFrom: &corev1.EnvVarSource{
			ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1")},
		}})
	}
	return corev1.Container{
		Name: "postgres", Image: shard.Spec.Image, ImagePullPolicy: corev1.PullIfNotPresent,
		Args: []string{"agent"}, Env: env, Resources: *t.Resources.DeepCopy(),
		SecurityContext: containerSecurity(),
		Ports: []corev1.ContainerPort{
			{Name: "postgres", ContainerPort: agentapi.PostgresPort},
			{Name: "agent", ContainerPort: agentapi.AgentPort},
			{Name: "health", ContainerPort: agentapi.HealthPort},
		},
		LivenessProbe:  probe("/livez", "health", 5, 2, 6),
		ReadinessProbe: probe("/readyz", "health", 2, 1, 2),
		VolumeMounts: []corev1.VolumeMount{
			{Name: "data", MountPath: dataPath},
			{Name: "tls", MountPath: tlsPath, ReadOnly: true},
			{Name: "run", MountPath: runPath},
			{Name: "shm", MountPath: "/dev/shm"},
			{Name: "tmp", MountPath: "/tmp"},
		},
	}
}

// podEnv is what both instances and gateways are told about themselves.
func podEnv(shard string) []corev1.EnvVar {
	return []corev1.EnvVar{fieldEnv("THESEUS_NAMESPACE", "metadata.namespace"), {Name: "THESEUS_SHARD", Value: shard}}
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func probe(path, port string, period, timeout, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString(port)}},
		PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures,
	}
}

// podSecurity and containerSecurity satisfy Pod Security "restricted".
func podSecurity() *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{
		RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To(int64(operandID)), RunAsGroup: ptr.To(int64(operandID)),
		FSGroup: ptr.To(int64(operandID)),
		// Changing the mode of an existing data directory would make PostgreSQL refuse it.
		FSGroupChangePolicy: ptr.To(corev1.FSGroupChangeOnRootMismatch),
		SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

func containerSecurity() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// tolerations keep Kubernetes from evicting Pods off a node that is not ready: only Theseus knows whether an
// instance may go, and it acts long before the default five minutes.
func tolerations(user []corev1.Toleration) []corev1.Toleration {
	out := slices.Clone(user)
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		out = append(out, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	}
	return out
}

// affinity keeps two instances of a shard off one node, unless the spec allows it: one machine must not take two
// copies with it. The one exception is a surge, which may stand beside the instance it replaces until that goes. Kubernetes
// asks both sides, so a surge carries LabelSettled, by which the others know it, only once it has a node.
func affinity(shard *v1alpha1.Shard, surge *Surge) *corev1.Affinity {
	term := corev1.PodAffinityTerm{
		LabelSelector: &metav1.LabelSelector{MatchLabels: instanceSelector(shard.Name)},
		TopologyKey:   corev1.LabelHostname,
	}
	if surge != nil {
		term.LabelSelector.MatchExpressions = []metav1.LabelSelectorRequirement{
			{Key: v1alpha1.LabelInstance, Operator: metav1.LabelSelectorOpNotIn, Values: []string{surge.Replaces}},
		}
	} else {
		term.LabelSelector.MatchExpressions = []metav1.LabelSelectorRequirement{
			{Key: v1alpha1.LabelSettled, Operator: metav1.LabelSelectorOpExists},
		}
	}
	anti := &corev1.PodAntiAffinity{}
	if shard.Spec.Template.Scheduling.AllowSharedNodes {
		anti.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: term}}
	} else {
		anti.RequiredDuringSchedulingIgnoredDuringExecution = []corev1.PodAffinityTerm{term}
	}
	return &corev1.Affinity{PodAntiAffinity: anti, NodeAffinity: surge.nodes()}
}

// Weights of an instance's wishes: the zones stay balanced first, then a node that goes soon for its age is no good place,
// then for a surge another node is better than the same.
const (
	zoneWeight  = 100
	agingWeight = 50
	nodeWeight  = 10
)

// nodes is where an instance should and should not go.
func (s *Surge) nodes() *corev1.NodeAffinity {
	a := &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
		Weight: agingWeight, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: v1alpha1.LabelAging, Operator: corev1.NodeSelectorOpDoesNotExist},
		}},
	}}}
	if s == nil || s.Node == "" {
		return a
	}
	elsewhere := corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{
		{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpNotIn, Values: []string{s.Node}},
	}}
	if s.Avoid {
		a.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{elsewhere}}
	} else {
		a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution,
			corev1.PreferredSchedulingTerm{Weight: nodeWeight, Preference: elsewhere})
	}
	if s.Zone != "" {
		a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution, corev1.PreferredSchedulingTerm{
			Weight: zoneWeight, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{s.Zone}},
			}},
		})
	}
	return a
}

// spread over zones as evenly as can be, but run in one zone rather than not at all.
func spread(selector map[string]string) []corev1.TopologySpreadConstraint {
	return []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector: &metav1.LabelSelector{MatchLabels: selector},
	}}
}

func secretVolume(name, secret string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: secret, DefaultMode: ptr.To(int32(0o440))},
	}}
}

func memoryVolume(name, limit string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr.To(resource.MustParse(limit))},
	}}
}

// nodeZone reads the zone from a node's labels.
func nodeZone(node *corev1.Node) string { return node.Labels[corev1.LabelTopologyZone] }

// Patience with containers that do not start: what a registry or a crash may yet heal by itself.
const (
	pullPatience  = 2 * time.Minute
	crashPatience = 3 // restarts
)

// broken says why the Pod will never run as it is; empty while it may.
func broken(pod *corev1.Pod, now time.Time) string {
	for _, cs := range pod.Status.ContainerStatuses {
		w := cs.State.Waiting
		if w == nil {
			continue
		}
		old := now.Sub(pod.CreationTimestamp.Time) >= pullPatience
		switch {
		case w.Reason == "InvalidImageName", w.Reason == "ErrImageNeverPull",
			(w.Reason == "ImagePullBackOff" || w.Reason == "ErrImagePull") && old,
			w.Reason == "CreateContainerConfigError" && old,
			w.Reason == "CrashLoopBackOff" && cs.RestartCount >= crashPatience:
			return fmt.Sprintf("%s: %s", w.Reason, w.Message)
		}
	}
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return strings.TrimSpace("its Pod has ended: " + waitingMessage(pod))
	}
	return ""
}

// waitingMessage says why a Pod's container does not run.
func waitingMessage(pod *corev1.Pod) string {
	for _, cs := range pod.Status.ContainerStatuses {
		if w := cs.State.Waiting; w != nil && w.Reason != "" && w.Reason != "ContainerCreating" {
			return fmt.Sprintf("%s: %s", w.Reason, w.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("%s: %s", c.Reason, c.Message)
		}
	}
	if pod.Status.Reason != "" {
		return fmt.Sprintf("%s: %s", pod.Status.Reason, pod.Status.Message)
	}
	return ""
}
