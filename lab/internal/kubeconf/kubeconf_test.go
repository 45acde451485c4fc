package kubeconf

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"theseus.dev/theseus/lab/internal/pki"
	"theseus.dev/theseus/lab/internal/plan"
)

func parsed(t *testing.T, text string) map[string]any {
	t.Helper()
	var out map[string]any
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), &out), text)
	return out
}

func TestKubeletConfig(t *testing.T) {
	c := parsed(t, KubeletConfig{CgroupRoot: "/theseus-lab/x/node-a"}.Render())
	require.Equal(t, "/theseus-lab/x/node-a", c["cgroupRoot"])
	require.Equal(t, "2s", c["nodeStatusUpdateFrequency"])
	require.EqualValues(t, 8, c["nodeLeaseDurationSeconds"])
	require.Equal(t, []any{plan.DNS.String()}, c["clusterDNS"])
	require.NotContains(t, c, "systemReserved")
	for _, threshold := range c["evictionHard"].(map[string]any) {
		require.Equal(t, "0%", threshold)
	}

	c = parsed(t, KubeletConfig{ReservedCPU: "500m", ReservedMemory: "22Gi"}.Render())
	require.Equal(t, map[string]any{"cpu": "500m", "memory": "22Gi"}, c["systemReserved"])
	c = parsed(t, KubeletConfig{ReservedMemory: "1Gi"}.Render())
	require.Equal(t, map[string]any{"memory": "1Gi"}, c["systemReserved"])
}

func TestALeaseIsRenewedSeveralTimesBeforeItsNodeIsGivenUp(t *testing.T) {
	// A kubelet renews four times per lease; losing one must not cost the node.
	require.Less(t, 2*(LeaseFor/4), NotReadyAfter)
	require.LessOrEqual(t, LeaseFor, NotReadyAfter)
}

func TestProxyConfigLeavesSharedKernelLimitsAlone(t *testing.T) {
	c := parsed(t, ProxyConfig("node-a"))
	require.Equal(t, "node-a", c["hostnameOverride"])
	require.Equal(t, "nftables", c["mode"])
	conntrack := c["conntrack"].(map[string]any)
	require.EqualValues(t, 0, conntrack["maxPerCore"])
	require.EqualValues(t, 0, conntrack["min"])
}

func TestCNIConfigIsJSONWithTheNodesRange(t *testing.T) {
	pods, err := plan.PodRange(7)
	require.NoError(t, err)
	c := parsed(t, CNIConfig(pods.String())) // JSON is YAML
	require.Contains(t, CNIConfig(pods.String()), `"subnet": "10.128.7.0/24"`)
	require.Len(t, c["plugins"], 1)
}

func TestKubeconfigIsComplete(t *testing.T) {
	a, err := pki.LoadAuthority(t.TempDir(), "cluster", fixedNow)
	require.NoError(t, err)
	p, err := a.Sign(pki.Request{CommonName: "admin", Groups: []string{"system:masters"}})
	require.NoError(t, err)
	cfg, err := clientcmd.RESTConfigFromKubeConfig([]byte(Kubeconfig("https://127.0.0.1:16443", a.Cert, p)))
	require.NoError(t, err)
	require.Equal(t, "https://127.0.0.1:16443", cfg.Host)
	require.Equal(t, p.Key, cfg.KeyData)
	require.Equal(t, a.Cert, cfg.CAData)
}

func TestServicesStartInOrderAndWaitForWhatTheyNeed(t *testing.T) {
	control := ControlPlaneServices()
	require.Equal(t, "etcd", control[0].Name)
	require.Empty(t, control[0].WaitFor)
	for _, s := range control[1:] {
		host, _, ok := strings.Cut(s.WaitFor, ":")
		require.True(t, ok, s.Name)
		_, err := netip.ParseAddr(host)
		require.NoError(t, err, s.Name)
	}
	node := NodeServices("node-a", "z2", "172.30.1.1")
	require.Equal(t, "containerd", node[0].Name, "the image store boots the first one alone")
	var kubelet []string
	for _, s := range node {
		if s.Name == "kubelet" {
			kubelet = s.Argv
			require.Equal(t, "/run/containerd/containerd.sock", s.WaitFor)
		}
	}
	require.Contains(t, kubelet, "--node-ip=172.30.1.1")
	require.Contains(t, strings.Join(kubelet, " "), "topology.kubernetes.io/zone=z2")
}

func TestNamesOutsideTheClusterDoNotExist(t *testing.T) {
	require.Contains(t, Corefile(), "NXDOMAIN")
	require.Contains(t, Resolv(), "nameserver 169.254.20.10\n")
	require.NotContains(t, Corefile(), "forward")
}

func fixedNow() time.Time { return time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC) }
