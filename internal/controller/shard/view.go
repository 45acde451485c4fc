package shard

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/cohort"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/replacement"
)

// Viewer looks at shards for the replacement machine, with the eyes of the shard controller.
type Viewer struct {
	// Nodes reads nodes, from a cache.
	Nodes    client.Reader
	Observer *observer.Observer
	Clock    clock.PassiveClock
	Params   Params
	// Suspects are the instances of a shard that a verdict speaks against, and why. Nil is nobody.
	Suspects func(types.NamespacedName) map[string]string
}

// View is a shard as a replacement sees it.
type View struct {
	// Wanted instances by the spec; Primary of the established term, "" while a term is begun and not established.
	Wanted  int
	Primary string
	// Writable: the established primary answers and hears enough of its cohort.
	Writable bool
	// Source: another instance runs with data that a copy can be made from, primary or not.
	Source func(other string) bool
	// Instances, without Leaving, which is about other replacements.
	Instances []replacement.Instance
	// Nodes and Zones by instance.
	Nodes, Zones map[string]string
	// Copied is how many bytes an instance holds, as far as any has said.
	Copied uint64
}

// Look reads the shard's objects with read; what the agents say is what they said last.
func (v *Viewer) Look(ctx context.Context, read client.Reader, shard *v1alpha1.Shard) (*View, error) {
	now := v.Clock.Now()
	byName, err := gatherObjects(ctx, read, v.Nodes, shard, now)
	if err != nil {
		return nil, err
	}
	key := client.ObjectKeyFromObject(shard)
	hear(byName, v.Observer, key, now)
	s := &State{Now: now, Wanted: int(shard.Spec.Template.Instances), Record: RecordOf(shard)}
	if v.Suspects != nil {
		s.suspects = v.Suspects(key)
	}
	for _, it := range byName {
		s.Instances = append(s.Instances, *it)
	}
	return s.view(v.Params), nil
}

func (s *State) view(p Params) *View {
	out := &View{Wanted: s.Wanted, Nodes: map[string]string{}, Zones: map[string]string{}}
	latest, _ := s.Record.Latest()
	primary := s.established(p)
	named := s.Record.Names()
	if s.Record.InTerm() {
		out.Primary = s.Record.Primary()
	}
	out.Source = func(other string) bool {
		return slices.ContainsFunc(s.Instances, func(it Instance) bool {
			return it.Name != other && it.alive(p) && !it.leaving() && it.Status.GetRole() == agentpb.Role_STANDBY && !it.Status.GetDiverged() &&
				slices.Contains(named, it.Name)
		})
	}
	out.Writable = primary != nil && canCommit(latest, primary)
	for i := range s.Instances {
		it := &s.Instances[i]
		heard := it.HasPod && it.Status != nil
		role := it.Status.GetRole()
		failed := it.Broken
		if failed == "" && it.ClaimTerminating {
			failed = "its claim was deleted"
		}
		out.Instances = append(out.Instances, replacement.Instance{
			Name: it.Name, PodExists: it.HasPod, VolumeExists: it.HasClaim,
			Terminating:   it.Terminating,
			Running:       heard,
			Unschedulable: it.Unschedulable,
			Seeded:        heard && (role == agentpb.Role_STANDBY || role == agentpb.Role_PRIMARY),
			Healthy:       it == primary || s.copyOf(it, primary),
			Dead:          it.dead(primary, p),
			Suspect:       s.suspects[it.Name] != "" || !it.alive(p) || it.NodeNotReadyFor > 0 || hungFor(it) > 0,
			InRecord:      slices.Contains(named, it.Name),
			Failed:        failed,
		})
		out.Nodes[it.Name], out.Zones[it.Name] = it.Node, it.Zone
		out.Copied = max(out.Copied, it.Status.GetDisk().GetSizeBytes()-min(it.Status.GetDisk().GetSizeBytes(), it.Status.GetDisk().GetAvailableBytes()))
	}
	return out
}

// copyOf reports whether the instance is a full copy of what the primary has: it streams, knows the term, and is hardly
// behind, as the cohort's keeper asks of a learner.
func (s *State) copyOf(it, primary *Instance) bool {
	if primary == nil || !streaming(primary, it.Name) || it.Broken != "" {
		return false
	}
	have, flushed := primary.Status.GetFlushed().GetLsn(), peer(primary, it.Name).GetFlushedLsn()
	return it.Status.GetTerm() == primary.Status.GetTerm() && !it.Status.GetDiverged() &&
		have <= flushed+cohort.DefaultParams(s.Wanted).MaxLag
}

// Patience of dead.
const (
	nodePatience  = time.Minute
	probePatience = 10 * time.Second
)

// dead reports whether an instance is no copy that counts, and not only for the moment.
func (it *Instance) dead(primary *Instance, p Params) bool {
	heard := streaming(primary, it.Name)
	switch {
	case !it.HasPod, it.Status.GetDiverged():
		return true
	case (it.Failed || it.Broken != "") && !it.Terminating: // one that is being stopped ends like that
		return true
	case it.IP != "" && !it.Connected && it.FailingFor >= p.LostAfter && !heard:
		return true
	case it.NodeNotReadyFor >= nodePatience && !it.Connected && !heard:
		return true
	}
	return hungFor(it) >= probePatience
}

// hungFor is how long the disk of an instance has not answered, as of its agent's last word.
func hungFor(it *Instance) time.Duration {
	since := it.Status.GetDiskProbe().GetPendingSinceUnixMs()
	if since == 0 {
		return 0
	}
	return time.UnixMilli(it.Status.GetAtUnixMs()).Sub(time.UnixMilli(since))
}
