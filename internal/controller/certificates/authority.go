// Package certificates keeps the certificates of package pki in Secrets, and issues the operator its own in memory.
package certificates

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/pki"
)

// KeyPassword is the key of the authority's Secret with a copy of the application's password. It is there because nobody but
// the operator has to do with that Secret; rotating the authority leaves it alone.
const KeyPassword = "app-password"

// Did is what EnsureAuthority did; the zero value is nothing.
type Did struct {
	// Kind of the event that tells it, and What, in words.
	Kind, What string
}

// EnsureAuthority makes the authority of the database, or takes the next step of its rotation when that is due. It
// returns the authority and what it did. A Secret that cannot be read is an error: replacing it would lose what it still has.
func EnsureAuthority(ctx context.Context, c client.Client, live client.Reader, db *v1alpha1.Database, now time.Time) (*pki.Set, Did, error) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: db.Namespace, Name: names.Authority(db.Name)}}
	err := c.Get(ctx, client.ObjectKeyFromObject(secret), secret)
	if apierrors.IsNotFound(err) {
		return begin(ctx, c, live, db, secret, now)
	}
	if err != nil {
		return nil, Did{}, err
	}
	if !metav1.IsControlledBy(secret, db) {
		return nil, Did{}, &owned.TakenError{Kind: "Secret", Name: secret.Name}
	}
	set, err := pki.ParseSet(secret.Data)
	if err != nil {
		return nil, Did{}, fmt.Errorf("Secret %s is damaged: restore it, or delete it to have a new authority made beside which the old one's certificates go on: %w", secret.Name, err)
	}
	changed, err := set.Step(now)
	if err != nil || !changed {
		return set, Did{}, err
	}
	data, err := set.Data()
	if err != nil {
		return nil, Did{}, err
	}
	if password, ok := secret.Data[KeyPassword]; ok {
		data[KeyPassword] = password
	}
	secret.Data = data
	// Update compares resource versions: two operators cannot both take the step.
	return set, Did{corev1.EventTypeNormal, "rotated the certificate authority by one step"}, c.Update(ctx, secret)
}

// begin makes the authority of a database. When the database has shards it is not the first: somebody deleted that. Its key
// is lost, but its certificate is in every shard's Secret, and stays trusted: Pods that run and clients go on.
func begin(ctx context.Context, c client.Client, live client.Reader, db *v1alpha1.Database, secret *corev1.Secret, now time.Time) (*pki.Set, Did, error) {
	set, err := pki.NewSet(db.Name, now)
	if err != nil {
		return nil, Did{}, err
	}
	shards, err := trustSurvivors(ctx, c, db, set, now)
	if err != nil {
		return nil, Did{}, err
	}
	did := Did{corev1.EventTypeNormal, "made the certificate authority"}
	switch {
	case shards > 0 && len(set.Trusted) > 0:
		did = Did{corev1.EventTypeWarning, fmt.Sprintf("Secret %s was gone: made a new certificate authority; what the old one signed is trusted until it ends, clients need the new ca.crt within %.0f hours", secret.Name, pki.Overlap.Hours())}
	case shards > 0:
		did = Did{corev1.EventTypeWarning, fmt.Sprintf("Secret %s was gone, and no shard has its certificate any more: made a new certificate authority; connections fail until both sides have loaded it, clients need the new ca.crt", secret.Name)}
	}
	return set, did, create(ctx, c, live, db, secret, set)
}

// trustSurvivors has set trust whom the agents of the database's shards trust, and says how many shards there are.
func trustSurvivors(ctx context.Context, c client.Client, db *v1alpha1.Database, set *pki.Set, now time.Time) (shards int, err error) {
	list := &v1alpha1.ShardList{}
	if err := c.List(ctx, list, client.InNamespace(db.Namespace), client.MatchingLabels{v1alpha1.LabelDatabase: db.Name}); err != nil {
		return 0, err
	}
	for i := range list.Items {
		sh := &list.Items[i]
		if !metav1.IsControlledBy(sh, db) {
			continue
		}
		shards++
		leaf := &corev1.Secret{}
		err := c.Get(ctx, types.NamespacedName{Namespace: sh.Namespace, Name: names.AgentTLS(sh.Name)}, leaf)
		if client.IgnoreNotFound(err) != nil {
			return shards, err
		}
		if err == nil && metav1.IsControlledBy(leaf, sh) {
			_ = set.Trust(leaf.Data[pki.KeyBundle], now) // one that is damaged is as good as none
		}
	}
	return shards, nil
}

func create(ctx context.Context, c client.Client, live client.Reader, db *v1alpha1.Database, secret *corev1.Secret, set *pki.Set) error {
	data, err := set.Data()
	if err != nil {
		return err
	}
	secret.Type, secret.Data = corev1.SecretTypeTLS, data
	owned.SetLabels(secret, map[string]string{v1alpha1.LabelDatabase: db.Name})
	if err := controllerutil.SetControllerReference(db, secret, c.Scheme()); err != nil {
		return err
	}
	return owned.Exists(ctx, c, live, db, secret, c.Create(ctx, secret))
}

// Authority reads the authority of a database.
func Authority(ctx context.Context, c client.Reader, namespace, database string) (*pki.Set, error) {
	secret := &corev1.Secret{}
	if err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: names.Authority(database)}, secret); err != nil {
		return nil, err
	}
	set, err := pki.ParseSet(secret.Data)
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w", secret.Name, err)
	}
	return set, nil
}

// EnsureLeaf keeps a leaf for r in the Secret name, controlled by the shard: issued anew when pki says that it is
// stale, and with the newest bundle in any case. It says when to look again.
func EnsureLeaf(ctx context.Context, c client.Client, live client.Reader, shard *v1alpha1.Shard, name string, set *pki.Set, r pki.Request, now time.Time) (next time.Time, err error) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: shard.Namespace, Name: name}}
	var failed error
	_, err = owned.Apply(ctx, c, live, shard, secret, func() {
		owned.SetLabels(secret, map[string]string{v1alpha1.LabelDatabase: shard.Spec.Database, v1alpha1.LabelShard: shard.Name})
		secret.Type = corev1.SecretTypeTLS
		data := maps.Clone(secret.Data)
		if data == nil {
			data = map[string][]byte{}
		}
		data[pki.KeyBundle] = set.Bundle()
		if set.Stale(data[pki.KeyCertificate], r, now) != "" {
			leaf, err := set.Issue(r, now)
			if err != nil {
				failed = err
				return
			}
			data[pki.KeyCertificate], data[pki.KeyPrivate] = leaf.CertificatePEM, leaf.KeyPEM
		}
		secret.Data = data
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate %s: %w", name, err)
	}
	certs, err := pki.ParseCertificates(secret.Data[pki.KeyCertificate])
	if err != nil || len(certs) == 0 {
		return time.Time{}, fmt.Errorf("certificate %s cannot be read back: %w", name, err)
	}
	return pki.RenewAt(certs[0]), nil
}
