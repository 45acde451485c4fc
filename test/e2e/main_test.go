//go:build e2e

// Package e2e holds the end-to-end tests: a real Kubernetes made by the lab, the chart installed as a user would, real
// clients beside the nodes, real faults. Each test makes a namespace and a Database of its own and checks at its end
// that no acknowledged write was lost. Timings are printed, never asserted: machines are noisy.
package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"theseus.dev/theseus/internal/labkit"
)

// nodes of the test lab: one more than instances, so that there is room to make a new one before an old one goes.
const nodes = 4

var kit *labkit.Kit // Set by TestMain before any test runs; the tests share one lab, as tenants share a cluster.

func TestMain(m *testing.M) {
	os.Exit(runMain(m))
}

func runMain(m *testing.M) int {
	root, err := filepath.Abs("../..")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	name := os.Getenv("THESEUS_LAB")
	if name == "" {
		name = "theseus-test"
	}
	start := time.Now()
	kit = &labkit.Kit{Root: root, LabName: name, Out: func(line string) {
		fmt.Printf("[%6.1fs] %s\n", time.Since(start).Seconds(), line)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if os.Getenv("KEEP") == "" {
		defer func() {
			down, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			if _, err := kit.Lab(down, "clean"); err != nil {
				fmt.Fprintln(os.Stderr, "cleaning the lab:", err)
			}
		}()
	}
	if err := kit.SetUp(ctx, nodes, "17", "15"); err != nil {
		fmt.Fprintln(os.Stderr, "setting up the lab:", err)
		return 1
	}
	return m.Run()
}
