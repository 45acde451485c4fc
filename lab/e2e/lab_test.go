//go:build e2e

// Package e2e runs the lab command as its users do: every verb at least once.
// It needs root, the executables of lab.mk, and a few minutes:
//
//	CGO_ENABLED=0 go test -tags e2e -v ./e2e
//
// THESEUS_LAB names the lab (it is removed first), LAB_BIN the directory of
// executables, and LAB_KEEP=1 leaves the lab up for a look when a test fails.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/lab/internal/imagestore"
)

const (
	probeImage = "theseus.dev/lab/probe:e2e"
	// patience is generous on purpose: the tests assert order and outcome,
	// and machines are noisy.
	patience = 4 * time.Minute
)

var labName = cmp.Or(os.Getenv("THESEUS_LAB"), "theseus-lab-e2e")

// lab is the lab under test.
type lab struct {
	bin   string // directory of executables
	probe string // the probe program on the host
}

// command is a program with the lab's environment, bounded in time.
func (l *lab) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, name), args...)
	cmd.Env = append(os.Environ(), "THESEUS_LAB="+labName, "KUBECONFIG=/var/lib/theseus-lab/"+labName+"/kubeconfig")
	return cmd
}

// try runs a program and returns its standard output, and its error with what
// it said.
func (l *lab) try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := l.command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String(), nil
}

func (l *lab) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.try("lab", args...)
	require.NoError(t, err)
	return out
}

func (l *lab) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.try("kubectl", args...)
	require.NoError(t, err)
	return out
}

func (l *lab) apply(t *testing.T, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := l.command(ctx, "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

// eventually polls until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not after %s: %v", what, patience, err)
}

// nodes maps the names of Node objects to whether they are Ready.
func (l *lab) nodes() (map[string]bool, error) {
	out, err := l.try("kubectl", "get", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	ready := map[string]bool{}
	for _, n := range list.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" {
				ready[n.Metadata.Name] = c.Status == "True"
			}
		}
	}
	return ready, nil
}

func (l *lab) awaitReady(t *testing.T, node string, want bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("node %s ready=%v", node, want), func() error {
		ready, err := l.nodes()
		if err != nil {
			return err
		}
		if got, ok := ready[node]; !ok || got != want {
			return fmt.Errorf("it is %v (known: %v)", got, ok)
		}
		return nil
	})
}

// get asks a URL from the client's place.
func (l *lab) get(url string) (string, error) {
	return l.try("lab", "client", "--", l.probe, "get", url)
}

func TestLab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin, err := filepath.Abs("../../bin")
	require.NoError(t, err)
	if dir := os.Getenv("LAB_BIN"); dir != "" {
		bin = dir
	}
	dir := t.TempDir()
	l := &lab{bin: bin, probe: filepath.Join(dir, "probe")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", l.probe, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	archive := filepath.Join(dir, "probe.tar")
	require.NoError(t, imagestore.WriteStatic(archive, probeImage, l.probe))

	l.run(t, "clean") // of an earlier run
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("LAB_KEEP") != "" {
			t.Logf("lab %s is kept: THESEUS_LAB=%s bin/lab status; bin/lab clean", labName, labName)
			return
		}
		_, _ = l.try("lab", "clean")
	})
	_, err = l.try("lab", "status")
	require.ErrorContains(t, err, "lab up", "the error says what to do")
	_, err = l.try("lab", "node", "add")
	require.ErrorContains(t, err, "lab up")

	// Each step builds on the ones before it: the first failure ends the test.
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"an image is loaded before there is a cluster", func(t *testing.T) { l.run(t, "image", "load", archive) }},
		{"up", l.testUp},
		{"pods and services", l.testPods},
		{"client", l.testClient},
		{"image load", func(t *testing.T) { l.testImages(t, dir) }},
		{"node add and remove", l.testAddRemove},
		{"node replace", l.testReplace},
		{"cut and heal", l.testCut},
		{"cut between two", l.testCutPeer},
		{"freeze and thaw", l.testFreeze},
		{"volumes", l.testVolumes},
		{"control plane", l.testControlPlane},
		{"kill", l.testKill},
		{"interrupted up", l.testInterrupted},
		{"down and clean", l.testClean},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow()
		}
	}
}

