//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mover is one Pod that goes where there is room, and a budget that keeps it where it is.
const mover = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: mover, namespace: probe}
spec:
  selector: {matchLabels: {app: mover}}
  template:
    metadata: {labels: {app: mover}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      containers:
      - name: mover
        image: ` + probeImage + `
        imagePullPolicy: Never
        args: [serve]
        securityContext:
          runAsNonRoot: true
          runAsUser: 1000
          readOnlyRootFilesystem: true
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          seccompProfile: {type: RuntimeDefault}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: mover, namespace: probe}
spec: {maxUnavailable: 0, selector: {matchLabels: {app: mover}}}
`

// A node is replaced: what would not leave keeps it; then there is a new one with a new name in the same zone, and the old one is gone.
func (l *lab) testReplace(t *testing.T) {
	l.apply(t, mover)
	place := func() string {
		return l.kubectl(t, "-n", "probe", "get", "pods", "-l", "app=mover", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.nodeName}")
	}
	l.kubectl(t, "-n", "probe", "rollout", "status", "deployment/mover", "--timeout=60s")
	old := place()
	zone := func(node string) string {
		return l.kubectl(t, "get", "node", node, "-o", `jsonpath={.metadata.labels.topology\.kubernetes\.io/zone}`)
	}
	was := zone(old)
	before, err := l.nodes()
	require.NoError(t, err)

	_, err = l.try("lab", "node", "replace", old, "--drain-timeout", "3s")
	require.ErrorContains(t, err, "mover", "the error names who does not leave")
	require.Equal(t, old, place(), "nothing is taken away under a Pod")

	l.kubectl(t, "-n", "probe", "delete", "pdb", "mover")
	lines := strings.Fields(l.run(t, "node", "replace", old))
	name := lines[len(lines)-1]
	after, err := l.nodes()
	require.NoError(t, err)
	require.Len(t, after, len(before), "the successor of the first attempt was used")
	require.NotContains(t, after, old)
	require.NotContains(t, before, name)
	require.True(t, after[name])
	require.Equal(t, was, zone(name))
	eventually(t, "the Pod runs elsewhere", func() error {
		if at := place(); at == "" || at == old {
			return fmt.Errorf("it is on %q", at)
		}
		return nil
	})
	l.kubectl(t, "-n", "probe", "delete", "deployment", "mover")
	require.Contains(t, l.run(t, "machine-webhook"), "http://172.30.0.2:7400/")
}
