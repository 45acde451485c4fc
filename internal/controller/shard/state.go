package shard

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
	"theseus.dev/theseus/internal/observer"
	"theseus.dev/theseus/internal/quorum"
)

// Params are the patience of the controller.
type Params struct {
	// StaleAfter is the age from which a status is not relied upon. Default 2.5 s: five heartbeats.
	StaleAfter time.Duration
	// LostAfter is how long an instance may be out of reach before another one is made in its place. Default 30 s: a
	// Pod that restarts or a node that reboots its network is back sooner, and seeding one costs more than waiting.
	LostAfter time.Duration
	// RestartAfter is how long there must be no primary before Pods that are gone are started again on the volumes
	// they left. Default 10 s: an emergency reparent is the better answer and takes less.
	RestartAfter time.Duration
	// StuckAfter is how long a Pod may be terminating past its grace before it is removed by force. Default 30 s.
	StuckAfter time.Duration
	// FollowAfter is how long a standby that follows nobody is left to find its way by itself. Default 3 s: agents try
	// again on their own after every failure.
	FollowAfter time.Duration
	// CannotCommitAfter is how long a primary must hear too few members before that counts. Default 2 s.
	CannotCommitAfter time.Duration
	// RewindTimeout bounds pg_rewind; after it the instance is seeded again. Default 30 s.
	RewindTimeout time.Duration
	// SeedLag is how far a standby may be behind in replay and still be what others are seeded from. Default 64 MiB.
	SeedLag uint64
}

// DefaultParams are the defaults.
func DefaultParams() Params {
	return Params{
		StaleAfter:        2500 * time.Millisecond,
		LostAfter:         30 * time.Second,
		RestartAfter:      10 * time.Second,
		StuckAfter:        30 * time.Second,
		FollowAfter:       3 * time.Second,
		CannotCommitAfter: 2 * time.Second,
		RewindTimeout:     30 * time.Second,
		SeedLag:           64 << 20,
	}
}

// State is everything Plan decides from.
type State struct {
	// Now is the time of all ages below.
	Now time.Time
	// Wanted is how many instances the spec asks for.
	Wanted int
	// Replacements of the shard that have not ended, and when the last one that failed did: what it left behind is for the
	// next.
	Replacements []Replacement
	LastFailed   time.Time
	// suspects are instances that a verdict speaks against, and why.
	suspects map[string]string
	// Bootstrap and Record as stored in the Shard.
	Bootstrap *v1alpha1.BootstrapStatus
	Record    quorum.Record
	// Reparenting is true while a Reparent of the shard is not finished: the primary is somebody else's business.
	Reparenting bool
	// NoPrimaryFor is how long no established primary has been seen; 0 while one is.
	NoPrimaryFor time.Duration
	// CannotCommitFor is how long the established primary has heard fewer members than a commit takes; 0 while it hears
	// enough. What is heard right after a reparent is behind what is.
	CannotCommitFor time.Duration
	// NoGateway is true while clients are to come through gateways and none of them is ready to take them.
	NoGateway bool
	// Refused is why the API server would not have the claim of another instance.
	Refused string
	// Instances that have a Pod or a claim, oldest first.
	Instances []Instance
}

// Instance is one instance, its Pod and its claim, as gathered.
type Instance struct {
	Name string
	// CreatedAt is when the claim (or, without one, the Pod) was made.
	CreatedAt time.Time

	// HasPod, and about the Pod:
	HasPod      bool
	UID         types.UID
	IP          string
	Node        string
	Zone        string
	Role        string // label
	Terminating bool
	// StuckFor is how long a terminating Pod has outlived its grace.
	StuckFor time.Duration
	// Failed: the Pod has ended and will not be started again.
	Failed bool
	// StrandedFor is how long the Pod could not be scheduled although its claim is bound: its volume is where no Pod
	// can go.
	StrandedFor time.Duration
	stranded    bool
	// PodMessage says why the Pod does not run, when Kubernetes knows.
	PodMessage string
	// Refused is why the API server would not have the Pod when it was last asked; empty when it had, or was not asked.
	Refused string

	// HasClaim, and whether somebody deleted it.
	HasClaim         bool
	ClaimTerminating bool

	// Retiring: its replacement has a successor for it, or it is a surge that is taken back.
	Retiring bool
	// Unfit says why it must not be in the cohort, whatever it streams; empty when it may.
	Unfit string
	// Surge is the name of the replacement it was made for; empty for others and once that has ended.
	Surge string
	// Settled: it keeps others of the shard off its node.
	Settled bool
	// NodeNotReadyFor is how long its node has not been ready or has not existed; 0 while it is.
	NodeNotReadyFor time.Duration
	// Unschedulable: no node has room for the Pod.
	Unschedulable bool
	// Broken says why its Pod will never run as it is; empty while it may.
	Broken string

	// Status last heard, when, and whether the stream stands; FailingFor is how long it has not.
	Status     *agentpb.Status
	HeardAgo   time.Duration
	Connected  bool
	FailingFor time.Duration
	LastError  string
	// NotStreamingFor is how long the primary has not listed it as a streaming standby; 0 while it does.
	NotStreamingFor time.Duration
	// Told is the address at which we told it to find its primary; "" when we never did.
	Told string
	// Busy is true while a command to its agent is under way, and until it was heard after that.
	Busy bool
}

// Replacement is one that has not ended, as far as the shard controller needs to know.
type Replacement struct {
	Name, Instance, Successor string
	Reason                    v1alpha1.Reason
	// Admitted: the ledger has let it begin.
	Admitted bool
	// Leaving is whom the cohort should go on without; empty while nobody leaves yet. Unfit says why that is urgent.
	Leaving, Unfit string
}

