package patroni

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/internal/labkit"
)

// cluster is the answer of Patroni's /cluster.
type cluster struct {
	Members []clusterMember `json:"members"`
}

// clusterMember is one member as Patroni sees it. Lag is in bytes, or the word "unknown".
type clusterMember struct {
	Name     string          `json:"name"`
	Role     string          `json:"role"`
	State    string          `json:"state"`
	Timeline int64           `json:"timeline"`
	Lag      json.RawMessage `json:"lag"`
}

// bytesBehind is the member's lag; false when it is not known.
func (m clusterMember) bytesBehind() (int64, bool) {
	var lag int64
	return lag, json.Unmarshal(m.Lag, &lag) == nil
}

// mostLag is how many bytes a standby that is fit to take over may be behind. Under load it is never quite 0.
const mostLag = 1 << 20

// ailing lists what keeps a cluster from being healthy: three members, one of them the leader, the others streaming on
// its timeline, one of these synchronous. Members that are at fault by themselves come by name.
func (c cluster) ailing(members []string) (why string, sick []string) {
	byName := map[string]clusterMember{}
	var leader *clusterMember
	synchronous := 0
	for i, m := range c.Members {
		byName[m.Name] = m
		switch m.Role {
		case "leader":
			leader = &c.Members[i]
		case "sync_standby", "quorum_standby":
			synchronous++
		}
	}
	if leader == nil || leader.State != "running" {
		return "no running leader", nil
	}
	for _, name := range members {
		m, there := byName[name]
		lag, known := m.bytesBehind()
		switch {
		case name == leader.Name:
		case !there:
			sick = append(sick, name)
			why += name + " is no member; "
		case m.State != "streaming":
			sick = append(sick, name)
			why += fmt.Sprintf("%s is %s; ", name, m.State)
		case m.Timeline != leader.Timeline:
			sick = append(sick, name)
			why += fmt.Sprintf("%s is on timeline %d, not %d; ", name, m.Timeline, leader.Timeline)
		case !known || lag > mostLag:
			sick = append(sick, name)
			why += fmt.Sprintf("%s is %s bytes behind; ", name, m.Lag)
		}
	}
	if why == "" && synchronous == 0 {
		why = "no standby is synchronous"
	}
	return why, sick
}

// WaitHealthy implements trial.System. Members whose Pod is missing or whose node is gone get a fresh volume at once;
// members that do not come back by themselves get one after a while.
func (p *Patroni) WaitHealthy(ctx context.Context) error {
	since := map[string]time.Time{}
	return labkit.Poll(ctx, 500*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		if err := p.replaceLost(ctx); err != nil {
			return false, err.Error(), nil
		}
		why, sick := p.look(ctx)
		now := time.Now()
		for name := range since {
			if !slices.Contains(sick, name) {
				delete(since, name)
			}
		}
		for _, name := range sick {
			if since[name].IsZero() {
				since[name] = now
			}
			if now.Sub(since[name]) > p.stuckAfter {
				delete(since, name)
				p.kit.Out("    " + name + " does not come back (" + why + "): given a fresh volume")
				if err := p.recreate(ctx, name); err != nil {
					return false, err.Error(), nil
				}
			}
		}
		return why == "", why, nil
	})
}

// look asks the leader how the cluster is.
func (p *Patroni) look(ctx context.Context) (why string, sick []string) {
	leader, err := p.Primary(ctx)
	if err != nil {
		return err.Error(), nil
	}
	asking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	data, err := p.call(asking, "GET", leader.Name, "cluster", nil)
	if err != nil {
		return err.Error(), nil
	}
	var c cluster
	if err := json.Unmarshal(data, &c); err != nil {
		return err.Error(), nil
	}
	if why, sick = c.ailing(names()); why != "" {
		return why, sick
	}
	return p.endpoint(ctx, leader.Name), nil
}

// endpoint says what is wrong with the Service's endpoint: it must be the leader.
func (p *Patroni) endpoint(ctx context.Context, leader string) string {
	pod, err := p.api.CoreV1().Pods(p.namespace()).Get(ctx, leader, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	//nolint:staticcheck // Endpoints are what Patroni uses.
	e, err := p.api.CoreV1().Endpoints(p.namespace()).Get(ctx, scope, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	if len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != 1 || e.Subsets[0].Addresses[0].IP != pod.Status.PodIP {
		return "the Service does not point at the leader yet"
	}
	return ""
}

// replaceLost makes the members anew whose Pod or node does not exist.
func (p *Patroni) replaceLost(ctx context.Context) error {
	nodes := &corev1.NodeList{}
	if err := p.kit.Client.List(ctx, nodes); err != nil {
		return err
	}
	pods, err := p.pods(ctx)
	if err != nil {
		return err
	}
	for _, name := range names() {
		i := slices.IndexFunc(pods, func(pod corev1.Pod) bool { return pod.Name == name })
		if i >= 0 && (pods[i].Spec.NodeName == "" || slices.ContainsFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == pods[i].Spec.NodeName })) {
			continue
		}
		if err := p.recreate(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// recreate replaces a member and its volume.
func (p *Patroni) recreate(ctx context.Context, name string) error {
	meta := metav1.ObjectMeta{Namespace: p.namespace(), Name: name}
	pod, claim := &corev1.Pod{ObjectMeta: meta}, &corev1.PersistentVolumeClaim{ObjectMeta: meta}
	if err := p.delete(ctx, pod, claim); err != nil {
		return err
	}
	return p.apply(ctx, member, name)
}

// delete removes objects without grace and waits until they are gone.
func (p *Patroni) delete(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		if err := p.kit.Client.Delete(ctx, o, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return labkit.Poll(ctx, 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		for _, o := range objects {
			if err := p.kit.Client.Get(ctx, client.ObjectKeyFromObject(o), o); !apierrors.IsNotFound(err) {
				return false, fmt.Sprintf("%T %s is still there", o, o.GetName()), client.IgnoreNotFound(err)
			}
		}
		return true, "", nil
	})
}