func (l *lab) testUp(t *testing.T) {
	l.run(t, "up", "--nodes", "3")
	ready, err := l.nodes()
	require.NoError(t, err)
	require.Len(t, ready, 3)
	zones := l.kubectl(t, "get", "nodes", "-o", `jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}`)
	require.ElementsMatch(t, []string{"z1", "z2", "z3"}, strings.Fields(zones))

	l.run(t, "up", "--nodes", "3")
	again, err := l.nodes()
	require.NoError(t, err)
	require.Equal(t, ready, again, "a second up changes nothing")

	path := strings.TrimSpace(l.run(t, "kubeconfig"))
	require.FileExists(t, path)
	status := l.run(t, "status")
	require.Contains(t, status, "ready")
	list := l.run(t, "node", "list")
	for name := range ready {
		require.Contains(t, status, name)
		require.Contains(t, list, name)
	}
}

// The namespace enforces the strictest Pod Security level: the lab must not need less.
const echo = `
apiVersion: v1
kind: Namespace
metadata: {name: probe, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo, namespace: probe}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 2
      tolerations: [{operator: Exists}]
      containers:
      - name: echo
        image: ` + probeImage + `
        imagePullPolicy: Never
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        securityContext:
          runAsNonRoot: true
          runAsUser: 1000
          readOnlyRootFilesystem: true
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          seccompProfile: {type: RuntimeDefault}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: probe}
spec:
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
`

const echoURL = "http://echo.probe.svc.cluster.local/"

func hasKey(m map[string]bool, key string) bool { _, ok := m[key]; return ok }

// pod is an echo Pod.
type pod struct{ name, node, ip string }

// pods lists running echo Pods by node.
func (l *lab) pods(t *testing.T) map[string]pod {
	t.Helper()
	out := l.kubectl(t, "-n", "probe", "get", "pods", "-l", "app=echo", "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{"\n"}{end}`)
	nodes, err := l.nodes()
	require.NoError(t, err)
	pods := map[string]pod{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		// The Pods of a node that was removed are listed for about a minute more.
		if f := strings.Fields(line); len(f) == 3 && hasKey(nodes, f[1]) {
			pods[f[1]] = pod{f[0], f[1], f[2]}
		}
	}
	return pods
}

func (l *lab) testPods(t *testing.T) {
	l.apply(t, echo)
	l.kubectl(t, "-n", "probe", "rollout", "status", "daemonset/echo", "--timeout=60s")
	pods := l.pods(t)
	require.Len(t, pods, 3)
	for _, p := range pods {
		require.Contains(t, l.kubectl(t, "-n", "probe", "logs", p.name), "serving as "+p.name)
		// Through DNS and a Service, also to itself, and straight to every Pod.
		eventually(t, "Service from "+p.name, func() error {
			_, err := l.try("kubectl", "-n", "probe", "exec", p.name, "--", "/probe", "get", "http://echo/")
			return err
		})
		for _, other := range pods {
			require.Contains(t, l.kubectl(t, "-n", "probe", "exec", p.name, "--", "/probe", "get", "http://"+other.ip+":8080/"), other.name)
		}
	}
	l.kubectl(t, "get", "--raw", "/readyz")
}

func (l *lab) testClient(t *testing.T) {
	seen := map[string]bool{}
	eventually(t, "every Pod answers the client through the Service", func() error {
		out, err := l.get(echoURL)
		if err != nil {
			return err
		}
		seen[strings.TrimSpace(out)] = true
		if len(seen) < 3 {
			return fmt.Errorf("only %v so far", seen)
		}
		return nil
	})
	for _, p := range l.pods(t) {
		out, err := l.get("http://" + p.ip + ":8080/")
		require.NoError(t, err)
		require.Contains(t, out, p.name)
	}
	require.Contains(t, l.run(t, "client", "--", filepath.Join(l.bin, "kubectl"), "get", "nodes"), "Ready")

	_, err := l.try("lab", "client", "--", "sh", "-c", "exit 7")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, exit.ExitCode())
	_, err = l.try("lab", "client", "--", "getent", "hosts", "example.com")
	require.ErrorAs(t, err, &exit, "nothing outside the lab has a name")

	errs := make(chan error, 50)
	for range cap(errs) {
		go func() {
			_, err := l.try("lab", "client", "--", "getent", "hosts", "kubernetes.default.svc.cluster.local")
			errs <- err
		}()
	}
	for range cap(errs) {
		require.NoError(t, <-errs, "programs that begin at the same time do not get into each other's way")
	}
}

func (l *lab) testImages(t *testing.T, dir string) {
	archive := filepath.Join(dir, "second.tar")
	require.NoError(t, imagestore.WriteStatic(archive, "theseus.dev/lab/probe:second", l.probe))
	l.run(t, "image", "load", archive)
	require.Empty(t, l.run(t, "image", "load", archive), "nothing is done twice")
	ready, err := l.nodes()
	require.NoError(t, err)
	for name := range ready {
		require.Contains(t, l.run(t, "node", "exec", name, "--", "ctr", "-n", "k8s.io", "images", "list", "-q"), "probe:second")
	}
	_, err = l.try("lab", "image", "load", filepath.Join(dir, "missing.tar"))
	require.ErrorContains(t, err, "missing.tar")
}

