package sim

import "testing"

func TestSmoke(t *testing.T) {
	for seed := range uint64(20) {
		r := Run(Config{Seed: seed})
		t.Log(r, r.Counts)
	}
}
