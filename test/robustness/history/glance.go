package history

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"theseus.dev/theseus/internal/load"
)

// glances checks the plain reads against the weaker promise, and counts those that were behind.
func (r *Report) glances(ops []Op) {
	written := map[int64]Op{}
	for _, o := range ops {
		if o.Kind == Write {
			written[o.Value] = o
		}
	}
	type life struct {
		client, session, key int
		server               string
	}
	lastSeen := map[life]Op{}
	latest := latestVersions(ops)
	for _, o := range ops {
		if o.Kind != Glance || o.Outcome != load.Acked {
			continue
		}
		r.origin(o, written)
		l := life{o.Client, o.Session, o.Key, o.Server}
		if before, ok := lastSeen[l]; ok && o.Version < before.Version {
			r.violate("went back", o.object(), fmt.Sprintf("a session saw version %d after version %d of the same server", o.Version, before.Version), before, o)
		}
		lastSeen[l] = o
		if behind := latest[o.Key].behind(o); behind > 0 {
			r.Old[o.Endpoint]++
			r.Oldest[o.Endpoint] = max(r.Oldest[o.Endpoint], behind)
		}
	}
}

// origin: a value must have been written, by somebody who may have succeeded and had begun.
func (r *Report) origin(o Op, written map[int64]Op) {
	if o.Got == 0 {
		return
	}
	w, ok := written[o.Got]
	switch {
	case !ok:
		r.violate("value of nobody", o.object(), fmt.Sprintf("nobody wrote %d", o.Got), o)
	case w.Key != o.Key:
		r.violate("value of another register", o.object(), fmt.Sprintf("%d was written to %s", o.Got, w.object()), w, o)
	case w.Outcome == load.Failed:
		r.violate("value of a failed write", o.object(), fmt.Sprintf("the write of %d had failed", o.Got), w, o)
	case w.Call > o.Return:
		r.violate("value of the future", o.object(), fmt.Sprintf("%d was written later", o.Got), w, o)
	}
}

// versionLog is the acknowledged versions of a register in the order of their numbers, each with the earliest moment at
// which it or a higher one had been acknowledged.
type versionLog []struct {
	version, by int64
}

func latestVersions(ops []Op) map[int]versionLog {
	out := map[int]versionLog{}
	for _, o := range ops {
		if o.Kind == Write && o.Outcome == load.Acked {
			out[o.Key] = append(out[o.Key], struct{ version, by int64 }{o.Version, o.Return})
		}
	}
	for _, log := range out {
		slices.SortFunc(log, func(a, b struct{ version, by int64 }) int { return int(a.version - b.version) })
		for i := len(log) - 2; i >= 0; i-- {
			log[i].by = min(log[i].by, log[i+1].by)
		}
	}
	return out
}

// behind is for how long, when a Glance began, a higher version than the one it saw had been acknowledged; 0 if none had.
func (l versionLog) behind(o Op) time.Duration {
	i := sort.Search(len(l), func(i int) bool { return l[i].version > o.Version })
	if i == len(l) || l[i].by >= o.Call {
		return 0
	}
	return time.Duration(o.Call - l[i].by)
}
