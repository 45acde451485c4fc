package simfleet

import "time"

// Mode says what expires.
type Mode string

const (
	// Nodes expire by a NodePolicy, and their instances with them.
	Nodes Mode = "nodes"
	// Instances expire by their own age on machines that stay.
	Instances Mode = "instances"
)

// Config of a run. Times are counted from the beginning.
type Config struct {
	Seed   uint64
	Mode   Mode
	Shards int
	// PerNode is how many instances share a node.
	PerNode int
	Days    int
	MaxAge  time.Duration
	// NodeFailures and Sicknesses per node, resp. instance, and year.
	NodeFailures, Sicknesses float64
	// Troubles: zones that go dark and machines that cannot be had.
	Troubles []Trouble
}

// Trouble is a bad time.
type Trouble struct {
	Name string
	From time.Duration
	For  time.Duration
	// Zone it concerns; -1 is all.
	Zone int
	// Dark zones lose power and come back with what they had; otherwise no new machines can be had, and where machines stay
	// there is no room on those there are either.
	Dark bool
}

// End of the trouble.
func (t Trouble) End() time.Duration { return t.From + t.For }

const day = 24 * time.Hour

// Default is the year that `make sim-fleet` runs. Failure rates are on the high side of what clouds publish: a node in
// two years, and every instance once in four for reasons of its own.
func Default() Config {
	return Config{
		Seed: 1, Mode: Nodes, Shards: 10_000, PerNode: 5, Days: 365, MaxAge: 696 * time.Hour,
		NodeFailures: 0.5, Sicknesses: 0.25,
		Troubles: []Trouble{
			{Name: "zone b dark for 3 hours", From: 120 * day, For: 3 * time.Hour, Zone: 1, Dark: true},
			{Name: "no machines anywhere for 24 hours", From: 190 * day, For: 24 * time.Hour, Zone: -1},
			{Name: "no machines in zone c for 5 days", From: 260 * day, For: 5 * day, Zone: 2},
		},
	}
}

const zones = 3

var zoneNames = [zones]string{"a", "b", "c"}

// Seconds that things take; drawn uniformly from [least, most).
type between struct{ least, most int64 }

var (
	podStart   = between{10, 40}
	nodeBoot   = between{90, 300}
	catchUp    = between{30, 300}
	reparentIn = between{1, 4}
	swapIn     = between{1, 3}
	podStop    = between{5, 30}
	detectIn   = between{5, 60}
)

const (
	// seedMedian and seedSigma of the log-normal time a copy takes, bounded by seedMost.
	seedMedian, seedSigma, seedMost = 900.0, 0.9, 6 * 3600
	tickEvery                       = 300
	nodeGoneIn                      = 60
	giveBackAfter                   = 12 * 3600
	keepFinished                    = 2 * 3600
)

func (c Config) planEvery() int64 {
	if c.Mode == Instances {
		return 6 * 3600 // thirty thousand objects; starts in between are taken from the plan as their time comes
	}
	return 3600
}
