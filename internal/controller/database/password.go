package database

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/certificates"
	"theseus.dev/theseus/internal/names"
)

// passwordLostError says that nobody but PostgreSQL knows the application's password any more.
type passwordLostError struct{ database, owner string }

func (e *passwordLostError) Error() string {
	app, kept := names.Application(e.database), names.Authority(e.database)
	return fmt.Sprintf("the password of role %s is neither in Secret %s nor, as a copy, in %s, and one that was made up would not be PostgreSQL's: "+
		"put the password, if you know it, into the key %s of Secret %s; else set a new one as superuser in the primary's Pod (ALTER ROLE %s PASSWORD ...) and put that there. "+
		"Secret %s is then made again", e.owner, app, kept, certificates.KeyPassword, kept, e.owner, app)
}

// password is the application's: what its Secret says, else the copy beside the authority, which follows the Secret. It
// reports whether it had to take the copy. A new one is made only while no shard can know any: PostgreSQL is told once, when
// it is made.
func (r *Reconciler) password(ctx context.Context, db *v1alpha1.Database) (password []byte, restored bool, err error) {
	said, kept, err := look(ctx, r.Client, db)
	if err != nil {
		return nil, false, err
	}
	if len(said) > 0 && bytes.Equal(said, kept.Data[certificates.KeyPassword]) {
		return said, false, nil
	}
	// What is decided from here on lasts: not by a cache that may be late.
	if said, kept, err = look(ctx, r.Live, db); err != nil {
		return nil, false, err
	}
	if !metav1.IsControlledBy(kept, db) {
		return nil, false, fmt.Errorf("Secret %s is gone again", names.Authority(db.Name))
	}
	copied := kept.Data[certificates.KeyPassword]
	switch {
	case len(said) > 0:
		password = said
	case len(copied) > 0:
		password, restored = copied, true
	default:
		if known, err := r.passwordKnown(ctx, db); err != nil {
			return nil, false, err
		} else if known {
			return nil, false, &passwordLostError{database: db.Name, owner: db.Spec.Application.Owner}
		}
		password = []byte(rand.Text() + rand.Text()[:6])
	}
	if bytes.Equal(password, copied) {
		return password, restored, nil
	}
	if kept.Data == nil {
		kept.Data = map[string][]byte{}
	}
	kept.Data[certificates.KeyPassword] = password
	// Before the application's Secret is made or a shard is told. Update compares resource versions.
	if err := r.Client.Update(ctx, kept); err != nil {
		return nil, false, fmt.Errorf("Secret %s: %w", kept.Name, err)
	}
	return password, restored, nil
}

// look reads what the application's Secret says the password is, and the authority's Secret. What is not the Database's own
// says nothing.
func look(ctx context.Context, read client.Reader, db *v1alpha1.Database) (said []byte, kept *corev1.Secret, err error) {
	app, kept := &corev1.Secret{}, &corev1.Secret{}
	for name, secret := range map[string]*corev1.Secret{names.Application(db.Name): app, names.Authority(db.Name): kept} {
		if err := read.Get(ctx, client.ObjectKey{Namespace: db.Namespace, Name: name}, secret); client.IgnoreNotFound(err) != nil {
			return nil, nil, fmt.Errorf("Secret %s: %w", name, err)
		}
	}
	if metav1.IsControlledBy(app, db) {
		said = app.Data["password"]
	}
	return said, kept, nil
}

// passwordKnown reports whether a shard may have been told a password: somebody was chosen to create the database system.
func (r *Reconciler) passwordKnown(ctx context.Context, db *v1alpha1.Database) (bool, error) {
	list := &v1alpha1.ShardList{}
	if err := r.Live.List(ctx, list, client.InNamespace(db.Namespace), client.MatchingLabels{v1alpha1.LabelDatabase: db.Name}); err != nil {
		return false, err
	}
	for i := range list.Items {
		if sh := &list.Items[i]; metav1.IsControlledBy(sh, db) && (sh.Status.Bootstrap != nil || sh.Status.Term > 0) {
			return true, nil
		}
	}
	return false, nil
}
