package evictions

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

type indexer struct{ b *fake.ClientBuilder }

func (i indexer) IndexField(_ context.Context, o client.Object, field string, f client.IndexerFunc) error {
	i.b.WithIndex(o, field, f)
	return nil
}

func newClient(t *testing.T, objects ...client.Object) client.WithWatch {
	t.Helper()
	s := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(s))
	require.NoError(t, v1alpha1.AddToScheme(s))
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...)
	require.NoError(t, request.Index(context.Background(), indexer{b}))
	return b.Build()
}

func instance() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "db-0-a", Finalizers: []string{"test/keep"},
			Labels:          map[string]string{v1alpha1.LabelShard: "db-0", v1alpha1.LabelComponent: v1alpha1.ComponentInstance},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Shard", Name: "db-0", UID: "shard", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "n"},
	}
}

func shard() *v1alpha1.Shard {
	return &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0", UID: "shard"}}
}

func node(cordoned bool) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Unschedulable: cordoned}}
}

func eviction(dry bool) admission.Request {
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{Namespace: "ns", Name: "db-0-a", DryRun: &dry}}
}

// Every tool that drains asks again after exactly this error.
func TestAnInstanceIsRefusedAndMarked(t *testing.T) {
	c := newClient(t, instance(), shard(), node(true))
	h := &Handler{Client: c, Clock: clocktesting.NewFakePassiveClock(now)}
	got := h.Handle(t.Context(), eviction(false))
	require.False(t, got.Allowed)
	require.True(t, apierrors.IsTooManyRequests(&apierrors.StatusError{ErrStatus: *got.Result}))
	pod := &corev1.Pod{}
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(instance()), pod))
	require.Equal(t, now.Format(time.RFC3339), pod.Annotations[v1alpha1.AnnotationEvictionRequested])
	require.Equal(t, "true", pod.Annotations[v1alpha1.AnnotationEvictionCordoned])
}

func TestMarksAreRefreshedNowAndThen(t *testing.T) {
	c := newClient(t, instance(), shard(), node(false))
	clock := clocktesting.NewFakePassiveClock(now)
	h := &Handler{Client: c, Clock: clock}
	mark := func() string {
		require.False(t, h.Handle(t.Context(), eviction(false)).Allowed)
		pod := &corev1.Pod{}
		require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(instance()), pod))
		return pod.Annotations[v1alpha1.AnnotationEvictionRequested] + " " + pod.Annotations[v1alpha1.AnnotationEvictionCordoned]
	}
	first := mark()
	clock.SetTime(now.Add(5 * time.Second))
	require.Equal(t, first, mark())
	require.NoError(t, c.Update(t.Context(), func() *corev1.Node {
		n := &corev1.Node{}
		require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: "n"}, n))
		n.Spec.Unschedulable = true
		return n
	}()))
	require.Equal(t, now.Add(5*time.Second).Format(time.RFC3339)+" true", mark(), "a cordon is noticed at once")
	clock.SetTime(now.Add(time.Minute))
	require.NotEqual(t, first, mark())
}

func TestWhatPasses(t *testing.T) {
	deleted := instance()
	deleted.DeletionTimestamp = &metav1.Time{Time: now}
	failed := instance()
	failed.Status.Phase = corev1.PodFailed
	gateway := instance()
	gateway.Labels[v1alpha1.LabelComponent] = v1alpha1.ComponentGateway
	strange := instance()
	strange.OwnerReferences[0].UID = "other"
	dying := shard()
	dying.DeletionTimestamp, dying.Finalizers = &metav1.Time{Time: now}, []string{v1alpha1.Finalizer}
	for name, objects := range map[string][]client.Object{
		"what is not ours":                     {shard()},
		"a gateway: its budget decides":        {shard(), gateway},
		"what is going already":                {shard(), deleted},
		"what has ended":                       {shard(), failed},
		"an instance without a shard":          {instance()},
		"an instance of another shard's":       {shard(), strange},
		"an instance of a shard that is going": {dying, instance()},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Handler{Client: newClient(t, objects...), Clock: clocktesting.NewFakePassiveClock(now)}
			require.True(t, h.Handle(t.Context(), eviction(false)).Allowed)
		})
	}
}

