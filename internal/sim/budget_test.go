//go:build !race

package sim

// seeds of TestSeeds: about half a minute on one slow core.
const seeds = 900
