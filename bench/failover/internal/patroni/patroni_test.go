package patroni

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func parse(t *testing.T, text string) cluster {
	t.Helper()
	var c cluster
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	return c
}

func TestAiling(t *testing.T) {
	const leader = `{"name":"pg-0","role":"leader","state":"running","timeline":3}`
	for _, c := range []struct {
		name, members, why string
		sick               []string
	}{
		{"healthy", leader + `,{"name":"pg-1","role":"sync_standby","state":"streaming","timeline":3,"lag":0},{"name":"pg-2","role":"replica","state":"streaming","timeline":3,"lag":1000}`, "", nil},
		{"quorum", leader + `,{"name":"pg-1","role":"quorum_standby","state":"streaming","timeline":3,"lag":0},{"name":"pg-2","role":"quorum_standby","state":"streaming","timeline":3,"lag":0}`, "", nil},
		{"nobody is synchronous", leader + `,{"name":"pg-1","role":"replica","state":"streaming","timeline":3,"lag":0},{"name":"pg-2","role":"replica","state":"streaming","timeline":3,"lag":0}`, "no standby is synchronous", nil},
		{"no leader", `{"name":"pg-1","role":"replica","state":"streaming","timeline":3,"lag":0}`, "no running leader", nil},
		{"leader starts", `{"name":"pg-0","role":"leader","state":"starting"}`, "no running leader", nil},
		{"one is missing", leader + `,{"name":"pg-1","role":"sync_standby","state":"streaming","timeline":3,"lag":0}`, "pg-2 is no member; ", []string{"pg-2"}},
		{"one does not stream", leader + `,{"name":"pg-1","role":"sync_standby","state":"streaming","timeline":3,"lag":0},{"name":"pg-2","role":"replica","state":"running","timeline":3,"lag":0}`, "pg-2 is running; ", []string{"pg-2"}},
		{"an old timeline", leader + `,{"name":"pg-1","role":"sync_standby","state":"streaming","timeline":3,"lag":0},{"name":"pg-2","role":"replica","state":"streaming","timeline":2,"lag":0}`, "pg-2 is on timeline 2, not 3; ", []string{"pg-2"}},
		{"unknown lag", leader + `,{"name":"pg-1","role":"sync_standby","state":"streaming","timeline":3,"lag":0},{"name":"pg-2","role":"replica","state":"streaming","timeline":3,"lag":"unknown"}`, `pg-2 is "unknown" bytes behind; `, []string{"pg-2"}},
		{"far behind", leader + `,{"name":"pg-1","role":"sync_standby","state":"streaming","timeline":3,"lag":9000000},{"name":"pg-2","role":"replica","state":"streaming","timeline":3,"lag":0}`, `pg-1 is 9000000 bytes behind; `, []string{"pg-1"}},
	} {
		why, sick := parse(t, `{"members":[`+c.members+`]}`).ailing([]string{"pg-0", "pg-1", "pg-2"})
		require.Equal(t, c.why, why, c.name)
		require.Equal(t, c.sick, sick, c.name)
	}
}

// The manifests are complete and are what they are meant to be, once filled in.
func TestRender(t *testing.T) {
	p := &Patroni{config: Config{
		Name: "patroni-tuned", Image: "example/patroni:pg17", Major: 17, Storage: "1Gi", Timing: Fastest, SynchronousMode: "true",
		Parameters: []Parameter{{"jit", "off"}, {"max_wal_size", "128MB"}}, Password: "secret",
	}}
	text, err := p.render(manifests, "")
	require.NoError(t, err)
	require.NotContains(t, text, "<no value>")
	require.Contains(t, text, "ttl: 20\n")
	require.Contains(t, text, "loop_wait: 1\n")
	require.Contains(t, text, "retry_timeout: 3\n")
	require.Contains(t, text, "namespace: bench-patroni-tuned")
	require.Contains(t, text, "            jit: \"off\"\n")

	text, err = p.render(member, "pg-1")
	require.NoError(t, err)
	docs := splitDocuments(text)
	require.Len(t, docs, 2)
	var pod corev1.Pod
	require.NoError(t, yaml.UnmarshalStrict([]byte(docs[1]), &pod))
	require.Equal(t, "pg-1", pod.Name)
	require.Equal(t, "example/patroni:pg17", pod.Spec.Containers[0].Image)
	require.Equal(t, "pg-1", pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
}

// Patroni refuses options of initdb that are not strings, and finds out only when it bootstraps.
func TestInitdbOptionsAreStrings(t *testing.T) {
	p := &Patroni{config: Config{Name: "x", Timing: Defaults}}
	text, err := p.render(manifests, "")
	require.NoError(t, err)
	docs := splitDocuments(text)
	var config corev1.ConfigMap
	require.NoError(t, yaml.UnmarshalStrict([]byte(docs[len(docs)-1]), &config))
	var parsed struct {
		Bootstrap struct {
			Initdb []any `json:"initdb"`
		} `json:"bootstrap"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(config.Data["patroni.yml"]), &parsed))
	require.Len(t, parsed.Bootstrap.Initdb, 4)
	for _, option := range parsed.Bootstrap.Initdb {
		if pair, ok := option.(map[string]any); ok {
			for name, value := range pair {
				require.IsType(t, "", value, name)
			}
		}
	}
}

// Patroni's own rule: the leader must have time to try twice before its lock runs out.
func TestTimingsAreConsistent(t *testing.T) {
	for _, c := range []Timing{Defaults, Fastest} {
		require.LessOrEqual(t, c.LoopWait+2*c.RetryTimeout, c.TTL)
	}
}

func splitDocuments(text string) []string {
	var out []string
	for _, d := range strings.Split(text, "\n---\n") {
		if d != "" {
			out = append(out, d)
		}
	}
	return out
}
