//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const writer = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: probe}
spec:
  storageClassName: lab-local
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: probe}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, fsGroupChangePolicy: OnRootMismatch, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: writer
    image: ` + probeImage + `
    imagePullPolicy: Never
    args: [append, /data/lines]
    volumeMounts: [{name: data, mountPath: /data}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// lines counts what the writer has written and fsynced.
func (l *lab) lines(t *testing.T) int {
	t.Helper()
	return strings.Count(l.kubectl(t, "-n", "probe", "logs", "writer"), "\n")
}

func (l *lab) growing(t *testing.T) error {
	t.Helper()
	before := l.lines(t)
	time.Sleep(time.Second)
	if l.lines(t) == before {
		return errors.New("nothing is written")
	}
	return nil
}

func (l *lab) testVolumes(t *testing.T) {
	l.apply(t, writer)
	l.kubectl(t, "-n", "probe", "wait", "pod/writer", "--for=condition=Ready", "--timeout=60s")
	eventually(t, "it writes", func() error { return l.growing(t) })
	l.run(t, "volume", "stall", "probe/data")
	l.run(t, "volume", "stall", "probe/data")
	time.Sleep(time.Second) // for what was printed before the stall to arrive
	require.Error(t, l.growing(t), "writes hang")
	l.run(t, "volume", "resume", "probe/data")
	l.run(t, "volume", "resume", "probe/data")
	eventually(t, "writes go on", func() error { return l.growing(t) })
	_, err := l.try("lab", "volume", "stall", "probe/none")
	require.Error(t, err)
	// The writer stays: its node is killed later.
}
