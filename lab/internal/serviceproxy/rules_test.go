package serviceproxy

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
)

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: ports},
	}
}

func slice(svc, suffix, portName string, port int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: svc + suffix, Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		Ports:      []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
		Endpoints:  endpoints,
	}
}

func endpoint(addr string, ready, serving, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses:  []string{addr},
		Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready), Serving: ptr.To(serving), Terminating: ptr.To(terminating)},
	}
}

var pg = corev1.ServicePort{Name: "pg", Protocol: corev1.ProtocolTCP, Port: 5432}

func TestRulesSpreadOverReadyEndpointsOfAllSlices(t *testing.T) {
	rules := Rules(
		[]*corev1.Service{service("db", "10.96.0.9", pg)},
		[]*discoveryv1.EndpointSlice{
			slice("db", "-a", "pg", 6432, endpoint("10.128.2.2", true, true, false), endpoint("10.128.3.3", false, false, false)),
			slice("db", "-b", "pg", 6432, endpoint("10.128.1.1", true, true, false), endpoint("10.128.4.4", false, true, true)),
			slice("db", "-c", "metrics", 9090, endpoint("10.128.9.9", true, true, false)),
			slice("other", "", "pg", 6432, endpoint("10.128.8.8", true, true, false)),
		})
	require.Contains(t, rules, "ip daddr 10.96.0.9 tcp dport 5432 dnat to numgen random mod 2 map { 0 : 10.128.1.1 . 6432, 1 : 10.128.2.2 . 6432 }\n")
	for _, wrong := range []string{"10.128.3.3", "10.128.4.4", "10.128.9.9", "10.128.8.8", "reject"} {
		require.NotContains(t, rules, wrong)
	}
}

func TestTerminatingEndpointsServeOnlyWhenNobodyElseDoes(t *testing.T) {
	rules := Rules([]*corev1.Service{service("db", "10.96.0.9", pg)}, []*discoveryv1.EndpointSlice{
		slice("db", "", "pg", 6432, endpoint("10.128.4.4", false, true, true), endpoint("10.128.5.5", false, false, true)),
	})
	require.Contains(t, rules, "dnat to 10.128.4.4:6432\n")
	require.NotContains(t, rules, "10.128.5.5")
}

func TestServiceWithoutEndpointsRefuses(t *testing.T) {
	rules := Rules([]*corev1.Service{service("db", "10.96.0.9", pg)}, nil)
	require.Contains(t, rules, "ip daddr 10.96.0.9 tcp dport 5432 reject\n")
}

func TestServicesThatAreOnlyNamesHaveNoRules(t *testing.T) {
	headless := service("h", corev1.ClusterIPNone, pg)
	external := service("e", "", pg)
	external.Spec.Type = corev1.ServiceTypeExternalName
	sctp := service("s", "10.96.0.7", corev1.ServicePort{Protocol: corev1.ProtocolSCTP, Port: 1})
	rules := Rules([]*corev1.Service{headless, external, sctp}, nil)
	require.NotContains(t, rules, "dport")
}

func TestRulesDoNotDependOnOrder(t *testing.T) {
	a, b := service("a", "10.96.0.9", pg), service("b", "10.96.0.10", pg)
	s1 := slice("a", "-1", "pg", 1, endpoint("10.128.1.1", true, true, false))
	s2 := slice("a", "-2", "pg", 1, endpoint("10.128.1.2", true, true, false))
	require.Equal(t,
		Rules([]*corev1.Service{a, b}, []*discoveryv1.EndpointSlice{s1, s2}),
		Rules([]*corev1.Service{b, a}, []*discoveryv1.EndpointSlice{s2, s1}))
}

func TestRunAppliesChanges(t *testing.T) {
	client := fake.NewClientset(service("db", "10.96.0.9", pg))
	applied := make(chan string, 10)
	go func() {
		_ = Run(t.Context(), client, func(_ context.Context, rules string) error {
			applied <- rules
			return nil
		}, slog.New(slog.DiscardHandler))
	}()
	next := func(want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case rules := <-applied:
				if strings.Contains(rules, want) {
					return
				}
			case <-deadline:
				t.Fatalf("no rules with %q", want)
			}
		}
	}
	next("reject")
	_, err := client.DiscoveryV1().EndpointSlices("ns").Create(t.Context(),
		slice("db", "", "pg", 6432, endpoint("10.128.2.2", true, true, false)), metav1.CreateOptions{})
	require.NoError(t, err)
	next("dnat to 10.128.2.2:6432")
}
