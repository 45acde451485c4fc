package evictions

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/pki"
)

// Names of what the chart makes for the webhook.
const (
	// ConfigurationName is the ValidatingWebhookConfiguration.
	ConfigurationName = "theseus-evictions"
	// ServiceName is the Service in the operator's namespace.
	ServiceName = "theseus-operator-webhook"
	// secretName is the Secret with the authority, in the operator's namespace. Replicas make it themselves.
	secretName = "theseus-operator-webhook-ca"
	// path of the webhook on its server.
	path = "/evictions"
)

// Options of Setup.
type Options struct {
	// Namespace of the operator. Empty: nothing is served.
	Namespace string
	// Port to serve on. Default 9443.
	Port int
	// URL replaces the Service in the webhook's configuration. For tests, whose API server knows no Services.
	URL string
	// Configuration is the name of the ValidatingWebhookConfiguration. Default ConfigurationName.
	Configuration string
}

// Setup serves the webhook on this replica and keeps its certificate and its configuration, until the manager ends.
func Setup(mgr ctrl.Manager, o Options, c clock.WithTicker) error {
	if o.Port == 0 {
		o.Port = 9443
	}
	if o.Configuration == "" {
		o.Configuration = ConfigurationName
	}
	k := &keeper{o: o, cache: mgr.GetClient(), live: mgr.GetAPIReader(), clock: c, log: mgr.GetLogger().WithName("evictions")}
	server := webhook.NewServer(webhook.Options{
		Port:    o.Port,
		TLSOpts: []func(*tls.Config){func(t *tls.Config) { t.GetCertificate, t.MinVersion = k.certificate, tls.VersionTLS12 }},
	})
	server.Register(path, &webhook.Admission{Handler: &Handler{Client: mgr.GetClient(), Clock: c}})
	if err := mgr.Add(server); err != nil {
		return err
	}
	return mgr.Add(k)
}

// keeper has the certificate and keeps the configuration. It runs on every replica; what it writes is the same on each,
// and compares versions.
type keeper struct {
	o     Options
	cache client.Client
	live  client.Reader
	clock clock.WithTicker
	log   logr.Logger

	leaf atomic.Pointer[tls.Certificate]
	pem  []byte
}

// interval between two looks: how long the first Shard of a namespace may be there before its drains are heard of.
const interval = 5 * time.Second

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*keeper) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable.
func (k *keeper) Start(ctx context.Context) error {
	ticker := k.clock.NewTicker(interval)
	defer ticker.Stop()
	said := ""
	for {
		err := k.step(ctx)
		switch {
		case err == nil:
			said = ""
		case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || ctx.Err() != nil:
		case err.Error() != said:
			said = err.Error()
			k.log.Error(err, "evictions are not heard of; disruption budgets decide alone")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

func (k *keeper) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.leaf.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("there is no certificate yet")
}

// step brings certificate and configuration up to date.
func (k *keeper) step(ctx context.Context) error {
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	if err := k.live.Get(ctx, client.ObjectKey{Name: k.o.Configuration}, config); err != nil {
		if apierrors.IsNotFound(err) {
			return nil // turned off
		}
		return err
	}
	set, err := k.authority(ctx)
	if err != nil {
		return fmt.Errorf("the webhook's authority: %w", err)
	}
	if err := k.renew(set); err != nil {
		return fmt.Errorf("the webhook's certificate: %w", err)
	}
	namespaces, err := k.namespaces(ctx)
	if err != nil {
		return err
	}
	want := Webhooks(k.o.URL, set.Bundle(), namespaces)
	for i := range want {
		if s := want[i].ClientConfig.Service; s != nil {
			s.Namespace = k.o.Namespace
		}
	}
	if same(config.Webhooks, want) {
		return nil
	}
	config.Webhooks = want
	return k.cache.Update(ctx, config)
}

// authority reads the shared authority, makes it, or takes the next step of its rotation.
func (k *keeper) authority(ctx context.Context) (*pki.Set, error) {
	now := k.clock.Now()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.o.Namespace, Name: secretName}}
	err := k.live.Get(ctx, client.ObjectKeyFromObject(secret), secret)
	if apierrors.IsNotFound(err) {
		set, err := pki.NewSet(ServiceName, now)
		if err != nil {
			return nil, err
		}
		secret.Type = corev1.SecretTypeTLS
		secret.Labels = map[string]string{"app.kubernetes.io/managed-by": "theseus"}
		if secret.Data, err = set.Data(); err != nil {
			return nil, err
		}
		return set, k.cache.Create(ctx, secret)
	}
	if err != nil {
		return nil, err
	}
	set, err := pki.ParseSet(secret.Data)
	if err != nil {
		return nil, fmt.Errorf("Secret %s is damaged, delete it: %w", secretName, err)
	}
	changed, err := set.Step(now)
	if err != nil || !changed {
		return set, err
	}
	if secret.Data, err = set.Data(); err != nil {
		return nil, err
	}
	return set, k.cache.Update(ctx, secret)
}

