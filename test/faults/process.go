package faults

import (
	"context"
	"fmt"
	"time"

	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/verdict"
)

// postmaster is a shell expression for the process id of an instance's postmaster.
const postmaster = `$(head -1 /var/lib/theseus/pgdata/postmaster.pid)`

// killBackend kills the first server process of the application's clients that it finds.
const killBackend = `
for p in /proc/[0-9]*; do
  if tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q ': app app '; then kill -9 ${p#/proc/} && exit 0; fi
done
exit 1`

// signalAgent sends a signal to the first process of a container, which is the agent, from the node: inside the container
// the kernel keeps the first process from being stopped.
const signalAgent = `
for p in /proc/[0-9]*; do
  grep -qs "$1" $p/cgroup || continue
  tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'theseus agent' || continue
  [ "$(awk '/^NSpid:/ {print $NF}' $p/status)" = 1 ] || continue
  exec kill -$2 ${p#/proc/}
done
echo "no agent runs in Pod $1" >&2
exit 1`

// fillVolume leaves no block free: what is large first, then what is left. The instance's user may not use the blocks
// that file systems reserve for root, and neither may PostgreSQL.
const (
	fillVolume = `
cd /var/lib/theseus
fallocate -l $(df --output=avail -B1 . | tail -1) ballast 2>/dev/null
dd if=/dev/zero bs=4k oflag=append conv=notrunc of=ballast 2>/dev/null
[ $(df --output=avail -B1 . | tail -1) -lt 65536 ]`
	emptyVolume = `rm -f /var/lib/theseus/ballast`
)

// What a primary may be found to be.
var (
	dead = []verdict.Verdict{verdict.PrimaryDead}
	// Its agent may say that it was told to stop before it is gone.
	deleted  = []verdict.Verdict{verdict.PrimaryDead, verdict.PrimarySick}
	stalled  = []verdict.Verdict{verdict.PrimaryStalled}
	isolated = []verdict.Verdict{verdict.PrimaryIsolated}
	// A network that works one way may first be noticed at either end.
	cut = []verdict.Verdict{verdict.PrimaryDead, verdict.PrimaryIsolated}
	// Writes fail before anybody has looked at how full the volume is.
	full = []verdict.Verdict{verdict.DiskFull, verdict.PrimarySick}
)

func processFaults() []Fault {
	return []Fault{
		{
			Name: "PostmasterKilled", About: "kill -9 of the postmaster; its agent lives", Effect: Moves, Verdicts: dead,
			Inject: script(`kill -9 `+postmaster, ""),
		},
		{
			Name: "BackendKilled", About: "kill -9 of one client's server process, as the kernel does when memory runs out: PostgreSQL ends all others", Effect: Moves, Verdicts: dead,
			Inject: script(killBackend, ""),
		},
		{
			Name: "PostmasterStopped", About: "SIGSTOP of the postmaster, later continued: open sessions go on, no new one begins", Effect: Moves, Verdicts: stalled,
			// Whoever noticed has killed it long before it is continued, unless it is continued soon.
			Inject: script(`kill -STOP `+postmaster, `kill -CONT `+postmaster+` 2>/dev/null || true`),
		},
		{
			Name: "PodDeleted", About: "the Pod is deleted with no grace", Effect: Moves, Verdicts: deleted, Gone: true,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				return nil, t.deletePod(ctx, t.Namespace, p)
			},
		},
		{
			Name: "AgentStopped", About: "SIGSTOP of the agent alone: nobody supervises, reports or obeys, while PostgreSQL serves", Effect: Stays,
			// After 30 s the kubelet's liveness probe kills the container, which is another fault.
			Lasts: 15 * time.Second, Inject: stopAgent,
		},
		{
			Name: "VolumeStalled", About: "every write and fsync on the data volume hangs", Effect: Moves, Verdicts: stalled,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				claim := t.Namespace + "/" + p
				_, err := t.Kit.Lab(ctx, "volume", "stall", claim)
				return func(ctx context.Context) error {
					// A claim that was replaced meanwhile is gone, and its volume was resumed when it went.
					if _, err := t.Pod(ctx, p); err != nil {
						return nil
					}
					_, err := t.Kit.Lab(ctx, "volume", "resume", claim)
					return err
				}, err
			},
		},
		{
			Name: "VolumeFull", About: "the data volume has no block left", Effect: Moves, Verdicts: full,
			// Statements that need a block fail, cleanly and at once, until the primary has moved.
			Refuses: "53100",
			Inject:  script(fillVolume, emptyVolume),
		},
		{
			Name: "TwoClaims", About: "a standby's PostgreSQL is promoted behind its agent's back and takes writes as a second primary", Effect: Stays,
			Inject: promoteStandby,
		},
		{
			Name: "LeaderAndPodDeleted", About: "the operator's leader and the primary's Pod are deleted with no grace at the same time", Effect: Moves, Verdicts: deleted, Gone: true,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				leader, err := t.leader(ctx)
				if err != nil {
					return nil, err
				}
				return nil, together(
					func() error { return t.deletePod(ctx, operatorNamespace, leader) },
					func() error { return t.deletePod(ctx, t.Namespace, p) },
				)
			},
		},
		{
			Name: "OperatorsDeletedAndPostmasterKilled", About: "every operator replica is deleted with no grace, and the postmaster is killed at the same time", Effect: Recovers, Verdicts: dead,
			Inject: func(ctx context.Context, t Target, p string) (Undo, error) {
				operators, err := t.operators(ctx)
				if err != nil {
					return nil, err
				}
				acts := []func() error{func() error { return t.inPod(ctx, p, `kill -9 `+postmaster) }}
				for i := range operators {
					acts = append(acts, func() error { return t.deletePod(ctx, operatorNamespace, operators[i].Name) })
				}
				return nil, together(acts...)
			},
		},
	}
}

