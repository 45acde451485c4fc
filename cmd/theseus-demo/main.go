// Command theseus-demo is `make demo`: it starts a lab (or takes the cluster of the current kubeconfig), installs
// Theseus with its chart, applies the quickstart, writes and reads through the read-write endpoint and shows what is
// there. In the lab it then tells a story: lifetimes are minutes, a write load goes on, every instance and every node is
// replaced, a machine loses power; a table says what that cost. It may be run again at any time, also after it was
// interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"theseus.dev/theseus/internal/labkit"
)

const (
	namespace = "quickstart"
	database  = "shop"
	// Four nodes for three instances, so that there is room to replace any of them.
	nodes = 4
	// The lab's own default name, which its verbs need not be told.
	defaultLab = "theseus"
)

func main() {
	opts := options{}
	flag.StringVar(&opts.cluster, "cluster", "lab", "lab, or current for the cluster of the current kubeconfig")
	flag.StringVar(&opts.image, "image", "", "with -cluster=current: operator image; the operand is found beside it as <image>-pg17")
	flag.StringVar(&opts.lab, "lab", defaultLab, "name of the lab")
	flag.DurationVar(&opts.timeout, "timeout", 40*time.Minute, "bound on the whole demo")
	flag.BoolVar(&opts.story, "story", true, "in a lab: replace everything while clients write")
	flag.DurationVar(&opts.instanceAge, "instance-age", 4*time.Minute, "of the story: maximum age of instances")
	flag.DurationVar(&opts.nodeAge, "node-age", 6*time.Minute, "of the story: maximum age of nodes")
	flag.DurationVar(&opts.rotation, "rotation", 20*time.Minute, "of the story: bound on replacing everything")
	flag.Parse()

	ctx, stop := untilToldToEnd(context.Background())
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// untilToldToEnd ends the context at Ctrl-C, and when nobody looks any more: the terminal is gone (SIGHUP), or what the output was
// piped into is (SIGPIPE, which would otherwise end the process at its next line). What was begun is then ended in order.
func untilToldToEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
}

type options struct {
	cluster, image, lab            string
	timeout                        time.Duration
	story                          bool
	instanceAge, nodeAge, rotation time.Duration
}

func run(ctx context.Context, opts options) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	start := time.Now()
	kit := &labkit.Kit{Root: root, Out: func(line string) { fmt.Println(line) }}
	images, err := prepare(ctx, kit, opts)
	if err != nil {
		return err
	}
	if err := kit.Step("install Theseus with its chart", func() error { return kit.Install(ctx, images) }); err != nil {
		return err
	}
	if err := kit.Step("apply examples/quickstart.yaml", func() error {
		_, err := kit.Kubectl(ctx, "apply", "-f", filepath.Join(root, "examples", "quickstart.yaml"))
		return err
	}); err != nil {
		return err
	}
	if err := repair(ctx, kit); err != nil {
		return err
	}
	if err := kit.Step("wait until the database is Ready", func() error {
		_, err := kit.WaitReady(ctx, namespace, database)
		return err
	}); err != nil {
		return err
	}
	if err := kit.Step("write and read through the read-write endpoint", func() error { return writeAndRead(ctx, kit) }); err != nil {
		return err
	}
	if err := kit.PrintInstances(ctx, os.Stdout, namespace, database); err != nil {
		return err
	}
	fmt.Printf("\nUp after %.0f s, and left running.\n", time.Since(start).Seconds())
	printHints(ctx, kit)
	if opts.story && kit.LabName != "" {
		if err := tell(ctx, kit, opts); err != nil {
			return err
		}
		fmt.Println("\nThe lab is left running.")
		printHints(ctx, kit)
	}
	return nil
}

