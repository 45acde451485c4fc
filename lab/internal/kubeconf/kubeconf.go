// Package kubeconf renders what the components of Kubernetes are told: their
// arguments and configuration files. It is pure; the choices the lab makes are
// here, each with its reason.
package kubeconf

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"theseus.dev/theseus/lab/internal/initd"
	"theseus.dev/theseus/lab/internal/pki"
	"theseus.dev/theseus/lab/internal/plan"
)

// Failure detection. A dead node is NotReady about 10 s after its last word
// rather than the 50 s of a stock cluster, so that tests of failures are short.
const (
	StatusEvery   = 2 * time.Second
	LeaseFor      = 8 * time.Second
	NotReadyAfter = 10 * time.Second
)

// PauseImage is the image that holds a Pod's namespaces; the lab makes it itself.
const PauseImage = "theseus.dev/lab/pause:1"

func at(file string) string  { return initd.MachineDir + "/" + file }
func bin(name string) string { return initd.BinDir + "/" + name }

// APIServerURL is how machines of the lab reach the API.
func APIServerURL() string { return fmt.Sprintf("https://%s:%d", plan.ControlPlane, plan.APIPort) }

// ControlPlaneServices are the processes of the control plane, in order of start.
// They find their files in the machine's directory under pki/ and beside it.
func ControlPlaneServices() []initd.Service {
	return []initd.Service{
		{Name: "etcd", Argv: etcd()},
		{Name: "kube-apiserver", Argv: apiServer(), WaitFor: "127.0.0.1:2379"},
		{Name: "kube-controller-manager", Argv: controllerManager(), WaitFor: plan.ControlPlane.String() + ":6443"},
		{Name: "kube-scheduler", Argv: []string{
			bin("kube-scheduler"),
			"--kubeconfig=" + at("scheduler.kubeconfig"),
			"--leader-elect=false",
			"--bind-address=127.0.0.1",
		}, WaitFor: plan.ControlPlane.String() + ":6443"},
	}
}

