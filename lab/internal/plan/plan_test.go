package plan

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestAddressesAreDistinctAndInsideTheirNetworks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.IntRange(1, MaxIndex).Draw(t, "a")
		b := rapid.IntRange(1, MaxIndex).Draw(t, "b")
		addrA, err := NodeAddress(a)
		require.NoError(t, err)
		podsA, err := PodRange(a)
		require.NoError(t, err)
		require.True(t, MachineNet.Contains(addrA), addrA)
		require.True(t, PodNet.Contains(podsA.Addr()), podsA)
		require.Equal(t, podsA.Masked(), podsA)
		for _, fixed := range []any{Router, ControlPlane, Client} {
			require.NotEqual(t, fixed, addrA)
		}
		addrB, err := NodeAddress(b)
		require.NoError(t, err)
		podsB, err := PodRange(b)
		require.NoError(t, err)
		require.Equal(t, a == b, addrA == addrB)
		require.Equal(t, a == b, podsA.Overlaps(podsB))
	})
}

func TestIndexOutsideThePlanIsAnError(t *testing.T) {
	for _, i := range []int{-1, 0, MaxIndex + 1} {
		_, err := NodeAddress(i)
		require.Error(t, err)
		_, err = PodRange(i)
		require.Error(t, err)
	}
}

func TestNetworksDoNotOverlap(t *testing.T) {
	require.False(t, MachineNet.Overlaps(PodNet))
	require.False(t, MachineNet.Overlaps(ServiceNet))
	require.False(t, PodNet.Overlaps(ServiceNet))
	require.True(t, ServiceNet.Contains(APIService))
}

func TestZonesAreDealtOutInTurnAndRefilled(t *testing.T) {
	var zones []string
	for range 6 {
		zones = append(zones, NextZone(zones))
	}
	require.Equal(t, []string{"z1", "z2", "z3", "z1", "z2", "z3"}, zones)
	require.Equal(t, "z2", NextZone([]string{"z1", "z3"}), "the zone that lost its node gets the next one")
}

func TestNodeNamesAreFreshAndShort(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for range 2000 {
		name := NodeName(r, func(n string) bool { return seen[n] })
		require.False(t, seen[name])
		require.Less(t, len(name), 15)
		seen[name] = true
	}
}

func TestLabNames(t *testing.T) {
	for _, good := range []string{"theseus", "e2e-1", "ab"} {
		require.NoError(t, CheckLabName(good))
	}
	for _, bad := range []string{"", "a", "Theseus", "a/b", "-a", "a-", "..", "a b"} {
		require.Error(t, CheckLabName(bad), bad)
	}
}

func TestPorts(t *testing.T) {
	require.Equal(t, 16443, PreferredPort(DefaultLab))
	require.NotEqual(t, PreferredPort(DefaultLab), PreferredPort("other"))
}
