package faults

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"theseus.dev/theseus/internal/labkit"
)

const operatorNamespace = labkit.OperatorNamespace

func machineFaults() []Fault {
	return []Fault{
		{
			Name: "NodeKilled", About: "power cut of the primary's node; afterwards it is removed and a fresh one is added", Effect: Moves, Verdicts: dead, Gone: true,
			Inject: node("kill", func(ctx context.Context, t Target, node string) error {
				if _, err := t.Kit.Lab(ctx, "node", "remove", node); err != nil {
					return err
				}
				_, err := t.Kit.Lab(ctx, "node", "add")
				return err
			}),
		},
		{
			Name: "NodeCut", About: "the primary's node can neither send nor receive, and everything on it runs on", Effect: Moves, Verdicts: dead,
			Inject: node("cut", heal),
		},
		{
			Name: "NodeFrozen", About: "every process of the primary's node stops where it is, and later goes on", Effect: Moves, Verdicts: dead,
			Inject: node("freeze", func(ctx context.Context, t Target, node string) error {
				_, err := t.Kit.Lab(ctx, "node", "thaw", node)
				return err
			}),
		},
		{
			Name: "NodeDeaf", About: "the primary's node sends but does not receive", Effect: Moves, Verdicts: cut,
			Inject: node("cut", heal, "--direction", "in"),
		},
		{
			Name: "NodeMute", About: "the primary's node receives but does not send", Effect: Moves, Verdicts: cut,
			Inject: node("cut", heal, "--direction", "out"),
		},
	}
}

func heal(ctx context.Context, t Target, node string) error {
	_, err := t.Kit.Lab(ctx, "node", "heal", node)
	return err
}

// node is a fault made by a verb of the lab on the primary's node.
func node(verb string, mend func(context.Context, Target, string) error, flags ...string) func(context.Context, Target, string) (Undo, error) {
	return func(ctx context.Context, t Target, p string) (Undo, error) {
		name, err := t.Node(ctx, p)
		if err != nil {
			return nil, err
		}
		if _, err := t.Kit.Lab(ctx, append([]string{"node", verb, name}, flags...)...); err != nil {
			return nil, err
		}
		mended := false
		return func(ctx context.Context) error {
			if mended {
				return nil
			}
			err := mend(ctx, t, name)
			mended = err == nil
			return err
		}, nil
	}
}

func partitionFaults() []Fault {
	return []Fault{
		{
			Name: "CutFromStandbys", About: "the primary and its standbys cannot reach each other; operator, gateways and clients reach all of them", Effect: Moves, Verdicts: isolated,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				others, err := t.others(ctx, p)
				if err != nil {
					return nil, err
				}
				return t.part(ctx, p, others)
			},
		},
		{
			Name: "CutFromOperator", About: "the operator and the primary cannot reach each other; everybody else can", Effect: Stays,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				operators, err := t.operators(ctx)
				if err != nil {
					return nil, err
				}
				return t.part(ctx, p, operators)
			},
		},
	}
}

// part drops every packet between an instance's Pod and other Pods, on the instance's node, without a word. It ends with
// the node or when it is undone, and does not notice Pods that come later.
func (t Target) part(ctx context.Context, instance string, peers []corev1.Pod) (Undo, error) {
	pod, err := t.Pod(ctx, instance)
	if err != nil {
		return nil, err
	}
	var addresses []string
	for i := range peers {
		addresses = append(addresses, peers[i].Status.PodIP)
	}
	table := tableName(instance, addresses)
	if err := t.onNode(ctx, pod.Spec.NodeName, `echo "$1" | nft -f -`, partRules(table, pod.Status.PodIP, addresses)); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return t.onNode(ctx, pod.Spec.NodeName, `nft list table ip "$1" >/dev/null 2>&1 || exit 0; nft delete table ip "$1"`, table)
	}, nil
}

// tableName tells partitions of one node apart.
func tableName(instance string, addresses []string) string {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, instance, addresses)
	return fmt.Sprintf("fault_%08x", h.Sum32())
}

// partRules renders a table for nft. Every packet between Pods passes the forward hook of both nodes, also that of Pods
// on the same node, since each has a link of its own; it comes before what kube-proxy may have put there.
func partRules(table, instance string, others []string) string {
	set := "{ " + strings.Join(others, ", ") + " }"
	return fmt.Sprintf("table ip %[1]s {\n\tchain forward {\n\t\ttype filter hook forward priority -200; policy accept;\n"+
		"\t\tip saddr %[2]s ip daddr %[3]s drop\n\t\tip saddr %[3]s ip daddr %[2]s drop\n\t}\n}\n", table, instance, set)
}

// together does several things as nearly at once as goroutines can.
func together(acts ...func() error) error {
	errs := make([]error, len(acts))
	var all sync.WaitGroup
	for i, act := range acts {
		all.Go(func() { errs[i] = act() })
	}
	all.Wait()
	return errors.Join(errs...)
}
