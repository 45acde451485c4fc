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

// EnsureAuthority makes the authority of the database, or takes the next step of its rotation when that is due. It
// returns the authority and says what it did ("" for nothing). A Secret that cannot be read is an error: replacing it
// would cut off every process that trusts it.
func EnsureAuthority(ctx context.Context, c client.Client, live client.Reader, db *v1alpha1.Database, now time.Time) (set *pki.Set, did string, err error) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: db.Namespace, Name: names.Authority(db.Name)}}
	err = c.Get(ctx, client.ObjectKeyFromObject(secret), secret)
	if apierrors.IsNotFound(err) {
		if set, err = pki.NewSet(db.Name, now); err != nil {
			return nil, "", err
		}
		return set, "made the certificate authority", create(ctx, c, live, db, secret, set)
	}
	if err != nil {
		return nil, "", err
	}
	if !metav1.IsControlledBy(secret, db) {
		return nil, "", &owned.TakenError{Kind: "Secret", Name: secret.Name}
	}
	if set, err = pki.ParseSet(secret.Data); err != nil {
		return nil, "", fmt.Errorf("Secret %s is damaged, restore it or delete it to cut all connections and begin anew: %w", secret.Name, err)
	}
	changed, err := set.Step(now)
	if err != nil || !changed {
		return set, "", err
	}
	if secret.Data, err = set.Data(); err != nil {
		return nil, "", err
	}
	// Update compares resource versions: two operators cannot both take the step.
	return set, "rotated the certificate authority by one step", c.Update(ctx, secret)
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
