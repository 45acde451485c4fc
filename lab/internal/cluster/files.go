package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"theseus.dev/theseus/lab/internal/kubeconf"
	"theseus.dev/theseus/lab/internal/pki"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

func (c *Cluster) pkiDir() string             { return c.store.Dir("pki") }
func (c *Cluster) internalKubeconfig() string { return c.store.Dir("kubeconfig-inside") }

// clientResolv is the resolv.conf of the client's programs. It is written once, when the client boots: a file that is
// replaced while another program is being given it cannot be mounted.
func (c *Cluster) clientResolv() string { return c.store.Dir("resolv.conf") }

// KubeconfigPath is the kubeconfig for programs on the host.
func (c *Cluster) KubeconfigPath() string { return c.store.Dir("kubeconfig") }

func (c *Cluster) authority() (*pki.Authority, error) {
	return pki.LoadAuthority(c.pkiDir(), "cluster", c.clock.Now)
}

// files is a set of files to write, by path below a directory.
type files map[string][]byte

func (f files) write(dir string) error {
	for name, content := range f {
		if err := state.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (f files) pair(name string, p pki.Pair) {
	f[name+".crt"], f[name+".key"] = p.Cert, p.Key
}

// kubeconfigFor signs a client certificate and puts it into a kubeconfig.
func kubeconfigFor(a *pki.Authority, server, user string, groups ...string) ([]byte, error) {
	p, err := a.Sign(pki.Request{CommonName: user, Groups: groups})
	if err != nil {
		return nil, err
	}
	return []byte(kubeconf.Kubeconfig(server, a.Cert, p)), nil
}

// writeAdminFiles writes the kubeconfigs for people: one for the host, through
// the loopback port, and one for inside the lab. Existing ones are kept.
func (c *Cluster) writeAdminFiles() error {
	a, err := c.authority()
	if err != nil {
		return err
	}
	port, err := c.apiPort()
	if err != nil {
		return err
	}
	for path, server := range map[string]string{
		c.KubeconfigPath():     "https://127.0.0.1:" + strconv.Itoa(port),
		c.internalKubeconfig(): kubeconf.APIServerURL(),
	} {
		if _, err := os.Stat(path); err == nil {
			continue
		}
		b, err := kubeconfigFor(a, server, "admin", "system:masters")
		if err != nil {
			return err
		}
		if err := state.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// apiPort is the loopback port of this lab, chosen once while it is free.
func (c *Cluster) apiPort() (int, error) {
	if c.state.APIPort != 0 {
		return c.state.APIPort, nil
	}
	first := plan.PreferredPort(c.name)
	for port := first; port < first+100; port++ {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		_ = l.Close()
		return port, c.update(func(s *state.Lab) { s.APIPort = port })
	}
	return 0, fmt.Errorf("no port between %d and %d is free on 127.0.0.1", first, first+99)
}

// writeControlPlaneFiles writes certificates and kubeconfigs of the control
// plane. They are made anew at every start; the authorities behind them stay.
func (c *Cluster) writeControlPlaneFiles() error {
	a, err := c.authority()
	if err != nil {
		return err
	}
	front, err := pki.LoadAuthority(c.pkiDir(), "front-proxy", c.clock.Now)
	if err != nil {
		return err
	}
	accounts, err := pki.LoadKey(c.pkiDir(), "service-accounts")
	if err != nil {
		return err
	}
	domain := "kubernetes.default.svc." + plan.ClusterDomain
	server, err := a.Sign(pki.Request{
		CommonName: "kube-apiserver",
		Names:      []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", domain},
		Addresses:  []netip.Addr{netip.MustParseAddr("127.0.0.1"), plan.ControlPlane, plan.APIService},
	})
	if err != nil {
		return err
	}
	toKubelets, err := a.Sign(pki.Request{CommonName: "kube-apiserver", Groups: []string{"system:masters"}})
	if err != nil {
		return err
	}
	toServers, err := front.Sign(pki.Request{CommonName: "front-proxy-client"})
	if err != nil {
		return err
	}
	f := files{"pki/service-accounts.key": accounts, "pki/front-proxy.crt": front.Cert}
	f.pair("pki/cluster", a.Pair)
	f.pair("pki/apiserver", server)
	f.pair("pki/kubelet-client", toKubelets)
	f.pair("pki/front-proxy-client", toServers)
	for file, user := range map[string]string{
		"controller-manager.kubeconfig": "system:kube-controller-manager",
		"scheduler.kubeconfig":          "system:kube-scheduler",
	} {
		if f[file], err = kubeconfigFor(a, kubeconf.APIServerURL(), user); err != nil {
			return err
		}
	}
	return f.write(c.store.MachineDir(plan.ControlPlaneName))
}

// writeNodeFiles writes everything a node's services read.
func (c *Cluster) writeNodeFiles(m *state.Machine) error {
	a, err := c.authority()
	if err != nil {
		return err
	}
	addr, err := plan.NodeAddress(m.Index)
	if err != nil {
		return err
	}
	user := "system:node:" + m.Name
	serving, err := a.Sign(pki.Request{CommonName: user, Groups: []string{"system:nodes"}, Names: []string{m.Name}, Addresses: []netip.Addr{addr}})
	if err != nil {
		return err
	}
	kubelet := kubeconf.KubeletConfig{CgroupRoot: plan.Cgroup(c.name, m.Name)}
	if kubelet.ReservedCPU, kubelet.ReservedMemory, err = reservations(m.CPU, m.Memory); err != nil {
		return err
	}
	pods, err := plan.PodRange(m.Index)
	if err != nil {
		return err
	}
	f := files{
		"pki/cluster.crt":  a.Cert,
		"cni/lab.conflist": []byte(kubeconf.CNIConfig(pods.String())),
		"containerd.toml":  []byte(kubeconf.ContainerdConfig()),
		"kubelet.yaml":     []byte(kubelet.Render()),
		"kube-proxy.yaml":  []byte(kubeconf.ProxyConfig(m.Name)),
		"Corefile":         []byte(kubeconf.Corefile()),
	}
	f.pair("pki/kubelet", serving)
	if f["kubelet.kubeconfig"], err = kubeconfigFor(a, kubeconf.APIServerURL(), user, "system:nodes"); err != nil {
		return err
	}
	if f["kube-proxy.kubeconfig"], err = kubeconfigFor(a, kubeconf.APIServerURL(), "system:kube-proxy"); err != nil {
		return err
	}
	if f["dns.kubeconfig"], err = kubeconfigFor(a, kubeconf.APIServerURL(), dnsUser); err != nil {
		return err
	}
	return f.write(c.store.MachineDir(m.Name))
}

func (c *Cluster) writeClientFiles() error {
	a, err := c.authority()
	if err != nil {
		return err
	}
	dns, err := kubeconfigFor(a, kubeconf.APIServerURL(), dnsUser)
	if err != nil {
		return err
	}
	if err := state.WriteFile(c.clientResolv(), []byte(kubeconf.Resolv()), 0o644); err != nil {
		return err
	}
	return files{"Corefile": []byte(kubeconf.Corefile()), "dns.kubeconfig": dns}.write(c.store.MachineDir(plan.ClientName))
}

// reservations turns what a node is to offer into what must be kept back from
// what this computer has. Offering more than there is cannot be had.
func reservations(cpu, memory string) (reservedCPU, reservedMemory string, err error) {
	if cpu != "" {
		all := *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
		if reservedCPU, err = keepBack(all, cpu, "CPU"); err != nil {
			return "", "", err
		}
	}
	if memory != "" {
		total, err := memTotal()
		if err != nil {
			return "", "", err
		}
		if reservedMemory, err = keepBack(*resource.NewQuantity(total, resource.BinarySI), memory, "memory"); err != nil {
			return "", "", err
		}
	}
	return reservedCPU, reservedMemory, nil
}

func keepBack(all resource.Quantity, want, what string) (string, error) {
	q, err := resource.ParseQuantity(want)
	if err != nil || q.Sign() <= 0 {
		return "", fmt.Errorf("%s %q of a node: use a positive quantity such as 1500m or 2Gi", what, want)
	}
	if q.Cmp(all) > 0 {
		return "", fmt.Errorf("a node cannot offer %s of %s: this computer has %s", want, what, all.String())
	}
	all.Sub(q)
	return all.String(), nil
}

func memTotal() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var kib int64
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err != nil {
		return 0, fmt.Errorf("read the size of memory: %w", err)
	}
	return kib << 10, nil
}

// serviceGrace and controlPlaneGrace bound orderly stops; the supervisor inside
// gives each service its own share.
const (
	serviceGrace      = 3 * time.Second
	controlPlaneGrace = 15 * time.Second
)