// prepare gets a cluster with the images on it and says which ones to run.
func prepare(ctx context.Context, kit *labkit.Kit, opts options) (labkit.Images, error) {
	switch opts.cluster {
	case "current":
		if opts.image == "" {
			return labkit.Images{}, errors.New("with CLUSTER=current, IMAGE= must name the operator image you pushed; " +
				"the operand is expected beside it as <IMAGE>-pg17 (see images/README.md)")
		}
		return labkit.Images{Operator: opts.image, Operand: opts.image + "-pg%d"}, kit.Step("connect to the current cluster", kit.Connect)
	case "lab":
		kit.LabName = opts.lab
		// Before the lab is up an image is unpacked once, and every node begins with a copy; afterwards once per node.
		if err := kit.Step("unpack the images", func() error {
			dir := filepath.Join(kit.Root, "build", "images")
			return kit.LoadImages(ctx, filepath.Join(dir, "operator.tar"), filepath.Join(dir, "operand-pg17.tar"))
		}); err != nil {
			return labkit.Images{}, err
		}
		err := kit.Step(fmt.Sprintf("start a Kubernetes of %d nodes on this machine", nodes), func() error { return kit.Up(ctx, nodes) })
		return labkit.LabImages(), err
	default:
		return labkit.Images{}, fmt.Errorf("unknown -cluster %q: lab or current", opts.cluster)
	}
}

// writeAndRead runs psql beside an instance, so that it works on any cluster, but connects as an application would:
// with the Secret's URI, over TLS, through the Service.
func writeAndRead(ctx context.Context, kit *labkit.Kit) error {
	sql := "CREATE TABLE IF NOT EXISTS planks (id bigserial PRIMARY KEY, laid timestamptz DEFAULT now());" +
		"INSERT INTO planks DEFAULT VALUES; SELECT 'planks so far: ' || count(*) FROM planks;"
	out, err := kit.Psql(ctx, namespace, database, "-qtAc", sql)
	if err != nil {
		return err
	}
	fmt.Print("  ", out)
	return nil
}

// repair gives back what a tale that could not end itself has left behind: lifetimes of minutes, and the NodePolicy. The tale is
// only ever told in a lab; the lifetimes of anybody else's cluster are theirs.
func repair(ctx context.Context, kit *labkit.Kit) error {
	if kit.LabName == "" {
		return nil
	}
	return kit.Step("give instances and nodes their usual lifetimes", func() error { return (&tale{kit: kit}).calm(ctx) })
}

func printHints(ctx context.Context, kit *labkit.Kit) {
	fmt.Println(strings.Join(hints(kit, anInstance(ctx, kit)), "\n"))
}

// anInstance is one that is there now, or a word for it.
func anInstance(ctx context.Context, kit *labkit.Kit) string {
	shards, err := kit.Shards(ctx, namespace, database)
	if err != nil || len(shards) == 0 || shards[0].Status.Primary == "" {
		return "INSTANCE"
	}
	return shards[0].Status.Primary
}

// hints say how to look, to connect, and to remove it all.
func hints(kit *labkit.Kit, instance string) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if kit.Kubeconfig != "" {
		say("  export KUBECONFIG=%s PATH=$PWD/bin:$PATH", kit.Kubeconfig)
	}
	say("  kubectl -n %s get databases,shards,pods", namespace)
	uri := fmt.Sprintf("\"$(kubectl -n %s get secret %s-app -o go-template='{{.data.uri | base64decode}}')\"", namespace, database)
	if kit.LabName == "" {
		say("  kubectl -n %s exec -it %s -- psql %s", namespace, instance, uri)
		say("Remove it: kubectl delete -f examples/quickstart.yaml; bin/helm -n %s uninstall theseus", labkit.OperatorNamespace)
		return lines
	}
	if kit.LabName != defaultLab {
		say("  export THESEUS_LAB=%s", kit.LabName)
	}
	say("  bin/lab client -- psql %s", uri)
	say("  bin/lab node list; bin/lab node kill NAME     # and watch it heal")
	say("Stop it: bin/lab down   Remove everything: make clean-lab")
	return lines
}
