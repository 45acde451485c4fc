package certificates

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/pki"
)

// Identities issues the operator its client certificates: one per database, from that database's authority, valid for
// all of its shards. They live in memory only and every replica of the operator has its own.
type Identities struct {
	reader client.Reader
	clock  clock.PassiveClock

	mu    sync.Mutex
	cache map[types.NamespacedName]cached
}

type cached struct {
	version  string // resourceVersion of the authority's Secret
	until    time.Time
	leaf     *pki.Leaf
	identity agentapi.Identity
}

// NewIdentities reads authorities through reader, which should be a cache.
func NewIdentities(reader client.Reader, c clock.PassiveClock) *Identities {
	return &Identities{reader: reader, clock: c, cache: map[types.NamespacedName]cached{}}
}

// ForShard is the identity to call agents of the shard with.
func (i *Identities) ForShard(ctx context.Context, key types.NamespacedName) (agentapi.Identity, error) {
	shard := &v1alpha1.Shard{}
	if err := i.reader.Get(ctx, key, shard); err != nil {
		return nil, err
	}
	return i.ForDatabase(ctx, key.Namespace, shard.Spec.Database)
}

// ForDatabase is the identity to call agents of the database's shards with.
func (i *Identities) ForDatabase(ctx context.Context, namespace, database string) (agentapi.Identity, error) {
	secret := &corev1.Secret{}
	if err := i.reader.Get(ctx, types.NamespacedName{Namespace: namespace, Name: names.Authority(database)}, secret); err != nil {
		return nil, fmt.Errorf("authority of database %s/%s: %w", namespace, database, err)
	}
	key := types.NamespacedName{Namespace: namespace, Name: database}
	now := i.clock.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	have := i.cache[key]
	if have.identity != nil && have.version == secret.ResourceVersion && now.Before(have.until) {
		return have.identity, nil
	}
	set, err := pki.ParseSet(secret.Data)
	if err != nil {
		return nil, fmt.Errorf("authority of database %s/%s: %w", namespace, database, err)
	}
	// As the shards' leaves: one that is still good is kept, so that an authority made in the place of a lost one does not sign
	// for us before the agents have heard of it.
	if have.leaf == nil || set.Stale(have.leaf.CertificatePEM, operatorRequest(namespace), now) != "" {
		if have.leaf, err = set.Issue(operatorRequest(namespace), now); err != nil {
			return nil, err
		}
		have.until = now.Add(have.leaf.NotAfter.Sub(now) / 2)
	}
	have.version = secret.ResourceVersion
	if have.identity, err = agentapi.NewStaticIdentity(set.Bundle(), have.leaf.CertificatePEM, have.leaf.KeyPEM); err != nil {
		return nil, err
	}
	i.cache[key] = have
	return have.identity, nil
}

func operatorRequest(namespace string) pki.Request {
	any := agentapi.Shard{Namespace: namespace, Name: agentapi.AnyShard}
	return pki.Request{
		CommonName: agentapi.CommonName(agentapi.RoleOperator, any), URI: agentapi.URI(any, agentapi.RoleOperator).String(), Client: true,
	}
}

// Forget drops the identity of a database that is gone.
func (i *Identities) Forget(namespace, database string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.cache, types.NamespacedName{Namespace: namespace, Name: database})
}
