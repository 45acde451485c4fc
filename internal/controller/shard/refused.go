package shard

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"theseus.dev/theseus/api/v1alpha1"
)

// another is the key of memory.refused for an instance that has no name yet: its claim was refused.
const another = ""

// mayAsk reports whether the API server may be asked for a claim or a Pod, after refusals not before a pause that grows: what
// it lacks (a PriorityClass, room in a quota) comes without a word to us.
func (m *memory) mayAsk(name string, now time.Time) bool {
	f := m.refused[name]
	return now.Sub(f.at) >= f.pause()
}

// asked takes the API server's answer to a creation. A refusal is remembered for the status, told as an event and, as far as
// the caller is concerned, dealt with: it must not slow down what else there is to do for the shard. Lost races, and errors
// that are no answer, are left to the caller.
func (r *Reconciler) asked(ctx context.Context, shard *v1alpha1.Shard, s *State, m *memory, name string, err error) error {
	if err == nil {
		delete(m.refused, name)
		return nil
	}
	if answer := apierrors.APIStatus(nil); !errors.As(err, &answer) || allConflicts(err) {
		return err
	}
	m.refused[name] = failure{at: s.Now, count: m.refused[name].count + 1, err: err}
	logr.FromContextOrDiscard(ctx).Info("the API server refuses an instance", "instance", name, "error", err.Error())
	r.event(shard, corev1.EventTypeWarning, ReasonInstanceRefused, string(CreateInstance), "The API server refuses %s: %v", what(name), err)
	return nil
}

func what(name string) string {
	if name == another {
		return "the claim of another instance"
	}
	return "the Pod of " + name
}

// recallRefused fills in what was refused, and forgets what has become true since or is not wanted any more.
func (s *State) recallRefused(m *memory) {
	for name, f := range m.refused {
		it := s.instance(name)
		switch {
		case name == another:
			s.Refused = f.err.Error()
		case it == nil || it.HasPod:
			delete(m.refused, name)
		default:
			it.Refused = f.err.Error()
		}
	}
}

// wanted forgets the refusal of another instance when the plan has none to make.
func (s *State) wanted(m *memory, actions []Action) {
	if !slices.ContainsFunc(actions, func(a Action) bool { return a.Verb == CreateInstance }) {
		delete(m.refused, another)
		s.Refused = ""
	}
}