// script is a fault made by a shell script in the instance's container and undone by another one, if that is not empty.
func script(do, undo string) func(context.Context, Target, string) (Undo, error) {
	return func(ctx context.Context, t Target, p string) (Undo, error) {
		pod, err := t.Pod(ctx, p)
		if err != nil {
			return nil, err
		}
		if err := t.inPod(ctx, p, do); err != nil || undo == "" {
			return nil, err
		}
		return func(ctx context.Context) error {
			if !t.exists(ctx, pod) {
				return nil
			}
			// Its container may have ended with the instance, which undoes everything too.
			if err := t.inPod(ctx, p, undo); err != nil && t.exists(ctx, pod) && t.running(ctx, p) {
				return err
			}
			return nil
		}, nil
	}
}

// running says whether the instance's Pod has a container that runs.
func (t Target) running(ctx context.Context, instance string) bool {
	pod, err := t.Pod(ctx, instance)
	if err != nil || pod.DeletionTimestamp != nil {
		return false
	}
	for _, cs := range pod.Status.ContainerStatuses {
		if cs.State.Running == nil {
			return false
		}
	}
	return true
}

func stopAgent(ctx context.Context, t Target, p string) (Undo, error) {
	pod, err := t.Pod(ctx, p)
	if err != nil {
		return nil, err
	}
	signal := func(ctx context.Context, name string) error {
		return t.onNode(ctx, pod.Spec.NodeName, signalAgent, string(pod.UID), name)
	}
	if err := signal(ctx, "STOP"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if err := signal(ctx, "CONT"); err != nil && t.exists(ctx, pod) && t.running(ctx, p) {
			return err
		}
		return nil
	}, nil
}

// promoteStandby makes a second server that believes to be a primary. The write it tries must not be acknowledged.
func promoteStandby(ctx context.Context, t Target, primary string) (Undo, error) {
	standbys, err := t.others(ctx, primary)
	if err != nil {
		return nil, err
	}
	victim := standbys[0].Name
	const promote = `psql -h /run/theseus/sock -U postgres -d postgres -qtAc 'SELECT pg_promote(true, 10)'`
	if err := t.inPod(ctx, victim, promote); err != nil {
		return nil, fmt.Errorf("promoting %s by hand: %w", victim, err)
	}
	const recovering = `[ "$(timeout 3 psql -h /run/theseus/sock -U postgres -d postgres -qtAc 'SELECT pg_is_in_recovery()')" = t ]`
	const write = `timeout 3 psql -h /run/theseus/sock -U postgres -d postgres -qtAc 'CREATE TABLE second_primary ()'`
	if err := t.inPod(ctx, victim, write); err == nil {
		return nil, fmt.Errorf("%s, promoted by hand, acknowledged a write that no quorum has", victim)
	}
	pod := standbys[0]
	return func(ctx context.Context) error {
		// Nobody takes this back but the shard itself: its data went another way.
		return labkit.Poll(ctx, time.Second, func(ctx context.Context) (bool, string, error) {
			if !t.exists(ctx, &pod) {
				return true, "", nil
			}
			err := t.inPod(ctx, victim, recovering)
			return err == nil, victim + " is still a primary beside the primary", nil
		})
	}, nil
}
