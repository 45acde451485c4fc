//go:build integration

package integration

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

func policy(edits ...func(map[string]any)) map[string]any {
	o := map[string]any{
		"apiVersion": "theseus.dev/v1alpha1", "kind": "NodePolicy",
		"metadata": map[string]any{"name": "nodes"},
		"spec":     map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"pool": "none"}}},
	}
	for _, e := range edits {
		e(o)
	}
	return o
}

func TestABadNodePolicyIsRefusedWithAClearMessage(t *testing.T) {
	ns := namespace(t)
	window := func(edit map[string]any) func(map[string]any) {
		w := map[string]any{"start": "08:00", "length": "8h"}
		for k, v := range edit {
			w[k] = v
		}
		return set("spec/windows", []any{w})
	}
	for name, c := range map[string]struct {
		edit func(map[string]any)
		want string
	}{
		"too old":               {set("spec/maxAge", "697h"), "nothing gets older here"},
		"too young":             {set("spec/maxAge", "59s"), "must be between 1m and 696h"},
		"a webhook without one": {set("spec/machine/provider", "Webhook"), "spec.machine.webhook belongs to provider Webhook"},
		"a webhook for another": {set("spec/machine/webhook", map[string]any{"url": "https://a"}), "spec.machine.webhook belongs to provider Webhook"},
		"a strange provider":    {set("spec/machine/provider", "Butler"), "Unsupported value"},
		"a budget below zero":   {set("spec/budget", -1), "spec.budget must be a number of nodes, or a percentage"},
		"more than everything":  {set("spec/budget", "101%"), "spec.budget must be a number of nodes, or a percentage"},
		"no such day":           {window(map[string]any{"days": []any{"Someday"}}), "Unsupported value"},
		"no such hour":          {window(map[string]any{"start": "25:00"}), "spec.windows[0].start"},
		"a window of two days":  {window(map[string]any{"length": "48h"}), "a window is open for more than nothing and at most 24h"},
		"no time to drain":      {set("spec/drainTimeout", "5s"), "spec.drainTimeout must be at least 1m"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := apply(t, ns, policy(c.edit), "--dry-run=server")
			require.Error(t, err)
			require.Contains(t, out, c.want)
		})
	}
}

func TestAGoodNodePolicyIsTaken(t *testing.T) {
	ns := namespace(t)
	data, err := os.ReadFile("../../examples/nodes.yaml")
	require.NoError(t, err)
	example := map[string]any{}
	require.NoError(t, yaml.Unmarshal(data, &example))
	for name, o := range map[string]map[string]any{
		"the example":  example,
		"the smallest": policy(),
		"a percentage": policy(set("spec/budget", "10%")),
		"a webhook":    policy(set("spec/machine", map[string]any{"provider": "Webhook", "webhook": map[string]any{"url": "http://172.30.0.2:7400/"}})),
	} {
		t.Run(name, func(t *testing.T) {
			out, err := apply(t, ns, o, "--dry-run=server")
			require.NoError(t, err, out)
		})
	}
}
