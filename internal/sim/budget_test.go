//go:build !race

package sim

// seeds of TestSeeds: a quarter of a minute on one core that is otherwise idle, a minute on a busy one.
const (
	seeds = 1200
	brief = false
)
