package nodepolicy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/machine"
	"theseus.dev/theseus/internal/machine/clusterapi"
	"theseus.dev/theseus/internal/machine/karpenter"
	"theseus.dev/theseus/internal/machine/none"
	"theseus.dev/theseus/internal/machine/webhook"
)

func labelsOf(n *corev1.Node) labels.Set { return n.Labels }

// provider is who replaces the machines of a policy.
func (r *Reconciler) provider(ctx context.Context, p *v1alpha1.NodePolicy) (machine.Provider, error) {
	if r.Providers != nil {
		return r.Providers(p)
	}
	kind := p.Spec.Machine.Provider
	if (kind == v1alpha1.MachineKarpenter || kind == v1alpha1.MachineClusterAPI) && r.Machines != nil && !slices.Contains(r.Machines, kind) {
		return nil, fmt.Errorf("the operator may not use machines of %s: allow it with the chart's value machines (the flag --machines)", kind)
	}
	switch kind {
	case v1alpha1.MachineKarpenter:
		return karpenter.Provider{Client: r.Client}, nil
	case v1alpha1.MachineClusterAPI:
		return clusterapi.Provider{Client: r.Client}, nil
	case v1alpha1.MachineWebhook:
		return r.webhook(ctx, p)
	default:
		return none.Provider{Reader: r.Client}, nil
	}
}

func (r *Reconciler) webhook(ctx context.Context, p *v1alpha1.NodePolicy) (machine.Provider, error) {
	spec := p.Spec.Machine.Webhook
	if spec == nil {
		return nil, errors.New("spec.machine.webhook is missing")
	}
	o := webhook.Options{URL: spec.URL, Policy: p.Name, Clock: r.Clock, Client: &http.Client{Timeout: spec.Timeout.Duration}}
	if spec.SecretName == "" {
		return webhook.New(o), nil
	}
	secret := &corev1.Secret{}
	if err := r.Live.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: spec.SecretName}, secret); err != nil {
		return nil, fmt.Errorf("the webhook's Secret: %w", err)
	}
	o.HMAC, o.Token = secret.Data["hmac"], string(secret.Data["token"])
	if ca := secret.Data["ca.crt"]; len(ca) > 0 {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("ca.crt of Secret %s has no certificate that can be read", spec.SecretName)
		}
		// One transport per look would keep its connections for ever.
		o.Client.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		}
	}
	return webhook.New(o), nil
}
