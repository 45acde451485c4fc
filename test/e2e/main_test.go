//go:build e2e

// Package e2e holds the end-to-end tests: a real Kubernetes made by the lab, the chart installed as a user would, real
// clients beside the nodes, real faults. Each test makes a namespace and a Database of its own and checks at its end
// that no acknowledged write was lost. Timings are printed, never asserted: machines are noisy.
package e2e

import (
	"os"
	"testing"

	"theseus.dev/theseus/internal/labkit"
)

// nodes of the test lab: one more than instances, so that there is room to make a new one before an old one goes.
const nodes = 4

var kit *labkit.Kit // Set by TestMain before any test runs; the tests share one lab, as tenants share a cluster.

func TestMain(m *testing.M) {
	os.Exit(labkit.RunTests(m, func(k *labkit.Kit) { kit = k }, nodes, "17", "15"))
}
