package ledger

import (
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

// Entry is one disruption as read from its object: in flight, or finished so recently that it still counts.
type Entry struct {
	// Name of the object, for messages.
	Name string
	// Shard and Instance disturbed, with the Node and Zone of the instance that goes.
	Shard, Instance, Node, Zone string
	// Reason it goes for.
	Reason v1alpha1.Reason
	// Created is when it was asked for: a condemnation counts for the storm breaker from then on. Zero is Started,
	// or now.
	Created time.Time
	// Started is when it was admitted; zero while it only waits. What waits is not in flight.
	Started time.Time
	// Finished is when it ended; zero while it runs.
	Finished time.Time
	// NoCapacity is when its surge last failed for want of a machine; GotMachine when it last had one. Zero is never.
	NoCapacity, GotMachine time.Time
}

// InFlight is true from admission to the end.
func (e Entry) InFlight() bool { return !e.Started.IsZero() && e.Finished.IsZero() }

// Freeze is the freeze switch.
type Freeze string

const (
	// FreezeNone lets everything through.
	FreezeNone Freeze = ""
	// FreezePlanned stops what can wait: Expired, NodeExpiring, Outdated, Drill.
	FreezePlanned Freeze = "Planned"
	// FreezeAll stops repairs and drains as well. For the hour in which a person debugs the fleet.
	FreezeAll Freeze = "All"
)

// Limits of the ledger. The zero value of every field is its default.
type Limits struct {
	// Freeze and the reason a person gave for it.
	Freeze    Freeze
	FreezeWhy string
	// Planned is the most planned replacements in flight, fleet-wide. Default PlannedShare of the instances, at least 1.
	Planned int
	// Urgent is the most drains and requests in flight, fleet-wide. Default UrgentShare of the instances, at least 3.
	Urgent int
	// Repairs is the most repairs in flight, fleet-wide. Default RepairsShare of the instances, at least 3.
	Repairs int
	// PlannedShare, UrgentShare and RepairsShare of the instances. Defaults 0.02, 0.1, 0.1.
	PlannedShare, UrgentShare, RepairsShare float64
	// PerPolicy is the budget of each NodePolicy in nodes in flight; a policy that is not here has none.
	PerPolicy map[string]int
	// PerHour is the most starts per hour for age: of instances ("") and of the nodes of each NodePolicy. It is the rate
	// of the lifetime plan, rounded up. What is not here is unlimited.
	PerHour map[string]float64
	// StormFraction of the fleet condemned within StormWindow stops condemnation, from StormMinimum on. What is counted
	// are nodes: all instances of one node are one failure. Defaults 0.05, 1h, 5. A negative fraction turns the breaker off.
	StormFraction float64
	StormWindow   time.Duration
	StormMinimum  int
	// CapacityRetry is the time between two probes of a zone without capacity. Default 10m.
	CapacityRetry time.Duration
	// ZoneFreeze is for how long after the last failure nothing is even asked for in such a zone for its age. Default 2h.
	ZoneFreeze time.Duration
	// RateWindow over which PerHour is measured. Default 1h.
	RateWindow time.Duration
}

// Defaults of the limits that a person can set.
const (
	DefaultPlannedShare  = 0.02
	DefaultUrgentShare   = 0.1
	DefaultRepairsShare  = 0.1
	DefaultStormFraction = 0.05
	DefaultStormWindow   = time.Hour
)

// share of a number, rounded down; what is a whole number but for the error of floating point counts as one.
func share(fraction float64, of int) int { return int(fraction*float64(of) + 1e-6) }

// Fleet is the size of everything that draws on one ledger.
type Fleet struct {
	// Instances of all shards.
	Instances int
	// Nodes with instances on them. Default: Instances.
	Nodes int
}

func (l Limits) withDefaults(fleet Fleet) Limits {
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	fraction := func(v *float64, def float64) {
		if *v == 0 {
			*v = def
		}
	}
	fraction(&l.PlannedShare, DefaultPlannedShare)
	fraction(&l.UrgentShare, DefaultUrgentShare)
	fraction(&l.RepairsShare, DefaultRepairsShare)
	fraction(&l.StormFraction, DefaultStormFraction)
	set(&l.Planned, max(1, share(l.PlannedShare, fleet.Instances)))
	set(&l.Urgent, max(3, share(l.UrgentShare, fleet.Instances)))
	set(&l.Repairs, max(3, share(l.RepairsShare, fleet.Instances)))
	set(&l.StormMinimum, 5)
	duration := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	duration(&l.StormWindow, DefaultStormWindow)
	duration(&l.CapacityRetry, 10*time.Minute)
	duration(&l.ZoneFreeze, 2*time.Hour)
	duration(&l.RateWindow, time.Hour)
	return l
}

// Request asks whether one disruption may begin.
type Request struct {
	// Name of the object that asks, for messages; its own entry is not held against it.
	Name string
	// Shard, Instance, Node and Zone of what would go.
	Shard, Instance, Node, Zone string
	// Reason it would go for.
	Reason v1alpha1.Reason
	// Created is when it was asked for; zero is now.
	Created time.Time
	// Near is true when it is close to its maximum age.
	Near bool
	// Deadline by which it should be gone; zero is none. Earlier ones go first among equals.
	Deadline time.Time
	// Healthy copies the shard has now (those in flight to go included), and Wanted by its spec.
	Healthy, Wanted int
	// Dead is true when the instance that would go is no healthy copy any more.
	Dead bool
}

// NodeEntry is one node on its way out, for its age: in flight, or finished so recently that it still counts.
type NodeEntry struct {
	// Node, the NodePolicy it goes for, and its zone.
	Node, Policy, Zone string
	// Shards that have an instance on it.
	Shards []string
	// Started is when it was admitted, Finished when its machine was gone; zero while it runs.
	Started, Finished time.Time
}

// NodeRequest asks whether a node may begin to go.
type NodeRequest struct {
	// Node, the NodePolicy it would go for, and its zone.
	Node, Policy, Zone string
	// Shards that have an instance on it.
	Shards []string
	// Near and Deadline as in Request.
	Near     bool
	Deadline time.Time
	// Failed is how often it was tried lately, in vain. Those that failed oftener go last, however old they are: a node
	// that cannot be emptied has its turn when no other waits.
	Failed int
}

// Why a disruption may not begin, in a word.
type Why string

// The reasons for refusal.
const (
	InstanceBusy      Why = "InstanceBusy"
	ShardBusy         Why = "ShardBusy"
	ZoneBusy          Why = "ZoneBusy"
	Frozen            Why = "Frozen"
	CondemnationStorm Why = "CondemnationStorm"
	ShardDegraded     Why = "ShardDegraded"
	NoCapacity        Why = "NoCapacity"
	TooFast           Why = "TooFast"
	PolicyBusy        Why = "PolicyBusy"
	FleetBusy         Why = "FleetBusy"
)

// Verdict on a request.
type Verdict struct {
	// Allowed is true when it may begin now.
	Allowed bool
	// Why not, in a word; empty when allowed.
	Why Why
	// Message says it in a sentence.
	Message string
	// Retry is when it is worth asking again without any event; zero when only an event can change the answer.
	Retry time.Time
}
