package lifetime

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestWindowValidate(t *testing.T) {
	require.NoError(t, Window{Start: 0, Length: time.Hour}.Validate())
	require.NoError(t, Window{Start: 23 * time.Hour, Length: 24 * time.Hour}.Validate())
	for _, w := range []Window{{Start: -1, Length: 1}, {Start: 24 * time.Hour, Length: 1}, {Length: 0}, {Length: 25 * time.Hour}} {
		require.Error(t, w.Validate())
	}
}

func TestCalendar(t *testing.T) {
	now := at("2026-11-23T12:00:00Z") // a Monday
	night := Window{Start: 22 * time.Hour, Length: 4 * time.Hour}
	for name, tc := range map[string]struct {
		windows []Window
		now     time.Time
		isOpen  bool
		open    map[string]time.Duration
	}{
		"no windows are always open": {nil, now, true, map[string]time.Duration{
			"2026-11-24T12:00:00Z": 24 * time.Hour, "2026-11-23T11:00:00Z": -time.Hour,
		}},
		"closed until the evening": {[]Window{night}, now, false, map[string]time.Duration{
			"2026-11-23T22:00:00Z": 0, "2026-11-23T23:00:00Z": time.Hour,
			"2026-11-24T02:00:00Z": 4 * time.Hour, "2026-11-24T12:00:00Z": 4 * time.Hour,
			"2026-11-24T22:30:00Z": 4*time.Hour + 30*time.Minute,
		}},
		"yesterday's window reaches into today": {[]Window{night}, at("2026-11-24T01:00:00Z"), true, map[string]time.Duration{
			"2026-11-24T03:00:00Z": time.Hour, "2026-11-24T23:00:00Z": 2 * time.Hour,
		}},
		"only the named days": {[]Window{{Days: []time.Weekday{time.Wednesday}, Start: 0, Length: time.Hour}}, now, false, map[string]time.Duration{
			"2026-11-25T00:00:00Z": 0, "2026-12-01T00:00:00Z": time.Hour, "2026-12-02T00:30:00Z": 90 * time.Minute,
		}},
		"overlapping windows count once": {[]Window{night, {Start: 23 * time.Hour, Length: 4 * time.Hour}}, now, false, map[string]time.Duration{
			"2026-11-24T12:00:00Z": 5 * time.Hour,
		}},
		"adjacent windows are one": {[]Window{{Start: 0, Length: 24 * time.Hour}}, now, true, map[string]time.Duration{
			"2026-11-30T12:00:00Z": 7 * 24 * time.Hour,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCalendar(tc.windows, tc.now, 30*24*time.Hour)
			require.Equal(t, tc.isOpen, c.isOpen())
			for when, want := range tc.open {
				require.Equal(t, want, c.open(at(when).Sub(tc.now)), when)
			}
		})
	}
}

func TestCalendarFollowsTheWallClock(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database")
	}
	// Clocks go back on 2026-10-25: the window opens at 04:00 local on both days, 25 hours apart.
	now := time.Date(2026, 10, 24, 0, 0, 0, 0, berlin)
	c := newCalendar([]Window{{Start: 4 * time.Hour, Length: time.Hour, Location: berlin}}, now, 3*24*time.Hour)
	require.Equal(t, 4*time.Hour, c.spans[0].from)
	require.Equal(t, 29*time.Hour, c.spans[1].from)
}

func TestCalendarAtInvertsOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var windows []Window
		for range rapid.IntRange(1, 3).Draw(t, "windows") {
			w := Window{
				Start:  time.Duration(rapid.IntRange(0, 24*60-1).Draw(t, "start")) * time.Minute,
				Length: time.Duration(rapid.IntRange(1, 24*60).Draw(t, "length")) * time.Minute,
			}
			for d := range 7 {
				if rapid.Bool().Draw(t, "day") {
					w.Days = append(w.Days, time.Weekday(d))
				}
			}
			require.NoError(t, w.Validate())
			windows = append(windows, w)
		}
		now := at("2026-01-01T00:00:00Z").Add(time.Duration(rapid.IntRange(0, 366*24*60).Draw(t, "now")) * time.Minute)
		horizon := 40 * 24 * time.Hour
		c := newCalendar(windows, now, horizon)
		o := time.Duration(rapid.Int64Range(0, int64(max(c.total-1, 0))).Draw(t, "open"))
		if c.total == 0 {
			return
		}
		when := c.at(o)
		require.Equal(t, o, c.open(when))
		require.GreaterOrEqual(t, when, o, "open time is never more than time")
		later := when + time.Duration(rapid.Int64Range(0, int64(horizon-when)).Draw(t, "later"))
		require.GreaterOrEqual(t, c.open(later), o, "monotonous")
		length := time.Duration(rapid.Int64Range(0, int64(horizon)).Draw(t, "length"))
		from := time.Duration(rapid.Int64Range(0, int64(horizon-length)).Draw(t, "from"))
		require.LessOrEqual(t, c.guaranteed(length, horizon), c.open(from+length)-c.open(from))
	})
}
