package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

// bootLimit bounds how long any part of the cluster may take to get ready. It
// takes seconds on a machine that has nothing else to do.
const bootLimit = 3 * time.Minute

// requestLimit bounds every single request to the API.
const requestLimit = 10 * time.Second

// client talks to the API from inside the control plane's network, so that it
// works whether or not the daemon forwards the loopback port.
func (c *Cluster) client() (*kubernetes.Clientset, error) {
	b, err := os.ReadFile(c.internalKubeconfig())
	if err != nil {
		return nil, c.notUp()
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig(b)
	if err != nil {
		return nil, err
	}
	cfg.Timeout = requestLimit
	cfg.QPS = -1 // it polls, on purpose, and has the server to itself
	cfg.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		return network.Dial(ctx, c.name, plan.ControlPlaneName, address)
	}
	return kubernetes.NewForConfig(cfg)
}

func (c *Cluster) notUp() error {
	return fmt.Errorf("lab %q is not up: run `lab up`", c.name)
}

// needControlPlane fails when the API cannot be there.
func (c *Cluster) needControlPlane() error {
	m := c.state.Machine(plan.ControlPlaneName)
	switch {
	case m == nil || m.Phase == state.Creating:
		return c.notUp()
	case m.Phase == state.Stopped:
		return errors.New("the control plane is stopped: run `lab control-plane start` first")
	case !m.Init.Alive():
		return errors.New("the control plane has died: run `lab up` to restart it")
	}
	return nil
}

func (c *Cluster) awaitAPI(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.await(ctx, "the API server is ready", bootLimit, func(ctx context.Context) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// awaitControllers waits for the one thing whose absence shows that controllers
// do not work although everything else looks well.
func (c *Cluster) awaitControllers(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.await(ctx, "controllers work", bootLimit, func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// awaitNode waits until the node reports that it is ready for Pods.
func (c *Cluster) awaitNode(ctx context.Context, name string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.await(ctx, "node "+name+" is Ready", bootLimit, func(ctx context.Context) error {
		n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if ready, why := nodeReady(n); !ready {
			return errors.New(why)
		}
		return nil
	})
}

func nodeReady(n *corev1.Node) (ready bool, why string) {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue, cond.Reason + ": " + cond.Message
		}
	}
	return false, "it has not reported yet"
}

// awaitDNS waits until the DNS of a machine has seen the cluster.
func (c *Cluster) awaitDNS(ctx context.Context, name string) error {
	return c.await(ctx, "DNS on "+name+" is ready", bootLimit, func(ctx context.Context) error {
		conn, err := network.Dial(ctx, c.name, name, "127.0.0.1:8181")
		if err != nil {
			return err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline)
		}
		if _, err := conn.Write([]byte("GET /ready HTTP/1.0\r\n\r\n")); err != nil {
			return err
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if line := string(buf[:n]); len(line) < 12 || line[9:12] != "200" {
			return errors.New("it does not know the cluster yet")
		}
		return nil
	})
}

// deleteNodeObject removes a Node from the API; one that is not there is fine.
func (c *Cluster) deleteNodeObject(ctx context.Context, name string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	err = client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the Node %s: %w", name, err)
	}
	return nil
}

// dnsUser is who DNS and the client's Service rules are to the API.
const dnsUser = "theseus-lab:dns"

// grant lets DNS read what it serves.
func (c *Cluster) grant(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: dnsUser},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "namespaces", "pods", "endpoints"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: dnsUser},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: dnsUser},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: dnsUser}},
	}
	if _, err := client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("let DNS read Services: %w", err)
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("let DNS read Services: %w", err)
	}
	return nil
}