func (l *lab) add(t *testing.T, flags ...string) string {
	t.Helper()
	lines := strings.Fields(l.run(t, append([]string{"node", "add"}, flags...)...))
	return lines[len(lines)-1]
}

func (l *lab) testAddRemove(t *testing.T) {
	name := l.add(t, "--zone", "z2", "--memory", "2Gi", "--cpu", "1")
	l.awaitReady(t, name, true)
	require.Equal(t, "z2 1 2Gi", l.kubectl(t, "get", "node", name, "-o",
		`jsonpath={.metadata.labels.topology\.kubernetes\.io/zone} {.status.allocatable.cpu} {.status.allocatable.memory}`))
	eventually(t, "a Pod runs on it, from the image store", func() error {
		if _, ok := l.pods(t)[name]; !ok {
			return errors.New("no Pod")
		}
		return nil
	})
	l.run(t, "node", "remove", name)
	l.run(t, "node", "remove", name) // idempotent
	ready, err := l.nodes()
	require.NoError(t, err)
	require.NotContains(t, ready, name)
	_, err = l.try("lab", "node", "remove", "node-never")
	require.ErrorContains(t, err, "node list")
	_, err = l.try("lab", "node", "add", "--zone", "mars")
	require.ErrorContains(t, err, "z1")
}

// victim picks some node.
func (l *lab) victim(t *testing.T) string {
	t.Helper()
	ready, err := l.nodes()
	require.NoError(t, err)
	for name, ok := range ready {
		if ok {
			return name
		}
	}
	t.Fatal("no node is ready")
	return ""
}

func (l *lab) testCut(t *testing.T) {
	node := l.victim(t)
	p := l.pods(t)[node]
	l.run(t, "node", "cut", node)
	l.run(t, "node", "cut", node)
	require.Contains(t, l.run(t, "node", "list"), "cut")
	_, err := l.get("http://" + p.ip + ":8080/")
	require.Error(t, err, "a cut node does not answer")
	require.Contains(t, l.run(t, "node", "exec", node, "--", l.insideProbe(t, node), "get", "http://"+p.ip+":8080/"), p.name,
		"what runs on it goes on")
	l.awaitReady(t, node, false)
	l.run(t, "node", "heal", node)
	l.run(t, "node", "heal", node)
	l.awaitReady(t, node, true)
	eventually(t, "it answers again", func() error { _, err := l.get("http://" + p.ip + ":8080/"); return err })
}

// insideProbe makes the probe reachable from inside a node, whose /tmp is its own.
func (l *lab) insideProbe(t *testing.T, node string) string {
	t.Helper()
	b, err := os.ReadFile(l.probe)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("/var/lib/theseus-lab/"+labName+"/machines/"+node+"/probe", b, 0o755))
	return "/run/lab/machine/probe"
}

func (l *lab) testCutPeer(t *testing.T) {
	node := l.victim(t)
	p := l.pods(t)[node]
	url := "http://" + p.ip + ":8080/"
	l.run(t, "node", "cut", node, "--peer", "client", "--direction", "out")
	_, err := l.get(url)
	require.Error(t, err, "its answers do not reach the client")
	for _, other := range l.pods(t) {
		require.Contains(t, l.kubectl(t, "-n", "probe", "exec", other.name, "--", "/probe", "get", url), p.name, "others reach it")
	}
	l.run(t, "node", "heal", node, "--peer", "client")
	_, err = l.get(url)
	require.NoError(t, err)
	_, err = l.try("lab", "node", "cut", node, "--peer", "nobody")
	require.Error(t, err)
}

func (l *lab) testFreeze(t *testing.T) {
	node := l.victim(t)
	p := l.pods(t)[node]
	l.run(t, "node", "freeze", node)
	l.run(t, "node", "freeze", node)
	require.Contains(t, l.run(t, "node", "list"), "frozen")
	_, err := l.get("http://" + p.ip + ":8080/")
	require.Error(t, err)
	l.awaitReady(t, node, false)
	l.run(t, "node", "thaw", node)
	l.run(t, "node", "thaw", node)
	l.awaitReady(t, node, true)
	eventually(t, "it answers again", func() error { _, err := l.get("http://" + p.ip + ":8080/"); return err })
}

