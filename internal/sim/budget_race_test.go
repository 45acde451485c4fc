//go:build race

package sim

// seeds of TestSeeds under the race detector, which is ten times slower and finds nothing in one thread.
const seeds = 150
