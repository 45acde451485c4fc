package simfleet

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/lifetime"
	"theseus.dev/theseus/internal/replacement"
)

// small is a fleet that a unit test can afford: every trouble of the year within a hundred days.
func small(mode Mode, seed uint64) Config {
	c := Default()
	c.Mode, c.Seed, c.Shards, c.Days = mode, seed, 120, 100
	c.NodeFailures, c.Sicknesses = 2, 1
	c.Troubles = []Trouble{
		{Name: "dark", From: 40 * day, For: 3 * time.Hour, Zone: 1, Dark: true},
		{Name: "short", From: 55 * day, For: 24 * time.Hour, Zone: -1},
		{Name: "long", From: 75 * day, For: 5 * day, Zone: 2},
	}
	return c
}

// problems of a small fleet that are not about its rate, which is too small to be level by the hour.
func problems(r *Report) []string {
	var out []string
	for what := range r.Violations {
		out = append(out, what)
	}
	if _, _, bad := r.Oldest(); bad > 0 {
		out = append(out, "older than allowed without an excuse")
	}
	if r.MissingCopies > 0 {
		out = append(out, "missing copies")
	}
	return out
}

func TestSmallFleets(t *testing.T) {
	for _, mode := range []Mode{Nodes, Instances} {
		for seed := range uint64(3) {
			cfg := small(mode, seed)
			r := Run(cfg)
			require.Empty(t, problems(r), "%s %d", mode, seed)
			require.Greater(t, r.Reparents, 100)
			last := r.hours[len(r.hours)-1]
			require.LessOrEqual(t, last.degraded, 2, "in the end everything is whole but for what just failed")
			require.True(t, last.holds, last.reason)
			frozen := false
			for _, a := range r.announcement {
				frozen = frozen || a.reason == lifetime.Frozen
			}
			require.True(t, frozen || r.Failures[replacement.NoCapacity] < 20, "the shortage was announced")
			require.Positive(t, r.Failures[replacement.NoCapacity], "it was one")
		}
	}
}

func TestWithoutTroubleNothingIsEverOldOrDegradedForLong(t *testing.T) {
	cfg := small(Nodes, 7)
	cfg.Troubles, cfg.NodeFailures, cfg.Sicknesses = nil, 0, 0
	r := Run(cfg)
	require.Empty(t, problems(r))
	oldest, over, _ := r.Oldest()
	require.Zero(t, over)
	require.Less(t, oldest, 28*day, "the reserve is untouched")
	require.Zero(t, r.BelowQuorum)
	for i, h := range r.hours {
		require.Zero(t, h.degraded, "make before break, hour %d", i)
	}
	require.Len(t, r.ByReason, 1)
	require.GreaterOrEqual(t, quantile(r.nodeLives[len(r.nodeLives)/4:], 0.1)/24, 10.0)
}

// Three hours without a zone: what was begun meanwhile is finished, everything else is let off as soon as it is back.
func TestAZoneThatComesBackIsWholeAtOnce(t *testing.T) {
	cfg := small(Nodes, 5)
	cfg.NodeFailures, cfg.Sicknesses, cfg.Days = 0, 0, 50
	cfg.Troubles = cfg.Troubles[:1]
	dark := cfg.Troubles[0]
	r := Run(cfg)
	require.Empty(t, problems(r))
	c := r.ByReason[v1alpha1.ReasonCondemned]
	require.Greater(t, c.Cancelled, cfg.Shards/2)
	during, after := r.hours[int(dark.From/time.Hour)], r.hours[int(dark.End()/time.Hour)+1]
	require.Greater(t, during.degraded, cfg.Shards*9/10)
	require.LessOrEqual(t, after.degraded, cfg.Shards*zones/10, "no more than may be in repair at once")
	require.Zero(t, r.hours[int(dark.End()/time.Hour)+12].degraded)
}

