package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/story"
)

// tale is the second half of the demo: everything is replaced while clients write.
type tale struct {
	kit    *labkit.Kit
	opts   options
	load   *writing
	events story.Chronicle
	screen *screen
}

// tell runs it and prints the table at the end, whatever happened: an interrupted tale has an end too.
func tell(ctx context.Context, kit *labkit.Kit, opts options) error {
	t := &tale{kit: kit, opts: opts, screen: newScreen(os.Stdout)}
	fmt.Printf("\nNow everything is replaced, while clients write: instances live %s, nodes %s. Ctrl-C ends it early.\n\n", opts.instanceAge, opts.nodeAge)
	var err error
	if t.load, err = startWriting(ctx, kit, story.Part{When: "while everything was replaced", Planned: true}); err != nil {
		return err
	}
	err = t.acts(ctx)
	t.screen.keep()
	ending, endErr := t.conclude(ctx)
	fmt.Println()
	if e := errors.Join(endErr, t.events.Summary(os.Stdout, ending)); e != nil {
		return errors.Join(err, e)
	}
	if ending.Verified && ending.Lost > 0 {
		return errors.Join(err, fmt.Errorf("%d acknowledged writes are LOST", ending.Lost))
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// conclude gives instances and nodes their usual lifetimes back and ends the load.
func (t *tale) conclude(ctx context.Context) (story.Ending, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	calm := t.calm(ctx)
	ending, err := t.load.end(ctx)
	return ending, errors.Join(calm, err)
}

func (t *tale) acts(ctx context.Context) error {
	if err := t.hurry(ctx); err != nil {
		return err
	}
	if _, err := t.look(ctx); err != nil {
		return err
	}
	old := append(t.events.Alive(story.Instance), t.events.Alive(story.Node)...)
	if err := t.until(ctx, t.opts.rotation, "every instance and every node of the beginning is gone", func() bool {
		now := append(t.events.Alive(story.Instance), t.events.Alive(story.Node)...)
		return !slices.ContainsFunc(old, func(name string) bool { return slices.Contains(now, name) })
	}); err != nil {
		return err
	}
	if err := t.calm(ctx); err != nil {
		return err
	}
	if err := t.until(ctx, 5*time.Minute, "no replacement is under way", t.quiet); err != nil {
		return err
	}
	return t.powerCut(ctx)
}

// quiet: no replacement under way and a primary with all its standbys.
func (t *tale) quiet() bool {
	standbys, primaries := 0, 0
	for _, s := range t.events.Last.Subjects {
		switch {
		case s.Kind != story.Instance:
		case s.State == story.Primary:
			primaries++
		case s.State == story.Standby:
			standbys++
		}
	}
	busy := slices.ContainsFunc(t.events.Last.Replacements, func(r story.Replacement) bool { return r.Outcome == "" })
	return !busy && primaries == 1 && standbys >= 2
}

// powerCut takes the machine of the primary away and shows what was kept of the instance.
func (t *tale) powerCut(ctx context.Context) error {
	i := slices.IndexFunc(t.events.Last.Subjects, func(s story.Subject) bool { return s.State == story.Primary })
	if i < 0 {
		return errors.New("there is no primary")
	}
	victim := t.events.Last.Subjects[i]
	if err := t.load.turn(ctx, story.Part{When: "from the power cut on"}); err != nil {
		return err
	}
	t.say(fmt.Sprintf("power cut: %s, the machine under the primary %s", victim.Place, victim.Name))
	if _, err := t.kit.Lab(ctx, "node", "kill", victim.Place); err != nil {
		return err
	}
	if err := t.until(ctx, 5*time.Minute, "the shard is whole again", func() bool {
		return !slices.Contains(t.events.Alive(story.Instance), victim.Name) && t.quiet()
	}); err != nil {
		return err
	}
	t.screen.keep()
	fmt.Printf("\nWhat was kept of %s (theseus autopsy):\n", victim.Name)
	out, err := t.kit.Run(ctx, t.kit.Bin("theseus"), "autopsy", "-n", namespace, victim.Name)
	if err != nil {
		return fmt.Errorf("the evidence: %w", err)
	}
	for _, l := range excerpt(strings.Split(strings.TrimRight(out, "\n"), "\n")) {
		fmt.Println("  " + l)
	}
	_, err = t.kit.Lab(ctx, "node", "remove", victim.Place)
	return errors.Join(err, t.addNode(ctx))
}

// excerpt is the head of an autopsy and the end of its timeline.
func excerpt(lines []string) []string {
	const last = 25
	head := slices.Index(lines, "Timeline") + 1
	if head == 0 || len(lines) <= head+last {
		return lines
	}
	return slices.Concat(lines[:head], []string{"  …"}, lines[len(lines)-last:])
}

func (t *tale) addNode(ctx context.Context) error {
	_, err := t.kit.Lab(ctx, "node", "add")
	return err
}

// hurry sets the short lifetimes.
func (t *tale) hurry(ctx context.Context) error {
	url, err := t.kit.Lab(ctx, "machine-webhook")
	if err != nil {
		return err
	}
	if err := t.setMaxAge(ctx, t.opts.instanceAge); err != nil {
		return err
	}
	_, err = t.kit.KubectlApply(ctx, fmt.Sprintf(`apiVersion: theseus.dev/v1alpha1
kind: NodePolicy
metadata: {name: demo}
spec:
  maxAge: %s
  drainTimeout: 5m
  machine:
    provider: Webhook
    webhook: {url: %q}
`, t.opts.nodeAge, strings.TrimSpace(url)))
	return err
}

func (t *tale) calm(ctx context.Context) error {
	_, err := t.kit.Kubectl(ctx, "delete", "nodepolicy", "demo", "--ignore-not-found", "--wait=false")
	return errors.Join(err, t.setMaxAge(ctx, 696*time.Hour))
}

func (t *tale) setMaxAge(ctx context.Context, age time.Duration) error {
	db := &v1alpha1.Database{}
	db.Namespace, db.Name = namespace, database
	patch := fmt.Sprintf(`{"spec":{"lifetime":{"maxAge":%q}}}`, age.String())
	return t.kit.Client.Patch(ctx, db, client.RawPatch("application/merge-patch+json", []byte(patch)))
}

func (t *tale) say(line string) { t.screen.show(&t.events, t.title(), []string{line}) }

func (t *tale) title() string { return fmt.Sprintf("%s/%s", namespace, database) }

// look observes once and shows it. An API server that does not answer is no end of the tale.
func (t *tale) look(ctx context.Context) (bool, error) {
	bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	o, err := story.Observe(bounded, t.kit.Client, namespace, database, time.Now())
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		t.say("the API server does not answer: " + err.Error())
		return false, nil
	}
	o.Clients = t.load.clients()
	t.screen.show(&t.events, t.title(), t.events.Add(o))
	return true, nil
}

// until looks twice a second until it is done or the time is over.
func (t *tale) until(ctx context.Context, limit time.Duration, what string, done func() bool) error {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := labkit.Poll(bounded, 500*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		ok, err := t.look(ctx)
		return ok && done(), what, err
	})
	if err == nil {
		t.say(what)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("after %s: not so: %s", limit, what)
	}
	return err
}
