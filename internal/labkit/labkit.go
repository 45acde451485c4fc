// Package labkit sets up a cluster with Theseus on it, for the demo and the end-to-end tests: it drives the lab (or
// takes the cluster of the current kubeconfig), installs the chart a user would install, and waits for Databases.
//
// It runs the same executables a person would run (lab, kubectl, helm), so that what the tests show is what a
// person gets.
package labkit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
)

// OperatorNamespace is where Install puts the operator.
const OperatorNamespace = "theseus-system"

// Kit is a cluster and the tools to handle it.
type Kit struct {
	// Root of the repository: charts, examples and bin are found below it.
	Root string
	// LabName is the lab's name; empty when the cluster is not a lab.
	LabName string
	// Kubeconfig is the path every tool is given; empty means the tools' own default.
	Kubeconfig string
	// REST and Client talk to the API server once Connect was called.
	REST   *rest.Config
	Client client.Client
	// Out receives the progress of what is run. Never nil.
	Out func(line string)
}

// Scheme knows Kubernetes' kinds and ours.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	must(clientgoscheme.AddToScheme(s))
	must(v1alpha1.AddToScheme(s))
	return s
}

func must(err error) {
	if err != nil {
		panic(err) // A scheme that cannot be built is a programming error found by any test.
	}
}

// Bin is the path of one of the repository's executables.
func (k *Kit) Bin(name string) string { return filepath.Join(k.Root, "bin", name) }

// Run executes a program and returns what it printed on standard output. The error carries what it printed on
// standard error. It is interrupted, then killed 5 s later, when the context ends.
func (k *Kit) Run(ctx context.Context, name string, args ...string) (string, error) {
	return k.RunInput(ctx, "", name, args...)
}

// RunInput is Run with standard input.
func (k *Kit) RunInput(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = os.Environ()
	if k.Kubeconfig != "" {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+k.Kubeconfig)
	}
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Lab runs a verb of the lab.
func (k *Kit) Lab(ctx context.Context, args ...string) (string, error) {
	if k.LabName == "" {
		return "", errors.New("this cluster is not a lab")
	}
	return k.Run(ctx, k.Bin("lab"), append([]string{"--name", k.LabName}, args...)...)
}

// Kubectl runs kubectl; the repository's own where there is one.
func (k *Kit) Kubectl(ctx context.Context, args ...string) (string, error) {
	return k.Run(ctx, k.kubectl(), args...)
}

// KubectlApply applies a manifest given as text.
func (k *Kit) KubectlApply(ctx context.Context, manifest string) (string, error) {
	return k.RunInput(ctx, manifest, k.kubectl(), "apply", "-f", "-")
}

func (k *Kit) kubectl() string {
	if own := k.Bin("kubectl"); fileExists(own) {
		return own
	}
	return "kubectl"
}

func (k *Kit) helm() string {
	if own := k.Bin("helm"); fileExists(own) {
		return own
	}
	return "helm"
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Up starts the lab with the given number of nodes (or adapts a running one) and connects to it.
func (k *Kit) Up(ctx context.Context, nodes int) error {
	if _, err := k.Lab(ctx, "up", "--nodes", strconv.Itoa(nodes)); err != nil {
		return err
	}
	path, err := k.Lab(ctx, "kubeconfig")
	if err != nil {
		return err
	}
	k.Kubeconfig = strings.TrimSpace(path)
	return k.Connect()
}

// Connect makes the API client from Kubeconfig, or from the user's own when that is empty.
func (k *Kit) Connect() error {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if k.Kubeconfig != "" {
		rules.ExplicitPath = k.Kubeconfig
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("no cluster to talk to: %w", err)
	}
	cfg.QPS, cfg.Burst = 50, 100
	c, err := client.New(cfg, client.Options{Scheme: Scheme()})
	if err != nil {
		return err
	}
	k.REST, k.Client = cfg, c
	return nil
}

// LoadImages loads image archives into every node of the lab, present and future.
func (k *Kit) LoadImages(ctx context.Context, archives ...string) error {
	for _, a := range archives {
		if _, err := k.Lab(ctx, "image", "load", a); err != nil {
			return err
		}
	}
	return nil
}

// Images names what the chart is to run.
type Images struct {
	// Operator image.
	Operator string
	// Operand image with %d for the PostgreSQL major.
	Operand string
}

// LabImages are the names the repository's image builder gives.
func LabImages() Images {
	return Images{Operator: "theseus.local/operator:dev", Operand: "theseus.local/operand:pg%d"}
}

// Install installs or upgrades the chart and waits until the operator is available.
func (k *Kit) Install(ctx context.Context, images Images, set ...string) error {
	chart := filepath.Join(k.Root, "charts", "theseus")
	// Helm never upgrades CRDs on its own, so that they are applied first, as the README tells a user to.
	if _, err := k.Kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(chart, "crds")); err != nil {
		return err
	}
	args := []string{
		"upgrade", "--install", "theseus", chart, "--namespace", OperatorNamespace, "--create-namespace", "--skip-crds",
		"--set", "image=" + images.Operator, "--set", "operandImage=" + images.Operand, "--wait", "--timeout", "3m",
	}
	// An image rebuilt under the same name changes nothing in the Deployment: the archive's digest makes it roll.
	if archive, err := os.ReadFile(filepath.Join(k.Root, "build", "images", "operator.tar")); err == nil && k.LabName != "" {
		args = append(args, "--set", fmt.Sprintf("podAnnotations.archive=sha256-%x", sha256.Sum256(archive)))
	}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	_, err := k.Run(ctx, k.helm(), args...)
	return err
}

// Step runs one named step and reports how long it took.
func (k *Kit) Step(name string, f func() error) error {
	start := time.Now()
	k.Out(fmt.Sprintf("▸ %s …", name))
	if err := f(); err != nil {
		k.Out(fmt.Sprintf("✗ %s failed after %.1f s", name, time.Since(start).Seconds()))
		return fmt.Errorf("%s: %w", name, err)
	}
	k.Out(fmt.Sprintf("✓ %s (%.1f s)", name, time.Since(start).Seconds()))
	return nil
}
