package controller

import (
	"fmt"
	"time"

	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"theseus.dev/theseus/internal/controller/condemned"
	"theseus.dev/theseus/internal/controller/replacement"
	"theseus.dev/theseus/internal/evidence"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/recorder"
)

// Keep says where evidence is kept, and for how long.
type Keep struct {
	// Bucket of cases and trails.
	Bucket evidence.Bucket
	// Shared is true when all replicas write to the same bucket; false when each has its own.
	Shared bool
	// KeepCases and KeepTrails are how long each is kept; 0 is for ever.
	KeepCases, KeepTrails time.Duration
	// Every is how soon news of an instance is in the bucket when nothing is wrong with it. Default 30s.
	Every time.Duration
}

// ownTrails is how many bytes of trails a replica keeps in a directory of its own: half of the volume that the chart gives.
const ownTrails = 1 << 30

// record adds the flight recorder to the stream of statuses; nil without a bucket.
func (o *Options) record(mgr ctrl.Manager) (*recorder.Recorder, error) {
	if o.Keep == nil {
		return nil, nil
	}
	log := mgr.GetLogger().WithName("recorder")
	r := recorder.New(recorder.Options{
		Trails: o.Keep.Bucket.Trails(), Replica: o.Name, All: o.writesAll(mgr), Clock: o.Clock, Log: log, Every: o.Keep.Every,
	})
	if err := mgr.Add(r); err != nil {
		return nil, err
	}
	most := int64(0)
	if !o.Keep.Shared {
		most = ownTrails
	}
	return r, mgr.Add(&condemned.Janitor{
		MostTrails: most, Bucket: o.Keep.Bucket, KeepCases: o.Keep.KeepCases, KeepTrails: o.Keep.KeepTrails,
		May: o.writesAll(mgr), Clock: o.Clock, Log: log,
	})
}

// writesAll says whether this replica is the one that writes, or has a bucket for itself.
func (o *Options) writesAll(mgr ctrl.Manager) func() bool {
	if !o.Keep.Shared {
		return func() bool { return true }
	}
	return leading(mgr)
}

// collector takes the evidence of condemned instances; it takes none without a bucket.
func (o *Options) collector(mgr ctrl.Manager, watching *observer.Observer, r *recorder.Recorder) (replacement.EvidenceCollector, error) {
	if o.Keep == nil {
		return replacement.NoEvidence{}, nil
	}
	pods, err := corev1client.NewForConfigAndClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return nil, fmt.Errorf("container logs: %w", err)
	}
	return &condemned.Collector{
		Live: mgr.GetAPIReader(), Pods: pods, Observer: watching, Agents: condemned.Agents(o.Agents), Recorder: r,
		Bucket: o.Keep.Bucket, Clock: o.Clock, Log: mgr.GetLogger().WithName("evidence"),
	}, nil
}
