//go:build race

package sim

// The race detector makes a run ten times slower and finds nothing in one thread: under it the simulation is only shown
// to work. `go test ./internal/sim/` is the test.
const (
	seeds = 60
	brief = true
)