func TestOneSeedGivesOneYear(t *testing.T) {
	table := func(seed uint64) string {
		cfg := small(Nodes, seed)
		cfg.Shards, cfg.Days = 60, 60
		var b bytes.Buffer
		r := Run(cfg)
		r.Print(&b)
		r.RateSVG(&b)
		r.AgesSVG(&b)
		r.OldestSVG(&b)
		r.FlightSVG(&b)
		return b.String()
	}
	require.Equal(t, table(3), table(3))
	require.NotEqual(t, table(3), table(4))
}

// The checks must be able to fail: a fleet that is never told to go gets old, and that is reported.
func TestTheReportNoticesWhatIsWrong(t *testing.T) {
	cfg := small(Nodes, 1)
	cfg.Shards, cfg.Days = 20, 40
	cfg.Troubles = []Trouble{{Name: "never any machine", From: 0, For: 5 * day, Zone: -1}}
	f := newFleet(cfg)
	f.short = [zones]bool{true, true, true}
	f.cfg.Troubles = nil
	f.q.items = nil
	f.q.push(event{at: 1, kind: evTick})
	f.q.push(event{at: 1, kind: evHour})
	for len(f.q.items) > 0 {
		e := f.q.pop()
		if e.at > int64(cfg.Days)*86400 {
			break
		}
		f.now = e.at
		f.handle(e)
	}
	_, over, inexcusable := f.report.Oldest()
	require.Positive(t, over)
	require.Positive(t, inexcusable)
	require.NotEmpty(t, f.report.Problems())
	require.False(t, f.report.hours[len(f.report.hours)-1].holds)
}

func TestPodsGoAnywhereButPreferablyNotWhereTheySoonMoveAgain(t *testing.T) {
	f := newFleet(Config{Seed: 1, Mode: Nodes, PerNode: 2, MaxAge: 8 * day})
	f.now = 30 * 86400
	add := func(age int64, change func(*node)) int32 {
		id := f.newNode(0)
		f.nodes[id].born, f.nodes[id].up = f.now-age*86400, true
		change(&f.nodes[id])
		return id
	}
	plain := func(*node) {}
	lasting := []int32{add(0, plain), add(3, plain), add(7, plain)}
	fading := add(7, func(nd *node) { nd.born-- })
	add(1, func(nd *node) { nd.used = 2 })
	add(1, func(nd *node) { nd.going = true })
	add(1, func(nd *node) { nd.dark = true })
	drawn := map[int32]int{}
	for range 300 {
		drawn[f.room(0)]++
	}
	for _, id := range lasting {
		require.Greater(t, drawn[id], 50, "the old is as good as the young")
	}
	require.Len(t, drawn, len(lasting))
	for _, id := range lasting {
		f.nodes[id].used = 2
	}
	require.Equal(t, fading, f.room(0), "better than none")
	f.nodes[fading].used = 2
	require.Equal(t, int32(-1), f.room(0))
	require.Equal(t, int32(-1), f.room(1))

	f.cfg.Mode = Instances
	f.nodes[fading].used = 0
	f.nodes[lasting[0]].used = 0
	drawn = map[int32]int{}
	for range 300 {
		f.open[0] = []int32{fading, lasting[0]}
		drawn[f.room(0)]++
	}
	require.Greater(t, drawn[fading], 50, "machines that stay have no last eighth")
	f.short[0] = true
	require.Equal(t, int32(-1), f.room(0))
}

func TestQueue(t *testing.T) {
	var q queue
	for _, at := range []int64{5, 1, 3, 1, 9, 1} {
		q.push(event{at: at, id: int32(len(q.items))})
	}
	var got []event
	for len(q.items) > 0 {
		got = append(got, q.pop())
	}
	for i := 1; i < len(got); i++ {
		require.False(t, q.less(got[i], got[i-1]))
	}
	require.Equal(t, []int32{1, 3, 5}, []int32{got[0].id, got[1].id, got[2].id}, "in the order of insertion")
}
