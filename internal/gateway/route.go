package gateway

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"theseus.dev/theseus/internal/agentapi"
	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// Mode is what a gateway does with the traffic of its clients.
type Mode int

const (
	// Hold keeps clients waiting: no instance is known to be the established primary. Server connections of whoever
	// was it are cut.
	Hold Mode = iota
	// Drain lets running transactions finish and keeps new ones waiting: the primary is about to be stopped.
	Drain
	// Serve passes traffic to the primary.
	Serve
)

// String names the mode for logs and metrics.
func (m Mode) String() string {
	switch m {
	case Drain:
		return "drain"
	case Serve:
		return "serve"
	default:
		return "hold"
	}
}

// Route says where traffic goes. Its zero value is Hold in no term. Routes are values: two are the same when ==.
type Route struct {
	Mode Mode
	// Term is the highest term this gateway has ever served, and never falls.
	Term uint64
	// Instance that was established in Term, and the address of its PostgreSQL as host:port.
	Instance, Address string
	// Why, for people: the reason of Hold and Drain, empty for Serve.
	Why string
}

// Observation is the last status received from one instance, and when it was received by the gateway's own clock.
// Statuses are kept after their stream has broken.
type Observation struct {
	Status   *agentpb.Status
	Received time.Time
}

// Decide says where traffic goes, from the route so far and the last status of every instance known.
//
// The established primary of the highest term wins. A term is never left for a lower one, and within a term never for
// another instance: there is one established primary per term, so a second claim means that something is badly
// broken, and then holding is the only answer that cannot write to two places.
//
// A claim does not age. When the stream to the primary's agent breaks and nothing else is known, traffic goes on: the
// agent, or the network to it, may be all that is gone (static stability), and if the primary is gone too its successor
// will say so. What ends a claim is the instance's own word, a higher term, or its cohort: once enough members have left
// the term that it can acknowledge nothing any more (revocation, the rule of package quorum), waiting at the gateway is
// better than hanging in a commit that cannot succeed.
func Decide(prev Route, seen []Observation) Route {
	best, second := claims(seen)
	if best == nil {
		return hold(prev, noClaim(prev, seen))
	}
	term := claimed(best)
	switch {
	case term < prev.Term:
		return hold(prev, fmt.Sprintf("instance %s claims term %d, but term %d was established", best.GetInstance(), term, prev.Term))
	case term == prev.Term && prev.Instance != "" && best.GetInstance() != prev.Instance:
		return hold(prev, fmt.Sprintf("instances %s and %s both claim term %d", prev.Instance, best.GetInstance(), term))
	case second != nil && claimed(second) == term:
		return hold(prev, fmt.Sprintf("instances %s and %s both claim term %d", best.GetInstance(), second.GetInstance(), term))
	}
	next := Route{Mode: Serve, Term: term, Instance: best.GetInstance(), Address: address(best)}
	switch {
	case next.Address == "":
		return hold(prev, fmt.Sprintf("instance %s says no address", best.GetInstance()))
	case best.GetDraining():
		// Before revocation: a planned reparent revokes too, while the last transactions are still finishing.
		next.Mode, next.Why = Drain, "a planned reparent is under way"
	case best.GetTerm() > term:
		next.Mode, next.Why = Hold, fmt.Sprintf("primary %s has promised term %d away for term %d", best.GetInstance(), term, best.GetTerm())
	case revoked(best, seen):
		next.Mode, next.Why = Hold, fmt.Sprintf("term %d of primary %s has been revoked", term, best.GetInstance())
	}
	return next
}

// claims gives the established claim of the highest term, and the next one.
func claims(seen []Observation) (best, second *agentpb.Status) {
	for _, o := range seen {
		s := o.Status
		term := claimed(s)
		switch {
		case term == 0:
		case best == nil || term > claimed(best):
			best, second = s, best
		case second == nil || term > claimed(second):
			second = s
		}
	}
	return best, second
}

// claimed is the term that a status claims to be the established primary of, 0 for none. That is the cohort's term, and
// not the status' own, which is the highest that the instance has accepted: a primary that is being demoted has
// promised the next term while it is still what it was in its own. Taking the former for the latter would keep out the
// real primary of the next term.
func claimed(s *agentpb.Status) uint64 {
	cohort := s.GetCohort()
	if s.GetRole() != agentpb.Role_PRIMARY || !s.GetEstablished() || cohort.GetPrimary() != s.GetInstance() {
		return 0
	}
	return cohort.GetTerm()
}

func hold(prev Route, why string) Route {
	return Route{Mode: Hold, Term: prev.Term, Instance: prev.Instance, Address: prev.Address, Why: why}
}

// noClaim explains in the words of the instance that was primary last, when it has any.
func noClaim(prev Route, seen []Observation) string {
	for _, o := range seen {
		s := o.Status
		if s.GetInstance() != prev.Instance || prev.Instance == "" {
			continue
		}
		switch {
		case s.GetFenced() != "":
			return fmt.Sprintf("primary %s has fenced itself: %s", prev.Instance, s.GetFenced())
		case s.GetPostgresExit() != "":
			return fmt.Sprintf("PostgreSQL of primary %s has ended: %s", prev.Instance, s.GetPostgresExit())
		case s.GetRole() == agentpb.Role_PRIMARY:
			return fmt.Sprintf("instance %s is not established yet in term %d", prev.Instance, s.GetTerm())
		}
	}
	if len(seen) == 0 {
		return "no instance has been heard yet"
	}
	return fmt.Sprintf("none of %d instances heard is an established primary", len(seen))
}

// revoked says whether so many members of the primary's cohort are in a higher term that it can acknowledge nothing.
// Terms only rise and are persisted before they are told, so old statuses are as good as new ones here.
func revoked(primary *agentpb.Status, seen []Observation) bool {
	cohort := agentapi.CohortFromPB(primary.GetCohort())
	if cohort == nil || cohort.Acks == 0 {
		return false // of a primary that decides alone, nobody can say but itself
	}
	left := map[string]bool{}
	for _, o := range seen {
		if o.Status.GetTerm() > cohort.Term {
			left[o.Status.GetInstance()] = true
		}
	}
	n := 0
	for _, m := range cohort.Members {
		if left[m] {
			n++
		}
	}
	return n >= cohort.Needed()
}

// address of an instance's PostgreSQL, "" when the status does not tell.
func address(s *agentpb.Status) string {
	ep := s.GetEndpoint()
	if ep.GetHost() == "" {
		return ""
	}
	port := ep.GetPostgresPort()
	if port == 0 {
		port = agentapi.PostgresPort
	}
	return net.JoinHostPort(ep.GetHost(), strconv.Itoa(int(port)))
}
