package gateway

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"

	"theseus.dev/theseus/internal/agentapi"
)

func TestNextStep(t *testing.T) {
	for _, tc := range []struct {
		mode            Mode
		paused, overdue bool
		want            steering
	}{
		{Serve, false, false, leave},
		{Serve, true, false, resume},
		{Serve, true, true, resume},
		{Drain, false, false, pause},
		{Drain, true, false, leave},
		{Drain, true, true, resume},
		{Drain, false, true, leave}, // not again, until it has been taken back
		{Hold, false, false, leave}, // an emergency: the hop holds logins, and PAUSE would end them
		{Hold, true, false, leave},  // a planned reparent, between two primaries
		{Hold, true, true, resume},
		{Hold, false, true, leave},
	} {
		t.Run(fmt.Sprintf("%s paused=%v overdue=%v", tc.mode, tc.paused, tc.overdue), func(t *testing.T) {
			require.Equal(t, tc.want, nextStep(tc.mode, tc.paused, tc.overdue))
		})
	}
}

func TestWord(t *testing.T) {
	for _, tc := range []struct {
		mode                Mode
		sent, over, overdue bool
		paused, say         bool
	}{
		{Serve, false, false, false, false, false},
		{Serve, true, true, false, false, false},
		{Hold, true, true, true, false, false}, // nobody to tell
		{Drain, false, false, false, false, false},
		{Drain, true, false, false, false, false},
		{Drain, true, true, false, true, true},
		{Drain, true, true, true, true, true},    // the resume has failed so far
		{Drain, false, false, true, false, true}, // resumed, or never paused: clients are let through
	} {
		t.Run(fmt.Sprintf("%s sent=%v over=%v overdue=%v", tc.mode, tc.sent, tc.over, tc.overdue), func(t *testing.T) {
			paused, say := word(tc.mode, tc.sent, tc.over, tc.overdue)
			require.Equal(t, []bool{tc.paused, tc.say}, []bool{paused, say})
		})
	}
}

func TestSteerAccounts(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	g := newGate(c)
	m := newMetrics(func() float64 { return 0 })
	s := &steer{gate: g, hop: &hop{gate: g}, metrics: m, clock: c, log: slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1)}
	a1 := Route{Mode: Serve, Term: 1, Instance: "a", Address: "a:1"}
	drain := a1
	drain.Mode = Drain
	s.apply(a1)
	require.EqualValues(t, 0, testutil.ToFloat64(m.moves), "the first primary is no move")
	s.hop.open.Store(3)
	s.apply(drain)
	require.EqualValues(t, 0, testutil.ToFloat64(m.cuts))
	c.Step(30 * time.Millisecond)
	s.apply(Route{Mode: Hold, Term: 1, Instance: "a", Address: "a:1", Why: "stopped"})
	require.EqualValues(t, 1, testutil.ToFloat64(m.cuts))
	c.Step(20 * time.Millisecond)
	s.apply(Route{Mode: Serve, Term: 2, Instance: "b", Address: "b:1"})
	s.apply(Route{Mode: Hold, Term: 2, Instance: "b", Address: "b:1", Why: "died"})
	s.apply(Route{Mode: Serve, Term: 2, Instance: "b", Address: "b:1"})
	require.EqualValues(t, 1, testutil.ToFloat64(m.moves))
	require.EqualValues(t, 2, testutil.ToFloat64(m.term))
	require.EqualValues(t, 1, testutil.ToFloat64(m.pauses.WithLabelValues("drain")))
	require.EqualValues(t, 1, testutil.ToFloat64(m.pauses.WithLabelValues("hold")))
	text := strings.NewReader(`
# HELP theseus_gateway_pause_seconds How long new transactions were held, from leaving serve to the next serve.
# TYPE theseus_gateway_pause_seconds histogram
theseus_gateway_pause_seconds_bucket{le="0.025"} 1
theseus_gateway_pause_seconds_bucket{le="0.05"} 2
theseus_gateway_pause_seconds_bucket{le="0.1"} 2
theseus_gateway_pause_seconds_bucket{le="0.15"} 2
theseus_gateway_pause_seconds_bucket{le="0.25"} 2
theseus_gateway_pause_seconds_bucket{le="0.5"} 2
theseus_gateway_pause_seconds_bucket{le="0.8"} 2
theseus_gateway_pause_seconds_bucket{le="1.5"} 2
theseus_gateway_pause_seconds_bucket{le="3"} 2
theseus_gateway_pause_seconds_bucket{le="5"} 2
theseus_gateway_pause_seconds_bucket{le="15"} 2
theseus_gateway_pause_seconds_bucket{le="60"} 2
theseus_gateway_pause_seconds_bucket{le="+Inf"} 2
theseus_gateway_pause_seconds_sum 0.05
theseus_gateway_pause_seconds_count 2
`)
	require.NoError(t, testutil.GatherAndCompare(m.registry, text, "theseus_gateway_pause_seconds"))
}

