package verdict

import (
	"slices"
	"time"
)

// Unwritable reports whether the verdict means that clients cannot write; ok is false when the observer does not know.
func (v Verdict) Unwritable() (yes, ok bool) {
	switch v {
	case PrimaryDead, PrimaryStalled, PrimaryIsolated, NoPrimary, CannotCommit:
		return true, true
	case Unknown:
		return false, false
	}
	return false, true
}

// hanging is how long a probe must have been under way to be a sign that nothing was written since it began.
const hanging = time.Second

// Outage is how long ago the primary was last known to serve, by what the verdict is taken from. What hangs has hung since it
// began. Of one that is silent the last sign counts, be it a status of its agent or what a standby received; between that
// and its end lies one heartbeat at most. 0 says that nothing is known.
func (o Observed) Outage() time.Duration {
	s := shard{o: o}
	p := s.instance(o.Record.Primary())
	if p == nil || !p.Heard {
		return 0
	}
	var hung time.Duration
	for _, pr := range []Probe{p.WriteProbe, p.CommitProbe, p.DiskProbe, p.ConnectProbe} {
		hung = max(hung, pr.Pending)
	}
	if hung >= hanging {
		return hung + p.Age
	}
	heard := []time.Duration{p.Age}
	for _, i := range o.Instances {
		if r := i.Receiver; i.Heard && r.Streaming && r.Source == p.Name {
			heard = append(heard, r.MessageAge+i.Age)
		}
	}
	return slices.Min(heard)
}
