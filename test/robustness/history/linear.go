package history

import (
	"math"
	"strings"

	"github.com/anishathalye/porcupine"

	"theseus.dev/theseus/internal/load"
)

// forever is when an operation of unknown outcome returns: after every other one.
const forever = math.MaxInt64

// registerModel is a register: the state is its value.
func registerModel() porcupine.Model {
	return model(func(state int64, o Op) (bool, int64) {
		switch {
		case o.Kind == Write:
			return true, o.Value
		default:
			return o.Got == state, state
		}
	})
}

// ledgerModel is a ledger: the state is its head. A CAS of unknown outcome moves a head that is as it expects, and does
// nothing to another one; that it may also never happen is said by its being open until the end.
func ledgerModel() porcupine.Model {
	return model(func(state int64, o Op) (bool, int64) {
		if o.Outcome == load.Acked && o.Got != state {
			return false, state
		}
		if state == o.Expect {
			return true, o.Value
		}
		return true, state
	})
}

func model(step func(state int64, o Op) (bool, int64)) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(state, input, _ any) (bool, any) {
			ok, next := step(state.(int64), input.(Op))
			return ok, next
		},
		DescribeOperation: func(input, _ any) string { return input.(Op).String() },
	}
}

func modelOf(object string) porcupine.Model {
	if strings.HasPrefix(object, "ledger") {
		return ledgerModel()
	}
	return registerModel()
}

// operations are those that matter to linearizability, by object. Failed ones had no effect, and a Read of unknown
// outcome has told nobody anything.
func operations(ops []Op) map[string][]porcupine.Operation {
	out := map[string][]porcupine.Operation{}
	for _, o := range ops {
		if o.Kind == Glance || o.Outcome == load.Failed || (o.Kind == Read && o.Outcome != load.Acked) {
			continue
		}
		p := porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return}
		if o.Outcome != load.Acked {
			p.Return = forever
		}
		out[o.object()] = append(out[o.object()], p)
	}
	return out
}

// narrow makes a history of one object quicker to check without changing the answer. The search is exponential in the
// number of operations that are open at a time, and one of unknown outcome is open for ever. But every value is written
// once, and every answer of an object says what its value was, so:
//
//   - if an answer shows the value, the operation took effect before that answer was given: it was over by then;
//   - if none does, leaving it out changes nothing. Had it taken effect, nobody looked before the value was written over; and
//     what needs its value as the expected one has, as no answer shows it, no effect that anybody saw either.
//
// An open CAS whose value some visible CAS asks for counts as seen, by when that one was.
func narrow(ops []porcupine.Operation) []porcupine.Operation {
	seen := map[int64]int64{} // value → the earliest return of an answer that shows it
	show := func(value, by int64) (news bool) {
		if before, ok := seen[value]; ok && before <= by {
			return false
		}
		seen[value] = by
		return true
	}
	for _, p := range ops {
		if o := p.Input.(Op); o.Outcome == load.Acked && o.Kind != Write {
			show(o.Got, p.Return)
		}
	}
	for again := true; again; {
		again = false
		for _, p := range ops {
			o := p.Input.(Op)
			if o.Kind != CAS || o.Outcome == load.Acked {
				continue
			}
			if by, ok := seen[o.Value]; ok && show(o.Expect, by) {
				again = true
			}
		}
	}
	var out []porcupine.Operation
	for _, p := range ops {
		if p.Return == forever {
			by, ok := seen[p.Input.(Op).Value]
			if !ok {
				continue
			}
			p.Return = max(by, p.Call)
		}
		out = append(out, p)
	}
	return out
}