func TestADryRunLeavesNoMark(t *testing.T) {
	c := newClient(t, instance(), shard(), node(true))
	h := &Handler{Client: c, Clock: clocktesting.NewFakePassiveClock(now)}
	require.False(t, h.Handle(t.Context(), eviction(true)).Allowed)
	pod := &corev1.Pod{}
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(instance()), pod))
	require.Empty(t, pod.Annotations)
}

func TestTheRefusalSaysHowFarItIs(t *testing.T) {
	rp := &v1alpha1.Replacement{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0-a-draining"},
		Spec:       v1alpha1.ReplacementSpec{Shard: "db-0", Instance: "db-0-a", Reason: v1alpha1.ReasonDraining},
		Status:     v1alpha1.ReplacementStatus{Phase: "Surging", Waiting: "no node has room"},
	}
	h := &Handler{Client: newClient(t, instance(), shard(), rp), Clock: clocktesting.NewFakePassiveClock(now)}
	require.Contains(t, h.Handle(t.Context(), eviction(false)).Result.Message, "Surging: no node has room")
}

func newKeeper(c client.WithWatch) *keeper {
	return &keeper{
		o: Options{Namespace: "system", Configuration: ConfigurationName}, cache: c, live: c,
		clock: clocktesting.NewFakeClock(now), log: logr.Discard(),
	}
}

func configuration(t *testing.T, c client.Client) []admissionregistrationv1.ValidatingWebhook {
	t.Helper()
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: ConfigurationName}, config))
	return config.Webhooks
}

func chart() client.Object {
	return &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ConfigurationName}}
}

func TestReplicasShareAnAuthority(t *testing.T) {
	c := newClient(t, chart(), shard())
	one, two := newKeeper(c), newKeeper(c)
	require.NoError(t, one.step(t.Context()))
	require.NoError(t, two.step(t.Context()))
	webhooks := configuration(t, c)
	require.Len(t, webhooks, 1)
	require.Equal(t, admissionregistrationv1.Ignore, *webhooks[0].FailurePolicy)
	require.Equal(t, []string{"ns"}, webhooks[0].NamespaceSelector.MatchExpressions[0].Values)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(webhooks[0].ClientConfig.CABundle))
	for _, k := range []*keeper{one, two} {
		client, server := net.Pipe()
		go func() { _ = tls.Server(server, &tls.Config{GetCertificate: k.certificate}).Handshake() }()
		err := tls.Client(client, &tls.Config{RootCAs: roots, ServerName: "theseus-operator-webhook.system.svc", Time: func() time.Time { return now }}).HandshakeContext(t.Context())
		require.NoError(t, err)
	}
}

func TestConfigurationFollowsTheShards(t *testing.T) {
	c := newClient(t, chart())
	k := newKeeper(c)
	require.NoError(t, k.step(t.Context()))
	require.Empty(t, configuration(t, c), "no shards, no calls")
	require.NoError(t, c.Create(t.Context(), shard()))
	require.NoError(t, k.step(t.Context()))
	require.Len(t, configuration(t, c), 1)
	version := func() string {
		o := chart()
		require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(o), o))
		return o.GetResourceVersion()
	}
	before := version()
	require.NoError(t, k.step(t.Context()))
	require.Equal(t, before, version(), "nothing is written when nothing changed")
	for i := range maxNamespaces + 1 {
		require.NoError(t, c.Create(t.Context(), &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("n", i), Name: "s"}}))
	}
	require.NoError(t, k.step(t.Context()))
	require.Equal(t, metav1.LabelSelectorOpNotIn, configuration(t, c)[0].NamespaceSelector.MatchExpressions[0].Operator)
}

func TestWithoutConfigurationNothingIsMade(t *testing.T) {
	c := newClient(t, shard())
	require.NoError(t, newKeeper(c).step(t.Context()))
	list := &corev1.SecretList{}
	require.NoError(t, c.List(t.Context(), list))
	require.Empty(t, list.Items)
}

func TestADamagedAuthorityIsSaid(t *testing.T) {
	c := newClient(t, chart(), shard(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "system", Name: secretName}})
	require.ErrorContains(t, newKeeper(c).step(t.Context()), "damaged")
}
