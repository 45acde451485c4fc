package certificates

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/pki"
)

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func objects(t *testing.T) (client.Client, *v1alpha1.Database, *v1alpha1.Shard) {
	s := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(s))
	require.NoError(t, v1alpha1.AddToScheme(s))
	db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "1"}}
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0", UID: "2"}, Spec: v1alpha1.ShardSpec{Database: "db"}}
	return fake.NewClientBuilder().WithScheme(s).WithObjects(db, sh).Build(), db, sh
}

func request() pki.Request {
	key := agentapi.Shard{Namespace: "ns", Name: "db-0"}
	return pki.Request{
		CommonName: agentapi.CommonName(agentapi.RoleAgent, key), URI: agentapi.URI(key, agentapi.RoleAgent).String(),
		DNSNames: []string{agentapi.ServerName(key)}, Server: true, Client: true,
	}
}

func read(t *testing.T, c client.Client, name string) map[string][]byte {
	t.Helper()
	secret := &corev1.Secret{}
	require.NoError(t, c.Get(context.Background(), types.NamespacedName{Namespace: "ns", Name: name}, secret))
	return secret.Data
}

func TestALeafIsIssuedAndRenewed(t *testing.T) {
	ctx := context.Background()
	c, db, sh := objects(t)
	set, did, err := EnsureAuthority(ctx, c, c, db, start)
	require.NoError(t, err)
	require.Equal(t, Did{corev1.EventTypeNormal, "made the certificate authority"}, did)
	renew, err := EnsureLeaf(ctx, c, c, sh, "db-0-agent-tls", set, request(), start)
	require.NoError(t, err)
	require.WithinDuration(t, start.Add(pki.LeafLifetime/2), renew, time.Hour)
	first := read(t, c, "db-0-agent-tls")

	_, err = EnsureLeaf(ctx, c, c, sh, "db-0-agent-tls", set, request(), start.Add(24*time.Hour))
	require.NoError(t, err)
	require.Equal(t, first, read(t, c, "db-0-agent-tls"), "nothing is written while nothing is due")
	_, err = EnsureLeaf(ctx, c, c, sh, "db-0-agent-tls", set, request(), renew)
	require.NoError(t, err)
	require.NotEqual(t, first, read(t, c, "db-0-agent-tls"))
}

// TestAYearAndAHalf walks through a whole rotation: at every step an agent with the leaf of before and an operator with
// the identity of now still trust each other's authorities.
func TestAYearAndAHalf(t *testing.T) {
	ctx := context.Background()
	c, db, sh := objects(t)
	clock := clocktesting.NewFakePassiveClock(start)
	identities := NewIdentities(c, clock)
	var bundles []string
	for step := range 110 {
		now := start.Add(time.Duration(step) * 5 * 24 * time.Hour)
		clock.SetTime(now)
		set, _, err := EnsureAuthority(ctx, c, c, db, now)
		require.NoError(t, err)
		_, err = EnsureLeaf(ctx, c, c, sh, "leaf", set, request(), now)
		require.NoError(t, err)
		data := read(t, c, "leaf")
		if len(bundles) == 0 || bundles[len(bundles)-1] != string(data["ca.crt"]) {
			bundles = append(bundles, string(data["ca.crt"]))
		}
		id, err := identities.ForShard(ctx, types.NamespacedName{Namespace: "ns", Name: "db-0"})
		require.NoError(t, err)
		roots, err := id.Roots()
		require.NoError(t, err)
		require.NotNil(t, roots)
		cert, err := id.Certificate()
		require.NoError(t, err)
		require.NotEmpty(t, cert.Certificate)
		require.Empty(t, set.Stale(data["tls.crt"], request(), now))
	}
	require.GreaterOrEqual(t, len(bundles), 4, "introduced, promoted, forgotten")
}

// TestADeletedAuthority: its key is lost, but nobody who has a certificate of it is cut off: neither agents nor the operator,
// whichever of them hears of the new one first.
func TestADeletedAuthority(t *testing.T) {
	ctx := t.Context()
	c, db, sh := objects(t)
	sh.Labels = map[string]string{v1alpha1.LabelDatabase: "db"}
	require.NoError(t, controllerutil.SetControllerReference(db, sh, c.Scheme()))
	require.NoError(t, c.Update(ctx, sh))
	clock := clocktesting.NewFakePassiveClock(start)
	identities := NewIdentities(c, clock)
	set, _, err := EnsureAuthority(ctx, c, c, db, start)
	require.NoError(t, err)
	_, err = EnsureLeaf(ctx, c, c, sh, "db-0-agent-tls", set, request(), start)
	require.NoError(t, err)
	before := read(t, c, "db-0-agent-tls")
	authority := &corev1.Secret{}
	require.NoError(t, c.Get(ctx, types.NamespacedName{Namespace: "ns", Name: "db-ca"}, authority))
	authority.Annotations = map[string]string{"a": "b"}
	require.NoError(t, c.Update(ctx, authority), "the fake API server counts the versions of each object from one")
	operator, err := identities.ForDatabase(ctx, "ns", "db")
	require.NoError(t, err)

	now := start.Add(24 * time.Hour)
	clock.SetTime(now)
	require.NoError(t, c.Delete(ctx, authority))
	set, did, err := EnsureAuthority(ctx, c, c, db, now)
	require.NoError(t, err)
	require.Equal(t, corev1.EventTypeWarning, did.Kind)
	require.Contains(t, did.What, "Secret db-ca was gone")
	require.Contains(t, string(set.Bundle()), string(before[pki.KeyBundle]), "the old one is trusted")
	_, err = EnsureLeaf(ctx, c, c, sh, "db-0-agent-tls", set, request(), now)
	require.NoError(t, err)
	after := read(t, c, "db-0-agent-tls")
	require.Equal(t, before[pki.KeyCertificate], after[pki.KeyCertificate], "as long as others may not know the new one")
	require.Equal(t, set.Bundle(), after[pki.KeyBundle])
	again, err := identities.ForDatabase(ctx, "ns", "db")
	require.NoError(t, err)
	require.Equal(t, leafOf(t, operator), leafOf(t, again), "what agents with the old bundle accept")
	require.NotSame(t, operator, again, "which accepts the leaves of the new one, too")

	now = now.Add(pki.Overlap)
	set, did, err = EnsureAuthority(ctx, c, c, db, now)
	require.NoError(t, err)
	require.Zero(t, did)
	_, err = EnsureLeaf(ctx, c, c, sh, "db-0-agent-tls", set, request(), now)
	require.NoError(t, err)
	require.NotEqual(t, before[pki.KeyCertificate], read(t, c, "db-0-agent-tls")[pki.KeyCertificate])
}

