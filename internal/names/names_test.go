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
