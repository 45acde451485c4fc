// Package gateways removes gateways that were lost with their machine, and replicas of the operator that were.
//
// A machine that loses power says nothing: for as long as its node counts as ready (40 s by default) the Service goes on
// sending every second new connection to the gateway that was on it. The operator knows sooner, because it watches the
// instances: once one of them was judged dead, with the testimony of the others, the gateways of the same node are asked
// whether they answer. One that does not is deleted by force, which takes it out of the Service at once and has the
// Deployment make another. Replicas of the operator are treated alike: until the lost one is made again, the next machine
// that dies may hold the last one, and nobody would be left to notice. When none of them answers, the node is tainted for a
// while first, because the scheduler does not know yet that it is dead.
package gateways

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// Bounds of one inquiry. A gateway that lives answers in a millisecond; three missed questions in a second and a half are
// what a standby is granted before it counts as lost.
const (
	questions = 3
	patience  = 400 * time.Millisecond
	pause     = 150 * time.Millisecond
	// again is how long after one inquiry about a node the next may begin.
	again = 5 * time.Second
)

// Lost inquires after the gateways on the nodes of dead instances. Fill in the exported fields. It is safe for use by any
// number of replicas of the operator: deleting twice is deleting once.
type Lost struct {
	Client client.Client
	Clock  clock.WithTicker
	Log    logr.Logger
	// Live reads the operator's own Pods, which are in nobody's cache; Operators are the namespace and the labels they have.
	// Without Live only gateways are looked after.
	Live      client.Reader
	Operators []client.ListOption
	// Dial connects to a Pod's health port, within the context. Default: TCP.
	Dial func(ctx context.Context, address string) error

	mu   sync.Mutex
	last map[string]time.Time // by node
	wg   sync.WaitGroup
}

// Dead is told that an instance was judged dead. It returns at once; the inquiry goes on until ctx ends.
func (l *Lost) Dead(ctx context.Context, instance types.NamespacedName) {
	pod := &corev1.Pod{}
	if err := l.Client.Get(ctx, instance, pod); err != nil || pod.Spec.NodeName == "" {
		return // its machine is not known any more
	}
	if !l.begin(pod.Spec.NodeName) {
		return
	}
	l.wg.Go(func() {
		if err := l.inquire(ctx, pod.Spec.NodeName); err != nil {
			l.Log.Error(err, "gateways of a dead machine", "node", pod.Spec.NodeName)
		}
	})
}

// Wait returns when all inquiries have ended.
func (l *Lost) Wait() { l.wg.Wait() }

// begin reports whether an inquiry about the node is due.
func (l *Lost) begin(node string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.Clock.Now()
	for n, at := range l.last {
		if now.Sub(at) >= again {
			delete(l.last, n)
		}
	}
	if _, recent := l.last[node]; recent {
		return false
	}
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	l.last[node] = now
	return true
}

func (l *Lost) inquire(ctx context.Context, node string) error {
	pods := &corev1.PodList{}
	if err := l.Client.List(ctx, pods, client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentGateway}); err != nil {
		return err
	}
	here, elsewhere := split(pods.Items, node)
	if l.Live != nil {
		operators := &corev1.PodList{}
		if err := l.Live.List(ctx, operators, l.Operators...); err != nil {
			return err
		}
		// Those elsewhere are no witnesses: one of them is this very process.
		lost, _ := split(operators.Items, node)
		here = append(here, lost...)
	}
	dead := make([]bool, len(here))
	var asked sync.WaitGroup
	for i, p := range here {
		asked.Go(func() { dead[i] = l.silent(ctx, p) })
	}
	asked.Wait()
	// When nobody answers us anywhere it is us who are cut off.
	if !slices.Contains(dead, true) || !l.anyAnswers(ctx, elsewhere) || ctx.Err() != nil {
		return nil
	}
	if !slices.Contains(dead, false) {
		l.avoid(ctx, node)
	}
	for i, p := range here {
		if dead[i] {
			l.remove(ctx, p)
		}
	}
	return nil
}

// avoid has the scheduler look elsewhere. That failing is no reason not to go on: somebody else may have changed the node.
func (l *Lost) avoid(ctx context.Context, node string) {
	var read client.Reader = l.Client
	if l.Live != nil {
		read = l.Live
	}
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error { return avoid(ctx, read, l.Client, node, l.Clock.Now()) })
	if err != nil {
		l.Log.Error(err, "the node of a dead machine is not avoided", "node", node)
	}
}

// split sorts the Pods that run by whether they do so on the node.
func split(pods []corev1.Pod, node string) (here, elsewhere []*corev1.Pod) {
	for i := range pods {
		p := &pods[i]
		switch {
		case p.Status.PodIP == "" || p.Status.Phase != corev1.PodRunning:
		case p.Spec.NodeName == node:
			here = append(here, p)
		default:
			elsewhere = append(elsewhere, p)
		}
	}
	return here, elsewhere
}

// silent asks a Pod, and reports that it does not answer.
func (l *Lost) silent(ctx context.Context, p *corev1.Pod) bool {
	for i := range questions {
		if i > 0 {
			select {
			case <-l.Clock.After(pause):
			case <-ctx.Done():
				return false
			}
		}
		if l.answers(ctx, p) {
			return false
		}
	}
	return true
}

func (l *Lost) remove(ctx context.Context, p *corev1.Pod) {
	err := l.Client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})
	if client.IgnoreNotFound(err) != nil {
		l.Log.Error(err, "a Pod of a dead machine is still there", "pod", p.Namespace+"/"+p.Name)
		return
	}
	l.Log.Info("Pod deleted: its machine is dead", "pod", p.Namespace+"/"+p.Name, "node", p.Spec.NodeName)
}

// witnesses bounds how many gateways elsewhere are asked whether we can reach anybody.
const witnesses = 3

func (l *Lost) anyAnswers(ctx context.Context, pods []*corev1.Pod) bool {
	for _, p := range pods[:min(len(pods), witnesses)] {
		if l.answers(ctx, p) {
			return true
		}
	}
	return false
}

func (l *Lost) answers(ctx context.Context, p *corev1.Pod) bool {
	port := int32(0)
	for _, c := range p.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == "health" {
				port = cp.ContainerPort
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dial := l.Dial
	if dial == nil {
		dial = dialTCP
	}
	return dial(ctx, net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(port)))) == nil
}

func dialTCP(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