func TestADeletedAuthorityOfWhichNothingIsLeft(t *testing.T) {
	c, db, sh := objects(t)
	sh.Labels = map[string]string{v1alpha1.LabelDatabase: "db"}
	require.NoError(t, controllerutil.SetControllerReference(db, sh, c.Scheme()))
	require.NoError(t, c.Update(t.Context(), sh))
	// Not the shard's: what is in it is nobody to trust.
	stranger, err := pki.NewSet("stranger", start)
	require.NoError(t, err)
	require.NoError(t, c.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0-agent-tls"}, Data: map[string][]byte{pki.KeyBundle: stranger.Bundle()},
	}))
	set, did, err := EnsureAuthority(t.Context(), c, c, db, start)
	require.NoError(t, err)
	require.Empty(t, set.Trusted)
	require.Equal(t, corev1.EventTypeWarning, did.Kind)
	require.Contains(t, did.What, "no shard has its certificate any more")
}

func leafOf(t *testing.T, id agentapi.Identity) []byte {
	t.Helper()
	cert, err := id.Certificate()
	require.NoError(t, err)
	return cert.Certificate[0]
}

func TestADamagedAuthorityIsNotReplaced(t *testing.T) {
	ctx := context.Background()
	c, db, _ := objects(t)
	_, _, err := EnsureAuthority(ctx, c, c, db, start)
	require.NoError(t, err)
	secret := &corev1.Secret{}
	require.NoError(t, c.Get(ctx, types.NamespacedName{Namespace: "ns", Name: "db-ca"}, secret))
	secret.Data["tls.key"] = []byte("junk")
	require.NoError(t, c.Update(ctx, secret))
	_, _, err = EnsureAuthority(ctx, c, c, db, start)
	require.ErrorContains(t, err, "damaged")
	_, err = NewIdentities(c, clocktesting.NewFakePassiveClock(start)).ForDatabase(ctx, "ns", "db")
	require.Error(t, err)
}

func TestSomebodyElsesSecretIsNotTakenOver(t *testing.T) {
	ctx := context.Background()
	c, db, sh := objects(t)
	set, _, err := EnsureAuthority(ctx, c, c, db, start)
	require.NoError(t, err)
	require.NoError(t, c.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "leaf"}, Data: map[string][]byte{"a": []byte("b")}}))
	_, err = EnsureLeaf(ctx, c, c, sh, "leaf", set, request(), start)
	var taken *owned.TakenError
	require.ErrorAs(t, err, &taken)
	require.Equal(t, map[string][]byte{"a": []byte("b")}, read(t, c, "leaf"))
}

func TestSomebodyElsesAuthorityIsNotTakenOver(t *testing.T) {
	c, db, _ := objects(t)
	require.NoError(t, c.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-ca"}}))
	cache := fake.NewClientBuilder().WithScheme(c.Scheme()).Build() // shows nothing of it: it has not our label
	blind := interceptor.NewClient(c.(client.WithWatch), interceptor.Funcs{
		Get: func(ctx context.Context, _ client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			return cache.Get(ctx, key, o, opts...)
		},
	})
	_, _, err := EnsureAuthority(t.Context(), blind, c, db, start)
	var taken *owned.TakenError
	require.ErrorAs(t, err, &taken)
}

func TestTheOperatorsIdentityIsRenewed(t *testing.T) {
	ctx := context.Background()
	c, db, _ := objects(t)
	_, _, err := EnsureAuthority(ctx, c, c, db, start)
	require.NoError(t, err)
	clock := clocktesting.NewFakePassiveClock(start)
	identities := NewIdentities(c, clock)
	first, err := identities.ForDatabase(ctx, "ns", "db")
	require.NoError(t, err)
	again, err := identities.ForDatabase(ctx, "ns", "db")
	require.NoError(t, err)
	require.Same(t, first, again)
	clock.SetTime(start.Add(16 * 24 * time.Hour))
	later, err := identities.ForDatabase(ctx, "ns", "db")
	require.NoError(t, err)
	require.NotSame(t, first, later)
	identities.Forget("ns", "db")
	_, err = identities.ForShard(ctx, types.NamespacedName{Namespace: "ns", Name: "nope"})
	require.Error(t, err)
}