func etcd() []string {
	return []string{
		bin("etcd"),
		"--name=lab",
		"--data-dir=" + at("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		// A killed process leaves its writes in the page cache, and a lab does
		// not outlive the machine: fsync would only slow the disk under test.
		"--unsafe-no-fsync",
		"--log-level=warn",
	}
}

func apiServer() []string {
	return []string{
		bin("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=" + plan.ControlPlane.String(),
		"--advertise-address=" + plan.ControlPlane.String(),
		fmt.Sprintf("--secure-port=%d", plan.APIPort),
		"--service-cluster-ip-range=" + plan.ServiceNet.String(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--client-ca-file=" + at("pki/cluster.crt"),
		"--tls-cert-file=" + at("pki/apiserver.crt"),
		"--tls-private-key-file=" + at("pki/apiserver.key"),
		"--kubelet-certificate-authority=" + at("pki/cluster.crt"),
		"--kubelet-client-certificate=" + at("pki/kubelet-client.crt"),
		"--kubelet-client-key=" + at("pki/kubelet-client.key"),
		// Node names do not resolve here, addresses do.
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + plan.ClusterDomain,
		"--service-account-key-file=" + at("pki/service-accounts.key"),
		"--service-account-signing-key-file=" + at("pki/service-accounts.key"),
		"--requestheader-client-ca-file=" + at("pki/front-proxy.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + at("pki/front-proxy-client.crt"),
		"--proxy-client-key-file=" + at("pki/front-proxy-client.key"),
		// There is no kube-proxy beside the API server: it finds the Pods
		// behind webhooks and aggregated APIs itself.
		"--enable-aggregator-routing=true",
		"--profiling=false",
	}
}

func controllerManager() []string {
	return []string{
		bin("kube-controller-manager"),
		"--kubeconfig=" + at("controller-manager.kubeconfig"),
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		// Ranges of Pod addresses follow from a node's index, see package plan.
		"--controllers=*,-nodeipam",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + at("pki/service-accounts.key"),
		"--root-ca-file=" + at("pki/cluster.crt"),
		"--cluster-signing-cert-file=" + at("pki/cluster.crt"),
		"--cluster-signing-key-file=" + at("pki/cluster.key"),
		// At the stock 20 requests a second the controllers spend their first
		// six seconds making their own service accounts.
		"--kube-api-qps=200",
		"--kube-api-burst=400",
		"--node-monitor-period=1s",
		"--node-monitor-grace-period=" + NotReadyAfter.String(),
	}
}

// NodeServices are the processes of a node, in order of start.
func NodeServices(name, zone, address string) []initd.Service {
	return []initd.Service{
		{Name: "containerd", Argv: []string{bin("containerd"), "--config=" + at("containerd.toml")}},
		DNSService(),
		{Name: "kubelet", WaitFor: "/run/containerd/containerd.sock", Argv: []string{
			bin("kubelet"),
			"--config=" + at("kubelet.yaml"),
			"--kubeconfig=" + at("kubelet.kubeconfig"),
			"--hostname-override=" + name,
			"--node-ip=" + address,
			"--node-labels=topology.kubernetes.io/zone=" + zone + ",topology.kubernetes.io/region=lab",
		}},
		{Name: "kube-proxy", Argv: []string{bin("kube-proxy"), "--config=" + at("kube-proxy.yaml")}},
	}
}

// DNSService is the cluster's DNS as every machine runs it for itself: names
// resolve as long as the machine lives, whatever happens to others.
func DNSService() initd.Service {
	return initd.Service{Name: "coredns", Argv: []string{bin("coredns"), "-conf=" + at("Corefile")}}
}

// Corefile configures DNS. Names outside the cluster do not exist; saying so at
// once keeps programs from waiting for servers that cannot be reached.
func Corefile() string {
	return fmt.Sprintf(`.:53 {
	bind %s
	ready 127.0.0.1:8181
	errors
	loadbalance round_robin
	kubernetes %s in-addr.arpa ip6.arpa {
		kubeconfig %s
		pods insecure
		fallthrough in-addr.arpa ip6.arpa
		ttl 5
	}
	template ANY ANY . {
		rcode NXDOMAIN
	}
}
`, plan.DNS, plan.ClusterDomain, at("dns.kubeconfig"))
}

// Resolv is the resolv.conf of a program that is to see the cluster's names.
func Resolv() string {
	return fmt.Sprintf("nameserver %s\nsearch default.svc.%[2]s svc.%[2]s %[2]s\noptions ndots:5\n", plan.DNS, plan.ClusterDomain)
}

// ContainerdConfig configures containerd; 1.6 and later read this version.
func ContainerdConfig() string {
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
# Needs a capability that machines in a sandbox do not have.
oom_score = 0

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  # The kernel refuses to lower a process' OOM score without CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, PauseImage, bin("cni"), at("cni"))
}

// CNIConfig gives every Pod a point-to-point link to its node and an address of
// the node's range. Without a bridge every packet is routed, so rules for
// Services see them all, also those between two Pods of one node.
func CNIConfig(podRange string) string {
	return fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [{
    "type": "ptp",
    "ipMasq": false,
    "mtu": 1500,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": %q}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
`, podRange)
}

// KubeletConfig configures a kubelet.
type KubeletConfig struct {
	// CgroupRoot is the machine's control group.
	CgroupRoot string
	// ReservedCPU and ReservedMemory are quantities kept from Pods; empty for none.
	ReservedCPU    string
	ReservedMemory string
}

// Render writes the kubelet's configuration file.
func (k KubeletConfig) Render() string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[1]s}
authorization: {mode: Webhook}
tlsCertFile: %[2]s
tlsPrivateKeyFile: %[3]s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDomain: %[4]s
clusterDNS: [%[5]s]
resolvConf: /etc/resolv.conf
cgroupDriver: cgroupfs
cgroupRoot: %[6]s
failCgroupV1: false
failSwapOn: false
# All nodes share one disk and one memory: were they to evict Pods when it runs
# low, all would at once. Volumes have their own file systems and limits.
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%"}
imageGCHighThresholdPercent: 100
maxPods: 110
registerNode: true
nodeStatusUpdateFrequency: %[7]s
# Without this every update is sent, changed or not; leases are heartbeat enough.
nodeStatusReportFrequency: 5m
nodeLeaseDurationSeconds: %[8]d
serializeImagePulls: false
`, at("pki/cluster.crt"), at("pki/kubelet.crt"), at("pki/kubelet.key"), plan.ClusterDomain, plan.DNS,
		k.CgroupRoot, StatusEvery, int(LeaseFor.Seconds()))
	if k.ReservedCPU != "" || k.ReservedMemory != "" {
		b.WriteString("systemReserved:\n")
		if k.ReservedCPU != "" {
			fmt.Fprintf(&b, "  cpu: %q\n", k.ReservedCPU)
		}
		if k.ReservedMemory != "" {
			fmt.Fprintf(&b, "  memory: %q\n", k.ReservedMemory)
		}
	}
	return b.String()
}

// ProxyConfig configures kube-proxy. Zeros leave the kernel's connection
// tracking limits alone: they are shared with the host.
func ProxyConfig(node string) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %s
clusterCIDR: %s
clientConnection: {kubeconfig: %s}
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, node, plan.PodNet, at("kube-proxy.kubeconfig"))
}

// MaskedSysctls are kernel-wide settings the kubelet wants to make. On a node
// of the lab it makes them to plain files with the values it wants to see.
func MaskedSysctls() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
}

// Kubeconfig renders a kubeconfig that carries its certificates inside.
func Kubeconfig(server string, authority []byte, client pki.Pair) string {
	enc := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: lab
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: lab
  context: {cluster: lab, user: lab}
current-context: lab
`, server, enc(authority), enc(client.Cert), enc(client.Key))
}
