package machine

import (
	"fmt"
	"time"
)

// Phase of a rotation: a node on its way out for its age, or because its machine is being removed.
//
//	Holding → Surging → Moving → Replacing → Done
//	   │         └────────┴─► GivingBack → Failed     (did not empty in time; it is tried again later)
//	   └────────────────────────────────────┘          (could not be held)
//
// From Replacing, too, the way leads to Failed when the machine does not go in time. Then it is not given back.
type Phase string

// The phases.
const (
	Holding    Phase = "Holding"
	Surging    Phase = "Surging"
	Moving     Phase = "Moving"
	Replacing  Phase = "Replacing"
	GivingBack Phase = "GivingBack"
	RotDone    Phase = "Done"
	RotFailed  Phase = "Failed"
)

// Finished reports whether nothing more will happen.
func (p Phase) Finished() bool { return p == RotDone || p == RotFailed }

// Rotation is what is stored of a node on its way out.
type Rotation struct {
	Phase                     Phase
	PhaseStartedAt, StartedAt time.Time
	Message                   string
	// FailedIn is the phase that took too long, once that has happened. A rotation that is only not wanted any more has none.
	FailedIn Phase
}

// Call is the method of the provider to call next; CallNone waits.
type Call string

// The calls.
const (
	CallNone     Call = ""
	CallHold     Call = "Hold"
	CallSurge    Call = "Surge"
	CallReplace  Call = "Replace"
	CallGiveBack Call = "GiveBack"
	CallRelease  Call = "Release"
)

// Limits of a rotation. The zero value of every field is its default.
type Limits struct {
	// Hold is how long it may take to hold the machine. Default 30m.
	Hold time.Duration
	// Surge is how long making room may take. Default 30m.
	Surge time.Duration
	// Drain is how long moving the instances off may take. Default 12h.
	Drain time.Duration
	// Replace is how long the machine may take to be gone. Default 1h.
	Replace time.Duration
}

// Seen is everything a step of a rotation is decided from.
type Seen struct {
	Now      time.Time
	Rotation Rotation
	// NodeExists; Gone is the provider's word that the machine is gone.
	NodeExists, Gone bool
	// Held and Removing as in Machine.
	Held, Removing bool
	// Surge and Replace are the last answers of the provider.
	Surge, Replace Progress
	// Instances still on the node, surges on their way to it included; Moving of them have a replacement in flight.
	Instances, Moving int
	// Wanted is false when the node need not go any more: its policy is gone, or frozen before anything moved.
	Wanted bool
}

// Step is the next step: store Rotation, then Call. While Cordon is true the node takes no new instances; while MoveOff
// is true its instances have a reason to go (NodeExpiring). A machine that was told to go and has not gone in time keeps
// its cordon when the rotation ends: the provider may take it away at any moment, from under whatever has come to it.
type Step struct {
	Rotation        Rotation
	Call            Call
	Cordon, MoveOff bool
	Recheck         time.Time
}

// Next decides the next step of a rotation. A machine that is being removed by somebody else is never given back: its
// instances have to go whatever we want.
func Next(s Seen, l Limits) Step {
	limit := map[Phase]time.Duration{Holding: l.Hold, Surging: l.Surge, Moving: l.Drain, Replacing: l.Replace}
	for p, def := range map[Phase]time.Duration{Holding: 30 * time.Minute, Surging: 30 * time.Minute, Moving: 12 * time.Hour, Replacing: time.Hour} {
		if limit[p] <= 0 {
			limit[p] = def
		}
	}
	r := s.Rotation
	enter := func(p Phase, format string, args ...any) {
		if r.Phase != p {
			r.Phase, r.PhaseStartedAt = p, s.Now
		}
		r.Message = fmt.Sprintf(format, args...)
	}
	if r.Phase == "" {
		r.StartedAt = s.Now
		enter(Holding, "the machine is being held")
	}
	fail := func(p Phase, format string, args ...any) {
		r.FailedIn = r.Phase
		enter(p, format, args...)
	}
	late := limit[r.Phase] > 0 && !s.Now.Before(r.PhaseStartedAt.Add(limit[r.Phase]))
	call := CallNone
	switch {
	case r.Phase.Finished():
	case !s.NodeExists && s.Gone:
		r.FailedIn = "" // it went all the same
		enter(RotDone, "node and machine are gone")
	case r.Phase == Holding && s.Held:
		enter(Surging, "room is being made")
		call = CallSurge
	case r.Phase == Holding && late:
		fail(RotFailed, "the machine was not held")
		call = CallRelease
	case r.Phase == Holding && !s.Wanted && !s.Removing:
		enter(RotFailed, "the machine was not held")
		call = CallRelease
	case r.Phase == Holding:
		call = CallHold
	case !s.Wanted && !s.Removing && s.Moving == 0 && (r.Phase == Surging || r.Phase == Moving):
		enter(GivingBack, "it need not go any more")
		call = CallGiveBack
	default:
		call = forward(s, &r, enter, fail, late)
	}
	step := Step{Rotation: r, Call: call, Recheck: s.Now.Add(time.Minute)}
	if d := limit[r.Phase]; d > 0 && r.PhaseStartedAt.Add(d).After(s.Now) && r.PhaseStartedAt.Add(d).Before(step.Recheck) {
		step.Recheck = r.PhaseStartedAt.Add(d)
	}
	step.Cordon = r.Phase == Surging || r.Phase == Moving || r.Phase == Replacing || r.Phase == RotFailed && r.FailedIn == Replacing
	step.MoveOff = r.Phase == Moving || r.Phase == Replacing
	return step
}

func forward(s Seen, r *Rotation, enter, fail func(Phase, string, ...any), late bool) Call {
	switch r.Phase {
	case Surging:
		switch {
		case s.Surge.Done || s.Removing:
			enter(Moving, "%d instances are being moved off", s.Instances)
			return CallNone
		case late:
			fail(GivingBack, "no room was made in time: %s", s.Surge.Message)
			return CallGiveBack
		}
		r.Message = s.Surge.Message
		return CallSurge
	case Moving:
		switch {
		case s.Instances == 0:
			enter(Replacing, "the machine is being replaced")
			return CallReplace
		case late && !s.Removing && s.Moving == 0:
			fail(GivingBack, "%d instances could not be moved off in time", s.Instances)
			return CallGiveBack
		}
		r.Message = fmt.Sprintf("%d instances are being moved off, %d of them now", s.Instances, s.Moving)
		return CallNone
	case Replacing:
		switch {
		case s.Instances > 0:
			// One slipped in before the cordon was seen: nothing is taken away under it.
			enter(Moving, "%d instances are being moved off", s.Instances)
			return CallNone
		case s.Replace.Left:
			enter(RotDone, "free of databases: %s", s.Replace.Message)
			return CallRelease
		case s.Gone && !s.NodeExists:
			enter(RotDone, "node and machine are gone")
			return CallNone
		case late:
			fail(RotFailed, "the machine is not gone: %s", s.Replace.Message)
			return CallNone
		}
		r.Message = s.Replace.Message
		return CallReplace
	case GivingBack:
		enter(RotFailed, "%s", r.Message)
		return CallRelease
	default:
		return CallNone
	}
}
