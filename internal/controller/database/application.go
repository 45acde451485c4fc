package database

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/names"
	"theseus.dev/theseus/internal/pki"
)

// ensureApplication keeps the Secret an application connects with. The password is made once and never changed by us; where
// to connect and whom to trust follow the Database.
func (r *Reconciler) ensureApplication(ctx context.Context, db *v1alpha1.Database, authority *pki.Set) error {
	password, restored, err := r.password(ctx, db)
	if err != nil {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: db.Namespace, Name: names.Application(db.Name)}}
	_, err = owned.Apply(ctx, r.Client, r.Live, db, secret, func() {
		owned.SetLabels(secret, map[string]string{v1alpha1.LabelDatabase: db.Name, "app.kubernetes.io/managed-by": "theseus"})
		data := maps.Clone(secret.Data)
		if data == nil {
			data = map[string][]byte{}
		}
		if len(data["password"]) == 0 { // who changes it may have been quicker than we
			data["password"] = password
		}
		maps.Copy(data, r.connection(db, string(data["password"])))
		data["ca.crt"] = authority.Bundle()
		secret.Data = data
	})
	if err != nil {
		return fmt.Errorf("Secret %s: %w", secret.Name, err)
	}
	if restored {
		r.Recorder.Eventf(db, nil, corev1.EventTypeWarning, "PasswordRestored", "EnsureApplication",
			"The password was gone from Secret %s: restored from the copy in %s", secret.Name, names.Authority(db.Name))
	}
	return nil
}

// connection is how to connect, as the keys of the Secret. With several shards host and uri are the first one's, and
// hosts lists all in order.
func (r *Reconciler) connection(db *v1alpha1.Database, password string) map[string][]byte {
	data := map[string][]byte{}
	host := r.host(db, names.ReadWrite(db.Name))
	readOnly := r.host(db, names.ReadOnly(db.Name))
	if db.Spec.Shards != 1 {
		host = r.host(db, names.ReadWrite(names.Shard(db.Name, 0)))
		readOnly = r.host(db, names.ReadOnly(names.Shard(db.Name, 0)))
		var hosts []byte
		for i := range db.Spec.Shards {
			if i > 0 {
				hosts = append(hosts, ',')
			}
			hosts = append(hosts, r.host(db, names.ReadWrite(names.Shard(db.Name, i)))...)
		}
		data["hosts"] = hosts
	}
	port := strconv.Itoa(agentapi.PostgresPort)
	uri := url.URL{
		Scheme: "postgresql", User: url.UserPassword(db.Spec.Application.Owner, password),
		Host: net.JoinHostPort(host, port), Path: "/" + db.Spec.Application.Database, RawQuery: "sslmode=require",
	}
	data["username"] = []byte(db.Spec.Application.Owner)
	data["dbname"] = []byte(db.Spec.Application.Database)
	data["host"] = []byte(host)
	data["host-ro"] = []byte(readOnly)
	data["port"] = []byte(port)
	data["uri"] = []byte(uri.String())
	return data
}

func (r *Reconciler) host(db *v1alpha1.Database, service string) string {
	all := names.Hosts(service, db.Namespace, r.ClusterDomain)
	return all[2] // with the namespace and .svc: resolves anywhere in the cluster, whatever its domain
}