func TestHealth(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	g := newGate(c)
	h := &health{gate: g, maxPause: 15 * time.Second, clock: c}
	h.answered.Store(c.Now().UnixMilli())
	serve := Route{Mode: Serve, Term: 1, Instance: "a", Address: "a:1"}

	require.NoError(t, h.live())
	require.ErrorContains(t, h.ready(), "not started")
	h.poolerAnswered()
	require.ErrorContains(t, h.ready(), "no primary", "none was ever known")
	g.set(serve)
	require.NoError(t, h.ready())
	g.set(Route{Mode: Hold, Term: 1, Why: "gone"})
	require.NoError(t, h.ready(), "a reparent does not empty the Service")
	for range 16 {
		c.Step(time.Second)
		h.poolerAnswered()
	}
	require.ErrorContains(t, h.ready(), "gone")
	require.NoError(t, h.live(), "a missing primary is no reason to restart")
	g.set(serve)
	require.NoError(t, h.ready())
	c.Step(deafAfter + time.Second)
	require.ErrorContains(t, h.ready(), "not answered")
	require.NoError(t, h.live())
	c.Step(deadAfter)
	require.ErrorContains(t, h.live(), "not answered")
	h.poolerAnswered()
	require.NoError(t, h.ready())
	h.leaving.Store(true)
	require.ErrorContains(t, h.ready(), "shutting down")
	require.NoError(t, h.live())
}

func TestConfig(t *testing.T) {
	valid := func() Config {
		return Config{Shard: agentapi.Shard{Namespace: "n", Name: "s"}, InstancesHost: "s-instances"}
	}
	c := valid()
	require.NoError(t, c.Complete())
	require.Equal(t, "/etc/theseus/tls", c.ClientTLSDir)
	for name, change := range map[string]func(*Config){
		"no shard":      func(c *Config) { c.Shard.Name = "" },
		"nobody to ask": func(c *Config) { c.InstancesHost = "" },
		"pool":          func(c *Config) { c.PoolSize = -1 },
		"pause":         func(c *Config) { c.MaxPause = time.Millisecond },
		"tls":           func(c *Config) { c.ClientTLS = "verify-full" },
	} {
		c := valid()
		change(&c)
		require.Error(t, c.Complete(), name)
	}
}

func TestPoolerConfig(t *testing.T) {
	c := Config{Shard: agentapi.Shard{Namespace: "n", Name: "s"}, InstancesHost: "h", PoolSize: 7, MaxPause: 1500 * time.Millisecond}
	require.NoError(t, c.Complete())
	text := poolerConfig(c)
	for _, line := range []string{
		"* = host=/run/theseus/server port=5432", "default_pool_size = 7", "query_wait_timeout = 2.5", "pool_mode = transaction",
		"client_tls_sslmode = require", "client_tls_key_file = /etc/theseus/tls/tls.key", "auth_type = scram-sha-256",
	} {
		require.Contains(t, "\n"+text, "\n"+line+"\n")
	}
	c.ClientTLS = "disable"
	require.NotContains(t, poolerConfig(c), "client_tls_key_file")
	require.Equal(t, "\"theseus_console\" \"x\"\n\"theseus_gateway\" \"y\"\n", poolerUsers("x", "y"))
}
