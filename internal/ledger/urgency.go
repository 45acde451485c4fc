package ledger

import (
	"cmp"

	"theseus.dev/theseus/api/v1alpha1"
)

// class groups reasons that draw on the same cap.
type class int

const (
	repair class = iota
	urgent
	planned
	classes
)

func classOf(r v1alpha1.Reason) class {
	switch r {
	case v1alpha1.ReasonCondemned:
		return repair
	case v1alpha1.ReasonDraining, v1alpha1.ReasonRequested:
		return urgent
	default:
		return planned
	}
}

// Urgency orders requests: lower goes first. What is sick goes before what is healthy; somebody else's clock (a drain)
// before our own; our own clock before a person's wish only when it is about to run out.
func Urgency(r v1alpha1.Reason, near bool) int {
	switch {
	case r == v1alpha1.ReasonCondemned:
		return 0
	case r == v1alpha1.ReasonDraining:
		return 1
	case r == v1alpha1.ReasonNodeExpiring && near:
		return 2
	case r == v1alpha1.ReasonExpired && near:
		return 3
	case r == v1alpha1.ReasonRequested:
		return 4
	case r == v1alpha1.ReasonNodeExpiring:
		return 5
	case r == v1alpha1.ReasonExpired:
		return 6
	case r == v1alpha1.ReasonDrill:
		return 7
	case r == v1alpha1.ReasonOutdated:
		return 8
	default:
		return 9
	}
}

// Compare orders requests by urgency, then deadline (none is last), then name, so that every operator agrees.
func Compare(a, b Request) int {
	return cmp.Or(
		cmp.Compare(Urgency(a.Reason, a.Near), Urgency(b.Reason, b.Near)),
		compareDeadline(a, b),
		cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Instance, b.Instance),
	)
}

func compareDeadline(a, b Request) int {
	switch {
	case a.Deadline.IsZero() && b.Deadline.IsZero():
		return 0
	case a.Deadline.IsZero():
		return 1
	case b.Deadline.IsZero():
		return -1
	default:
		return a.Deadline.Compare(b.Deadline)
	}
}
