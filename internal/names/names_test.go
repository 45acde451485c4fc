package names

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"
)

// TestTheLongestNamesFit uses the longest Database name and the highest shard that validation lets in.
func TestTheLongestNamesFit(t *testing.T) {
	database := "a" + strings.Repeat("b", 39)
	shard := Shard(database, 1023)
	for _, name := range []string{
		shard, Authority(database), Application(database), ReadWrite(shard), ReadOnly(shard), Direct(shard),
		Instances(shard), AgentTLS(shard), GatewayTLS(shard), Gateway(shard), Instance(shard, nil),
		// A Deployment's Pods append a hash of up to 10 and a suffix of 5.
		Gateway(shard)[:len(Gateway(shard))],
	} {
		require.Empty(t, validation.IsDNS1123Label(name), name)
		require.Empty(t, validation.IsValidLabelValue(name), name)
	}
	seen := map[string]bool{}
	for _, index := range []int32{1, 102, 1022, 1023} {
		for _, reason := range []string{"Expired", "NodeExpiring", "Draining", "Condemned", "Outdated", "Drill", "Requested"} {
			for _, n := range []int{0, 1, 9, 99, 12345} {
				name := Replacement(Instance(Shard(database, index), func(int) int { return 0 }), reason, n)
				require.Empty(t, validation.IsDNS1123Label(name), name)
				require.Empty(t, validation.IsValidLabelValue(name), name)
				require.True(t, strings.HasPrefix(name, database[:20]), "one sees whose it is: %s", name)
				require.Contains(t, name, "-"+strings.ToLower(reason))
				require.False(t, seen[name], name)
				seen[name] = true
			}
		}
	}
}

func TestReplacementNames(t *testing.T) {
	require.Equal(t, "shop-0-x7k2p-requested", Replacement("shop-0-x7k2p", "Requested", 0))
	require.Equal(t, "shop-0-x7k2p-condemned-2", Replacement("shop-0-x7k2p", "Condemned", 1))
	long := strings.Repeat("a", 53)
	require.Equal(t, long+"-condemned", Replacement(long, "Condemned", 0), "63 are just enough")
	cut := Replacement(long, "Condemned", 1)
	require.Equal(t, cut, Replacement(long, "Condemned", 1))
	require.Len(t, cut, 63)
	require.NotEqual(t, cut, Replacement(long[1:]+"b", "Condemned", 1))
	require.Empty(t, validation.IsDNS1123Label(Replacement(strings.Repeat("a-", 100), "Requested", 0)))
}

func TestInstanceNames(t *testing.T) {
	require.Equal(t, "db-0-bbbbb", Instance("db-0", func(int) int { return 0 }))
	seen := map[string]bool{}
	for range 1000 {
		seen[Instance("db-0", nil)] = true
	}
	require.Greater(t, len(seen), 990)
}

func TestHosts(t *testing.T) {
	require.Equal(t, []string{"db-rw", "db-rw.ns", "db-rw.ns.svc", "db-rw.ns.svc.cluster.local"}, Hosts("db-rw", "ns", "cluster.local"))
	require.Len(t, Hosts("db-rw", "ns", ""), 3)
}

func TestOperatorLabelsAreThoseOfTheChart(t *testing.T) {
	helpers, err := os.ReadFile("../../charts/theseus/templates/_helpers.tpl")
	require.NoError(t, err)
	for key, value := range OperatorLabels() {
		require.Contains(t, string(helpers), key+": "+value)
	}
}
