package reparent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/shard"
	"theseus.dev/theseus/internal/quorum"
	"theseus.dev/theseus/internal/reparent"
)

// records implements reparent.Records on one Shard.
type records struct {
	live  client.Reader // the API server, not a cache
	write client.Client
	key   types.NamespacedName
	clock clock.PassiveClock
}

// Load implements reparent.Records. The version is the record itself: a record never returns to an earlier value, since
// terms and revisions only rise (abandoning a term takes back to a value whose successor was never used).
func (r *records) Load(ctx context.Context) (quorum.Record, reparent.Version, error) {
	sh := &v1alpha1.Shard{}
	if err := r.live.Get(ctx, r.key, sh); err != nil {
		return quorum.Record{}, "", err
	}
	if !sh.DeletionTimestamp.IsZero() {
		return quorum.Record{}, "", errBeingDeleted
	}
	v, err := versionOf(&sh.Status.Record)
	return shard.RecordOf(sh), v, err
}

func versionOf(r *v1alpha1.CohortRecord) (reparent.Version, error) {
	data, err := json.Marshal(r)
	return reparent.Version(data), err
}

// errBeingDeleted: its instances stop because somebody wants them gone. Caches may be late to know.
var errBeingDeleted = errors.New("the shard is being deleted")

type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// Store implements reparent.Records with one request: a patch that fails unless the record is what it was. Other parts
// of the status may have changed meanwhile; the API server merges.
func (r *records) Store(ctx context.Context, at reparent.Version, next quorum.Record) (reparent.Version, error) {
	var want v1alpha1.ShardStatus
	shard.SetRecord(&want, next)
	ops := []operation{
		{"test", "/status/record", json.RawMessage(at)},
		{"replace", "/status/record", want.Record},
		{"add", "/status/term", want.Term},
		{"add", "/status/primary", want.Primary},
	}
	var before v1alpha1.CohortRecord
	if err := json.Unmarshal([]byte(at), &before); err != nil {
		return "", fmt.Errorf("version of the record: %w", err)
	}
	if before.EstablishedTerm < want.Record.EstablishedTerm {
		ops = append(ops, operation{"add", "/status/lastReparent", metav1.NewTime(r.clock.Now().Truncate(time.Second))})
	}
	patch, err := json.Marshal(ops)
	if err != nil {
		return "", err
	}
	sh := &v1alpha1.Shard{ObjectMeta: metav1.ObjectMeta{Namespace: r.key.Namespace, Name: r.key.Name}}
	err = r.write.Status().Patch(ctx, sh, client.RawPatch(types.JSONPatchType, patch))
	switch {
	case apierrors.IsInvalid(err), apierrors.IsConflict(err):
		return "", r.explain(ctx, at, err)
	case err != nil:
		return "", err
	}
	return versionOf(&want.Record)
}

// explain tells a record that has moved on from a patch that was refused for another reason.
func (r *records) explain(ctx context.Context, at reparent.Version, cause error) error {
	_, v, err := r.Load(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w (and looking why: %w)", cause, err)
	case v != at:
		return reparent.ErrConflict
	}
	return cause
}
