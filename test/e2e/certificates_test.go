//go:build e2e

package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/names"
)

// Every certificate of a shard is issued anew under write load, as when one is about to expire or its key is suspected:
// PostgreSQL and PgBouncer serve the new ones, whom they hear mutually goes on, and no client sees an error.
func TestCertificatesRotate(t *testing.T) {
	f := newFixture(t, nil)
	f.waitReady()
	load := f.startLoad()
	components := map[string]string{
		v1alpha1.ComponentInstance: names.AgentTLS(f.shard().Name),
		v1alpha1.ComponentGateway:  names.GatewayTLS(f.shard().Name),
	}
	for component, secret := range components {
		old := f.serial(secret)
		for _, pod := range f.podsOf(component) {
			require.Equal(t, old, f.served(pod), "%s begins with what is in the secret", pod.Name)
		}
		// Deleting the Secret is how a person has it issued anew.
		require.NoError(t, kit.Client.Delete(f.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: secret}}))
		start := time.Now()
		f.eventually("a new certificate is issued", func(*v1alpha1.Shard) bool {
			fresh := f.serial(secret)
			return fresh != "" && fresh != old
		})
		for _, pod := range f.podsOf(component) {
			require.NoError(t, labkit.Poll(f.ctx, time.Second, func(context.Context) (bool, string, error) {
				return f.served(pod) == f.serial(secret), pod.Name + " still serves the old certificate", nil
			}))
		}
		measured(t, "%s: the new certificate is served everywhere %.0f s later", component, time.Since(start).Seconds())
	}
	// New connections of all kinds: operator to agents, standbys to a new primary, gateways, clients.
	r := f.reparent(nil)
	require.Equal(t, v1alpha1.OutcomeSucceeded, r.Status.Outcome, r.Status.Message)
	f.waitSettled()
	require.Equal(t, "1", f.psql("SELECT 1"))
	load.stopAndVerify(noErrors)
}

func (f *fixture) podsOf(component string) []corev1.Pod {
	f.t.Helper()
	pods := &corev1.PodList{}
	require.NoError(f.t, kit.Client.List(f.ctx, pods, client.InNamespace(f.namespace), client.MatchingLabels{v1alpha1.LabelComponent: component}))
	require.NotEmpty(f.t, pods.Items)
	return pods.Items
}

// serial is that of the certificate in a Secret, "" while there is none.
func (f *fixture) serial(secret string) string {
	f.t.Helper()
	s := &corev1.Secret{}
	err := kit.Client.Get(f.ctx, client.ObjectKey{Namespace: f.namespace, Name: secret}, s)
	require.NoError(f.t, client.IgnoreNotFound(err))
	if err != nil {
		return ""
	}
	return serialOf(f.t, s.Data[corev1.TLSCertKey])
}

// served is the serial of the certificate that a Pod shows to clients of PostgreSQL's protocol.
func (f *fixture) served(pod corev1.Pod) string {
	f.t.Helper()
	out := f.lab("client", "--", "sh", "-c", fmt.Sprintf("openssl s_client -starttls postgres -connect %s:%d </dev/null 2>/dev/null", pod.Status.PodIP, agentapi.PostgresPort))
	begin := strings.Index(out, "-----BEGIN CERTIFICATE-----")
	require.GreaterOrEqual(f.t, begin, 0, "%s: no certificate in %q", pod.Name, out)
	return serialOf(f.t, []byte(out[begin:]))
}

func serialOf(t *testing.T, data []byte) string {
	t.Helper()
	block, _ := pem.Decode(data)
	require.NotNil(t, block)
	c, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return c.SerialNumber.String()
}