func (l *lab) testControlPlane(t *testing.T) {
	l.kubectl(t, "-n", "probe", "create", "configmap", "before", "--from-literal=a=b")
	l.run(t, "control-plane", "stop")
	l.run(t, "control-plane", "stop")
	_, err := l.try("kubectl", "get", "nodes", "--request-timeout=2s")
	require.Error(t, err)
	require.Contains(t, l.run(t, "status"), "stopped")
	_, err = l.try("lab", "node", "add")
	require.ErrorContains(t, err, "control-plane start")
	for range 5 {
		out, err := l.get(echoURL)
		require.NoError(t, err, "names resolve and Services answer without a control plane")
		require.Contains(t, out, "echo-")
	}
	l.run(t, "control-plane", "start")
	l.run(t, "control-plane", "start")
	require.Contains(t, l.kubectl(t, "-n", "probe", "get", "configmap", "before", "-o", "jsonpath={.data}"), "b")
	ready, err := l.nodes()
	require.NoError(t, err)
	for name := range ready {
		l.awaitReady(t, name, true)
	}
}

// kill ends a node and checks that nothing of it is left but its Node object.
func (l *lab) kill(t *testing.T, node string) {
	t.Helper()
	l.run(t, "node", "kill", node)
	l.run(t, "node", "kill", node)
	require.Contains(t, l.run(t, "node", "list"), "killed")
	require.NoFileExists(t, "/run/netns/theseus-lab."+labName+"."+node)
	require.Empty(t, leftovers(t, node))
	l.awaitReady(t, node, false)
}

func (l *lab) testKill(t *testing.T) {
	// Processes that hang in a stalled volume, and frozen ones, die too.
	stalled := l.kubectl(t, "-n", "probe", "get", "pod", "writer", "-o", "jsonpath={.spec.nodeName}")
	l.run(t, "volume", "stall", "probe/data")
	l.kill(t, stalled)
	frozen := l.victim(t)
	l.run(t, "node", "freeze", frozen)
	l.kill(t, frozen)

	l.run(t, "up", "--nodes", "3")
	ready, err := l.nodes()
	require.NoError(t, err)
	require.Len(t, ready, 5, "three that run, and the objects of the dead ones")
	l.run(t, "node", "remove", stalled)
	l.run(t, "node", "remove", frozen)
	ready, err = l.nodes()
	require.NoError(t, err)
	require.Len(t, ready, 3)
	_, err = l.try("lab", "volume", "resume", "probe/data")
	require.Error(t, err, "the volume is gone with its node")
}

func (l *lab) testInterrupted(t *testing.T) {
	// The commands die at different moments of making nodes.
	for _, after := range []time.Duration{30, 150, 600} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		_ = l.command(ctx, "lab", "up", "--nodes", "5").Run()
		cancel()
	}
	l.run(t, "up", "--nodes", "4")
	eventually(t, "all nodes are ready and none is left half made", func() error {
		ready, err := l.nodes()
		if err != nil {
			return err
		}
		for name, ok := range ready {
			if !ok {
				return fmt.Errorf("%s is not", name)
			}
		}
		if len(ready) < 4 {
			return fmt.Errorf("only %d", len(ready))
		}
		return nil
	})
}

func (l *lab) testClean(t *testing.T) {
	l.run(t, "down")
	l.run(t, "down")
	_, err := l.try("lab", "kubeconfig")
	require.ErrorContains(t, err, "lab up")
	require.Empty(t, leftovers(t, labName))
	l.run(t, "clean")
	l.run(t, "clean")
	require.NoDirExists(t, "/var/lib/theseus-lab/"+labName)
}

// leftovers lists processes, mounts, namespaces and control groups of this lab
// whose description contains a word: the name of a node, or of the lab itself.
func leftovers(t *testing.T, word string) []string {
	t.Helper()
	ours := func(s string) bool {
		return strings.Contains(s, word) && (strings.Contains(s, "theseus-lab/"+labName) ||
			strings.Contains(s, "theseus-lab."+labName) || strings.Contains(s, "--name "+labName))
	}
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for _, line := range strings.Split(string(mounts), "\n") {
		if ours(line) {
			found = append(found, "mount "+line)
		}
	}
	for _, pattern := range []string{"/run/netns/*" + word + "*", "/sys/fs/cgroup/*/theseus-lab/" + word, "/sys/fs/cgroup/*/theseus-lab/*/" + word, "/sys/fs/cgroup/theseus-lab/" + word, "/sys/fs/cgroup/theseus-lab/*/" + word} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		found = append(found, names...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, p := range processes {
		b, err := os.ReadFile(p)
		if line := strings.ReplaceAll(string(b), "\x00", " "); err == nil && ours(line) {
			found = append(found, "process "+line)
		}
	}
	return found
}