// replaced reports whether a replacement looks after the instance: as the one that goes, or as its successor.
func (s *State) replaced(it *Instance) bool {
	return slices.ContainsFunc(s.Replacements, func(r Replacement) bool {
		return r.Instance == it.Name || r.Successor == it.Name || r.Name == it.Surge
	})
}

// places are how many of the instances that the spec asks for replacements look after: one for each instance that goes,
// whatever is left of it and of its successors.
func (s *State) places() int {
	targets := map[string]bool{}
	for _, r := range s.Replacements {
		targets[r.Instance] = true
	}
	return len(targets)
}

// refused are those that could not be made because the API server refuses their claims or Pods, with its words.
func (s *State) refused() []string {
	var out []string
	if s.Refused != "" {
		out = append(out, "another instance: "+s.Refused)
	}
	for i := range s.Instances {
		if it := &s.Instances[i]; it.Refused != "" {
			out = append(out, it.Name+": "+it.Refused)
		}
	}
	return out
}

func (s *State) instance(name string) *Instance {
	i := slices.IndexFunc(s.Instances, func(i Instance) bool { return i.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Instances[i]
}

// alive reports whether the agent's last word is recent enough to act upon.
func (i *Instance) alive(p Params) bool {
	return i != nil && i.HasPod && i.Connected && i.Status != nil && i.HeardAgo < p.StaleAfter
}

// leaving reports whether the instance is on its way out for good.
func (i *Instance) leaving() bool {
	return i.Terminating || i.ClaimTerminating || i.Failed
}

// gone: a volume whose Pod is not there.
func (i *Instance) gone() bool { return !i.HasPod && i.HasClaim }

// lost: it should be running and has been out of reach for too long.
func (i *Instance) lost(p Params) bool {
	return i.HasPod && !i.leaving() && (i.StrandedFor >= p.LostAfter || i.IP != "" && !i.Connected && i.FailingFor >= p.LostAfter)
}

// counts reports whether the instance is one of those the spec asks for.
func (i *Instance) counts(p Params) bool { return i.HasPod && !i.leaving() && !i.lost(p) }

// hasData reports whether the instance's agent knows of a data directory, in whatever state.
func (i *Instance) hasData() bool {
	r := i.Status.GetRole()
	return i.Status != nil && r != agentpb.Role_EMPTY && r != agentpb.Role_ROLE_UNSPECIFIED
}

// primary is the primary of the newest recorded cohort, while it answers as such; nil otherwise.
func (s *State) primary(p Params) *Instance {
	c, ok := s.Record.Latest()
	if !ok {
		return nil
	}
	i := s.instance(c.Primary)
	if !i.alive(p) || i.Status.GetRole() != agentpb.Role_PRIMARY || i.Status.GetTerm() != c.Term {
		return nil
	}
	return i
}

// established is the primary of the established term, while it answers as such; nil otherwise.
func (s *State) established(p Params) *Instance {
	i := s.primary(p)
	c, _ := s.Record.Latest()
	if i == nil || !i.Status.GetEstablished() || c.Term != s.Record.Established {
		return nil
	}
	return i
}

// orphaned is the standby that has most of a shard that lost its primary and cannot get another: those that are left have
// everything that was acknowledged, but are too few to acknowledge what a new primary writes. Nil while that is not so, or
// may yet change by itself.
func (s *State) orphaned(p Params) *Instance {
	c, ok := s.Record.Latest()
	if !ok || s.Reparenting || s.Record.Established == 0 || s.Bootstrap == nil || !s.Bootstrap.Done || s.primary(p) != nil || s.NoPrimaryFor < p.RestartAfter {
		return nil
	}
	if first := s.instance(c.Primary); first.alive(p) || first != nil && first.counts(p) {
		return nil // it may come back, or be asked to go
	}
	var best *Instance
	var able []string
	for i := range s.Instances {
		it := &s.Instances[i]
		if !it.alive(p) || it.leaving() || it.Status.GetRole() != agentpb.Role_STANDBY || it.Status.GetDiverged() {
			continue
		}
		able = append(able, it.Name)
		if best == nil || position(best).Compare(position(it)) < 0 {
			best = it
		}
	}
	if best == nil || len(able) > c.Acks || quorum.Revocable(s.Record, able) != nil {
		return nil
	}
	return best
}

// position is where the instance's flushed WAL ended, as last heard.
func position(it *Instance) quorum.Position { return agentapi.PositionFromPB(it.Status.GetFlushed()) }

// peer is what the primary says of a standby; nil when it does not list it.
func peer(primary *Instance, name string) *agentpb.ReplicationPeer {
	if primary == nil {
		return nil
	}
	for _, p := range primary.Status.GetPeers() {
		if p.GetInstance() == name {
			return p
		}
	}
	return nil
}

// streaming reports whether the primary hears the standby.
func streaming(primary *Instance, name string) bool {
	p := peer(primary, name)
	return p != nil && p.GetState() == "streaming" && !observer.Overdue(p)
}

// redundant reports whether an established primary has all the standbys the spec asks for in its one recorded cohort,
// and hears them: the shard can afford to lose what the cohort does not name.
func (s *State) redundant(p Params) bool {
	primary := s.established(p)
	c, _ := s.Record.Latest()
	if primary == nil || len(s.Record.Cohorts) != 1 || len(c.Members) < s.Wanted-1 || c.Acks < quorum.DefaultAcks(s.Wanted) {
		return false
	}
	return !slices.ContainsFunc(c.Members, func(m string) bool { return !streaming(primary, m) })
}

// canCommit reports whether the primary hears enough of the cohort's members to acknowledge anything.
func canCommit(c quorum.Cohort, primary *Instance) bool {
	n := 0
	for _, m := range c.Members {
		if streaming(primary, m) {
			n++
		}
	}
	return n >= c.Acks
}