// renew issues this replica's certificate when there is none, or it is stale.
func (k *keeper) renew(set *pki.Set) error {
	host := ServiceName + "." + k.o.Namespace + ".svc"
	r := pki.Request{CommonName: ServiceName, URI: "theseus://" + host, DNSNames: []string{host, "localhost"}, Server: true}
	if k.pem != nil && set.Stale(k.pem, r, k.clock.Now()) == "" {
		return nil
	}
	leaf, err := set.Issue(r, k.clock.Now())
	if err != nil {
		return err
	}
	pair, err := leaf.TLS()
	if err != nil {
		return err
	}
	k.pem = leaf.CertificatePEM
	k.leaf.Store(&pair)
	return nil
}

// maxNamespaces is how many are listed before the webhook is simply called for all of them.
const maxNamespaces = 500

// namespaces with Shards, in order; nil when there are too many to list.
func (k *keeper) namespaces(ctx context.Context) ([]string, error) {
	list := &v1alpha1.ShardList{}
	if err := k.cache.List(ctx, list); err != nil {
		return nil, err
	}
	out := []string{}
	for i := range list.Items {
		out = append(out, list.Items[i].Namespace)
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) > maxNamespaces {
		return nil, nil
	}
	return out, nil
}

// Webhooks is what the configuration should say: nothing without namespaces, all of them when they are nil. Without a URL
// it is the Service, whose namespace the caller fills in.
func Webhooks(url string, bundle []byte, namespaces []string) []admissionregistrationv1.ValidatingWebhook {
	if namespaces != nil && len(namespaces) == 0 {
		return nil
	}
	cfg := admissionregistrationv1.WebhookClientConfig{CABundle: bundle}
	if url != "" {
		cfg.URL = ptr.To(url + path)
	} else {
		cfg.Service = &admissionregistrationv1.ServiceReference{Name: ServiceName, Path: ptr.To(path), Port: ptr.To[int32](443)}
	}
	selector := metav1.LabelSelectorRequirement{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpIn, Values: namespaces}
	if namespaces == nil {
		selector.Operator, selector.Values = metav1.LabelSelectorOpNotIn, []string{metav1.NamespaceSystem}
	}
	return []admissionregistrationv1.ValidatingWebhook{{
		Name: "evictions.theseus.dev", ClientConfig: cfg,
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule: admissionregistrationv1.Rule{
				APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/eviction"}, Scope: ptr.To(admissionregistrationv1.NamespacedScope),
			},
		}},
		FailurePolicy: ptr.To(admissionregistrationv1.Ignore), MatchPolicy: ptr.To(admissionregistrationv1.Equivalent),
		NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{selector}},
		ObjectSelector:    &metav1.LabelSelector{},
		SideEffects:       ptr.To(admissionregistrationv1.SideEffectClassNoneOnDryRun),
		// A drain waits for this long at most when no replica answers.
		TimeoutSeconds: ptr.To[int32](3), AdmissionReviewVersions: []string{"v1"},
	}}
}

// same compares what changes: who signs, where to, and for which namespaces.
func same(have, want []admissionregistrationv1.ValidatingWebhook) bool {
	if len(have) != len(want) {
		return false
	}
	for i := range want {
		h, w := &have[i], &want[i]
		if h.Name != w.Name || !bytes.Equal(h.ClientConfig.CABundle, w.ClientConfig.CABundle) ||
			ptr.Deref(h.ClientConfig.URL, "") != ptr.Deref(w.ClientConfig.URL, "") ||
			(h.ClientConfig.Service == nil) != (w.ClientConfig.Service == nil) || h.NamespaceSelector == nil ||
			ptr.Deref(h.TimeoutSeconds, 0) != *w.TimeoutSeconds ||
			metav1.FormatLabelSelector(h.NamespaceSelector) != metav1.FormatLabelSelector(w.NamespaceSelector) {
			return false
		}
	}
	return true
}
