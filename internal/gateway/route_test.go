package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

type say func(*agentpb.Status)

func status(instance string, term uint64, says ...say) Observation {
	s := &agentpb.Status{
		Instance: instance, Term: term, Role: agentpb.Role_STANDBY,
		Endpoint: &agentpb.Endpoint{Instance: instance, Host: "host-" + instance},
	}
	for _, f := range says {
		f(s)
	}
	return Observation{Status: s, Received: time.Unix(1, 0)}
}

func primary(s *agentpb.Status) { s.Role = agentpb.Role_PRIMARY }
func established(s *agentpb.Status) {
	primary(s)
	s.Established = true
	cohort(1, "x", "y")(s)
}
func promised(term uint64) say   { return func(s *agentpb.Status) { s.Term = term } }
func draining(s *agentpb.Status) { s.Draining = true }
func cohort(acks uint32, members ...string) say {
	return func(s *agentpb.Status) {
		s.Cohort = &agentpb.Cohort{Term: s.GetTerm(), Primary: s.GetInstance(), Members: members, Acks: acks}
	}
}

func TestDecide(t *testing.T) {
	serveA3 := Route{Mode: Serve, Term: 3, Instance: "a", Address: "host-a:5432"}
	for _, tc := range []struct {
		name string
		prev Route
		seen []Observation
		want Route
		why  string // part of it
	}{
		{"nobody heard", Route{}, nil, Route{}, "no instance has been heard"},
		{"standbys only", Route{}, []Observation{status("a", 3), status("b", 3)}, Route{}, "none of 2"},
		{"the usual", Route{}, []Observation{status("a", 3, established), status("b", 3)}, serveA3, ""},
		{"promoted, not established", Route{}, []Observation{status("a", 3, primary)}, Route{}, "none of 1"},
		{
			"a flag without the role",
			Route{},
			[]Observation{status("a", 3, established, func(s *agentpb.Status) { s.Role = agentpb.Role_STANDBY })},
			Route{},
			"none of 1",
		},
		{"no cohort", Route{}, []Observation{status("a", 3, established, func(s *agentpb.Status) { s.Cohort = nil })}, Route{}, "none of 1"},
		{"another's cohort", Route{}, []Observation{status("a", 3, established, func(s *agentpb.Status) { s.Cohort.Primary = "b" })}, Route{}, "none of 1"},
		{
			"being demoted: in the next term already, but primary of its own", serveA3,
			[]Observation{status("a", 3, established, draining, promised(4))},
			Route{Mode: Drain, Term: 3, Instance: "a", Address: "host-a:5432"},
			"planned",
		},
		{
			"demoted, and the next term's primary is there",
			Route{Mode: Drain, Term: 3, Instance: "a", Address: "host-a:5432"},
			[]Observation{status("a", 3, established, draining, promised(4)), status("b", 4, established)},
			Route{Mode: Serve, Term: 4, Instance: "b", Address: "host-b:5432"},
			"",
		},
		{
			"has promised its term away without a drain", serveA3,
			[]Observation{status("a", 3, established, promised(4))},
			Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"},
			"promised",
		},
		{"no term", Route{}, []Observation{status("a", 0, established)}, Route{}, "none of 1"},
		{
			"another port",
			Route{},
			[]Observation{status("a", 3, established, func(s *agentpb.Status) { s.Endpoint.PostgresPort = 7 })},
			Route{Mode: Serve, Term: 3, Instance: "a", Address: "host-a:7"},
			"",
		},
		{"no address", Route{}, []Observation{status("a", 3, established, func(s *agentpb.Status) { s.Endpoint = nil })}, Route{}, "no address"},
		{
			"draining", serveA3,
			[]Observation{status("a", 3, established, draining), status("b", 3)},
			Route{Mode: Drain, Term: 3, Instance: "a", Address: "host-a:5432"},
			"planned",
		},
		{"drained, then taken back", Route{Mode: Drain, Term: 3, Instance: "a", Address: "host-a:5432"}, []Observation{status("a", 3, established)}, serveA3, ""},
		{
			"old claim not withdrawn yet: the higher term wins", serveA3,
			[]Observation{status("a", 3, established), status("b", 4, established)},
			Route{Mode: Serve, Term: 4, Instance: "b", Address: "host-b:5432"},
			"",
		},
		{
			"the same, heard in the other order", serveA3,
			[]Observation{status("b", 4, established), status("a", 3, established)},
			Route{Mode: Serve, Term: 4, Instance: "b", Address: "host-b:5432"},
			"",
		},
		{
			"the higher term is draining already", serveA3,
			[]Observation{status("a", 3, established), status("b", 4, established, draining)},
			Route{Mode: Drain, Term: 4, Instance: "b", Address: "host-b:5432"},
			"planned",
		},
		{
			"never back to a lower term",
			Route{Mode: Hold, Term: 4, Instance: "b", Address: "host-b:5432"},
			[]Observation{status("a", 3, established), status("b", 4)},
			Route{Mode: Hold, Term: 4, Instance: "b", Address: "host-b:5432"},
			"claims term 3, but term 4",
		},
		{
			"two claims to one term",
			Route{},
			[]Observation{status("a", 3, established), status("b", 3, established)},
			Route{},
			"both claim term 3",
		},
		{
			"a second claim to the term served", serveA3,
			[]Observation{status("b", 3, established)},
			Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"},
			"both claim term 3",
		},
		{
			"two claims to a term below do not matter",
			Route{},
			[]Observation{status("a", 3, established), status("b", 3, established), status("c", 4, established)},
			Route{Mode: Serve, Term: 4, Instance: "c", Address: "host-c:5432"},
			"",
		},
		{
			"PostgreSQL died", serveA3,
			[]Observation{status("a", 3, func(s *agentpb.Status) { s.Role = agentpb.Role_STOPPED; s.PostgresExit = "killed" })},
			Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"},
			"has ended: killed",
		},
		{
			"fenced", serveA3,
			[]Observation{status("a", 3, func(s *agentpb.Status) { s.Role = agentpb.Role_STOPPED; s.Fenced = "alone"; s.PostgresExit = "stopped" })},
			Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"},
			"fenced itself: alone",
		},
		{
			"restarted in its term, not confirmed yet", serveA3,
			[]Observation{status("a", 3, primary)},
			Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"},
			"not established yet",
		},
		{"confirmed again", Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"}, []Observation{status("a", 3, established)}, serveA3, ""},
		{
			"one of two members has left: still able to commit", serveA3,
			[]Observation{status("a", 3, established, cohort(1, "b", "c")), status("b", 4)},
			serveA3, "",
		},
		{
			"revoked by all it takes", serveA3,
			[]Observation{status("a", 3, established, cohort(1, "b", "c")), status("b", 4), status("c", 5)},
			Route{Mode: Hold, Term: 3, Instance: "a", Address: "host-a:5432"},
			"revoked",
		},
		{
			"outsiders do not revoke", serveA3,
			[]Observation{status("a", 3, established, cohort(1, "b", "c")), status("b", 4), status("x", 4)},
			serveA3, "",
		},
		{
			"planned: the members leave while the last transactions finish", serveA3,
			[]Observation{status("a", 3, established, draining, cohort(1, "b")), status("b", 4)},
			Route{Mode: Drain, Term: 3, Instance: "a", Address: "host-a:5432"},
			"planned",
		},
		{
			"a primary alone cannot be revoked by others", serveA3,
			[]Observation{status("a", 3, established, cohort(0)), status("x", 9)},
			serveA3, "",
		},
		{
			"silent for long: nothing is known against it", serveA3,
			[]Observation{{Status: status("a", 3, established).Status, Received: time.Unix(-1e6, 0)}, status("b", 3)},
			serveA3, "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Decide(tc.prev, tc.seen)
			if tc.why == "" {
				require.Empty(t, got.Why)
			} else {
				require.Contains(t, got.Why, tc.why)
			}
			got.Why = ""
			require.Equal(t, tc.want, got)
		})
	}
}

