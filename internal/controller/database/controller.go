// Package database makes Shards of Databases, and what the shards of one Database share for their makers' convenience
// only: a certificate authority, the application's Secret, and, with one shard, Services without a number. Its status
// is the sum of the shards'. It never talks to an instance.
package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/recorder"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/certificates"
	"theseus.dev/theseus/internal/controller/owned"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/names"
)

// Reconciler keeps Databases.
type Reconciler struct {
	Client client.Client
	// Live reads from the API server itself: what the cache leaves out, and what must not be late.
	Live     client.Reader
	Recorder recorder.EventRecorder
	Clock    clock.PassiveClock
	// Image names the operand image of a PostgreSQL major.
	Image func(major int32) string
	// ClusterDomain is the cluster's DNS domain, for the addresses in the application's Secret.
	ClusterDomain string
}

// SetupWithManager registers the controller. It runs on the elected leader only.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	return ctrl.NewControllerManagedBy(mgr).Named("database").
		For(&v1alpha1.Database{}).
		Owns(&v1alpha1.Shard{}).Owns(&corev1.Secret{}).Owns(&corev1.Service{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, RateLimiter: shard.RateLimiter()}).
		Complete(r)
}

// Reconcile brings one Database to its spec.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	db := &v1alpha1.Database{}
	if err := r.Client.Get(ctx, req.NamespacedName, db); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !db.DeletionTimestamp.IsZero() {
		return r.finalize(ctx, db)
	}
	if controllerutil.AddFinalizer(db, v1alpha1.Finalizer) {
		return reconcile.Result{}, r.Client.Update(ctx, db)
	}
	shards, next, err := r.ensure(ctx, db)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		// Somebody else wrote first, or the cache is behind our own writes: nothing to tell, look again with fresh eyes.
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	if statusErr := r.updateStatus(ctx, db, shards, err); err == nil {
		err = statusErr
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: next}, nil
}

// ensure makes everything the Database owns and says when to look again. A lost password keeps nothing else from being done:
// the shards are returned with the error.
func (r *Reconciler) ensure(ctx context.Context, db *v1alpha1.Database) ([]v1alpha1.Shard, time.Duration, error) {
	now := r.Clock.Now()
	authority, did, err := certificates.EnsureAuthority(ctx, r.Client, r.Live, db, now)
	if err != nil {
		return nil, 0, err
	}
	if did.What != "" {
		r.Recorder.Eventf(db, nil, did.Kind, "Certificates", "EnsureAuthority", "%s", did.What)
	}
	lost := r.ensureApplication(ctx, db, authority)
	if is := (*passwordLostError)(nil); lost != nil && !errors.As(lost, &is) {
		return nil, 0, lost
	}
	if err := r.ensureServices(ctx, db); err != nil {
		return nil, 0, err
	}
	var shards []v1alpha1.Shard
	for i := range db.Spec.Shards {
		sh, err := r.ensureShard(ctx, db, i)
		if err != nil {
			return nil, 0, err
		}
		shards = append(shards, *sh)
	}
	return shards, max(authority.NextStep().Sub(now), time.Second), lost
}

func (r *Reconciler) ensureShard(ctx context.Context, db *v1alpha1.Database, index int32) (*v1alpha1.Shard, error) {
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: db.Namespace, Name: names.Shard(db.Name, index)}}
	result, err := owned.Apply(ctx, r.Client, r.Live, db, sh, func() {
		owned.SetLabels(sh, map[string]string{v1alpha1.LabelDatabase: db.Name, v1alpha1.LabelShard: sh.Name})
		image, gateway := db.Spec.Postgres.Image, ""
		if image == "" {
			image = r.Image(db.Spec.Postgres.Major)
			if db.Spec.Postgres.Major < gatewayMajor {
				gateway = r.Image(gatewayMajor)
			}
		}
		want := v1alpha1.ShardSpec{Database: db.Name, Index: index, Template: *db.Spec.DeepCopy(), Image: image, GatewayImage: gateway}
		if !equality.Semantic.DeepEqual(sh.Spec, want) {
			sh.Spec = want
		}
	})
	if err != nil {
		return nil, fmt.Errorf("Shard %s: %w", sh.Name, err)
	}
	if result == controllerutil.OperationResultCreated {
		r.Recorder.Eventf(db, sh, corev1.EventTypeNormal, "ShardCreated", "EnsureShard", "Shard %s created", sh.Name)
	}
	return sh, nil
}

// gatewayMajor is the oldest major whose operand image has a PgBouncer that gateways can use (1.21 or newer).
const gatewayMajor = 17

// ensureServices makes the Services without a number of a Database with one shard.
func (r *Reconciler) ensureServices(ctx context.Context, db *v1alpha1.Database) error {
	if db.Spec.Shards != 1 {
		return nil
	}
	readWrite, readOnly, direct := shard.Selectors(names.Shard(db.Name, 0), &db.Spec)
	for name, selector := range map[string]map[string]string{
		names.ReadWrite(db.Name): readWrite, names.ReadOnly(db.Name): readOnly, names.Direct(db.Name): direct,
	} {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: db.Namespace, Name: name}}
		labels := map[string]string{v1alpha1.LabelDatabase: db.Name, "app.kubernetes.io/managed-by": "theseus"}
		if _, err := owned.Apply(ctx, r.Client, r.Live, db, svc, func() { shard.MutateService(svc, labels, selector) }); err != nil {
			return fmt.Errorf("Service %s: %w", name, err)
		}
	}
	return nil
}

// finalize deletes the shards, waits for them, and lets go. What else the Database owns is garbage then.
func (r *Reconciler) finalize(ctx context.Context, db *v1alpha1.Database) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(db, v1alpha1.Finalizer) {
		return reconcile.Result{}, nil
	}
	shards := &v1alpha1.ShardList{}
	if err := r.Client.List(ctx, shards, client.InNamespace(db.Namespace), client.MatchingLabels{v1alpha1.LabelDatabase: db.Name}); err != nil {
		return reconcile.Result{}, err
	}
	var left []string
	for i := range shards.Items {
		sh := &shards.Items[i]
		if !metav1.IsControlledBy(sh, db) {
			continue
		}
		left = append(left, leaving(sh))
		if !sh.DeletionTimestamp.IsZero() {
			continue
		}
		// The policy in force is the Database's now, even if the shard was never told.
		if sh.Spec.Template.DeletionPolicy != db.Spec.DeletionPolicy {
			sh.Spec.Template.DeletionPolicy = db.Spec.DeletionPolicy
			if err := r.Client.Update(ctx, sh); err != nil {
				return reconcile.Result{}, err
			}
		}
		if err := r.Client.Delete(ctx, sh); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, err
		}
	}
	if len(left) > 0 {
		return reconcile.Result{RequeueAfter: time.Second}, r.saysDeleting(ctx, db, left)
	}
	controllerutil.RemoveFinalizer(db, v1alpha1.Finalizer)
	return reconcile.Result{}, client.IgnoreNotFound(r.Client.Update(ctx, db))
}
