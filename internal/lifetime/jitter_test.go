package lifetime

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFractionNeverChangesBetweenReleases(t *testing.T) {
	// Users see deadlines made from these; a release that moves them makes the fleet go at another time.
	require.InDelta(t, 0.50157298156326002, Fraction("lifetime", "a"), 1e-15)
	require.InDelta(t, 0.095540278912847221, Fraction("lifetime", "7f8a1a4e-0d0f-4a9c-8f0e-000000000001"), 1e-15)
}

func TestFractionIsUniformForSimilarNames(t *testing.T) {
	const n, bins = 100_000, 50
	var count [bins]int
	for i := range n {
		f := Fraction("lifetime", fmt.Sprintf("node-%d", i))
		require.GreaterOrEqual(t, f, 0.0)
		require.Less(t, f, 1.0)
		count[int(f*bins)]++
	}
	chi := 0.0
	for _, c := range count {
		d := float64(c) - n/bins
		chi += d * d / (n / bins)
	}
	require.Less(t, chi, 94.6, "chi-square with 49 degrees of freedom, p = 0.0001")
}

func TestFractionSaltsAreIndependent(t *testing.T) {
	const n = 20_000
	var sum float64
	for i := range n {
		id := fmt.Sprintf("%d", i)
		sum += (Fraction("a", id) - 0.5) * (Fraction("b", id) - 0.5)
	}
	require.InDelta(t, 0, 12*sum/n, 0.03, "correlation")
	require.NotEqual(t, Fraction("ab", "c"), Fraction("a", "bc"))
}