// Whatever agents say, in whatever order, the term never falls and nobody is served or drained who does not claim it now.
func TestDecideNeverGoesBack(t *testing.T) {
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		seen := map[string]Observation{}
		var route Route
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			name := rapid.SampledFrom(names).Draw(t, "instance")
			o := status(name, rapid.Uint64Range(0, 6).Draw(t, "term"))
			o.Status.Role = rapid.SampledFrom([]agentpb.Role{agentpb.Role_PRIMARY, agentpb.Role_STANDBY, agentpb.Role_STOPPED}).Draw(t, "role")
			o.Status.Established = rapid.Bool().Draw(t, "established")
			o.Status.Draining = rapid.Bool().Draw(t, "draining")
			if rapid.Bool().Draw(t, "has cohort") {
				cohort(1, names...)(o.Status)
			}
			o.Status.Term += rapid.Uint64Range(0, 2).Draw(t, "promised")
			seen[name] = o
			var all []Observation
			for _, o := range seen {
				all = append(all, o)
			}
			next := Decide(route, all)
			if next.Term < route.Term {
				t.Fatalf("term fell from %v to %v", route, next)
			}
			if route.Term == next.Term && route.Term > 0 && next.Instance != route.Instance {
				t.Fatalf("another instance in the same term: %v, then %v", route, next)
			}
			if next.Mode != Hold {
				claim := seen[next.Instance].Status
				if claim.GetRole() != agentpb.Role_PRIMARY || !claim.GetEstablished() ||
					claim.GetCohort().GetTerm() != next.Term {
					t.Fatalf("%v but it says %v", next, claim)
				}
				if (next.Mode == Drain) != claim.GetDraining() {
					t.Fatalf("%v but draining is %v", next, claim.GetDraining())
				}
			} else if next.Why == "" {
				t.Fatal("held without a reason")
			}
			route = next
		}
	})
}

func TestModeNames(t *testing.T) {
	require.Equal(t, []string{"hold", "drain", "serve"}, []string{Hold.String(), Drain.String(), Serve.String()})
}
