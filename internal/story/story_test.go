package story

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }

func instance(name string, born int, st State) Subject {
	return Subject{Kind: Instance, Name: name, Place: "n1", Born: at(born), State: st}
}

func TestWhatIsNewIsSaidOnce(t *testing.T) {
	c := &Chronicle{}
	old := Reparent{Name: "s-2", Kind: "Planned", Outcome: "Succeeded"}
	require.Empty(t, c.Add(Observation{At: at(0), Subjects: []Subject{instance("a", -60, Primary)}, Reparents: []Reparent{old}}), "what was there before is no news")
	require.Empty(t, c.Add(Observation{At: at(1), Subjects: []Subject{instance("a", -60, Primary)}}))
	news := c.Add(Observation{At: at(2), Term: 3, Subjects: []Subject{instance("a", -60, Standby), instance("b", 1, Joining)}})
	require.Equal(t, []string{"instance b appears on n1"}, news)
	r := Reparent{Name: "s-3", Kind: "Planned", Reason: "Expired", Outcome: "Succeeded", From: "a", To: "b", Unavailable: 120 * time.Millisecond}
	p := Replacement{Name: "r1", Instance: "a", Successor: "b", Reason: "Expired", Phase: "Retiring"}
	o := Observation{At: at(3), Term: 3, Subjects: []Subject{instance("b", 1, Primary)}, Reparents: []Reparent{r}, Replacements: []Replacement{p}, Clients: Clients{Failed: 1, Unknown: 1}}
	require.Equal(t, []string{
		"instance b is the primary, term 3", "instance a is gone, 1m3s old",
		"Planned reparent (Expired): a → b, Succeeded, writes unavailable for 120ms",
		"replacement of a (Expired): Retiring, by b", "clients saw 2 errors",
	}, c.Add(o))
	o.At = at(4)
	require.Empty(t, c.Add(o), "nothing changed")
	require.Equal(t, []string{"b"}, c.Alive(Instance))
}

func TestTheDrawingFitsAndShowsShortPrimaries(t *testing.T) {
	c := &Chronicle{}
	for s := range 600 {
		var subjects []Subject
		for i := range 12 {
			if s >= i*50 && s < i*50+120 {
				st := Standby
				if s == i*50+7 {
					st = Primary
				}
				subjects = append(subjects, instance(fmt.Sprintf("shop-0-abcdefghijklmnopqrstuvw%d", i), i*50, st),
					Subject{Kind: Node, Name: fmt.Sprintf("node-%d", i), Born: at(i * 50), State: Standby})
			}
		}
		c.Add(Observation{At: at(s), Subjects: subjects})
	}
	for _, size := range [][2]int{{80, 24}, {120, 50}, {10, 3}} {
		lines := c.Draw("shop", size[0], size[1])
		require.LessOrEqual(t, len(lines), max(size[1], 16)+1)
		for _, l := range lines {
			require.LessOrEqual(t, len([]rune(l)), max(size[0], 60)+4, l)
		}
	}
	whole := strings.Join(c.Draw("shop", 120, 60), "\n")
	require.Equal(t, 12, strings.Count(whole, "█")-1, "every primary of a second is drawn, and the legend:\n%s", whole)
}

func TestALifelineEndsAndAShortAbsenceIsForgiven(t *testing.T) {
	c := &Chronicle{}
	c.Add(Observation{At: at(0), Subjects: []Subject{instance("a", 0, Standby)}})
	c.Add(Observation{At: at(1)})
	require.Empty(t, c.Alive(Instance))
	c.Add(Observation{At: at(2), Subjects: []Subject{instance("a", 0, Standby)}})
	require.Equal(t, []string{"a"}, c.Alive(Instance))
	c.Add(Observation{At: at(10)})
	l := c.Lifelines(Instance)[0]
	require.Equal(t, 10*time.Second, l.Age(at(100)))
	require.Equal(t, Absent, l.at(at(11)))
	require.Equal(t, Standby, l.at(at(3)))
}

func TestSummary(t *testing.T) {
	c := &Chronicle{}
	c.Add(Observation{At: at(0), Subjects: []Subject{instance("a", -100, Primary)}})
	c.Add(Observation{
		At: at(20), Subjects: []Subject{instance("b", 10, Primary)}, Replacements: []Replacement{{Name: "r", Reason: "Expired", Phase: "Done", Outcome: "Succeeded"}},
		Reparents: []Reparent{{Name: "x", Kind: "Emergency", Reason: "PrimaryDead", Outcome: "Succeeded"}},
	})
	var b strings.Builder
	require.NoError(t, c.Summary(&b, Ending{Acked: 5, Lost: 0, Verified: true, LongestStall: 1234567 * time.Microsecond}))
	for _, want := range []string{"oldest instance ever seen           2m0s", "Expired Succeeded", "Emergency PrimaryDead Succeeded", "1.235s", "lost            0"} {
		require.Contains(t, b.String(), want)
	}
	b.Reset()
	require.NoError(t, c.Summary(&b, Ending{}))
	require.Contains(t, b.String(), "not known")
}
