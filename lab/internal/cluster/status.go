package cluster

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

// Status prints what the lab consists of and how it is. It fails when the lab
// is not up.
func (c *Cluster) Status(ctx context.Context, out io.Writer) error {
	lab, err := c.store.Load()
	if err != nil {
		return err
	}
	c.state = lab
	if len(lab.Machines) == 0 {
		return c.notUp()
	}
	fmt.Fprintf(out, "lab            %s\n", c.name)
	fmt.Fprintf(out, "control plane  %s\n", c.controlPlaneStatus(ctx))
	daemon := "running"
	if !lab.Daemon.Alive() {
		daemon = "dead: `lab up` restarts it"
	}
	fmt.Fprintf(out, "daemon         %s\n", daemon)
	fmt.Fprintf(out, "API            https://127.0.0.1:%d\n", lab.APIPort)
	fmt.Fprintf(out, "kubeconfig     %s\n", c.KubeconfigPath())
	fmt.Fprintf(out, "machines       %s (from inside)\n", MachineWebhook())
	fmt.Fprintf(out, "logs           %s/NODE/log\n", c.store.Dir("machines"))
	for _, cut := range lab.Cuts {
		fmt.Fprintf(out, "cut            %s\n", describeCut(cut))
	}
	fmt.Fprintln(out)
	return c.printNodes(ctx, out)
}

func describeCut(c state.Cut) string {
	name := func(m string) string {
		if m == state.Everyone {
			return "everyone"
		}
		return m
	}
	return name(c.From) + " -> " + name(c.To)
}

func (c *Cluster) controlPlaneStatus(ctx context.Context) string {
	m := c.state.Machine(plan.ControlPlaneName)
	switch {
	case m == nil:
		return "not made"
	case m.Phase == state.Stopped:
		return "stopped"
	case !m.Init.Alive():
		return "dead: `lab up` restarts it"
	}
	client, err := c.client()
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return "running, API not ready: " + err.Error()
	}
	return "ready"
}

// NodeList prints the nodes.
func (c *Cluster) NodeList(ctx context.Context, out io.Writer) error {
	lab, err := c.store.Load()
	if err != nil {
		return err
	}
	c.state = lab
	return c.printNodes(ctx, out)
}

func (c *Cluster) printNodes(ctx context.Context, out io.Writer) error {
	conditions := c.readiness(ctx)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tZONE\tADDRESS\tMACHINE\tNODE\tAGE")
	for _, m := range c.state.Nodes() {
		addr, err := plan.NodeAddress(m.Index)
		if err != nil {
			return err
		}
		ready, ok := conditions[m.Name]
		if !ok {
			ready = "unknown"
		}
		age := c.clock.Since(m.Created).Round(time.Second)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, m.Zone, addr, describe(m, c.state.Cuts), ready, age)
	}
	return w.Flush()
}

// describe says in a word or two what is the matter with a machine.
func describe(m *state.Machine, cuts []state.Cut) string {
	if m.Phase != state.Running {
		return string(m.Phase)
	}
	if !m.Init.Alive() {
		return "dead"
	}
	words := []string{}
	if m.Frozen {
		words = append(words, "frozen")
	}
	if slices.ContainsFunc(cuts, func(c state.Cut) bool { return c.From == m.Name || c.To == m.Name }) {
		words = append(words, "cut")
	}
	if len(words) == 0 {
		return "running"
	}
	return strings.Join(words, ",")
}

// readiness asks the API what it thinks of each node; nothing when it is away.
func (c *Cluster) readiness(ctx context.Context) map[string]string {
	result := map[string]string{}
	if c.needControlPlane() != nil {
		return result
	}
	client, err := c.client()
	if err != nil {
		return result
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return result
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		result[n.Name] = "NotReady"
		if ready, _ := nodeReady(n); ready {
			result[n.Name] = string(corev1.NodeReady)
		}
	}
	return result
}

// Kubeconfig is the path of the kubeconfig for the host; it fails when the lab
// is not up.
func (c *Cluster) Kubeconfig() (string, error) {
	lab, err := c.store.Load()
	if err != nil {
		return "", err
	}
	if lab.Machine(plan.ControlPlaneName) == nil {
		return "", c.notUp()
	}
	return c.KubeconfigPath(), nil
}
